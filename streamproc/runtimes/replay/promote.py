"""Finishing, comparing, promoting and discarding a replay.

A promotion is at most two transactions, each of which readers see as a whole: first the warehouse's, then the
ledger's, which holds the tables and the list of the lake's objects too. Between the two the warehouse has the
new rows and the ledger the old list; the loader leaves both alone, because old and new objects count as loaded.
The replay's own tables are dropped afterwards, because live would wait for whoever reads them.
Whatever is killed where, the same command goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

import structlog
from psycopg import AsyncConnection, sql

from streamproc.database import Database, patient, wait_for_locks
from streamproc.errors import ConfigError, DependencyError, Inconsistent, LedgerError, Mistake
from streamproc.ledger import Ledger, carrying, promotion
from streamproc.ledger import replays as ledgered
from streamproc.ledger.reading import owner
from streamproc.ledger.replays import Replay, Replays
from streamproc.runtimes.expiry import unknown_warehouse
from streamproc.runtimes.replay.carry import Carrier
from streamproc.runtimes.replay.edges import patience
from streamproc.sinks.lake import Lake
from streamproc.sinks.loader import Loader
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.summaries_compare import Comparison, TableDifference
from streamproc.sinks.warehouse import Rows, Swaps, Warehouse
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Enough memory to join two tables' rows, and time while this transaction waits for another of ours; not for ever, as
#: live waits for it, and the machine it is on may stand still.
_SETTINGS = """
    SELECT set_config('work_mem', '256MB', true), set_config('jit', 'off', true),
           set_config('idle_in_transaction_session_timeout', '5min', true)
