"""The loader: brings committed objects of the lake into the warehouse, each exactly once.

An object that a warehouse cannot load would keep back every other one of its transaction. Where the warehouse can
put objects aside (:class:`~streamproc.sinks.warehouse.Quarantines`), the loader halves a transaction that fails for
its data until the bad object stands alone, and puts that one aside once another of the same batch has been loaded.
As long as none has, the fault may be with the way to the warehouse, and nothing waits behind the bad one.

An object that somebody has deleted from the lake is found like this too where nothing can be put aside: everything
else is loaded, and then it is an error.

Whoever merges objects tells the warehouse before the list names the new one. One that is in the list and not loaded
was made while the warehouse was switched off, or since the copy that it was restored from: it is loaded in the place of
what was loaded of the objects that it was made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from streamproc.errors import DependencyError, Inconsistent, MissingObject
from streamproc.model import CommittedObject, PlannedObject
from streamproc.sinks.lake import made_of_others
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import LoadReport, Quarantines, Warehouse

_log = structlog.get_logger(__name__)

#: What is wrong with an object, and not with the way to it.
_Bad = Inconsistent | MissingObject


class CommittedObjects(Protocol):
    """The list of committed objects, as the ledger has it."""

    async def now(self) -> datetime:
        """The time on the clock that commit times are taken from, UTC."""

    def committed(
        self, kind: str = ..., since: datetime | None = ...
    ) -> AsyncIterator[list[CommittedObject]]:
        """Pages of objects of ``kind`` committed at ``since`` or later, by commit time."""

    async def unshared(self, plans: Sequence[PlannedObject]) -> set[str]:
        """Keys of those ``events`` objects of whose positions and hour no other committed object has any."""

    def newest_first(self, kind: str = ...) -> AsyncGenerator[list[CommittedObject]]:
        """Pages of objects of ``kind`` by commit time, the newest first."""


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """Most ``objects`` and ``rows`` of one warehouse transaction; one object may have more rows.

    :meth:`Loader.load_new` looks back ``overlap`` before the last pass began, because an object's commit
    time is older than its appearance in the list, and every ``full_pass`` at everything.
    :meth:`Loader.load_rest` looks at ``look_at`` objects at least, and ``look_back`` behind the oldest that is missing.
    """

    objects: int = 200
    rows: int = 500_000
    overlap: timedelta = timedelta(minutes=15)
    full_pass: timedelta = timedelta(hours=6)
    look_at: int = 50_000
    look_back: timedelta = timedelta(days=1)


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
        after everything else was loaded where the warehouse can put objects aside; :class:`MissingObject`, after
        everything else was loaded.
        """
        report = LoadReport()
        left: list[_Bad] = []
        async for page in self._source.committed("events", since):
            missing = await self._warehouse.missing([committed.plan.key for committed in page])
            wanted = [committed for committed in page if committed.plan.key in missing]
            made = [committed.plan for committed in wanted if made_of_others(committed.plan.key)]
            instead = await self._source.unshared(made) if made else set()
            for batch in self._batches(wanted):
                added = await self._load_apart(batch, instead, left)
                _log.info("warehouse loaded", objects=added.objects, rows=added.rows)
                report += added
        if left:
            raise _summed_up(left)
        return report

    async def load_rest(self) -> LoadReport:
        """As :meth:`run_once`, but from the first missing object on; for a process that remembers no pass before.

        Objects are loaded in the order of their commits. So the missing ones are the newest, those since the last run
        or since the copy that a warehouse was restored from, but for one here and there that could not be loaded. To
        compare the whole list takes longer with each day that a stream is old, and of Redshift a second or two for each
        page of it.
        """
        return await self.run_once(await self._first_missing())

    async def _first_missing(self) -> datetime | None:
        """When the oldest missing object was committed, as far as one looks back; the newest one where none is missing,
        ``None`` where there are no objects.
        """
        first: datetime | None = None
        looked_at = 0
        async with aclosing(self._source.newest_first("events")) as pages:
            async for page in pages:
                missing = await self._warehouse.missing([committed.plan.key for committed in page])
                for committed in page:
                    looked_at += 1
                    if first is None or committed.plan.key in missing:
                        first = committed.committed_at
                    elif (
                        looked_at > self._limits.look_at
                        and first - committed.committed_at > self._limits.look_back
                    ):
                        return first
        return first

    async def load_new(self) -> LoadReport:
        """As :meth:`run_once`, but looking only at what was committed lately; for calling again and again.

        The first call and one every ``full_pass`` look at the whole list, and are the ones to raise
        :class:`MissingObject` for objects that have been missing for longer. Lately is by the list's own clock.
        """
        # By this machine's clock, were it ahead by more than the overlap, nothing would have been committed lately.
        began = await self._source.now()
        full = self._looked_at is None or began >= self._full_pass_due
        since = None if full or self._looked_at is None else self._looked_at - self._limits.overlap
        try:
            report = await self.run_once(since)
        except MissingObject:  # all the same, everything else is loaded; waiting does not bring these back
            self._looked(began, full=full)
            raise
        self._looked(began, full=full)
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

    def _looked(self, began: datetime, *, full: bool) -> None:
        self._looked_at = began
        if full:
            self._full_pass_due = began + self._limits.full_pass

    async def _load_apart(
        self, batch: Sequence[CommittedObject], instead: Collection[str], left: list[_Bad]
    ) -> LoadReport:
        """Load what can be loaded and put the rest aside; what may not be put aside (yet) comes into ``left``."""
        report, bad = await self._halve(batch, instead)
        if not (report.objects and isinstance(self._warehouse, Quarantines)):
            left += [error for _, error in bad]
            return report
        for committed, error in bad:
            await self._warehouse.quarantine(committed, str(error))
            _log.error("warehouse_object_quarantined", key=committed.plan.key, problem=str(error))
        return report

    async def _halve(
        self, objects: Sequence[CommittedObject], instead: Collection[str]
    ) -> tuple[LoadReport, list[tuple[CommittedObject, _Bad]]]:
        """What was loaded, and the objects that alone could not be."""
        try:
            return await self._warehouse.load(objects, self._store, instead), []
        except (Inconsistent, MissingObject) as error:
            if isinstance(error, Inconsistent) and not isinstance(self._warehouse, Quarantines):
                raise
            if len(objects) == 1:
                return LoadReport(), [(objects[0], error)]
        middle = len(objects) // 2
        first, bad = await self._halve(objects[:middle], instead)
        second, worse = await self._halve(objects[middle:], instead)
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


def _summed_up(left: Sequence[_Bad]) -> _Bad:
    """The one error to raise for all of them."""
    first = next((error for error in left if isinstance(error, Inconsistent)), left[0])
    if isinstance(first, Inconsistent):
        return first
    others = f", nor are {len(left) - 1} others there" if len(left) > 1 else ""
    hint = "everything else is loaded; docs/runbooks/loader-behind.md says what to do"
    return MissingObject(first.what, f"{first.problem}{others}", hint)
