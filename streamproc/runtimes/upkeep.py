"""Periodic work beside the pipeline: load the warehouse, sweep, merge small objects, delete what expired.

Every worker does it; several at once do no harm (the loader locks, the sweep is idempotent, one compactor of a
stream works at a time, and one deletes rows of tables).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import DependencyError, StreamprocError
from streamproc.ledger import Ledger
from streamproc.ledger.retention import expire_rejects, forget_notes, forget_redrives, forget_swept
from streamproc.model import Partition
from streamproc.runtimes import expiry
from streamproc.runtimes.compaction import Compactor
from streamproc.runtimes.compaction_process import NotCompacted, Order, compact_apart
from streamproc.runtimes.endpoints import Endpoints
from streamproc.sinks.loader import Loader
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.warehouse import warehouse_of
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.log_store import LogConnection
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Seconds between two runs.
LOAD_EVERY = 10.0
SWEEP_EVERY = 300.0
EXPIRE_EVERY = 60.0
RETAIN_EVERY = 600.0


class Upkeep:
    """The periodic work of one worker, on the endpoints it has."""

    def __init__(
        self,
        topology: Topology,
        ledger: Ledger,
        store: ObjectStore | None,
        summaries: Summaries,
        endpoints: Endpoints,
    ) -> None:
        assert endpoints.broker is not None
        #: Work whose last turn failed, and the Unix time at which the warehouse had everything committed.
        self.failing: set[str] = set()
        self.loaded: float | None = None
        self._standing: set[Partition] = set()
        self._broker = endpoints.broker
        self._logs = isinstance(endpoints.broker, LogConnection)
        self._topology = topology
        self._ledger = ledger
        self._store = store
        self._summaries = summaries
        self._sweeps = store is not None and endpoints.settings.sweep == "on"
        self._endpoints, self._settings = endpoints, endpoints.settings
        self._loader: Loader | None = None
        self._compactor: Compactor | None = None
        self._warehouse = warehouse_of(topology, endpoints.warehouse) if store is not None else None
        if self._warehouse is not None and store is not None:
            self._loader = Loader(ledger, self._warehouse, store)

    async def open(self) -> None:
        """Connect the warehouse and create its tables."""
        if self._warehouse is not None:
            await self._warehouse.open()
            await self._warehouse.ensure(self._topology.columns)

    async def close(self) -> None:
        """Disconnect."""
        if self._warehouse is not None:
            await self._warehouse.close()

    @property
    def loads(self) -> bool:
        """Whether there is a warehouse to load."""
        return self._loader is not None

    async def run(self) -> None:
        """Until cancelled. A failure is logged and the work is tried again at its next turn."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(EXPIRE_EVERY, "expire", self.expire))
            if self._sweeps:
                group.create_task(self._every(SWEEP_EVERY, "sweep", self.sweep))
            if self._compacts():
                group.create_task(self._every(self._settings.compact_every, "compact", self.compact))
            if self._elsewhere and self._topology.retention.events is not None:
                log.info(
                    "not_expiring", why="the page has a warehouse and this worker knows none: its loader does"
                )
            group.create_task(self._every(RETAIN_EVERY, "retain", self.retain))
            if self._loader is not None:
                group.create_task(self._every(LOAD_EVERY, "load", self.load))

    async def load(self) -> None:
        """Load the committed objects that the warehouse does not have yet."""
        if self._loader is not None:
            begin = time.time()
            await self._loader.load_new()
            self.loaded = begin

    async def finish(self) -> None:
        """Connect, load what is left, disconnect: for a run that has an end."""
        if self._loader is not None:
            assert self._store is not None
            await self._ledger.open()
            try:
                await self._store.open()
                await self.open()
                await self._loader.run_once()
            finally:
                await self.close()
                await self._store.close()
                await self._ledger.close()

    async def sweep(self) -> None:
        """Delete objects that were never committed."""
        assert self._store is not None
        swept = await self._ledger.sweep(self._store)
        log.debug("swept", objects=swept)

    async def compact(self) -> None:
        """Merge the small objects of hours that are over."""
        assert self._store is not None
        if self._compactor is None:
            self._compactor = Compactor(self._topology, self._ledger, self._store, self._warehouse)
        if not await self._compactor.due():
            return
        conninfos, known = (self._endpoints.ledger, self._endpoints.warehouse), self._compactor.unmergeable
        answer = await compact_apart(Order(self._topology, self._settings, *conninfos, known))
        self._compactor.unmergeable = answer.unmergeable
        if answer.failed is not None:
            raise NotCompacted(answer.failed)
        if (report := answer.report) is not None and report.runs:
            log.info("compacted", objects=report.objects_before, into=report.objects_after, rows=report.rows)

    async def retain(self) -> None:
        """Let go of the lake's objects and the ledger's history that the page keeps no longer.

        Not of events' objects where somebody else loads a warehouse: only its loader knows what it still needs.
        """
        database, stream, kept = self._ledger.database, self._topology.name, self._topology.retention
        events = rejects = 0
        if kept.rejects is not None:
            rejects = await expire_rejects(database, stream, kept.rejects)
        if kept.rejects is not None and self._topology.topic.retention is not None:
            longest = max(kept.rejects, self._topology.topic.retention)
            await forget_redrives(database, stream, timedelta(microseconds=longest))
        if kept.history is not None:
            await self._ledger.forget(timedelta(microseconds=kept.history))
        await forget_swept(database, stream)
        await self._forget_notes()
        if kept.events is not None and not self._elsewhere:  # last: it asks the warehouse, which may be away
            clock = await self._clock()
            events = await expiry.expire_events(self._ledger, self._topology, clock, self._warehouse)
        log.debug("retained", expired_events=events, expired_rejects=rejects)

    async def _forget_notes(self) -> None:
        """Let go of what an earlier page wanted to be published, and nobody does any more."""
        sinks = self._topology.sinks
        topics = {"events": sinks.publish_events, "rows": sinks.publish_tables}
        kinds = [kind for kind, topic in topics.items() if topic is None]
        tables = [table.name for table in self._topology.tables]
        if notes := await forget_notes(self._ledger.database, self._topology.name, kinds, tables):
            log.warning("not_published", kinds=kinds, notes=notes, why="the page publishes them no more")

    async def expire(self) -> None:
        """Delete summary rows beyond their table's retention, and state no event can change any more.

        One worker of the stream at a time; where another is at it nothing is left to do.

        Logs of any age may come, and each has a clock of its own: the newest event of all says what is beyond
        retention, and state is kept as long as its row.
        """
        clock = await self._clock()
        if clock is None:
            return
        watermark = clock - self._topology.contract.event_time.disorder
        database, what = self._ledger.database, f"streamproc expiry {self._topology.name}"
        async with database.alone(what, "look who else expires rows") as alone:
            if not alone:
                return
            for table in self._topology.tables:
                async with database.connection("expire") as conn:
                    await self._summaries.expire(conn, table.name, watermark, reopening=self._logs)

    def _compacts(self) -> bool:
        """Whether the page wants it, and nobody loads a warehouse that this worker does not know."""
        if self._store is None or not self._topology.sinks.compact:
            return False
        if self._elsewhere:
            log.info("not_compacting", why="the page has a warehouse and this worker knows none")
        return not self._elsewhere

    @property
    def _elsewhere(self) -> bool:
        """Whether the page has a warehouse that this worker does not know."""
        return self._topology.sinks.warehouse and self._warehouse is None

    async def _clock(self) -> int | None:
        """Unix microseconds, never ahead of the database's; ``None`` before the first event."""
        if self._logs:
            place = str(self._broker)
            clock = await expiry.newest(self._ledger, lambda partition: partition.source == place)
            return await expiry.until_now(self._ledger, clock)
        clocks = await expiry.clocks(self._ledger, self._goes_on)
        if standing := expiry.standing(clocks):
            standing -= (gone := await self._gone(standing))
            clocks = {partition: clock for partition, clock in clocks.items() if partition not in gone}
        if standing and standing != self._standing:
            log.warning(
                "not_expiring",
                partitions=sorted(map(str, standing)),
                why="their newest events are more than a day older than those of others",
            )
        self._standing = standing
        return await expiry.until_now(self._ledger, min(clocks.values(), default=None))

    def _goes_on(self, partition: Partition) -> bool:
        """Whether the partition can get events: its clock would otherwise hold back everything for ever."""
        return partition.source == self._topology.topic.name and self._broker.serves(partition.id)

    async def _gone(self, partitions: Collection[Partition]) -> set[Partition]:
        """Those that the topic has no more, because it was made anew with fewer."""
        if not isinstance(self._broker, KafkaConnection):
            return set()
        try:
            async with admin(self._broker) as broker:
                state = await broker.describe(self._topology.topic.name)
        except DependencyError:  # who may read a topic may still not be allowed to ask about it
            return set()
        if state is None:
            return set()
        there = {self._broker.partition(state.name, number) for number in range(state.partitions)}
        return set(partitions) - there

    async def _every(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
                self.failing.discard(name)
            except StreamprocError as error:
                self.failing.add(name)
                log.warning("upkeep_failed", work=name, problem=str(error))
            end_if_cancelled()
            await asyncio.sleep(seconds)
