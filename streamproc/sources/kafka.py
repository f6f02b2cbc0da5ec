"""A Kafka topic as a :class:`~streamproc.sources.Source`.

aiokafka does group membership and fetching; which record comes next is decided by the positions that the
listener claims (:mod:`streamproc.sources.kafka_claims`). Kafka's committed offsets are written for lag
monitors and never read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from streamproc.concurrency import end_if_cancelled, until_answered
from streamproc.errors import DependencyError, SourceError
from streamproc.model import Partition, RecordBatch
from streamproc.packed import Packed
from streamproc.sources import Listener, Outage, Waiting, kafka_fetch
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_claims import Bounds, Claims
from streamproc.sources.kafka_client import KafkaConnection, words
from streamproc.sources.kafka_partition import PartitionReader
from streamproc.sources.kafka_topic_id import topic_id

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Seconds. Kafka's own default; the embedded broker makes every join wait for half of it.
SESSION_TIMEOUT = 45.0
EMBEDDED_SESSION_TIMEOUT = 6.0

_COPY_TIMEOUT = 5.0

#: Bytes that a fetch's answer has to have, and the milliseconds after which it comes with less. aiokafka has one fetch
#: under way with each broker. Answered whenever there is a record, as by default, records that trickle in cost a round
#: trip for every few of them; and with half a second to wait, also the default, a partition that has much stands still
#: while the others have nothing. The embedded broker is asked as by default.
_FETCH = {"fetch_min_bytes": 64 * 1024, "fetch_max_wait_ms": 100}

#: Bytes of unpacked batches after which an answer takes no more: what waits is packed, and a megabyte of one letter is
#: 4 KiB. An epoch's bytes are counted when the answer is there.
_ANSWER_BYTES = 64 * 1024 * 1024

#: Milliseconds between two looks at how many partitions the topic has. aiokafka's own default is five minutes.
_LOOK_FOR_PARTITIONS = 60_000

#: Seconds. Only a worker that did not fetch meanwhile can miss that its topic is gone: that is an error of
#: the next fetch.
_LOOK_FOR_ANOTHER_TOPIC = 5.0

#: Seconds before a partition that we may not read is asked for again: aiokafka does so at once.
_ASK_AGAIN = 5.0


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How to consume. Times in seconds, sizes in bytes (as fetched, compressed).

    ``start``: ``earliest`` or ``latest``, for a topic that was never read. It is decided once; partitions that come
    later are read from their first record. ``session_timeout``: a member is put out of the group when its heartbeats
    stay away this long (``None``: by the broker's kind).
    ``max_poll_interval``: or when nobody called ``next`` this long. ``rebalance_timeout``: or when its
    ``revoked`` takes longer. ``instance``: static membership, a restart within the session timeout gets the
    same partitions back without a rebalance. ``prefetch``: fetching pauses while this much is waiting.
    """

    group: str
    start: str = "earliest"
    session_timeout: float | None = None
    max_poll_interval: float = 300.0
    rebalance_timeout: float = 60.0
    instance: str | None = None
    max_partition_fetch: int = 4 * 1024 * 1024
    prefetch: int = 16 * 1024 * 1024


