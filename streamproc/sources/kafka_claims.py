"""Which partitions of a Kafka topic are ours, and where each stands.

aiokafka tells of assignments from inside its rebalance, where no heartbeat is sent: a claim that waits for
its database there would lose the membership it is for. So a claim runs beside it, as a task that a
revocation cancels. That aiokafka fetches meanwhile does not matter: a partition is paused until its claim
says where it starts, and nothing is handed out of a partition without a reader, which only exists between
the end of a claim and the revocation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from streamproc.errors import Gap, SourceError, UnexpectedPosition
from streamproc.failpoints import failpoint
from streamproc.model import Partition
from streamproc.sources import Listener
from streamproc.sources.kafka_partition import PartitionReader

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Offsets of the oldest record each partition has, and of the next one that committed readers get.

    ``topic_id``: of the topic that they are the offsets of; ``None`` when the broker has no ids.
    """

    first: dict[TopicPartition, int]
    end: dict[TopicPartition, int]
    topic_id: str | None


AskBounds = Callable[[Sequence[TopicPartition]], Awaitable[Bounds]]


class Claims(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Turns assignments into readers, through the listener's claims.

    ``bounds`` asks the brokers until they answer. ``partition`` names partitions as the ledger does.
    ``start``: ``earliest`` or ``latest``, see :class:`~streamproc.sources.kafka.KafkaOptions`. ``compacted``: see
    :class:`PartitionReader`.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        listener: Listener,
        bounds: AskBounds,
        *,
        partition: Callable[[TopicPartition], Partition],
        start: str,
        compacted: bool,
    ) -> None:
        self.consumer = consumer
        self._partition = partition
        self._listener = listener
        self._bounds = bounds
        self._start = start
        self._compacted = compacted
        self._not_let_go: Exception | None = None
        self._between_assignments = True
        #: The claim under way; done or ``None`` when there is none.
        self.claiming: asyncio.Task[None] | None = None
        #: Of the topic as it was claimed.
        self.topic_id: str | None = None
        self.readers: dict[TopicPartition, PartitionReader] = {}
        self.stopped: dict[TopicPartition, SourceError] = {}
        #: Position behind which reading begins, of claimed partitions that nothing was ever committed of.
        self.begins: dict[TopicPartition, int] = {}
        #: How often partitions were assigned.
        self.rebalances = 0

    # -- called by aiokafka --------------------------------------------------------------------------

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Start claiming. Not a coroutine, so that aiokafka's heartbeats begin at once."""
        self.rebalances += 1
        self._between_assignments = False
        self._begin(assigned)

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Close the gates, then let the listener finish what it has."""
        self._between_assignments = True
        await self.abandon()
        if not revoked:
            return
        try:
            await self._listener.revoked([self._partition(tp) for tp in sorted(revoked)])
        except Exception as error:  # aiokafka would only log it; check() raises it
            self._not_let_go = error

    # -- called by the source ------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what the listener raised: of a revocation once, of a claim until the next one begins.

        A claim that somebody else cancelled is made again: :meth:`abandon` forgets the one it cancels.
        """
        if self._not_let_go is not None:
            error, self._not_let_go = self._not_let_go, None
            raise error
        if self.claiming is None or not self.claiming.done():
            return
        if not self.claiming.cancelled():
            self.claiming.result()
        elif not self._between_assignments:
            log.warning("claim_cancelled", why="nothing of this worker did that; claiming again")
            self._begin(self.consumer.assignment())

    async def abandon(self) -> None:
        """Close all gates, and cancel a claim that is under way."""
        self.readers.clear()
        self.stopped.clear()
        self.begins.clear()
        if self.claiming is not None:
            self.claiming.cancel()
            await asyncio.wait({self.claiming})
            self.claiming = None

    async def again(self) -> None:
        """Claim the whole assignment once more; returns when that is done."""
        await self.abandon()
        if self._between_assignments:
            return  # what aiokafka still calls our assignment is being given to others
        self._begin(self.consumer.assignment())
        if self.claiming is not None:
            await asyncio.wait({self.claiming})

    def stop(self, tp: TopicPartition, error: SourceError) -> None:
        """Hand out nothing more of a partition; the others go on."""
        log.error("partition_stopped", partition=str(self._partition(tp)), why=str(error))
        self.readers.pop(tp, None)
        self.stopped[tp] = error
        self.consumer.pause(tp)

    def found(self, topic_id: str | None) -> None:
        """The topic has this id now: if it is another one, nothing more can be handed out."""
        if topic_id not in {None, self.topic_id} and self.topic_id is not None:
            for tp, reader in list(self.readers.items()):
                self.stop(tp, _made_anew(reader.after, reader.partition))

    async def refused(self, tp: TopicPartition, error: KafkaError) -> None:
        """The broker gave ``error`` instead of records. What was fetched before is still handed out."""
        problem: SourceError | None = SourceError(
            f"{self._partition(tp)}: the broker gives no records: {error!r}"
        )
        if isinstance(error, OffsetOutOfRangeError):
            found = await self._bounds([tp])
            reader = self.readers.get(tp)
            through = -1 if reader is None else reader.fetched_through
            problem = _misplaced(through, found.first[tp], found.end[tp], self._partition(tp))
        if problem is not None and (reader := self.readers.get(tp)) is not None:
            reader.end(problem)

    # -- claiming ------------------------------------------------------------------------------------

    def _begin(self, assigned: Iterable[TopicPartition]) -> None:
        self.readers.clear()
        self.stopped.clear()
        self.begins.clear()
        tps = sorted(assigned)
        for tp in tps:
            # Any position will do: it keeps aiokafka from going to the group's committed offset.
            self.consumer.pause(tp)
            self.consumer.seek(tp, 0)
        if tps:
            self.claiming = asyncio.create_task(self._claim(tps, self.claiming), name="claim partitions")

    async def _claim(self, tps: list[TopicPartition], before: asyncio.Task[None] | None) -> None:
        if before is not None:  # or its claim could reach the ledger after ours
            before.cancel()
            await asyncio.wait({before})
        positions = await self._positions(tps)
        found = await self._bounds(tps)
        self.topic_id = found.topic_id
        logs: Mapping[Partition, str] = {}
        if found.topic_id is not None:
            logs = await self._listener.read_from([self._partition(tp) for tp in tps], found.topic_id)
        for tp in tps:
            first, end = found.first[tp], found.end[tp]
            position = positions[self._partition(tp)]
            if position is None:
                position = self.begins[tp] = first - 1
            elif logs.get(self._partition(tp), found.topic_id) != found.topic_id:
                self.stop(tp, _made_anew(position, self._partition(tp)))
                continue
            elif problem := _misplaced(position, first, end, self._partition(tp)):
                self.stop(tp, problem)
                continue
            self.consumer.seek(tp, position + 1)
            self.consumer.resume(tp)
            self.readers[tp] = PartitionReader(self._partition(tp), position, compacted=self._compacted)
        failpoint("seek.done")
        log.info("claimed", partitions=[str(self._partition(tp)) for tp in tps], stopped=len(self.stopped))

    async def _positions(self, tps: Sequence[TopicPartition]) -> Mapping[Partition, int | None]:
        """Claim, and decide where a topic begins that nobody has read; ``None``: with the first record."""
        mine = [self._partition(tp) for tp in tps]
        positions = await self._listener.assigned(mine)
        if self._start == "earliest" or None not in positions.values():
            return positions
        noted = await self._listener.begun(mine)
        if noted is None:
            # Whoever is first decides for all, so it has to know the ends of all, also of those without a leader.
            topic = tps[0].topic
            known = {
                TopicPartition(topic, number) for number in self.consumer.partitions_for_topic(topic) or ()
            }
            found = await self._bounds(sorted(known.union(tps)))
            newest = {self._partition(tp): end - 1 for tp, end in found.end.items()}
            noted = await self._listener.begin_behind(newest, found.topic_id)
        return {each: noted[each] if at is None else at for each, at in positions.items()}


def _made_anew(position: int, partition: Partition) -> SourceError:
    return UnexpectedPosition(
        f"{partition}: everything through offset {position} is read, but of another topic: this one was made "
        "anew since; to read it from its beginning: streamproc offsets set --accept-repeat"
    )


def _misplaced(position: int, first: int, end: int, partition: Partition) -> SourceError | None:
    """Why reading cannot go on after ``position`` in a log of the offsets ``first`` to ``end - 1``."""
    where = f"{partition}: everything through offset {position} is read"
    if position + 1 < first:
        return Gap(
            f"{where}, but the oldest record kept is {first}: {first - position - 1} offsets are gone; "
            f"to go on without them: streamproc offsets set --accept-gap"
        )
    if position + 1 > end:
        return UnexpectedPosition(
            f"{where}, but the log ends before offset {end}: the topic was made anew, or lost records"
        )
    return None
