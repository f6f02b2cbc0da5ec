"""Tables computed anew from the lake: each date's rows are put in the place of those that are there.

For a table that is new, or whose definition was wrong. What counts is what the ledger calls committed, so the rows
are what the service would have made of the same events, had none been late: in the lake a late event is an event like
others.

A date is replaced in one transaction that first keeps other writers out of the table and then looks whether the date's
objects are still those that were read. A worker's commit is therefore all before it, and then it is seen, or all
behind it, and then it adds to the new rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
import structlog
from psycopg import AsyncConnection, sql

from streamproc.errors import ConfigError, Inconsistent, Mistake
from streamproc.failpoints import failpoint
from streamproc.ledger import Ledger
from streamproc.ledger.replay_edges import edges
from streamproc.model import CommittedObject
from streamproc.runtimes.spark.lake_reading import LakeWork
from streamproc.runtimes.spark.setup import Setup
from streamproc.runtimes.spark.stages import Reads
from streamproc.runtimes.spark.uniting import together
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.summaries_beside import Beside
from streamproc.sinks.summaries_layout import published
from streamproc.tables.fold import Delta
from streamproc.topology import DAY, Table

log = structlog.get_logger(__name__)

#: How often a date is read before it is given up, because workers commit events of it all the time.
_ATTEMPTS = 3


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild has replaced. ``dates``: of all tables together; ``objects``: that were read for them."""

    dates: int = 0
    rows: int = 0
    objects: int = 0


