"""Reads what aiokafka has fetched without building a ``ConsumerRecord`` for each record.

aiokafka's fetcher (``aiokafka/consumer/fetcher.py``) keeps each partition's last answer, still compressed,
in a dictionary and drops it into ``getmany``, which makes an object of 12 fields of every record: 3 µs
each, six times the cost of decompressing and walking it. Everything private that is touched for this is in
this module, and ``tests/sources/test_aiokafka_contract.py`` fails when a release of aiokafka moves it.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import aiokafka.consumer.fetcher
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from streamproc.errors import DependencyError, SourceError

#: Key of a control record: int16 version, int16 type; type 0 ends a transaction by aborting it.
_ABORT = b"\x00\x00"

_BEYOND_ANY_LOG = 1 << 62

#: A record batch begins with its base offset (8 bytes) and its length from there on (4 bytes).
_BATCH_LENGTH = struct.Struct(">8xi")


class KeptRecords(MemoryRecords):  # type: ignore[misc]  # final in its stub, not in fact
    """A fetch's record batches that keep the bytes they are read from, for the compiled walk over their records."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = memoryview(data)
        self._at = 0

    def next_bytes(self) -> memoryview:
        """The bytes of the batch that ``next_batch`` gives next."""
        end = self._at + _BATCH_LENGTH.size + _BATCH_LENGTH.unpack_from(self._data, self._at)[0]
        found = self._data[self._at : end]
        self._at = end
        return found


# The fetcher makes them by this name, and has no other place to say so.
aiokafka.consumer.fetcher.MemoryRecords = KeptRecords


class Stored(NamedTuple):
    """A record batch as aiokafka reads it, and its bytes where they were kept."""

    batch: Any
    data: memoryview | None


def stored_batches(records: Any) -> Iterator[Stored]:
    """The record batches of aiokafka's ``MemoryRecords``. Raises what it raises on a batch it cannot make out."""
    while records.has_next():
        data = records.next_bytes() if isinstance(records, KeptRecords) else None
        yield Stored(records.next_batch(), data)


class Fetched:
    """One partition's part of one fetch answer: record batches, not decompressed yet.

    ``next`` gives them in order and says which are to be read: control batches and those of aborted
    transactions are not. ``size``: in bytes. ``through``: the last offset it covers, -1 when it is empty.
    """

    __slots__ = ("_aborted", "_aborting", "_batches", "size", "through")

    def __init__(self, batches: deque[Stored], aborted: list[tuple[int, int]], size: int) -> None:
        self._batches = batches
        self._aborted = deque(sorted(aborted, key=lambda transaction: transaction[1]))
        self._aborting: set[int] = set()
        self.size = size
        self.through: int = batches[-1].batch.next_offset - 1 if batches else -1

    def __len__(self) -> int:
        return len(self._batches)

    def next(self) -> tuple[Stored, bool]:
        """The next batch and whether its records are visible to readers of committed data."""
        stored = self._batches.popleft()
        batch = stored.batch
        producer = batch.producer_id
        if producer is None:  # a batch of Kafka before 0.11: neither transactions nor control records
            return stored, True
        while self._aborted and self._aborted[0][1] <= batch.base_offset:
            self._aborting.add(self._aborted.popleft()[0])
        if batch.is_control_batch:
            for record in batch:
                if record.key is not None and record.key[2:4] == _ABORT:
                    self._aborting.discard(producer)
            return stored, False
        return stored, not (batch.is_transactional and producer in self._aborting)


def take(consumer: AIOKafkaConsumer, partition: TopicPartition) -> Fetched | KafkaError | None:
    """Take what was fetched of a partition, and let the next fetch begin; ``None`` if there is nothing.

    The consumer's position moves to the end of it. An error the broker gave for the partition is returned.
    """
    fetcher = consumer._fetcher
    result = fetcher._records.get(partition)
    if result is None:
        return None
    del fetcher._records[partition]
    fetcher._notify(fetcher._wait_consume_future)
    if isinstance(result, FetchError):
        error: KafkaError = result._error
        return error
    assert isinstance(result, FetchResult)
    fetched = result._partition_records
    # A generator that was never begun and holds the object that holds it: the answer's bytes would stay until the
    # garbage collector comes by, some three hundred answers later.
    fetched._records_iterator = None
    # False when the partition was revoked, paused or sought elsewhere since: then it is not ours to read.
    if not result.check_assignment(partition):
        return None
    records = fetched._records
    try:
        batches = deque(stored_batches(records))
    except CorruptRecordException as corrupt:
        return corrupt
    taken = Fetched(batches, fetched._aborted_transactions, records.size_in_bytes())
    if taken:
        fetched.next_fetch_offset = taken.through + 1
        result._update_position()
    return taken


async def wait_for_fetch(consumer: AIOKafkaConsumer, seconds: float, *others: asyncio.Future[Any]) -> None:
    """Return when something was fetched, one of ``others`` is done, or the ``seconds`` are over.

    Raises :class:`DependencyError` for what the group's coordinator holds against us.
    """
    waiter = consumer._fetcher._create_fetch_waiter()
    try:
        await asyncio.wait({waiter, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiter.done():
            waiter.result()
    except KafkaError as error:
        raise DependencyError("Kafka consumer group", repr(error)) from error
    finally:
        waiter.cancel()


async def high_watermarks(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """The next offset of each partition, as the fetch answers of the embedded broker tell it.

    Asked with ListOffsets, as everybody does, it answers with the first offset of the newest batch plus one.
    It has one node and takes any fetch offset; Apache Kafka would refuse this one.
    """
    topics: dict[str, list[tuple[int, int, int]]] = {}
    for tp in partitions:
        topics.setdefault(tp.topic, []).append((tp.partition, _BEYOND_ANY_LOG, 1))
    request = FetchRequest(1, 1, 1 << 20, 0, list(topics.items()), rack_id="")
    node = consumer._client.cluster.leader_for_partition(partitions[0])
    answer = await consumer._client.send(node, request)
    return {
        TopicPartition(topic, number): high_watermark
        for topic, found in answer.topics
        for number, _, high_watermark, *_ in found
    }


def polling(consumer: AIOKafkaConsumer) -> AbstractContextManager[None]:
    """Within it the consumer counts as alive; one that stays out of it too long is put out of the group."""
    context: AbstractContextManager[None] = consumer._subscription.fetch_context()
    return context


def has_coordinator(consumer: AIOKafkaConsumer) -> bool:
    """Whether the group's coordinator is known: aiokafka asks for it until there is one, and only logs that."""
    return consumer._coordinator.coordinator_id is not None


def check(consumer: AIOKafkaConsumer) -> None:
    """Raise what aiokafka's background tasks have to say.

    :class:`DependencyError`: not allowed, for instance; they try again when the caller comes back.
    :class:`SourceError`: one of them has died, so this consumer will never deliver again.
    """
    dead = [consumer._fetcher.error_future, consumer._coordinator._coordination_task]
    for task in dead:
        if task.done():
            cause = None if task.cancelled() else task.exception()
            raise SourceError(f"aiokafka's background task ended: {cause!r}") from cause
    try:
        consumer._coordinator.check_errors()
    except KafkaError as error:
        raise DependencyError("Kafka consumer group", repr(error)) from error
