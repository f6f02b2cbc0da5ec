"""Merging the small objects of hours that are over, beside the live service.

Of each partition, the commits of one hour are a run, cut where its objects come to the target size. A run is
fetched, merged, put and committed by itself, so whatever is killed where, what was done stays and the rest is
done next time. ``docs/decisions/0029-compaction.md`` says why it is done like this.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
import structlog

from streamproc.concurrency import each
from streamproc.errors import ConfigError, Inconsistent, MissingObject, Mistake
from streamproc.failpoints import failpoint
from streamproc.ledger import Ledger, compaction
from streamproc.ledger.compaction import Moved, Source
from streamproc.model import Partition, PlannedObject, WrittenObject
from streamproc.runtimes.compaction_runs import CompactionLimits, Run, runs
from streamproc.runtimes.expiry import unknown_warehouse
from streamproc.runtimes.merging_process import CannotMerge, MergingProcess
from streamproc.runtimes.scratch import scratch_folder
from streamproc.sinks.lake import MERGED, object_name
from streamproc.sinks.merging import compatible
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import Merges, Quarantines, Warehouse
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Objects fetched at once.
_PARALLEL = 4

#: Runs of one turn that may fail: after so many it is hardly the runs.
_FAILURES = 8

#: Seconds after which it is found out anew what cannot be merged: a deleted object may have been put back.
_REMEMBERED = 24 * 3600

_AGAIN = "it would load their rows again"

_CHANGED = "its columns have changed their types"

#: Why runs cannot be merged, by range and number of commits.
Unmergeable = dict[tuple[Partition, int | None, int, int], str]


@dataclass(slots=True)
class CompactionReport:
    """What was merged into what. ``waiting``: runs that were left alone, by the reason."""

    runs: int = 0
    objects_before: int = 0
    objects_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rows: int = 0
    waiting: dict[str, int] = field(default_factory=dict)

    def add(self, before: Sequence[Source], after: Sequence[WrittenObject]) -> None:
        """Count one run, or the part of one that could be merged."""
        self.runs += 1
        self.objects_before += len(before)
        self.objects_after += len(after)
        self.bytes_before += sum(each.committed.size for each in before)
        self.bytes_after += sum(each.size for each in after)
        self.rows += sum(each.plan.rows for each in after)

    def wait(self, why: str) -> None:
        """Count one run that was left alone."""
        self.waiting[why] = self.waiting.get(why, 0) + 1


class Compactor:
    """Compacts the lake of one stream. ``warehouse``: where its events are loaded, if they are.

    It is kept from turn to turn, or is given what the one before knew: the runs that cannot be merged, which would be
    fetched for nothing.

    Raises :class:`ConfigError` when the warehouse cannot be told of merged objects, or the page has one and it
    is not known here: a loader elsewhere would load what was merged again.
    """

    def __init__(
        self,
        page: Topology,
        ledger: Ledger,
        store: ObjectStore,
        warehouse: Warehouse | None,
        limits: CompactionLimits | None = None,
        *,
        unmergeable: Unmergeable | None = None,
    ) -> None:
        if mistakes := unknown_warehouse(page, "Compact", _AGAIN, known=warehouse is not None):
            raise ConfigError(mistakes)
        if warehouse is not None and not isinstance(warehouse, Merges):
            problem = f"cannot be told that objects of the lake were merged: {_AGAIN}"
            raise ConfigError([Mistake("warehouse", problem, "Use one in PostgreSQL or Redshift")])
        self._page = page
        self._ledger = ledger
        self._store = store
        self._warehouse = warehouse
        self._limits = limits or CompactionLimits()
        #: What is known; it may be handed on to another compactor.
        self.unmergeable: Unmergeable = unmergeable if unmergeable is not None else {}
        self._forget_at = time.monotonic() + _REMEMBERED

    async def plan(self) -> list[Run]:
        """The runs that can be compacted now; none while a replay is open."""
        async with self._ledger.database.connection("look for replays") as conn:
            if await compaction.open_replays(conn, self._ledger.stream):
                return []
        return [run async for run in runs(self._page, self._ledger, self._limits)]

    async def due(self) -> bool:
        """Whether there is a run to merge that is not known to have to wait."""
        return bool(await self._due(CompactionReport()))

    async def compact(self, tell: Callable[[Run, CompactionReport], None] | None = None) -> CompactionReport:
        """Compact every run of :meth:`plan`; ``tell`` is called after each.

        Does nothing while another compactor of the stream is at work. Raises :class:`DependencyError` and
        :class:`Inconsistent`; what was compacted by then stays so. What is about one run, an object with other bytes
        or more than this machine can merge, is raised when the others are done.
        """
        report = CompactionReport()
        failed: list[CannotMerge | Inconsistent] = []
        async with self._alone() as alone:
            if not alone:
                report.waiting["another compactor is at work"] = 1
                return report
            async with MergingProcess() as merging:
                for run in await self._due(report):
                    try:
                        waits = await self._compact(run, report, merging)
                    except (CannotMerge, Inconsistent) as error:
                        log.warning("not_compacted", run=str(run), why=str(error))
                        failed.append(error)
                        if len(failed) == _FAILURES:
                            break
                        continue
                    if waits is not None:
                        report.wait(waits)
                    if tell is not None:
                        tell(run, report)
        if failed:
            raise failed[0]
        return report

    async def _due(self, report: CompactionReport) -> list[Run]:
        """The runs of :meth:`plan` but those that are known to have to wait, which ``report`` gets."""
        if time.monotonic() >= self._forget_at:
            self.unmergeable = {}
            self._forget_at = time.monotonic() + _REMEMBERED
        due = []
        for run in await self.plan():
            waits = self.unmergeable.get((run.partition, run.after, run.through, run.commits))
            if waits is None:
                due.append(run)
            else:
                report.wait(waits)
        return due

    async def _compact(self, run: Run, report: CompactionReport, merging: MergingProcess) -> str | None:
        """Compact one run; why not, when it has to wait."""
        place = (run.partition, run.after, run.through)
        found = await compaction.sources(
            self._ledger.database, self._ledger.stream, run.partition, run.after, run.through
        )
        if self._warehouse is not None:
            events = [each.committed.plan.key for each in found if each.committed.plan.kind == "events"]
            if await self._warehouse.missing(events):
                return "the warehouse has not loaded it yet"
            if isinstance(self._warehouse, Quarantines):
                aside = {each.key for each in await self._warehouse.quarantined()}
                if not aside.isdisjoint(events):
                    return "the warehouse has put an object of it aside"
        with _scratch(run, self._limits.bytes) as scratch:
            try:
                files = await self._fetch(found, scratch)
            except MissingObject as error:
                log.info("not_compacted", run=str(run), why=str(error))
                waits = self.unmergeable[*place, run.commits] = "an object of it is not in the lake any more"
                return waits
            parts = await asyncio.to_thread(_alike, found, files)
            mergeable = [part for part in parts if len({each.committed.plan.through for each in part}) > 1]
            for part in mergeable:
                try:
                    written = await self._write(part, files, scratch, merging)
                except Moved as moved:
                    log.info("not_compacted", run=str(run), why=str(moved))
                    return "it has changed meanwhile"
                report.add(part, written)
        if len(parts) > 1:  # they are a commit each by now
            self.unmergeable[*place, len(parts)] = _CHANGED
        return None if mergeable else _CHANGED

    async def _fetch(self, found: Sequence[Source], scratch: Path) -> dict[str, Path]:
        """Files with the objects' bytes, by key."""

        async def fetch(number: int, source: Source) -> tuple[str, Path]:
            body = await self._store.get(source.committed.plan.key)
            if (len(body), hashlib.sha256(body).hexdigest()) != (
                source.committed.size,
                source.committed.checksum,
            ):
                raise Inconsistent(
                    f"{source.committed.plan.key}: the store has other bytes than the ledger says"
                )
            path = scratch / f"{number}.parquet"
            await asyncio.to_thread(path.write_bytes, body)
            return source.committed.plan.key, path

        numbered = list(enumerate(found))
        return dict(await each(lambda pair: fetch(*pair), numbered, at_once=_PARALLEL))

    async def _write(
        self, found: Sequence[Source], files: dict[str, Path], scratch: Path, merging: MergingProcess
    ) -> list[WrittenObject]:
        """Merge, put and commit; see :mod:`streamproc.ledger.compaction` for the order."""
        database, stream = self._ledger.database, self._ledger.stream
        merged = {plan.key: (plan, parts) for plan, parts in _planned(stream, found)}
        plans = [plan for plan, _ in merged.values()]
        async with database.transaction("intend merged objects") as conn:
            await compaction.intend(conn, stream, plans, found[0])
        failpoint("compact.intended")
        written: list[WrittenObject] = []
        try:
            for plan, parts in merged.values():
                target = scratch / "merged.parquet"
                committed = [part.committed.plan for part in parts]
                await merging.merge(
                    [(each.through, files[each.key]) for each in committed], plan.rows, target
                )
                stored = await self._store.put(plan.key, await asyncio.to_thread(target.read_bytes))
                written.append(WrittenObject(plan, stored.size, stored.checksum))
            failpoint("compact.put")
            if self._warehouse is not None:
                assert isinstance(self._warehouse, Merges)
                await self._warehouse.merged([plan.key for plan in plans if plan.kind == "events"])
            failpoint("compact.noted")
            async with database.transaction("put merged objects in their places") as conn:
                await compaction.replace(conn, stream, found, written)
        except Moved:
            async with database.transaction("abandon merged objects") as conn:
                await compaction.abandon(conn, stream, list(merged))
            raise
        failpoint("compact.replaced")
        return written

    def _alone(self) -> AbstractAsyncContextManager[bool]:
        """Whether no other compactor of the stream is at work. Not for safety, see :mod:`streamproc.ledger.compaction`:
        for the work.
        """
        what = f"streamproc compactor {self._ledger.stream}"
        return self._ledger.database.alone(what, "look for other compactors")


