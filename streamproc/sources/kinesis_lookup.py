"""Looking into a stream at a known place, for whoever gets its records by another way: a Lambda mapping."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Self

from streamproc.leases import Mark, ShardInfo
from streamproc.sources.kinesis_client import KinesisClient, Shard, connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_polling import LIMIT, Pace, Polling
from streamproc.sources.kinesis_positions import number_before
from streamproc.sources.kinesis_records import ALL_KEYS, HashRange, Page

#: Bytes of records that are read once more only to learn whether anything follows them.
_SMALL = 64 * 1024


@dataclass(frozen=True, slots=True)
class Behind:
    """What is there from a record on: the ``oldest`` kept that is not before it, and the one ``following`` that.

    Sequence numbers; ``None`` where there is none. ``complete``: after the records asked about there is nothing.
    """

    oldest: int | None
    following: int | None
    complete: bool


class StreamReader:
    """Reads some of a stream's records. Every method waits for a stream that does not answer."""

    def __init__(self, client: KinesisClient, stream: str, stack: AsyncExitStack) -> None:
        self._client = client
        self._stream = stream
        self._stack = stack
        self._shards: dict[str, Shard] = {}

    @classmethod
    async def connect(cls, stream: str, region: str, endpoint_url: str | None) -> Self:
        """A reader with a client of its own."""
        stack = AsyncExitStack()
        client = await stack.enter_async_context(connected(KinesisConnection(region, endpoint_url)))
        return cls(client, stream, stack)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()

    async def after(self, shard: str, mark: Mark, records: Page) -> Behind:
        """What follows the mark's record; of a few ``records`` that should, also whether they are the last.

        Two requests, for two records of the stream unless those are few.
        """
        small = records.size <= _SMALL
        seen: list[int] = []
        end = False
        limit = min(len(records) + 2, LIMIT) if small else 2
        async with aclosing(Polling(self._client, self._stream, shard, Pace(), limit).pages(mark)) as pages:
            async for page in pages:
                seen += map(int, page.sequences)
                end = page.behind_ms == 0 or page.iterator is None
                if end or len(seen) >= limit:
                    break
        oldest = seen[0] if seen else None
        following = seen[1:] if oldest == mark.sequence else seen
        complete = end and bool(following) and following[-1] == int(records.sequences[-1])
        return Behind(oldest, following[0] if following else None, complete)

    def pages(self, shard: str, mark: Mark) -> AsyncGenerator[Page, None]:
        """Everything from the mark's record on, that record first if it is kept."""
        return Polling(self._client, self._stream, shard, Pace()).pages(mark)

    async def count(self, shard: str, since: Mark, through: int) -> int:
        """The position of the last record that record ``through`` holds, counted from a mark before it."""
        keys = await self.keys(shard)
        return await number_before(
            self._client, self._stream, Shard(ShardInfo(shard), keys, closed=False), through + 1, since
        )

    async def keys(self, shard: str) -> HashRange:
        """The shard's hash keys; all of them where the stream does not list it any more."""
        if shard not in self._shards:
            self._shards = await self._client.shards(self._stream)
        return self._shards[shard].keys if shard in self._shards else ALL_KEYS

    async def kept(self) -> float:
        """Seconds for which the stream keeps records."""
        return float((await self._client.summary(self._stream)).kept)
