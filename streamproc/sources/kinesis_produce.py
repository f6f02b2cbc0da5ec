"""Writes records to Kinesis, many at a time: generated events."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from streamproc.sources.kinesis_client import KinesisClient, Shard, connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_polling import Pace, persistently
from streamproc.sources.kinesis_records import hash_key, pack

#: PutRecords takes up to 500 records and 10 MiB, keys included
#: (https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html).
_RECORDS = 500
_BYTES = 5 * 1024 * 1024

#: Bytes of a packed record; the producer library's own default.
_PACKED = 50 * 1024


class _Entry(NamedTuple):
    """A Kinesis record. A packed one has the ``shard`` it is meant for and the ``records`` in it."""

    data: bytes
    key: str
    shard: Shard | None = None
    records: Sequence[tuple[bytes, bytes]] = ()

    def as_argument(self) -> dict[str, object]:
        """As PutRecords takes it."""
        argument: dict[str, object] = {"Data": self.data, "PartitionKey": self.key}
        return argument | ({"ExplicitHashKey": str(self.shard.keys.first)} if self.shard is not None else {})


class KinesisProducer:
    """Sends records to streams, packed as Amazon's producer library does (``packed=False``: one by one).

    At least once: Kinesis has no idempotent producer. Calls follow one another, so records keep their order
    within a shard, but for those that Kinesis refuses out of a call: they are sent again after the others.
    """

    def __init__(self, connection: KinesisConnection, *, packed: bool = True) -> None:
        self._connection = connection
        self._packed = packed
        self._stack = AsyncExitStack()
        self._client: KinesisClient | None = None
        self._shards: dict[str, list[Shard]] = {}
        self._next_keyless = 0

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(connected(self._connection))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def send(
        self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
    ) -> None:
        """Send records; returns when Kinesis has them. ``None`` is sent as no bytes.

        A record without a key goes to any shard. Raises :class:`DependencyError` when there is no such stream.
        """
        pairs = [
            (self._spread() if key is None else key, value or b"")
            for value, key in zip(values, keys or [None] * len(values), strict=True)
        ]
        for call in _calls(await self._entries(topic, pairs)):
            await self._put(topic, call)

    async def flush(self) -> None:
        """Nothing waits: :meth:`send` returns when Kinesis has everything."""

    async def _put(self, topic: str, entries: Sequence[_Entry]) -> None:
        wait = 0.1
        while entries:
            ask = partial(self._put_once, topic, entries)
            entries = await persistently(ask, Pace(), _FINAL)
            if entries:
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    async def _put_once(self, topic: str, entries: Sequence[_Entry]) -> list[_Entry]:
        """One call; returns what has to be sent again."""
        assert self._client is not None, "connect first"
        records = [entry.as_argument() for entry in entries]
        answer: dict[str, Any] = await self._client.call("put_records", StreamName=topic, Records=records)
        again: list[_Entry] = []
        astray: list[tuple[bytes, bytes]] = []
        for entry, outcome in zip(entries, answer["Records"], strict=True):
            if outcome.get("ErrorCode"):
                again.append(entry)
            elif entry.shard is not None and outcome["ShardId"] != entry.shard.info.id:
                # The stream was resharded. Readers leave out what does not belong to the shard it reached.
                self._shards.pop(topic, None)
                reached = (await self._client.shards(topic))[outcome["ShardId"]]
                astray += [pair for pair in entry.records if not reached.keys.holds(hash_key(pair[0]))]
        return again + (list(await self._entries(topic, astray)) if astray else [])

    async def _entries(self, topic: str, pairs: Sequence[tuple[bytes, bytes]]) -> Iterable[_Entry]:
        if not self._packed:
            return (_Entry(value, key.decode("utf-8", "replace")) for key, value in pairs)
        if topic not in self._shards:
            assert self._client is not None, "connect first"
            shards = (await self._client.shards(topic)).values()
            self._shards[topic] = sorted((s for s in shards if not s.closed), key=lambda s: s.keys.first)
        return _pack(pairs, self._shards[topic])

    def _spread(self) -> bytes:
        self._next_keyless += 1
        return b"%d" % self._next_keyless


def _pack(pairs: Iterable[tuple[bytes, bytes]], shards: Sequence[Shard]) -> Iterator[_Entry]:
    """Records of one shard together."""
    starts = [shard.keys.first for shard in shards]
    waiting: list[list[tuple[bytes, bytes]]] = [[] for _ in shards]
    sizes = [0] * len(shards)

    def packed(place: int) -> _Entry:
        records, waiting[place], sizes[place] = waiting[place], [], 0
        return _Entry(pack(records), "a", shards[place], records)

    for key, value in pairs:
        place = bisect_right(starts, hash_key(key)) - 1
        size = len(key) + len(value) + 16
        if waiting[place] and sizes[place] + size > _PACKED:
            yield packed(place)
        waiting[place].append((key, value))
        sizes[place] += size
    for place, records in enumerate(waiting):
        if records:
            yield packed(place)


_FINAL = frozenset({"ResourceNotFoundException", "InvalidArgumentException", "AccessDeniedException"})


def _calls(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    call: list[_Entry] = []
    size = 0
    for entry in entries:
        bytes_ = len(entry.data) + len(entry.key)
        if call and (len(call) == _RECORDS or size + bytes_ > _BYTES):
            yield call
            call, size = [], 0
        call.append(entry)
        size += bytes_
    if call:
        yield call
