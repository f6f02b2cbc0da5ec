"""What the ledger's state machine runs on: PostgreSQL, each worker behind a proxy that can break its COMMIT."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from psycopg import sql

from streamproc.ledger import Ledger
from streamproc.sinks.warehouse import Warehouse
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from tests.ledger.machine import WORKERS, Fate, Row
from tests.ledger.proxy import Break, BreakingProxy
from tests.ledger.shelf import COLUMNS

T = TypeVar("T")

_BREAKS = {
    Fate.LOST: Break.LOST,
    Fate.ANSWER_LOST: Break.ANSWER_LOST,
    Fate.DELIVERED: Break.UNDER_WAY,
    Fate.DROPPED: Break.UNDER_WAY,
}


#: Seconds after which a step of the machine hangs.
DEADLINE = 20.0


class PostgresStand:
    """A real server. Made by :meth:`on`; ``runner`` must be the one that made it."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.ledgers: dict[str, Ledger] = {}
        self._proxies: dict[str, BreakingProxy] = {}
        self._warehouse = ""
        self._load_breaks = itertools.cycle([Break.LOST, Break.ANSWER_LOST])

    @asynccontextmanager
    async def on(self, conninfo: str) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for worker in (*WORKERS, "loader"):
                proxy, through = await stack.enter_async_context(BreakingProxy.between(conninfo))
                self._proxies[worker] = proxy
                if worker == "loader":
                    self._warehouse = through
                else:
                    ledger = Ledger(through, "", worker, pool_size=2)
                    self.ledgers[worker] = await stack.enter_async_context(ledger)
            await self.ledgers["a"].migrate()
            async with self.ledgers["a"].database.connection("prepare") as conn:
                await conn.execute("CREATE TABLE tally (stream text, part text, n int)")
            yield

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(_within(DEADLINE, work))

    def now(self) -> datetime:
        return datetime.now(UTC)  # the server is on this machine

    def break_commit(self, worker: str, fate: Fate) -> None:
        self._proxies[worker].arm(_BREAKS[fate])

    async def broken(self, worker: str) -> None:
        await self._proxies[worker].broke.wait()

    async def decide(self, worker: str, *, arrives: bool) -> None:
        if arrives:
            await self._proxies[worker].deliver()
        else:
            self._proxies[worker].drop()

    async def tally(self, conn: Any, stream: str, partition: str, records: int) -> None:
        await conn.execute("INSERT INTO tally VALUES (%s, %s, %s)", [stream, partition, records])

    async def tallies(self, stream: str) -> dict[str, int]:
        async with self.ledgers["b"].database.connection("look") as conn:
            cursor = await conn.execute(
                "SELECT part, sum(n) FROM tally WHERE stream = %s GROUP BY part", [stream]
            )
            return {part: int(n) for part, n in await cursor.fetchall()}

    async def warehouse(self, stream: str) -> Warehouse:
        warehouse = PostgresWarehouse(self._warehouse, stream)
        await warehouse.open()
        await warehouse.ensure(COLUMNS)
        return warehouse

    def break_load(self) -> None:
        self._proxies["loader"].arm(next(self._load_breaks))

    def mend_load(self) -> None:
        self._proxies["loader"].disarm()

    async def loaded(self, stream: str) -> list[Row]:
        table = sql.Identifier("warehouse", stream)
        async with self.ledgers["b"].database.connection("look") as conn:
            cursor = await conn.execute(sql.SQL("SELECT source_partition, position FROM {}").format(table))
            return await cursor.fetchall()


async def _within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await work
