"""The simulated PostgreSQL under the ledger's state machine, which also runs on the real one."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from streamproc.sinks.warehouse import Warehouse
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from tests.ledger.machine import WORKERS, Fate, Row
from tests.ledger.shelf import COLUMNS
from tests.simulation import clock, statements_warehouse
from tests.simulation.connection import Cut, Line, Network
from tests.simulation.database import SimulatedDatabase, SimulatedLedger
from tests.simulation.loop import SimulatedLoop
from tests.simulation.postgres import Answer, Server, Transaction
from tests.simulation.statements_upkeep import STATEMENTS

T = TypeVar("T")

_CUTS = {
    Fate.LOST: Cut.LOST,
    Fate.ANSWER_LOST: Cut.ANSWER_LOST,
    Fate.DELIVERED: Cut.UNDER_WAY,
    Fate.DROPPED: Cut.UNDER_WAY,
}


async def _tally(transaction: Transaction, values: Any, server: Server) -> Answer:
    stream, partition, records = values
    key = (stream, partition)
    await transaction.lock("tally", key)
    before = transaction.get("tally", key) or {"n": 0}
    transaction.put("tally", key, {"n": before["n"] + records})
    return Answer(count=1)


class SimulatedStand:
    """What :class:`tests.ledger.stands.PostgresStand` is on a real server."""

    def __init__(self, seed: int) -> None:
        self.loop = SimulatedLoop(random.Random(seed))
        self.server = Server(self.loop, STATEMENTS | {"tally": _tally})
        self.server.copy = statements_warehouse.copy
        self._lines = {name: Line(self.server, Network(), name) for name in (*WORKERS, "loader")}
        self.ledgers = {name: SimulatedLedger(self._lines[name], "", name) for name in WORKERS}
        self._load_cuts = itertools.cycle([Cut.LOST, Cut.ANSWER_LOST])

    @contextmanager
    def on(self) -> Iterator[None]:
        with clock.simulated(self.loop):
            for ledger in self.ledgers.values():
                self.run(ledger.open())
            yield
        self.loop.dispose()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        task = self.loop.create_task(work, context=self.loop.world.context.copy())
        task.add_done_callback(lambda _: self.loop.stop())
        self.loop.run_forever()
        assert not self.loop.errors
        return task.result()

    def now(self) -> datetime:
        return clock.now(self.loop)

    def break_commit(self, worker: str, fate: Fate) -> None:
        self._lines[worker].broke.clear()
        self._lines[worker].armed = _CUTS[fate]

    async def broken(self, worker: str) -> None:
        await self._lines[worker].broke.wait()
        while self._lines[worker].decided is None:
            await asyncio.sleep(0.001)

    async def decide(self, worker: str, *, arrives: bool) -> None:
        decided = self._lines[worker].decided
        assert decided is not None
        self._lines[worker].decided = None
        decided.set_result(arrives)

    async def tally(self, conn: Any, stream: str, partition: str, records: int) -> None:
        await conn.execute("tally", [stream, partition, records])

    async def tallies(self, stream: str) -> dict[str, int]:
        return {key[1]: row["n"] for key, row in self.server.rows.table("tally").items() if key[0] == stream}

    async def warehouse(self, stream: str) -> Warehouse:
        statements_warehouse.prepare(self.server, stream, COLUMNS)
        warehouse = PostgresWarehouse("", stream)
        warehouse._database = SimulatedDatabase(self._lines["loader"], size=2)
        await warehouse.open()
        return warehouse

    def break_load(self) -> None:
        self._lines["loader"].armed = next(self._load_cuts)

    def mend_load(self) -> None:
        self._lines["loader"].armed = Cut.NONE

    async def loaded(self, stream: str) -> list[Row]:
        return statements_warehouse.rows(self.server, stream)
