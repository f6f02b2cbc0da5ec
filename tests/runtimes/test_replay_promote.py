"""A promotion beside readers, writers, loaders and other commands: a real ledger, lake, tables and warehouse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import AsyncConnection

from streamproc.errors import ConfigError, DependencyError, LedgerError
from streamproc.ledger import Ledger, promotion
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replay, Replays
from streamproc.runtimes.replay.promote import Promoter
from streamproc.runtimes.replay.work import page_of
from streamproc.sinks.lake import Lake
from streamproc.sinks.loader import Loader
from streamproc.sinks.local import LocalStore
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from streamproc.tables.fold import TableFold
from tests.ledger.epochs import P0
from tests.runtimes.test_replay_carry import COLUMNS, PAGE, TABLE, commit, sessions, visit

MENDED = visit(0, 1).with_columns(page=pl.lit("/mended"))
LIVE = Summaries([TABLE], "clicks", PAGE.contract.event_time.disorder)


@dataclass
class Stage:
    """A replay of two events that live has in its lake and not in its table; both are processed."""

    replay: Replay
    promoter: Promoter
    replays: Replays
    live: PostgresWarehouse
    own: PostgresWarehouse
    live_loader: Loader
    conninfo: str

    @property
    def tables(self) -> list[str]:
        """Of the replay: one of the ledger's database, and the warehouse's."""
        return [f"{self.replay.namespace}.visits", f"warehouse.{self.replay.namespace}"]

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.conninfo) as connection:
            return connection.execute(text.encode()).fetchall()

    def there(self) -> list[bool]:
        """Whether each of :attr:`tables` is."""
        return [self.query(f"SELECT to_regclass('{table}') IS NOT NULL")[0][0] for table in self.tables]

    def pages(self, table: str = "warehouse.clicks") -> list[tuple[Any, ...]]:
        return self.query(f"SELECT position, page FROM {table} ORDER BY position")

    async def state(self) -> str:
        found = await self.replays.get(self.replay.name)
        assert found is not None
        return found.state


@pytest.fixture
async def stage(ledger: Ledger, postgres: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        store = LocalStore(tmp_path.as_uri(), durable=False)
        await store.open()
        stack.push_async_callback(store.close)
        await commit(ledger, Lake(store, PAGE), visit(0, 1))
        replays = Replays(ledger.database, "clicks")
        replay = await replays.create("fix", "f", "all", "me", {P0: Span(-1, 1)})
        lake = Lake(store, page_of(PAGE, replay))
        own_ledger = await stack.enter_async_context(Ledger(postgres, replay.namespace, "w2"))
        await commit(own_ledger, lake, MENDED)
        summaries, fold = Summaries([TABLE], replay.namespace), TableFold(TABLE)
        async with ledger.database.connection("create the tables") as conn:
            await summaries.ensure(conn)
        async with ledger.database.transaction("process the range") as conn:
            await summaries.apply(conn, {TABLE.name: fold.seal(fold.partial(MENDED)[0])})
        live, own = (PostgresWarehouse(postgres, name) for name in ("clicks", replay.namespace))
        for warehouse in (live, own):
            await warehouse.open()
            stack.push_async_callback(warehouse.close)
        loader = Loader(own_ledger, own, store)
        promoter = Promoter(PAGE, replay, ledger, lake, loader=loader, live=live, own=own)
        yield Stage(replay, promoter, replays, live, own, Loader(ledger, live, store), postgres)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproc.runtimes.replay.promote._PATIENCE", "50ms")
    monkeypatch.setattr("streamproc.sinks.warehouse_postgres._PATIENCE", "50ms")


@asynccontextmanager
async def transaction(conninfo: str, *statements: str) -> AsyncIterator[None]:
    """One that somebody has left open after these statements."""
    async with await AsyncConnection.connect(conninfo) as conn:
        for statement in statements:
            await conn.execute(statement.encode())
        yield


@pytest.mark.usefixtures("impatient")
async def test_who_reads_a_replays_tables_is_not_waited_for(ledger: Ledger, stage: Stage) -> None:
    await stage.live.ensure(COLUMNS)
    await stage.live_loader.run_once()
    assert stage.pages() == [(0, "/"), (1, "/")]
    await stage.promoter.finish()
    async with transaction(stage.conninfo, *(f"SELECT count(*) FROM {table}" for table in stage.tables)):
        async with asyncio.timeout(60):
            assert await stage.promoter.promote("me") is True
        assert await sessions(ledger, LIVE) == [(0, 1), (1, 1)]
        assert stage.pages() == [(0, "/mended"), (1, "/mended")]
        assert stage.there() == [True, True]
    assert await stage.promoter.promote("me") is False
    assert stage.there() == [False, False]
    assert stage.pages() == [(0, "/mended"), (1, "/mended")]
    assert await sessions(ledger, LIVE) == [(0, 1), (1, 1)]


@pytest.mark.usefixtures("impatient")
async def test_live_goes_on_when_somebody_else_keeps_its_tables_and_the_promotion_is_done_later(
    ledger: Ledger, stage: Stage
) -> None:
    await stage.live.ensure(COLUMNS)
    await stage.live_loader.run_once()
    async with ledger.database.connection("create the tables") as conn:
        await LIVE.ensure(conn)
    await stage.promoter.finish()
    async with transaction(stage.conninfo, "LOCK TABLE clicks.visits IN ROW EXCLUSIVE MODE"):
        with pytest.raises(DependencyError, match=r"clicks: .*50ms.*promote again"):
            await stage.promoter.promote("me")
        assert await stage.state() == "promoting"
        async with asyncio.timeout(60):
            assert (await ledger.claim([P0]))[P0].position == 1
    assert await sessions(ledger, LIVE) == []
    assert stage.pages() == [(0, "/mended"), (1, "/mended")]
    assert await stage.promoter.promote("me") is True
    assert await sessions(ledger, LIVE) == [(0, 1), (1, 1)]
    assert stage.pages() == [(0, "/mended"), (1, "/mended")]
    assert stage.there() == [False, False]


async def test_a_warehouse_that_has_not_met_the_pages_new_column_gets_it(stage: Stage) -> None:
    await stage.live.ensure({name: type_ for name, type_ in COLUMNS.items() if name != "page"})
    await stage.promoter.finish()
    assert await stage.promoter.promote("me") is True
    assert stage.pages() == [(0, "/mended"), (1, "/mended")]


async def test_a_promotion_that_the_warehouse_cannot_take_does_not_begin(stage: Stage) -> None:
    await stage.live.ensure({**COLUMNS, "page": pl.Int64()})
    await stage.promoter.finish()
    with pytest.raises(ConfigError, match="column page: is bigint and should be text"):
        await stage.promoter.promote("me")
    assert await stage.state() == "complete"


async def test_two_commands_are_not_at_work_on_one_replay(ledger: Ledger, stage: Stage) -> None:
    async with ledger.database.alone(f"streamproc replay {stage.replay.namespace}", "finish") as alone:
        assert alone
        for verb in (stage.promoter.finish, stage.promoter.discard, lambda: stage.promoter.promote("me")):
            with pytest.raises(LedgerError, match="another command is at work on replay fix"):
                await verb()
    assert await stage.state() == "running"
    assert (await stage.promoter.finish()).state == "complete"


async def test_rows_that_a_discarded_replay_of_that_name_has_left_are_not_promoted(stage: Stage) -> None:
    await stage.own.ensure(COLUMNS)
    left = (
        "INSERT INTO warehouse.clicks__replay_fix (source_partition, position, page) VALUES ('0', 0, '/left')"
    )
    with psycopg.connect(stage.conninfo) as connection:
        connection.execute(left)
    await stage.promoter.finish()
    assert stage.pages(stage.tables[1]) == [(0, "/mended"), (1, "/mended")]


async def test_a_command_that_was_begun_on_a_discarded_replay_does_nothing_to_the_next_of_that_name(
    ledger: Ledger, stage: Stage
) -> None:
    async with ledger.database.transaction("discard") as conn:
        await promotion.discard(conn, stage.replay)
    await stage.replays.create("fix", "f", "all", "me", {P0: Span(-1, 1)})
    for verb in (stage.promoter.finish, stage.promoter.discard, lambda: stage.promoter.promote("me")):
        with pytest.raises(LedgerError, match="replay fix was discarded meanwhile"):
            await verb()
    assert await stage.state() == "running"
    assert stage.there() == [True, False]
