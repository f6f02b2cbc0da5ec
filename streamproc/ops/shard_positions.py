"""Where an operator may put the position of a shard, and what that would skip or repeat.

A shard's records have the numbers that were counted when they were read. Going back is going to one of those.
Going on to records that were never counted is going to a new number, beyond all that are known, which is
bound to the first of those records.
"""

from __future__ import annotations

from typing import NamedTuple

from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.leases import Mark
from streamproc.ledger import Ledger
from streamproc.ledger.shards import Shards
from streamproc.model import Partition
from streamproc.sources.kinesis_client import connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_positions import first_sequence, number_before


class Place(NamedTuple):
    """A position, with the mark that it needs if it is a new number. ``last``: the newest known number.

    ``ended``: the stream has forgotten the shard, so nothing can follow the position.
    """

    position: int
    mark: Mark | None
    last: int
    ended: bool = False


async def place(
    connection: KinesisConnection,
    ledger: Ledger,
    partition: Partition,
    committed: int | None,
    where: Mark | int | str,
) -> Place:
    """What ``where`` means: a position, ``earliest``, ``latest``, or the place of a mark (a time).

    ``committed``: where the shard stands. ``earliest`` is the oldest record kept, to go past a gap. A shard that the
    stream has forgotten ends, wherever it is put: what was made from it can then begin.

    Raises :class:`ConfigError` for a shard that nobody has read, a position from which no record can be found any
    more, or an ``earliest`` that would not be past a gap.
    """
    shards = Shards(ledger.database, ledger.stream, partition.source, ledger.worker, 0.0)
    newest = await shards.newest(partition.id)
    if newest is None:
        problem, fix = (
            "nobody has ever read such a shard",
            "Ask `streamproc offsets show` for those there are",
        )
        raise ConfigError([Mistake(str(partition), problem, fix)])
    # Marks come a little later than commits.
    last = max(newest.position, -1 if committed is None else committed)
    fresh = last + 1
    async with connected(connection) as client:
        listed = (await client.shards(partition.source)).get(partition.id)
        if isinstance(where, int):
            await _refuse_unreachable(shards, partition, where, there=listed is not None)
            return Place(where, None, last)
        if listed is None or where == "latest":
            mark = Mark(fresh, None, True, await shards.now_ms())
            return Place(fresh, mark, last, ended=listed is None)
        mark = where if isinstance(where, Mark) else Mark(fresh)
        sequence = await first_sequence(client, partition.source, partition.id, mark)
        if sequence is None:
            return Place(fresh, mark._replace(position=fresh, inclusive=True), last)
        furthest = await shards.furthest(partition.id)
        unread = furthest is None or sequence > furthest
        if where == "earliest" and not unread:
            problem = "what was read last is still there, so no record is missing"
            raise ConfigError([Mistake(str(partition), problem, "Give a position, or a time, to read again")])
        since = newest if unread else await shards.before(partition.id, sequence)
        if since is None:
            hint = "no mark is kept that is old enough; give a position"
            raise DependencyError("ledger", f"{partition}: the number of that record is not known", hint)
        if where != "earliest" and (not unread or newest.position < last):
            counted = await number_before(client, partition.source, listed, sequence, since)
            if counted <= last:
                return Place(counted, None, last)
        return Place(fresh, Mark(fresh, sequence, True), last)


async def _refuse_unreachable(shards: Shards, partition: Partition, where: int, *, there: bool) -> None:
    """Raise :class:`ConfigError` for a number whose following record nobody could find."""
    if not there:
        problem = "the stream does not have this shard any more, so nothing of it can be read again"
        fix = "Write latest: the shard then ends here, and those that were made from it begin"
        raise ConfigError([Mistake(str(partition), problem, fix)])
    oldest = await shards.oldest(partition.id)
    if oldest is None or where < oldest:
        problem = f"position {where} is older than every place of a record that is still known"
        raise ConfigError([Mistake(str(partition), problem, f"Give one from {oldest} on, or a time")])
