"""Periodic work beside the pipeline: load the warehouse, sweep abandoned objects, delete what expired.

Every worker does it; several at once do no harm (the loader locks, the sweep is idempotent).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import StreamprocError
from streamproc.ledger import Ledger
from streamproc.model import Partition
from streamproc.runtimes.endpoints import Endpoints
from streamproc.sinks.loader import Loader
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.warehouse import Warehouse, layout_of, open_warehouse
from streamproc.sources.log_store import LogConnection
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Seconds between two runs.
LOAD_EVERY = 10.0
SWEEP_EVERY = 300.0
EXPIRE_EVERY = 60.0


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
        self._broker = endpoints.broker
        self._topology = topology
        self._ledger = ledger
        self._store = store
        self._summaries = summaries
        self._warehouse: Warehouse | None = None
        self._loader: Loader | None = None
        if endpoints.warehouse is not None and topology.sinks.warehouse and store is not None:
            self._warehouse = open_warehouse(endpoints.warehouse, topology.name, layout_of(topology))
            self._loader = Loader(ledger, self._warehouse, store) if self._warehouse else None

    async def open(self) -> None:
        """Connect the warehouse and create its tables."""
        if self._warehouse is not None:
            await self._warehouse.open()
            await self._warehouse.ensure(self._topology.columns)

    async def close(self) -> None:
        """Disconnect."""
        if self._warehouse is not None:
            await self._warehouse.close()

    async def run(self) -> None:
        """Until cancelled. A failure is logged and the work is tried again at its next turn."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(EXPIRE_EVERY, "expire", self.expire))
            if self._store is not None:
                group.create_task(self._every(SWEEP_EVERY, "sweep", self.sweep))
            if self._loader is not None:
                group.create_task(self._every(LOAD_EVERY, "load", self.load))

    async def load(self) -> None:
        """Load the committed objects that the warehouse does not have yet."""
        if self._loader is not None:
            await self._loader.load_new()

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

    async def expire(self) -> None:
        """Delete summary rows beyond their table's retention, and state no event can change any more.

        Logs of any age may come, and each has a clock of its own: the newest event of all says what is beyond
        retention, and state is kept as long as its row.
        """
        logs = isinstance(self._broker, LogConnection)
        clocks = await self._log_clocks() if logs else await self._clocks()
        if not clocks:
            return
        watermark = (max(clocks) if logs else min(clocks)) - self._topology.contract.event_time.disorder
        for table in self._topology.tables:
            async with self._ledger.database.connection("expire") as conn:
                await self._summaries.expire(conn, table.name, watermark, reopening=logs)

    async def _log_clocks(self) -> list[int]:
        source = str(self._broker)
        found = await self._ledger.status()
        return [
            each.clock_us for each in found if each.clock_us is not None and each.partition.source == source
        ]

    async def _clocks(self) -> list[int]:
        """Those of the partitions that can get events."""
        shards = await self._ledger.shards()
        over = {partition for partition, shard in shards.items() if shard.followed}
        return [
            status.clock_us
            for status in await self._ledger.status()
            if status.clock_us is not None
            and status.partition not in over
            and self._goes_on(status.partition)
        ]

    def _goes_on(self, partition: Partition) -> bool:
        """Whether the partition can get events: its clock would otherwise hold back everything for ever."""
        return partition.source == self._topology.topic.name and self._broker.serves(partition.id)

    async def _every(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except StreamprocError as error:
                log.warning("upkeep_failed", work=name, problem=str(error))
            end_if_cancelled()
            await asyncio.sleep(seconds)
