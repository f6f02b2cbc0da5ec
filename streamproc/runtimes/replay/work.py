"""One worker process of a replay: the live pipeline under the replay's stream name, up to the range's end.

It differs from the service in four things only: it stops exactly where the range ends, it knows the event ids
that live accepted before the range, it takes records that a redrive has sent again for the duplicates they
are, and it publishes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import structlog

from streamproc.concurrency import done_before, end_if_cancelled
from streamproc.errors import DependencyError, Fenced, Gap, LedgerError, SourceError, UnexpectedPosition
from streamproc.ledger import Ledger
from streamproc.ledger.redrives import Redrives
from streamproc.ledger.replays import Replay, Replays
from streamproc.model import CommittedObject, Partition, RecordBatch
from streamproc.pipeline import Limits, Pipeline
from streamproc.progress import Arrivals, PartitionProgress
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.erased import read_erased
from streamproc.runtimes.release import release
from streamproc.settings import Settings
from streamproc.sinks.lake import Lake
from streamproc.sinks.object_store import lake_store
from streamproc.sinks.summaries import Summaries
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.opening import kafka_only
from streamproc.topology import Topology
from streamproc.transform import Resources, Transform
from streamproc.transform.pool import TransformPool

log = structlog.get_logger(__name__)

#: Longest wait for records before the loop looks at the clock again, and between two looks at whether the
#: other workers are done too, seconds.
_MAX_WAIT = 0.1
_LOOK_EVERY = 1.0


class Unfinishable(LedgerError):
    """The topic no longer has what a replay has still to process."""


def page_of(page: Topology, replay: Replay) -> Topology:
    """Today's page under the replay's stream name; it publishes nothing."""
    return replace(
        page, name=replay.namespace, sinks=replace(page.sinks, publish_events=None, publish_tables=None)
    )


async def still_open(replays: Replays, replay: Replay) -> Replay:
    """The replay as it is now.

    Raises :class:`LedgerError` when it was discarded or promoted meanwhile: who has stood still for long would work on
    another of that name, with the page and the range of this one, or from the beginning of the topic.
    """
    found = await replays.still(replay)
    if found.state == "promoted":
        raise LedgerError(f"replay {replay.name} was promoted meanwhile")
    return found


class ReplayLedger(Ledger):
    """The ledger of a replay: what live committed before the range comes before what the replay commits."""

    def __init__(self, conninfo: str, replay: Replay, worker: str) -> None:
        super().__init__(conninfo, replay.namespace, worker)
        self._replay = replay
        self.live = Ledger(conninfo, replay.stream, worker, pool_size=1)

    async def open(self) -> None:
        """Connect."""
        await super().open()
        await self.live.open()

    async def close(self) -> None:
        """Disconnect."""
        await super().close()
        await self.live.close()

    async def recent_objects(self, partition: Partition, since_clock_us: int) -> list[CommittedObject]:
        """Live's objects before the range and the replay's own, as far back as asked, in position order."""
        begin = self._replay.ranges[partition].span.after
        before = await self.live.recent_objects(partition, since_clock_us)
        own = await super().recent_objects(partition, since_clock_us)
        return [each for each in before if each.plan.through <= begin] + own


@dataclass(slots=True)
class ReplayProgress(PartitionProgress):
    """Also drops the records at the positions ``redriven``: their copies stand further on in the topic."""

    redriven: frozenset[int] = frozenset()

    def decide(self, arrivals: Arrivals, rows: slice, disorder: int) -> int:
        """See :meth:`PartitionProgress.decide`; a record that was sent again counts as a duplicate."""
        again = 0
        if self.redriven:
            positions = arrivals.events["position"][rows].to_numpy()
            found = np.isin(positions, np.fromiter(self.redriven, dtype=positions.dtype))
            again = int(found.sum())
            arrivals.kept[rows] &= ~found
        # Not super(): a dataclass with slots is made anew, and super() without arguments knows the old one.
        return again + PartitionProgress.decide(self, arrivals, rows, disorder)


class ReplayPipeline(Pipeline):
    """The pipeline, with an end for each partition (``limits_of``: committed through here, nothing after)."""

    limits_of: Mapping[Partition, int]
    redrives: Redrives

    async def assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """Claim those that have a range. One without is claimed at its end, so that nothing of it is read."""
        positions = await Pipeline.assigned(self, partitions)
        for partition in partitions:
            look = partial(self.redrives.sent, partition)
            known = self._progress[partition]
            self._progress[partition] = ReplayProgress(
                known.claim,
                known.taken,
                known.clock_us,
                known.recent,
                redriven=await self._until_answered("claim", look),
            )
        return positions

    def cut(self, batches: Sequence[RecordBatch]) -> list[RecordBatch]:
        """The part of the batches that lies before the partitions' ends."""
        return [
            batch if batch.through <= end else _cut(batch, end)
            for batch in batches
            if batch.after < (end := self.limits_of.get(batch.partition, -1))
        ]

    def reached(self) -> list[Partition]:
        """Claimed partitions of which everything is taken."""
        return [
            partition
            for partition, taken in self._submitted.items()
            if (-1 if taken is None else taken) >= self.limits_of.get(partition, -1)
        ]


def _cut(batch: RecordBatch, end: int) -> RecordBatch:
    kept = sum(1 for position in batch.positions if position <= end)
    values = batch.values[:kept]
    return replace(
        batch,
        through=end,
        values=values,
        positions=batch.positions[:kept],
        size=sum(len(value) for value in values if value is not None),
    )