class KafkaSource:
    """A member of a consumer group on one topic; see :class:`~streamproc.sources.Source` for its methods.

    ``waiting`` is told what is being waited out.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        options: KafkaOptions,
        listener: Listener,
        waiting: Waiting | None = None,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._options = options
        self._listener = listener
        self._waiting = waiting
        self._turn = 0
        self._look_again = 0.0
        self._membership: Claims | None = None

    async def start(self) -> None:
        """Connect and join the group; waits, as long as it takes, for a broker that has the topic."""
        compacted = await self._until_answered(self._is_compacted)
        consumer = await self._until_answered(self._connect)

        async def persistent_bounds(partitions: Sequence[TopicPartition]) -> Bounds:
            return await self._until_answered(lambda: self._bounds(consumer, partitions))

        start = self._options.start
        claims = Claims(
            consumer,
            self._listener,
            persistent_bounds,
            partition=self._partition,
            start=start,
            compacted=compacted,
        )
        consumer.subscribe([self._topic], listener=claims)
        self._membership = claims

    async def close(self) -> None:
        """Leave the group and disconnect. ``revoked`` is not called: drain first."""
        if self._membership is not None:
            await self._claims.abandon()
            await self._consumer.stop()
            self._membership = None

    @property
    def _claims(self) -> Claims:
        assert self._membership is not None, "start() first"
        return self._membership

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        return self._claims.consumer

    # -- records -------------------------------------------------------------------------------------

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        """See :meth:`streamproc.sources.Source.next`.

        Raises what the listener raised; :class:`DependencyError` when the group refuses us (it may have to be
        joined anew once that is mended); :class:`SourceError` when this consumer is beyond repair.
        """
        deadline = time.monotonic() + max_wait
        with kafka_fetch.polling(self._consumer):
            while True:
                self._claims.check()
                kafka_fetch.check(self._consumer)
                await self._look_for_another_topic()
                await self._collect()
                batches = self._hand_out(max_records)
                left = deadline - time.monotonic()
                if batches or left <= 0:
                    return batches
                claim = self._claims.claiming
                await kafka_fetch.wait_for_fetch(
                    self._consumer, left, *([claim] if claim is not None and not claim.done() else [])
                )

    async def _look_for_another_topic(self) -> None:
        """Every some seconds: is it still the topic that was claimed? A claim looks too."""
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_FOR_ANOTHER_TOPIC
        with suppress(KafkaError, TimeoutError):  # what keeps a broker from answering shows elsewhere
            async with asyncio.timeout(1):
                self._claims.found(await topic_id(self._consumer, self._topic))

    async def _collect(self) -> None:
        """Move what was fetched to the readers, while there is room; the next fetch then begins."""
        waiting, now = self._waiting_bytes, time.monotonic()
        for tp, reader in list(self._claims.readers.items()):
            if reader.paused or waiting >= self._options.prefetch or now < reader.ask_again:
                continue
            fetched = kafka_fetch.take(self._consumer, tp)
            if isinstance(fetched, TopicAuthorizationFailedError):
                self._wait_for_the_right(reader)
            elif isinstance(fetched, KafkaError):
                await self._claims.refused(tp, fetched)
            elif fetched is not None:
                reader.outage.over()
                reader.add(fetched)
                waiting += fetched.size

    def _wait_for_the_right(self, reader: PartitionReader) -> None:
        """Somebody has taken it away, or what knows of rights does not answer: nothing of the partition is lost."""
        reader.ask_again = time.monotonic() + _ASK_AGAIN
        problem = f"does not let us read {reader.partition}"
        error = DependencyError(str(self._connection), problem, "see the topic's access rules")
        log.warning("waiting", on=error.what, problem=error.problem, hint=error.hint)
        if self._waiting is not None:
            self._waiting(error, reader.outage.failed())

    def _hand_out(self, max_records: int) -> list[RecordBatch]:
        batches: list[RecordBatch] = []
        ready = [(tp, reader) for tp, reader in self._claims.readers.items() if not reader.paused]
        if ready:  # who comes first gets the most: take turns
            self._turn = (self._turn + 1) % len(ready)
            ready = ready[self._turn :] + ready[: self._turn]
        left, room = max_records, _ANSWER_BYTES
        for index, (tp, reader) in enumerate(ready):
            share, part = left // (len(ready) - index), room // (len(ready) - index)
            taken = size = 0
            try:
                while (
                    taken < max(share, 1)
                    and left > 0
                    and size < part
                    and (batch := reader.next()) is not None
                ):
                    batches.append(batch)
                    taken += len(batch)
                    size += _held(batch)
            except SourceError as error:
                self._claims.stop(tp, error)
            left -= taken
            room -= size
        return batches

    @property
    def _waiting_bytes(self) -> int:
        return sum(reader.queued_bytes for reader in self._claims.readers.values())

    def pause(self, partitions: Sequence[Partition]) -> None:
        """See :meth:`streamproc.sources.Source.pause`."""
        for tp in map(self._topic_partition, partitions):
            if (reader := self._claims.readers.get(tp)) is not None:
                reader.paused = True
                self._consumer.pause(tp)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """See :meth:`streamproc.sources.Source.resume`."""
        for tp in map(self._topic_partition, partitions):
            if (reader := self._claims.readers.get(tp)) is not None:
                reader.paused = False
                self._consumer.resume(tp)

    # -- positions -----------------------------------------------------------------------------------

    async def reclaim(self) -> None:
        """See :meth:`streamproc.sources.Source.reclaim`. A failure is raised by :meth:`next`."""
        await self._claims.again()

    async def copy_commit(self, positions: Mapping[Partition, int]) -> bool:
        """Commit Kafka offsets: position + 1, the next record to read."""
        offsets = {self._topic_partition(partition): through + 1 for partition, through in positions.items()}
        try:
            async with asyncio.timeout(_COPY_TIMEOUT):
                await self._consumer.commit(offsets)
        except (KafkaError, TimeoutError) as error:  # also: no longer assigned to us
            log.debug("offsets_not_copied", why=repr(error))
            return False
        return True

    async def beginning_positions(self) -> dict[Partition, int]:
        """See :meth:`streamproc.sources.Source.beginning_positions`; all partitions of the topic."""
        found = await self._bounds(self._consumer, self._all_partitions())
        return {self._partition(tp): offset for tp, offset in found.first.items()}

    async def end_positions(self) -> dict[Partition, int]:
        """See :meth:`streamproc.sources.Source.end_positions`; all of the topic while none is assigned to us.

        The newest that readers of committed data get: before the oldest open transaction. Others' partitions are not
        asked for: one of them without a leader would keep the answer back.

        Raises :class:`DependencyError`, also while there is nobody who could assign us any.
        """
        ours = sorted(self._consumer.assignment())
        if not ours and not kafka_fetch.has_coordinator(self._consumer):
            problem = f"has no coordinator of the group {self._options.group}"
            hint = "has the topic __consumer_offsets a leader, and the cluster as many brokers as it wants replicas?"
            raise DependencyError(str(self._connection), problem, hint)
        found = await self._bounds(self._consumer, ours or self._all_partitions())
        return {self._partition(tp): offset - 1 for tp, offset in found.end.items()}

    async def _bounds(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> Bounds:
        try:
            first = await consumer.beginning_offsets(partitions)
            if self._connection.embedded:
                end = await kafka_fetch.high_watermarks(consumer, partitions)
            else:
                end = await consumer.end_offsets(partitions)
            return Bounds(first, end, await topic_id(consumer, self._topic))
        except KafkaError as error:
            raise DependencyError(str(self._connection), f"does not say what it has: {error!r}") from error

    def _all_partitions(self) -> list[TopicPartition]:
        numbers = self._consumer.partitions_for_topic(self._topic) or set()
        return [TopicPartition(self._topic, number) for number in sorted(numbers)]

    @property
    def assignment(self) -> frozenset[Partition]:
        """See :attr:`streamproc.sources.Source.assignment`."""
        return frozenset(self._partition(tp) for tp in self._consumer.assignment())

    @property
    def stopped(self) -> Mapping[Partition, SourceError]:
        """See :attr:`streamproc.sources.Source.stopped`; none while it is joining."""
        claims = self._membership
        return {} if claims is None else {self._partition(tp): why for tp, why in claims.stopped.items()}

    @property
    def begins(self) -> dict[Partition, int]:
        """See :attr:`streamproc.sources.Source.begins`; none while it is joining."""
        claims = self._membership
        return {} if claims is None else {self._partition(tp): at for tp, at in claims.begins.items()}

    @property
    def lag(self) -> dict[Partition, int]:
        """See :attr:`streamproc.sources.Source.lag`; as of the last fetch of each claimed partition."""
        lags = {}
        for tp, reader in self._claims.readers.items():
            if tp in self._consumer.assignment() and (end := self._end(tp)) is not None:
                lags[reader.partition] = max(0, end - 1 - reader.seen)
        return lags

    @property
    def behind(self) -> dict[Partition, float]:
        """Empty: Kafka counts records, not seconds."""
        return {}

    def fetched_newest(self, partition: Partition) -> int | None:
        """The newest position of a claimed partition as of its last fetch; ``None`` before that."""
        if self._membership is None:
            return None
        tp = self._topic_partition(partition)
        if tp not in self._claims.readers or tp not in self._consumer.assignment():
            return None
        end = self._end(tp)
        return None if end is None else end - 1

    def _end(self, tp: TopicPartition) -> int | None:
        """Behind the newest that readers of committed data get, as of the last fetch: nothing of open transactions."""
        stable: int | None = self._consumer.last_stable_offset(tp)
        if stable is not None and stable >= 0:
            return stable
        end: int | None = self._consumer.highwater(tp)  # brokers without transactions say none, or -1
        return end

    @property
    def buffered_bytes(self) -> int:
        """Bytes fetched and not handed out, as the broker compressed them."""
        return 0 if self._membership is None else self._waiting_bytes

    @property
    def rebalances(self) -> int:
        """How often this member was assigned partitions."""
        return 0 if self._membership is None else self._membership.rebalances

    def _partition(self, tp: TopicPartition) -> Partition:
        return self._connection.partition(tp.topic, tp.partition)

    def _topic_partition(self, partition: Partition) -> TopicPartition:
        number = self._connection.number(partition.id)
        assert number is not None, f"{partition} was never ours"
        return TopicPartition(partition.source, number)

    # -- connecting ----------------------------------------------------------------------------------

    async def _is_compacted(self) -> bool:
        async with admin(self._connection) as broker:
            state = await broker.describe(self._topic)
        if state is None:
            hint = "streamproc topics apply creates it"
            raise DependencyError(str(self._connection), f"has no topic {self._topic}", hint)
        return state.compacted

    async def _connect(self) -> AIOKafkaConsumer:
        options = self._options
        by_kind = EMBEDDED_SESSION_TIMEOUT if self._connection.embedded else SESSION_TIMEOUT
        session_timeout = options.session_timeout or by_kind
        consumer = AIOKafkaConsumer(
            **self._connection.client_options(),
            group_id=options.group,
            group_instance_id=options.instance,
            metadata_max_age_ms=_LOOK_FOR_PARTITIONS,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            session_timeout_ms=int(session_timeout * 1000),
            heartbeat_interval_ms=int(min(3.0, session_timeout / 6) * 1000),
            max_poll_interval_ms=int(options.max_poll_interval * 1000),
            rebalance_timeout_ms=int(options.rebalance_timeout * 1000),
            max_partition_fetch_bytes=options.max_partition_fetch,
            **({} if self._connection.embedded else _FETCH),
        )
        try:
            await consumer.start()
        except BaseException as error:
            await consumer.stop()
            if isinstance(error, KafkaError):
                raise DependencyError(str(self._connection), words(error)) from error
            raise  # cancelled
        return consumer

    async def _until_answered(self, act: Callable[[], Awaitable[T]]) -> T:
        outage = Outage()

        def tell(error: DependencyError, attempt: int) -> None:
            end_if_cancelled(error)
            log.warning("waiting", on=error.what, problem=error.problem, attempt=attempt)
            if self._waiting is not None:
                self._waiting(error, outage.failed())

        return await until_answered(act, tell)


def _held(batch: RecordBatch) -> int:
    """Bytes that the batch holds: unpacked as a whole, it has the keys of its records too."""
    values = batch.values
    return len(values.payload) if isinstance(values, Packed) else batch.size
