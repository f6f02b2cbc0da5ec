"""A Kafka topic in memory: logs of real record batches, a consumer group, fetches that fail and dawdle."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, OffsetOutOfRangeError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.simulation.loop import SimulatedLoop

TOPIC = "clicks"

#: Seconds: a member is put out of the group when its heartbeats stay away this long, or when it takes longer
#: than this to give up its partitions.
SESSION_TIMEOUT = 4.0
REBALANCE_TIMEOUT = 12.0


#: Seconds a fetch waits for something to come.
LONGEST_POLL = 3.0


@dataclass
class StoredBatch:
    """Record batch as bytes; ``records``: what readers get, by offset; ``aborted``: a producer's, to be skipped."""

    base: int
    last: int
    data: bytes
    records: dict[int, bytes | None]
    aborted: int | None = None


@dataclass
class Log:
    """One partition. ``first``: oldest offset kept; ``end``: the next one."""

    batches: list[StoredBatch] = field(default_factory=list)
    first: int = 0
    end: int = 0


class Broker:
    """``trouble``: share of requests that get no answer. ``slow``: longest way of a message, seconds."""

    def __init__(self, loop: SimulatedLoop, partitions: int, *, compacted: bool) -> None:
        self.loop = loop
        self.compacted = compacted
        self.logs = {TopicPartition(TOPIC, number): Log() for number in range(partitions)}
        self.group = Group(self)
        self.trouble = 0.0
        self.slow = 0.005
        self._arrived = asyncio.Event()

    # -- producers -----------------------------------------------------------------------------------

    def append(self, tp: TopicPartition, values: list[bytes | None], time_ms: int, *, abort: bool) -> None:
        """A batch of a transaction that is aborted at once, or an ordinary one. A compacted log may have lost
        some of its records already.
        """
        log, chance = self.logs[tp], self.loop.chance
        kept = dict(enumerate(values))
        if self.compacted and len(kept) > 1 and chance.random() < 0.4:
            del kept[chance.randrange(len(kept))]
        producer = chance.randrange(1, 1000) if abort else -1
        data = _batch(log.end, kept, len(values), time_ms, producer)
        records = {} if abort else {log.end + delta: value for delta, value in kept.items()}
        last = log.end + len(values) - 1
        log.batches.append(StoredBatch(log.end, last, data, records, producer if abort else None))
        log.end = last + 1
        if abort:
            marker = _marker(log.end, producer, time_ms)
            log.batches.append(StoredBatch(log.end, log.end, marker, {}))
            log.end += 1
        self._arrived.set()

    def expire(self, tp: TopicPartition, first: int) -> None:
        """Retention: everything before ``first`` is gone."""
        log = self.logs[tp]
        log.first = max(log.first, min(first, log.end))

    # -- readers -------------------------------------------------------------------------------------

    async def ask(self, work: Any) -> Any:
        """A request to the broker and its answer. Raises KafkaError."""
        answer = self.loop.create_future()

        def settle(outcome: Any) -> None:
            if answer.done():
                return
            if isinstance(outcome, KafkaError):
                answer.set_exception(outcome)
                answer.exception()
            else:
                answer.set_result(outcome)

        async def serve() -> None:
            if self.loop.chance.random() < self.trouble:
                await asyncio.sleep(self.loop.chance.choice([0.01, 1.0]))
                settle(KafkaConnectionError("no answer"))
                return
            try:
                outcome = await work()
            except KafkaError as error:
                outcome = error
            self._later(lambda: settle(outcome))

        self._later(lambda: self.loop.spawn(serve()))
        return await answer

    def _later(self, act: Callable[[], object]) -> None:
        seconds = self.loop.chance.uniform(0, self.slow)
        self.loop.call_later(seconds, act, context=self.loop.world.context.copy())

    async def fetch(self, positions: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        """Some batches of each partition that has something at its position, or an error."""
        answers = self._now(positions)
        if not answers:
            self._arrived.clear()
            try:
                async with asyncio.timeout(LONGEST_POLL):
                    await self._arrived.wait()
            except TimeoutError:
                return {}
            answers = self._now(positions)
        return answers

    def _now(self, positions: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        answers: dict[TopicPartition, Any] = {}
        for tp, position in positions.items():
            log = self.logs[tp]
            if position < log.first or position > log.end:
                answers[tp] = OffsetOutOfRangeError(str(tp))
                continue
            there = [batch for batch in log.batches if batch.last >= position]
            if there:
                answers[tp] = there[: self.loop.chance.randrange(1, 4)]
        return answers


class Group:
    """The coordinator of the consumer group."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._loop = broker.loop
        self._members: dict[int, float] = {}  # last heartbeat
        self._joining: dict[int, asyncio.Future[list[TopicPartition]]] = {}
        self._number = 0
        self._forming: asyncio.Task[None] | None = None
        self.rebalances = 0
        self._loop.spawn(self._expel())

    async def join(self, member: int | None) -> tuple[int, list[TopicPartition]]:
        """Wait for the others; the member's number and its partitions."""
        if member is None or member not in self._members:
            self._number += 1
            member = self._number
        self._members[member] = self._loop.time()
        mine = self._joining[member] = self._loop.create_future()
        self.rebalance()
        return member, await mine

    async def heartbeat(self, member: int) -> bool:
        """Whether the member may stay as it is. Raises KafkaError when it is none."""
        if member not in self._members:
            raise KafkaError("unknown member")
        self._members[member] = self._loop.time()
        return self._forming is None

    async def leave(self, member: int) -> None:
        self._joining.pop(member, None)
        if self._members.pop(member, None) is not None:
            self.rebalance()

    def rebalance(self) -> None:
        """Everybody has to join again."""
        if self._forming is None or self._forming.done():
            self._forming = self._loop.spawn(self._form())

    async def _form(self) -> None:
        deadline = self._loop.time() + REBALANCE_TIMEOUT
        await asyncio.sleep(self._loop.chance.uniform(0.1, 1.0))
        while self._members.keys() - self._joining.keys() and self._loop.time() < deadline:
            await asyncio.sleep(0.25)
        for member in sorted(self._members.keys() - self._joining.keys()):
            del self._members[member]
        joined, self._joining = self._joining, {}
        self._forming = None
        self.rebalances += 1
        members = sorted(joined)
        shares: dict[int, list[TopicPartition]] = {member: [] for member in members}
        for tp in sorted(self._broker.logs) if members else ():
            shares[self._loop.chance.choice(members)].append(tp)
        self._loop.note(f"group {[(member, [tp.partition for tp in tps]) for member, tps in shares.items()]}")
        for member, future in joined.items():
            if not future.done():
                future.set_result(shares[member])

    async def _expel(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            gone = [
                m
                for m, seen in self._members.items()
                if self._loop.time() - seen > SESSION_TIMEOUT and m not in self._joining
            ]
            for member in gone:
                del self._members[member]
            if gone:
                self.rebalance()


def _batch(base: int, values: dict[int, bytes | None], span: int, time_ms: int, producer: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, producer >= 0, producer, 0, 0, 1 << 24)
    for delta, value in values.items():
        builder.append(delta, time_ms, None, value, [])
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    struct.pack_into(">i", batch, 23, span - 1)  # last offset delta, also where compaction took the last
    return _signed(batch)


def _marker(base: int, producer: int, time_ms: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 1, producer, 0, 0, 1 << 10)
    builder.append(0, time_ms, struct.pack(">hh", 0, 0), struct.pack(">hi", 0, 0), [])
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    batch[22] |= 0x20  # control
    return _signed(batch)


def _signed(batch: bytearray) -> bytes:
    struct.pack_into(">I", batch, 17, calc_crc32c(bytes(batch[21:])))
    return bytes(batch)