class ReplayWorker:
    """Processes what the group gives it of a replay's partitions, until all workers together are done."""

    def __init__(
        self,
        settings: Settings,
        page: Topology,
        replay: Replay,
        endpoints: Endpoints,
        *,
        pages: Path,
        worker: str,
    ) -> None:
        """``page``: the live one, of today. ``pages``: its folder. Raises :class:`ConfigError`."""
        assert endpoints.broker is not None
        self.settings = settings
        self.topology = page_of(page, replay)
        self._broker = kafka_only(endpoints.broker, "replays run")
        self._store = lake_store(settings)
        self._ledger = ReplayLedger(endpoints.ledger, replay, worker)
        self._replays = Replays(self._ledger.database, replay.stream)
        self._replay = replay
        self._summaries = Summaries(self.topology.tables, self.topology.name)
        self._transform = Transform(self.topology, Resources(os.environ, pages))
        self.pipeline = ReplayPipeline(
            self.topology,
            TransformPool(self._transform),
            ledger=self._ledger,
            lake=Lake(self._store, self.topology),
            summaries=self._summaries,
            limits=Limits(
                flush_interval=settings.flush_interval,
                fold_records=settings.batch_records,
                max_records=settings.max_epoch_records,
                max_bytes=settings.max_epoch_bytes,
                drain_deadline=settings.drain_deadline,
            ),
            claimed=self._claimed,
        )
        self.pipeline.limits_of = {
            partition: each.span.through for partition, each in replay.ranges.items() if not each.span.empty
        }
        self.pipeline.redrives = Redrives(self._ledger.database, replay.stream, worker)
        self._source: KafkaSource | None = None

    async def _claimed(self) -> None:
        """Before any record of a claim: are they this replay's partitions? Who is forgotten?"""
        await still_open(self._replays, self._replay)
        if self.topology.erasure:
            database, stream = self._ledger.database, self._replays.stream
            self._transform.erased = await read_erased(database, stream, self.topology)

    async def run(self, ending: asyncio.Event) -> bool:
        """Work until everything is done, or until ``ending`` is set; returns whether it is done.

        What was taken is committed either way, unless the drain deadline passes. Raises what stopped the work.
        """
        async with AsyncExitStack() as stack:
            await self._ledger.open()
            stack.push_async_callback(self._ledger.close)
            if self._transform.wants_visitor_key:
                self._transform.visitor_key = await self._ledger.visitor_key()
            await self._store.open()
            stack.push_async_callback(self._store.close)
            async with self._ledger.database.connection("create the tables") as conn:
                await self._summaries.ensure(conn)
            try:
                # Whatever it waits for: a broker or a database that is away would have it never end.
                done = await done_before(self._work(), ending)
                await self._drain()
                return done
            finally:
                try:
                    await self._close_source()  # first: a rebalance would claim what was just released
                finally:
                    await release(self.pipeline)

    async def _work(self) -> None:
        """Until everything is processed, by all workers together."""
        await self._start_source()
        loop = asyncio.get_running_loop()
        look_at = 0.0
        while True:
            try:
                await self._step()
            except Fenced as error:
                log.warning("fenced", why=str(error))
                self.pipeline.drop()
                await self._close_source()
                await self._start_source()
            if loop.time() >= look_at:
                if await self._processed():
                    return
                look_at = loop.time() + _LOOK_EVERY

    async def _processed(self) -> bool:
        """Whether everything is; not while the ledger does not say, for which commits wait too."""
        try:
            return (await still_open(self._replays, self._replay)).processed
        except DependencyError as error:
            end_if_cancelled(error)
            log.warning("waiting", on=error.what, problem=error.problem)
            return False

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.settings.drain_deadline):
                await self.pipeline.drain()
        except TimeoutError:
            log.warning("drain_deadline_passed", why="the rest is read again when the replay goes on")
        except Fenced as error:  # whoever has the partition now reads it again
            log.warning("fenced", why=str(error))

    async def _step(self) -> None:
        assert self._source is not None
        batches = await self._source.next(self.settings.batch_records, _MAX_WAIT)
        reached = self.pipeline.reached()
        for partition, error in self._source.stopped.items():
            if partition not in reached:  # of the others nothing is wanted any more
                self._refuse(error)
        await self.pipeline.take(self.pipeline.cut(batches), self.pipeline.generation)
        reached = self.pipeline.reached()
        self._source.pause(reached)
        if reached and len(reached) == len(self.pipeline.partitions):
            await self.pipeline.drain()

    def _refuse(self, error: SourceError) -> NoReturn:
        """Raise it. What that of a live partition says to do would harm the stream."""
        if isinstance(error, Gap | UnexpectedPosition):
            problem = str(error).partition("; ")[0]
            raise Unfinishable(f"{problem}: replay {self._replay.name} cannot be finished") from error
        raise error

    async def _start_source(self) -> None:
        options = KafkaOptions(
            group=f"{self.settings.group}-{self.topology.name}",
            session_timeout=None if self._broker.embedded else self.settings.kafka.session_timeout,
            rebalance_timeout=self.settings.drain_deadline + 15.0,
        )
        self._source = KafkaSource(self._broker, self.topology.topic.name, options, self.pipeline)
        await self._source.start()

    async def _close_source(self) -> None:
        if self._source is not None:
            await self._source.close()
            self._source = None