class Rebuild:
    """Tables of one stream from its lake."""

    def __init__(self, setup: Setup, ledger: Ledger, engine: Reads) -> None:
        self._setup = setup
        self._ledger = ledger
        self._engine = engine
        self._page = setup.topology()

    async def run(
        self,
        tables: Sequence[str],
        first_us: int,
        end_us: int,
        task_bytes: int,
        tell: Callable[[str, Rebuilt], None],
    ) -> Rebuilt:
        """Replace the rows of windows that start in ``[first_us, end_us)``, both midnights in UTC, table by table.

        ``tell`` is called after each date. Raises :class:`ConfigError` when a table cannot be rebuilt, or the lake has
        no longer, or never had, the events of a date that has rows; :class:`Inconsistent` when a date never stands
        still. Dates before it are done, and doing them again changes nothing.
        """
        chosen = [self._table(name) for name in tables]
        await self._check_kept(first_us)
        done = Rebuilt()
        for table in chosen:
            for day in range(first_us, end_us, DAY):
                await self._date(table, day, task_bytes, done)
                tell(f"{table.name} {_iso(day)}", done)
        return done

    def _table(self, name: str) -> Table:
        for table in self._page.tables:
            if table.name == name:
                if table.window.kind == "session":
                    problem = "is a table of sessions, which know no midnight"
                    raise ConfigError([Mistake(name, problem, "Use `streamproc replay` for it")])
                return table
        names = ", ".join(table.name for table in self._page.tables if table.window.kind != "session")
        raise ConfigError([Mistake(name, f"is no table of {self._page.name}", f"Choose among {names}")])

    async def _check_kept(self, day: int) -> None:
        """Refuse a date that the lake may not have all events of: its rows would go and not come back.

        Events that an earlier ``retention.events`` has let go of are gone whatever today's says.
        """
        page, kept = self._page, self._page.retention.events
        if not page.sinks.lake:
            problem = "is false: the stream keeps no events that its tables could be computed from"
            fix = "Write sinks.lake = true: dates from then on can be rebuilt"
            raise ConfigError([Mistake(f"{page.name}: sinks.lake", problem, fix)])
        gone_us = 0
        if kept is not None:
            clocks = [each.clock_us for each in await self._ledger.status() if each.clock_us is not None]
            # The newest of all clocks: upkeep goes by that or an older one, so what is not behind it is there.
            gone_us = max(clocks, default=0) - page.contract.event_time.disorder - kept
        found = await edges(self._ledger.database, page.name, {}, 0)
        if found.missing > 0 and found.left_us is not None:
            gone_us = max(gone_us, found.left_us)
        if day < gone_us:
            whole = _iso(-(-gone_us // DAY) * DAY)
            problem = (
                f"the lake has not all events from before {whole} any more (retention.events, now or before)"
            )
            fix = f"Begin with {whole}, or later: the rows of dates before it stay as they are"
            raise ConfigError([Mistake(f"--from {_iso(day)}", problem, fix)])

    async def _date(self, table: Table, day: int, task_bytes: int, done: Rebuilt) -> None:
        for _ in range(_ATTEMPTS):
            objects = await self._objects(table, day)
            await self._check_kept(day)  # after the look: retention goes on during a long run
            delta = await asyncio.to_thread(self._fold, table, day, objects, task_bytes)
            if await self._replace(table, day, objects, delta):
                done.dates += 1
                done.rows += len(delta)
                done.objects += len(objects)
                return
            log.info("date_changed", table=table.name, day=day // DAY)
        raise Inconsistent(
            f"{table.name}: events of the date are being committed all the time; rebuild it later"
        )

    async def _objects(self, table: Table, day: int) -> list[CommittedObject]:
        """Those that may hold events of the date's windows, the last of which reaches into the next."""
        found = self._ledger.manifest("events", day, day + DAY + table.window.size)
        return sorted([each async for each in found], key=lambda each: each.plan.key)

    def _fold(self, table: Table, day: int, objects: Sequence[CommittedObject], task_bytes: int) -> Delta:
        tasks: list[list[str]] = []
        size = task_bytes
        for each in objects:
            if size + each.size > task_bytes:
                tasks.append([])
                size = 0
            tasks[-1].append(each.plan.key)
            size += each.size
        end = day + DAY + table.window.size
        works = [[LakeWork(keys, table.name, day, end)] for keys in tasks]
        rows = pl.DataFrame()
        if works:
            stage = self._engine.read(self._setup, works)
            try:
                deltas = together(self._setup.folds(), stage.united())
            finally:
                stage.close()
            if table.name in deltas:
                mine = (pl.col("window_start") >= day) & (pl.col("window_start") < day + DAY)
                rows = deltas[table.name].rows.filter(mine)
        return Delta(rows)

    async def _replace(
        self, table: Table, day: int, objects: Sequence[CommittedObject], delta: Delta
    ) -> bool:
        """Whether the date's rows are now ``delta``: not when its objects are others by now."""
        # Locks and layout are those of a replay's promotion; what it compares is not needed here.
        beside = Beside(table, self._page.name, self._page.name)
        layout = beside.live
        summaries = Summaries([table], self._page.name)
        async with self._ledger.database.transaction("replace a date") as conn:
            await beside.lock(conn)
            now = await self._objects(table, day)
            if [each.plan.key for each in now] != [each.plan.key for each in objects]:
                return False
            bounds = [sql.Literal(day), sql.Literal(day + DAY)]
            rows = sql.SQL("FROM {} WHERE window_start >= {} AND window_start < {}").format(
                layout.public, *(published(layout.span[0], bound) for bound in bounds)
            )
            if not len(delta) and await _are_there(conn, rows):
                problem = "has rows, and the lake has no events to compute them from"
                fix = "Leave the date out: its rows stay as they are"
                raise ConfigError([Mistake(f"{table.name} {_iso(day)}", problem, fix)])
            await conn.execute(sql.SQL("DELETE {}").format(rows))
            if layout.has_state:
                await conn.execute(
                    sql.SQL("DELETE FROM {} WHERE window_start >= {} AND window_start < {}").format(
                        layout.state, *bounds
                    )
                )
            await summaries.apply(conn, {table.name: delta})
            failpoint("commit.merged")
        return True


async def _are_there(conn: AsyncConnection[Any], rows: sql.Composable) -> bool:
    found = await (await conn.execute(sql.SQL("SELECT 1 {} LIMIT 1").format(rows))).fetchone()
    return found is not None


def _iso(day: int) -> str:
    return datetime.fromtimestamp(day / 1_000_000, UTC).date().isoformat()