@contextmanager
def _scratch(run: Run, most: int) -> Iterator[Path]:
    """A folder for the files of one run. Raises :class:`CannotMerge` when it is full, or cannot be written to."""
    try:
        with scratch_folder("streamproc-compact-") as folder:
            yield folder
    except (OSError, pl.exceptions.PolarsError) as error:
        place = str(tempfile.tempdir or "temporary folder")  # none, when none of the usual ones can be used
        hint = f"merging takes up to {2 * most >> 20} MiB there: make room, or name another folder in TMPDIR"
        what = f"compact {run.partition} ({run.after}, {run.through}]: {error}"
        raise CannotMerge(place, what, hint) from error


def _alike(found: Sequence[Source], files: dict[str, Path]) -> list[list[Source]]:
    """The sources, cut before each commit of which a column has another type than before."""
    schemas: dict[str, dict[str, pl.DataType]] = {}
    parts: list[list[Source]] = []
    for through in dict.fromkeys(source.committed.plan.through for source in found):
        commit = [source for source in found if source.committed.plan.through == through]
        if not parts or not _join(schemas, commit, files):
            schemas = {}
            _join(schemas, commit, files)
            parts.append([])
        parts[-1] += commit
    return parts


def _join(
    schemas: dict[str, dict[str, pl.DataType]], commit: Sequence[Source], files: dict[str, Path]
) -> bool:
    """Whether a commit can be merged with those whose ``schemas``, by kind, these are; they get its columns then."""
    plans = [source.committed.plan for source in commit]
    return all(compatible(schemas.setdefault(plan.kind, {}), [files[plan.key]]) for plan in plans)


def _planned(stream: str, found: Sequence[Source]) -> Iterator[tuple[PlannedObject, list[Source]]]:
    """The objects to be, one for each kind and folder, with their sources."""
    folders: dict[str, list[Source]] = {}
    for source in found:
        # What a replay has written lies under its own name; below it, folders are the same.
        root, _, rest = source.committed.plan.key.split("/", 2)
        folders.setdefault(f"{root}/{stream}/{rest.rpartition('/')[0]}", []).append(source)
    after, through = found[0].committed.plan.after, found[-1].committed.plan.through
    for folder, parts in folders.items():
        plans = [part.committed.plan for part in parts]
        name = object_name(plans[0].partition, after, through, MERGED)
        yield (
            replace(
                plans[0],
                key=f"{folder}/{name}-{secrets.token_hex(6)}.parquet",
                after=after,
                through=through,
                rows=sum(plan.rows for plan in plans),
                min_time_us=min(
                    (plan.min_time_us for plan in plans if plan.min_time_us is not None), default=None
                ),
                max_time_us=max(
                    (plan.max_time_us for plan in plans if plan.max_time_us is not None), default=None
                ),
                clock_us=max((plan.clock_us for plan in plans if plan.clock_us is not None), default=None),
            ),
            parts,
        )
