"""aiokafka's consumer as :mod:`streamproc.sources` sees it, on the simulated broker.

The source, its claims, its gates and its reading of fetch answers are the service's own; so are aiokafka's
``FetchResult``, ``FetchError`` and record batches. What is played here is when aiokafka fetches, joins and
tells its listener.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from streamproc.model import Partition, RecordBatch
from streamproc.sources import Listener, Waiting
from streamproc.sources.kafka import KafkaSource
from tests.simulation.broker import Broker, StoredBatch
from tests.simulation.loop import SimulatedLoop

_HEARTBEAT_EVERY = 1.0
_BACKOFF = 0.3


class _Partition:
    """State of one assigned partition, with the names of aiokafka's TopicPartitionState."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.paused = False

    def consumed_to(self, position: int) -> None:
        self.position = position


class _Assignment:
    def __init__(self, tps: Sequence[TopicPartition]) -> None:
        self.active = True
        self.partitions = {tp: _Partition() for tp in tps}

    def state_value(self, tp: TopicPartition) -> _Partition:
        return self.partitions[tp]


class _Fetcher:
    """aiokafka's answers that wait to be taken, and who waits for them."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._records: dict[TopicPartition, FetchResult | FetchError] = {}
        self._wait_consume_future = loop.create_future()
        self._waiters: list[asyncio.Future[None]] = []
        self.error_future = loop.create_future()
        self._loop = loop

    def _notify(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _create_fetch_waiter(self) -> asyncio.Future[None]:
        self._waiters = [waiter for waiter in self._waiters if not waiter.done()]
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def arrived(self) -> None:
        for waiter in self._waiters:
            self._notify(waiter)
        self._waiters.clear()


async def _knows_no_topic_ids(node: int, request: object) -> None:
    """As a broker before Kafka 2.8: topics here are not made anew."""
    raise NotImplementedError


class SimulatedConsumer:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._loop = broker.loop
        self._fetcher = _Fetcher(self._loop)
        self._assignment = _Assignment([])
        self._member: int | None = None
        self._rejoin = asyncio.Event()
        self._listener: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._coordinator = SimpleNamespace(
            _coordination_task=self._loop.create_future(), check_errors=lambda: None, coordinator_id=0
        )
        self._subscription = SimpleNamespace(fetch_context=_nothing)
        self._client = SimpleNamespace(get_random_node=lambda: 0, send=_knows_no_topic_ids)

    # -- called by the source ------------------------------------------------------------------------

    def subscribe(self, topics: Sequence[str], *, listener: Any) -> None:
        self._listener = listener
        self._tasks = [self._loop.create_task(work()) for work in (self._coordinate, self._fetch, self._beat)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._member is not None:
            with suppress(KafkaError):  # the session ends by itself
                await self._broker.ask(lambda: self._broker.group.leave(self._member))

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._assignment.partitions)

    def pause(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._assignment.state_value(tp).paused = True

    def resume(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._assignment.state_value(tp).paused = False
        self._fetcher._notify(self._fetcher._wait_consume_future)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._assignment.state_value(tp).position = offset

    def last_stable_offset(self, tp: TopicPartition) -> int | None:
        return self._broker.logs[tp].end

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {tp.partition for tp in self._broker.logs}

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        async def look() -> dict[TopicPartition, int]:
            return {tp: self._broker.logs[tp].first for tp in tps}

        answer: dict[TopicPartition, int] = await self._broker.ask(look)
        return answer

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        async def look() -> dict[TopicPartition, int]:
            return {tp: self._broker.logs[tp].end for tp in tps}

        answer: dict[TopicPartition, int] = await self._broker.ask(look)
        return answer

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        async def note() -> None:
            return None

        await self._broker.ask(note)

    # -- what aiokafka does by itself ----------------------------------------------------------------

    async def _coordinate(self) -> None:
        """aiokafka's coordination routine; it swallows what the listener raises."""
        while True:
            self._rejoin.clear()
            try:
                await self._listener.on_partitions_revoked(set(self._assignment.partitions))
            except Exception:
                self._loop.note("a listener raised and aiokafka swallowed it")
            mine = None
            while mine is None:
                try:
                    joined, mine = await self._broker.ask(lambda: self._broker.group.join(self._member))
                    self._member = joined
                except KafkaError:
                    await asyncio.sleep(_BACKOFF)
            self._assignment.active = False
            self._assignment = _Assignment(mine)
            self._fetcher._records = {
                tp: result
                for tp, result in self._fetcher._records.items()
                if tp in self._assignment.partitions
            }
            self._listener.on_partitions_assigned(set(mine))
            await self._rejoin.wait()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_EVERY)
            member = self._member
            if member is None or self._rejoin.is_set():
                continue
            try:
                stays = await self._broker.ask(lambda member=member: self._broker.group.heartbeat(member))
            except KafkaError as error:
                if "unknown member" not in str(error):
                    continue
                if self._member == member:
                    self._member = None
                stays = False
            if not stays:
                self._rejoin.set()

    async def _fetch(self) -> None:
        """Ask for what follows the positions of the partitions that are not paused and have nothing waiting."""
        fetcher = self._fetcher
        while True:
            assignment = self._assignment
            wanted = {
                tp: state.position
                for tp, state in assignment.partitions.items()
                if state.position is not None and not state.paused and tp not in fetcher._records
            }
            if not wanted:
                fetcher._wait_consume_future = self._loop.create_future()
                await asyncio.wait({fetcher._wait_consume_future}, timeout=1.0)
                continue
            try:
                answers = await self._broker.ask(lambda wanted=wanted: self._broker.fetch(wanted))
            except KafkaError:
                await asyncio.sleep(_BACKOFF)
                continue
            for tp, answer in answers.items():
                if not assignment.active or assignment.state_value(tp).position != wanted[tp]:
                    continue  # sought elsewhere meanwhile
                if isinstance(answer, KafkaError):
                    fetcher._records[tp] = FetchError(error=answer, backoff=_BACKOFF)
                else:
                    fetcher._records[tp] = FetchResult(
                        tp,
                        assignment=assignment,
                        partition_records=_records(answer, wanted[tp]),
                        backoff=_BACKOFF,
                    )
            fetcher.arrived()


