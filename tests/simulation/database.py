"""The way to the simulated PostgreSQL: the service's own ``Database`` and ``Ledger`` on a pool of such connections.

Transactions, the look at the command tag and the translation of errors are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from streamproc.database import Database
from streamproc.ledger import Ledger
from tests.simulation.connection import Line, SimulatedConnection


class _Pool:
    """psycopg_pool: connections are made when needed, broken ones are not given back."""

    def __init__(self, line: Line, size: int, timeout: float) -> None:
        self._line = line
        self._slots = asyncio.Semaphore(size)
        self._idle: list[SimulatedConnection] = []
        self._timeout = timeout

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SimulatedConnection]:
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise PoolTimeout("couldn't get a connection") from None
        try:
            connection = await self._connect()
            try:
                async with connection:
                    yield connection
            finally:
                self._take_back(connection)
        finally:
            self._slots.release()

    async def _connect(self) -> SimulatedConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and not connection.session.ended:  # its check found it alive
                return connection
            connection.close_now()
        line = self._line
        deadline = line.loop.time() + self._timeout
        while True:
            await line.way()
            if line.server.up:
                return SimulatedConnection(line, line.server.connect(line.name))
            if line.loop.time() > deadline:
                raise PoolTimeout("couldn't get a connection")
            await asyncio.sleep(0.5)

    def _take_back(self, connection: SimulatedConnection) -> None:
        if connection.closed:
            return
        if connection.info.transaction_status is TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            connection.lose()

    async def close(self) -> None:
        for connection in self._idle:
            connection.session.end()
            connection.close_now()
        self._idle.clear()


class SimulatedDatabase(Database):
    """``name`` is the connections' ``application_name``."""

    def __init__(self, line: Line, *, size: int = 4) -> None:
        self.place = "simulated PostgreSQL"
        self.line = line
        self._pool: Any = None
        self._size = size

    async def open(self) -> None:
        if self._pool is None:
            self._pool = _Pool(self.line, self._size, 15.0)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    @asynccontextmanager
    async def alone(self, what: str, doing: str) -> AsyncIterator[bool]:
        """Locks of a session are not modelled: nothing rests on them, they only save work."""
        yield True


class SimulatedLedger(Ledger):
    """The service's ledger on a simulated server, which has its tables."""

    def __init__(self, line: Line, stream: str, worker: str) -> None:
        self.database = SimulatedDatabase(line)
        self.stream = stream
        self.worker = worker

    async def migrate(self) -> int:
        return 0


def hang_up(line: Line) -> None:
    """The process at this end has died: its kernel closes the connections, or the machine is gone with it."""
    loop = line.loop
    seconds = loop.chance.choice([0.0, 0.001, 0.1, 60.0])
    for connection in list(line.connections):
        loop.call_later(seconds, connection.session.end, context=loop.world.context.copy())
    line.connections.clear()
