"""The loader: brings committed objects of the lake into the warehouse, each exactly once.

An object that a warehouse cannot load would keep back every other one of its transaction. Where the warehouse can
put objects aside (:class:`~streamproc.sinks.warehouse.Quarantines`), the loader halves a transaction that fails for
its data until the bad object stands alone, and puts that one aside once another of the same batch has been loaded.
As long as none has, the fault may be with the way to the warehouse, and nothing waits behind the bad one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from streamproc.errors import DependencyError, Inconsistent
from streamproc.model import CommittedObject
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import LoadReport, Quarantines, Warehouse

_log = structlog.get_logger(__name__)


class CommittedObjects(Protocol):
    """The list of committed objects, as the ledger has it."""

    def committed(
        self, kind: str = ..., since: datetime | None = ...
    ) -> AsyncIterator[list[CommittedObject]]:
        """Pages of objects of ``kind`` committed at ``since`` or later, by commit time."""


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """Most ``objects`` and ``rows`` of one warehouse transaction; one object may have more rows.

    :meth:`Loader.load_new` looks back ``overlap`` before the last pass began, because an object's commit
    time is older than its appearance in the list and clocks differ, and every ``full_pass`` at everything.
    """

    objects: int = 200
    rows: int = 500_000
    overlap: timedelta = timedelta(minutes=15)
    full_pass: timedelta = timedelta(hours=6)


class Loader:
    """Compares the ledger's committed ``events`` objects with the warehouse's loads and loads the rest.

    Any number of loaders may run. What is loaded is decided by the warehouse in the loading transaction;
    what the loader remembers between passes only saves it from comparing the whole list every time.
    """

    def __init__(
        self,
        source: CommittedObjects,
        warehouse: Warehouse,
        store: ObjectStore,
        limits: LoadLimits | None = None,
    ) -> None:
        self._source = source
        self._warehouse = warehouse
        self._store = store
        self._limits = limits or LoadLimits()
        self._looked_at: datetime | None = None
        self._full_pass_due = datetime.min.replace(tzinfo=UTC)

    async def run_once(self, since: datetime | None = None) -> LoadReport:
        """Load everything committed (at ``since`` or later) and not loaded; returns what was added.

        Raises :class:`DependencyError` (what was loaded by then stays) or :class:`Inconsistent`, the latter
        after everything else was loaded where the warehouse can put objects aside.
        """
        report = LoadReport()
        left: list[Inconsistent] = []
        async for page in self._source.committed("events", since):
            missing = await self._warehouse.missing([committed.plan.key for committed in page])
            wanted = [committed for committed in page if committed.plan.key in missing]
            for batch in self._batches(wanted):
                if isinstance(self._warehouse, Quarantines):
                    added = await self._load_apart(self._warehouse, batch, left)
                else:
                    added = await self._warehouse.load(batch, self._store)
                _log.info("warehouse loaded", objects=added.objects, rows=added.rows)
                report += added
        if left:
            raise left[0]
        return report

    async def load_new(self) -> LoadReport:
        """As :meth:`run_once`, but looking only at what was committed lately; for calling again and again.

        The first call and one every ``full_pass`` look at the whole list.
        """
        began = datetime.now(UTC)
        full = self._looked_at is None or began >= self._full_pass_due
        since = None if full or self._looked_at is None else self._looked_at - self._limits.overlap
        report = await self.run_once(since)
        self._looked_at = began
        if full:
            self._full_pass_due = began + self._limits.full_pass
        return report

    async def run(self, interval: float) -> None:
        """:meth:`load_new` every ``interval`` seconds until cancelled; what does not answer is tried again.

        Cancelling rolls back the transaction under way. Raises :class:`Inconsistent` and
        :class:`ConfigError`: something is wrong that waiting does not mend.
        """
        while True:
            try:
                await self.load_new()
            except DependencyError as error:
                _log.warning("warehouse load failed, will be tried again", error=str(error))
            await asyncio.sleep(interval)

    async def _load_apart(
        self, quarantine: Quarantines, batch: Sequence[CommittedObject], left: list[Inconsistent]
    ) -> LoadReport:
        """Load what can be loaded and put the rest aside; what may not be put aside yet comes into ``left``."""
        report, bad = await self._halve(batch)
        if not report.objects:
            left += [error for _, error in bad]
            return report
        for committed, error in bad:
            await quarantine.quarantine(committed, str(error))
            _log.error("warehouse_object_quarantined", key=committed.plan.key, problem=str(error))
        return report

    async def _halve(
        self, objects: Sequence[CommittedObject]
    ) -> tuple[LoadReport, list[tuple[CommittedObject, Inconsistent]]]:
        """What was loaded, and the objects that alone could not be."""
        try:
            return await self._warehouse.load(objects, self._store), []
        except Inconsistent as error:
            if len(objects) == 1:
                return LoadReport(), [(objects[0], error)]
        middle = len(objects) // 2
        first, bad = await self._halve(objects[:middle])
        second, worse = await self._halve(objects[middle:])
        return first + second, bad + worse

    def _batches(self, objects: Sequence[CommittedObject]) -> Iterator[list[CommittedObject]]:
        """Cut so that no batch is over the limits, unless a single object is."""
        batch: list[CommittedObject] = []
        rows = 0
        for committed in objects:
            full = len(batch) == self._limits.objects or rows + committed.plan.rows > self._limits.rows
            if batch and full:
                yield batch
                batch, rows = [], 0
            batch.append(committed)
            rows += committed.plan.rows
        if batch:
            yield batch