class _Gate:
    """The source's listener, and which partitions it was told were being taken away."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.begun = listener.begun
        self.begin_behind = listener.begin_behind
        self.read_from = listener.read_from
        self.finished = listener.finished
        self.closed: set[Partition] = set()

    async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        positions = await self._listener.assigned(partitions)
        self.closed -= set(partitions)
        return positions

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        self.closed |= set(partitions)
        await self._listener.revoked(partitions)


class SimulatedSource(KafkaSource):
    """The service's Kafka source with a consumer of the simulated broker.

    ``too_late`` is given what it hands out of partitions that are being taken away, which it may not: see
    :meth:`streamproc.sources.Listener.revoked`.
    """

    def __init__(
        self,
        broker: Broker,
        *arguments: Any,
        listener: Listener,
        waiting: Waiting,
        too_late: list[RecordBatch],
    ) -> None:
        self._gate = _Gate(listener)
        super().__init__(*arguments, self._gate, waiting)
        self._broker = broker
        self._too_late = too_late

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        batches = await super().next(max_records, max_wait)
        self._too_late += [batch for batch in batches if batch.partition in self._gate.closed]
        return batches

    async def _is_compacted(self) -> bool:
        return self._broker.compacted

    async def _connect(self) -> Any:
        return SimulatedConsumer(self._broker)


def _records(batches: Sequence[StoredBatch], position: int) -> Any:
    """As aiokafka's PartitionRecords, as far as ``kafka_fetch.take`` looks into it."""
    aborted = deque((batch.aborted, batch.base) for batch in batches if batch.aborted is not None)
    return SimpleNamespace(
        _records=MemoryRecords(b"".join(batch.data for batch in batches)),
        _aborted_transactions=list(aborted),
        next_fetch_offset=position,
    )


@contextmanager
def _nothing() -> Iterator[None]:
    yield
