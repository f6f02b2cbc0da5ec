"""The live lake's events outside a replay's range, folded into the replay's tables.

A window or session at an edge of the range has events inside and outside it. Those inside come from the
replay; those outside stay as live accepted them, before the range and after it, so live's own lake says what
they are. With them, the replay's tables hold for every window from the region's start on exactly what the
lake will say after a promotion: however the range was cut, and whatever has changed in the topic page.

It goes on where it was (``replay_ranges.carried``), so it is done once after the processing, for most of the
rows, and again before anything is compared or promoted, for what live has committed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import polars as pl
import structlog

from streamproc.database import Database
from streamproc.ledger import carrying
from streamproc.ledger.carrying import Group
from streamproc.ledger.replays import Replay
from streamproc.model import Claim
from streamproc.progress import PartitionProgress
from streamproc.sinks.lake import Lake
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.summaries_beside import Beside, Region, region
from streamproc.tables.fold import Delta, TableFold
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Rows read, folded and merged at a time; one commit may have more.
_ROWS = 200_000

#: The year 9999, after every event: a page without tables needs none.
_NEVER = 253_402_300_799_000_000


class Carrier:
    """Carries events into one replay's tables. ``page``: the live one, of today."""

    def __init__(self, page: Topology, replay: Replay, database: Database, lake: Lake) -> None:
        assert replay.since_us is not None, "complete it first"
        self._page = page
        self._replay = replay
        self._since = replay.since_us
        self._database = database
        self._lake = lake
        self._summaries = Summaries(page.tables, replay.namespace)
        #: In the order in which every worker touches them.
        self.tables = [
            Beside(table, replay.stream, replay.namespace)
            for table in sorted(page.tables, key=lambda table: table.name)
        ]
        self._folds = {table.name: TableFold(table) for table in page.tables}
        self._regions: dict[str, Region] = {}
        self._starts: dict[str, pl.DataFrame] = {}
        self._oldest = _NEVER

    async def regions(self) -> Mapping[str, Region]:
        """What of each table is rebuilt. It never changes: see :attr:`Replay.since_us`."""
        if not self._regions:
            async with self._database.connection("look at the live tables") as conn:
                for beside in self.tables:
                    lateness = await beside.lateness(conn, self._replay.stream, self._since)
                    self._regions[beside.table.name] = region(beside.table, self._since, lateness)
        return self._regions

    async def carry(self) -> int:
        """Everything that live has committed by now and is not carried yet; returns the number of rows.

        Raises :class:`DependencyError`; what was carried by then stays carried.
        """
        await self._prepare()
        async with self._database.connection("look for objects to carry") as conn:
            groups = await carrying.groups(conn, self._replay, self._oldest)
        rows = 0
        for chunk in _chunks(groups):
            await self._carry(chunk)
            rows += sum(group.rows for group in chunk)
        if rows:
            log.info("carried", replay=self._replay.name, rows=rows, commits=len(groups))
        return rows

    async def _prepare(self) -> None:
        """The replay's tables as this version has them; the sessions that reach into the region, whose beginnings do
        not change any more.
        """
        regions = await self.regions()
        if self._starts or not regions:
            return
        async with self._database.connection("extend the replay's tables") as conn:
            await self._summaries.ensure(conn)
        self._oldest = min(found.events for found in regions.values())
        async with self._database.connection("look for sessions at the edge") as conn:
            for beside in self.tables:
                if beside.table.window.kind == "session":
                    starts = await beside.session_starts(conn, regions[beside.table.name])
                    self._starts[beside.table.name] = starts
                    if len(starts):
                        self._oldest = min(self._oldest, int(starts["__start"].min()))  # type: ignore[arg-type]

    async def _carry(self, chunk: Sequence[Group]) -> None:
        """One partition's commits: read, fold, and merge with the note that it is done."""
        keys = [key for group in chunk for key in group.keys]
        columns = self._page.columns
        events = await self._lake.read(keys, list(columns))
        deltas = await asyncio.to_thread(self._fold, events, chunk[0])
        async with self._database.transaction("carry live events") as conn:
            await carrying.carried(conn, self._replay, chunk[-1])
            await self._summaries.apply(conn, deltas)

    def _fold(self, events: pl.DataFrame, first: Group) -> dict[str, Delta]:
        events = events.select(pl.col(name).cast(dtype) for name, dtype in self._page.columns.items())
        # The ids are unique already, and the clock is all that decides what is late.
        progress = PartitionProgress(Claim(first.partition, 0, "", None, None), None, first.clock_us)
        disorder = self._page.contract.event_time.disorder
        stamped, _ = progress.accept(events.sort("position"), None, disorder)
        deltas = {}
        for name, fold in self._folds.items():
            partial, _ = fold.partial(self._of(name, stamped))
            delta = fold.seal(partial)
            if len(delta):
                deltas[name] = delta
        return deltas

    def _of(self, name: str, events: pl.DataFrame) -> pl.DataFrame:
        """The events that belong to a table's region."""
        table = self._folds[name].table
        at, since = pl.col("event_time").to_physical(), self._regions[name].events
        if table.window.kind != "session":
            return events.filter(at >= since)
        starts = self._starts[name]
        return (
            events.join(starts, on=table.window.key, how="left", maintain_order="left")
            .filter((at >= since) | (at >= pl.col("__start")))
            .drop("__start")
        )


def _chunks(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Commits of one partition, in order, some hundred thousand rows at a time.

    No chunk has commits from both sides of the range, which moves the partition's clock.
    """
    chunk: list[Group] = []
    rows = 0
    for group in groups:
        beside = bool(chunk) and (group.partition, group.later) == (chunk[0].partition, chunk[0].later)
        if chunk and (not beside or rows + group.rows > _ROWS):
            yield chunk
            chunk, rows = [], 0
        chunk.append(group)
        rows += group.rows
    if chunk:
        yield chunk