"""

#: How long somebody who has a table in use is waited for: while live's are swapped, live commits wait too.
_PATIENCE = "10s"


class Promoter:
    """What is done to a replay when its range is processed. Use :func:`~streamproc.runtimes.replay.opening.opened`."""

    def __init__(
        self,
        page: Topology,
        replay: Replay,
        ledger: Ledger,
        lake: Lake,
        *,
        loader: Loader | None,
        live: Warehouse | None,
        own: Warehouse | None,
    ) -> None:
        self.replay = replay
        self._page = page
        self._ledger = ledger
        self._database: Database = ledger.database
        self._lake = lake
        self._loader = loader
        self._live, self._own = live, own
        self._replays = Replays(ledger.database, page.name)

    async def finish(self) -> Replay:
        """After the processing: carry what lies outside the range, load the replay's warehouse table.

        Doing it again does what is left. Raises :class:`LedgerError` when the range is not processed, or another
        command is at work on the replay.
        """
        async with self._alone():
            if self.replay.state == "running":
                # Nothing is loaded yet: what is there was loaded for a replay of this name that was discarded.
                await self._remove()
                self.replay = await self._replays.complete(self.replay, patience(self._page))
            if self.replay.state == "complete":
                await self._carrier().carry()
                await self._load()
        return self.replay

    async def compare(self, keys: int = 0) -> tuple[datetime, list[TableDifference]]:
        """How each table differs from the live one, as both are at one moment, and that moment: what live has
        committed by then is in both. ``keys``: see :class:`Comparison`.

        Live commits wait only while the last of them are carried.
        """
        self._refuse_unfinished()
        carrier = self._carrier()
        regions = await carrier.regions()
        await carrier.carry()
        async with AsyncExitStack() as stack:
            snapshot = await stack.enter_async_context(self._database.connection("compare"))
            async with self._database.transaction("stop live commits") as conn:
                await conn.execute(_SETTINGS)
                await promotion.lock_live(conn, self.replay)
                as_of = await promotion.now(conn)
                await carrier.carry()
                await snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await snapshot.execute("SELECT FROM streamproc.replays LIMIT 1")  # the snapshot is taken here
            await snapshot.execute(_SETTINGS)
            found = [
                await Comparison(beside).compare(snapshot, regions[beside.table.name], keys)
                for beside in carrier.tables
            ]
            await snapshot.execute("COMMIT")
        return as_of, found

    async def promote(self, operator: str) -> bool:
        """Put the replay in the place of what live has; false when that was done before.

        Raises :class:`LedgerError` when it cannot be done any more, before anything was changed, or another command
        is at work on the replay; :class:`ConfigError` when the page has a warehouse that is not known here, whose
        loader would load the range again, or whose table does not take the page's columns. :class:`DependencyError`
        also when a table of the stream is kept in use: it goes on when it is called again.
        """
        async with self._alone():
            promoted = self.replay.state != "promoted"
            if promoted:
                await self._promote(operator)
            await self._drop_left()
        return promoted

    async def _promote(self, operator: str) -> None:
        refuse_unknown_warehouse(self._page, known=self._live is not None)
        self._refuse_unfinished()
        await self._refuse_ambiguous()
        carrier = self._carrier()
        await carrier.carry()
        await self._load()
        async with self._database.connection("extend the live tables") as conn:
            await Summaries.of(self._page).ensure(conn)
        if self._live is not None:  # who loads it may not have met the page's new columns yet
            await self._live.ensure(self._page.columns)
        await self._begin()
        await self._swap_warehouse()
        await carrier.carry()
        await self._swap(carrier, operator)

    async def discard(self) -> None:
        """Drop everything the replay has made.

        Raises :class:`LedgerError` when it is promoted or at work, and :class:`ConfigError` when the page has a
        warehouse that is not known here: the replay's table there would stay.
        """
        refuse_unknown_warehouse(self._page, known=self._live is not None)
        async with self._alone():
            for partition in self.replay.ranges:
                found = await owner(self._database, self.replay.namespace, partition)
                if found.name is not None and found.connected:
                    raise LedgerError(f"{found.name} is at work on replay {self.replay.name}: end it first")
            async with self._locked("discard") as (conn, replay):
                if replay.state in {"promoting", "promoted"}:
                    raise LedgerError(
                        f"replay {replay.name} is {replay.state}: it cannot be discarded any more"
                    )
                # First, because a replay whose warehouse table is gone can still be discarded, or load it again.
                await self._remove()
                await promotion.discard(conn, replay)
                await _drop_schema(conn, replay.namespace)

    async def _begin(self) -> None:
        async with self._locked("begin the promotion") as (conn, replay):
            if replay.state == "complete":
                await promotion.begin(conn, replay)

    async def _swap_warehouse(self) -> None:
        if self._live is None:
            return
        assert isinstance(self._live, Swaps)
        async with self._database.connection("list the range's objects") as conn:
            superseded = await promotion.superseded_keys(conn, self.replay)
        rows = [
            Rows(partition.id, each.span.after, each.span.through)
            for partition, each in self.replay.ranges.items()
            if not each.span.empty
        ]
        swapped = await self._live.adopt(self.replay.namespace, rows, superseded)
        async with self._database.connection("list the replay's objects") as conn:
            own = await promotion.own_keys(conn, self.replay)
        if missing := await self._live.missing(own):
            raise Inconsistent(
                f"{len(missing)} objects of replay {self.replay.name} are not in the warehouse, "
                "and neither is the table they were loaded into"
            )
        log.info("warehouse_promoted", replay=self.replay.name, again=not swapped, objects=len(superseded))

    async def _swap(self, carrier: Carrier, operator: str) -> None:
        regions = await carrier.regions()
        async with self._locked("promote") as (conn, replay):
            if replay.state == "promoted":
                return
            await conn.execute(_SETTINGS)
            await promotion.lock_live(conn, replay)
            hint = "see pg_stat_activity for a transaction that was left open, end it and promote again"
            problem = f"others have written to a table for {_PATIENCE}, and nothing was swapped"
            async with patient(conn, _PATIENCE, replay.stream, problem, hint):
                for beside in carrier.tables:
                    await beside.lock(conn)
            # On another connection: it commits what the next statements of this one then see.
            await carrier.carry()
            clocks = await carrying.clocks(conn, replay)
            for beside in carrier.tables:
                await beside.swap(conn, regions[beside.table.name])
            await promotion.swap(conn, replay, clocks, operator)
        log.info("promoted", replay=self.replay.name, partitions=len(clocks))

    async def _load(self) -> None:
        """Load the replay's objects into its own table, unless that has gone into live's already."""
        if self._loader is None or self._own is None or self.replay.state not in {"running", "complete"}:
            return
        await self._own.ensure(self._page.columns)
        await self._loader.run_once()

    async def _drop_left(self) -> None:
        """Drop the tables of a replay that is promoted. What others have in use stays, and goes the next time."""
        for drop in (self._remove, self._drop_tables):
            try:
                await drop()
            except DependencyError as error:
                hint = f"`streamproc replay promote {self.replay.name}` drops what is left"
                log.warning("replay_not_dropped", replay=self.replay.name, why=str(error), hint=hint)

    async def _drop_tables(self) -> None:
        async with self._locked("drop the replay's tables") as (conn, replay):
            await wait_for_locks(conn, _PATIENCE)
            await _drop_schema(conn, replay.namespace)

    async def _remove(self) -> None:
        """Drop the replay's own table in the warehouse."""
        if self._own is not None:
            assert isinstance(self._own, Swaps)
            await self._own.remove()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """No other command finishes, promotes or discards the replay meanwhile; it is read again, as it is then.

        Raises :class:`LedgerError` when one is at work on it, or it was discarded meanwhile.
        """
        what = f"streamproc replay {self.replay.namespace}"
        async with self._database.alone(what, "look for other commands") as alone:
            if not alone:
                raise LedgerError(f"another command is at work on replay {self.replay.name}")
            self.replay = await self._replays.still(self.replay)
            yield

    @asynccontextmanager
    async def _locked(self, doing: str) -> AsyncIterator[tuple[AsyncConnection[Any], Replay]]:
        """A transaction in which nobody else changes the replay's state; the replay as it is then."""
        async with self._database.transaction(doing) as conn:
            replay = await ledgered.get(conn, self.replay.stream, self.replay.name, lock=True)
            if replay is None:
                raise LedgerError(f"replay {self.replay.name} was discarded meanwhile")
            yield conn, replay

    async def _refuse_ambiguous(self) -> None:
        """The warehouse tells partitions apart by their ids only."""
        if self._live is None:
            return
        mine = {partition.id: partition.source for partition in self.replay.ranges}
        for status in await self._ledger.status():
            if mine.get(status.partition.id, status.partition.source) != status.partition.source:
                problem = f"the stream also has a {status.partition}: their rows in the warehouse look alike"
                raise ConfigError([Mistake("topic.name", problem, "Correct the warehouse by hand")])

    def _refuse_unfinished(self) -> None:
        if self.replay.since_us is None:
            raise LedgerError(
                f"replay {self.replay.name} is not done: "
                f"`streamproc replay --into {self.replay.name}` goes on where it was"
            )
        if self.replay.state == "promoted":
            raise LedgerError(f"replay {self.replay.name} is promoted: it is what live has")

    def _carrier(self) -> Carrier:
        return Carrier(self._page, self.replay, self._database, self._lake)


def refuse_unknown_warehouse(page: Topology, *, known: bool) -> None:
    """Raises :class:`ConfigError` when the page has a warehouse and this process has none."""
    otherwise = (
        "what a replay has loaded there would stay as it is, and a loader elsewhere load the range again"
    )
    if mistakes := unknown_warehouse(page, "Replay", otherwise, known=known):
        raise ConfigError(mistakes)


async def _drop_schema(conn: AsyncConnection[Any], namespace: str) -> None:
    await conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(namespace)))
