"""Which record of a shard comes next at a given place, and what number it has."""

from __future__ import annotations

from streamproc.leases import Mark
from streamproc.sources.kinesis_client import KinesisClient, Shard
from streamproc.sources.kinesis_polling import Pace, Polling
from streamproc.sources.kinesis_records import Page, runs


async def first_sequence(client: KinesisClient, stream: str, shard: str, where: Mark) -> int | None:
    """Sequence number of the first record at the mark's place; ``None`` if there is none as yet.

    Raises :class:`DependencyError` when the stream has no such shard.
    """
    async for page in Polling(client, stream, shard, Pace()).pages(where):
        if len(page):
            return int(page.sequences[0])
        if page.behind_ms == 0:
            return None
    return None


async def number_before(client: KinesisClient, stream: str, shard: Shard, sequence: int, since: Mark) -> int:
    """The position just before the record ``sequence``, counted from the mark ``since``, which is before it.

    Reads everything between the two.
    """
    position = since.position
    async for page in Polling(client, stream, shard.info.id, Pace()).pages(since):
        rows = [row for row, each in enumerate(page.sequences) if _between(int(each), since, sequence)]
        inside = Page(
            [page.values[row] for row in rows],
            [page.sequences[row] for row in rows],
            [page.arrivals[row] for row in rows],
        )
        position += sum(len(run.values) for run in runs(inside, shard.keys))
        if (len(page) and int(page.sequences[-1]) >= sequence) or page.behind_ms == 0:
            break
    return position


def _between(sequence: int, since: Mark, end: int) -> bool:
    after = since.sequence is None or sequence > since.sequence
    return (after or (since.inclusive and sequence == since.sequence)) and sequence < end
