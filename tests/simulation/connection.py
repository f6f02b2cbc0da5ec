"""psycopg's connection to the simulated PostgreSQL, and the ways in which it breaks."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from tests.simulation.loop import SimulatedLoop
from tests.simulation.postgres import Answer, Server, Session
from tests.simulation.statements import normal

#: Errors that are not the end of a connection, though psycopg counts them among the operational ones.
_SURVIVED = (psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected)


class Cut(enum.Enum):
    """What becomes of a message when the connection breaks."""

    NONE = "nothing"
    LOST = "it never arrives"
    ANSWER_LOST = "it is executed, the answer is lost"
    UNDER_WAY = "it arrives, or is lost, long after the client has given up"


@dataclass
class Network:
    """How the way to the server is. Shares are of one; times in seconds.

    ``cuts``: of all messages; ``commit_cuts``: of COMMITs. ``slow``: the longest way of a message.
    """

    cuts: float = 0.0
    commit_cuts: float = 0.0
    slow: float = 0.005


class Line:
    """One worker's way to the server. ``armed``: what the next COMMIT meets, for tests that want just that."""

    def __init__(self, server: Server, network: Network, name: str) -> None:
        self.server = server
        self.network = network
        self.name = name
        self.armed = Cut.NONE
        self.broke = asyncio.Event()
        self.decided: asyncio.Future[bool] | None = None
        self.connections: list[SimulatedConnection] = []

    @property
    def loop(self) -> SimulatedLoop:
        return self.server.loop

    def fate(self, text: str) -> Cut:
        """Drawn for every message."""
        if text == "COMMIT" and self.armed is not Cut.NONE:
            cut, self.armed = self.armed, Cut.NONE
            return cut
        chance = self.loop.chance
        share = self.network.commit_cuts if text == "COMMIT" else self.network.cuts
        if share and chance.random() < share:
            return chance.choice([Cut.LOST, Cut.ANSWER_LOST, Cut.UNDER_WAY])
        return Cut.NONE

    async def way(self) -> None:
        """A message is on its way."""
        await asyncio.sleep(self.loop.chance.uniform(0, self.network.slow))

    def later(self, act: Callable[[], object]) -> None:
        """The same without a task: ``act`` when it has arrived."""
        loop = self.loop
        loop.call_later(loop.chance.uniform(0, self.network.slow), act, context=loop.world.context.copy())

    def cut_all(self) -> None:
        """Every connection breaks; the server notices some time later."""
        for connection in list(self.connections):
            connection.lose()


class Reply:
    """What comes back for a message. Whoever waits can be cancelled and wait again."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.outcome: Answer | psycopg.Error | None = None
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        if self.outcome is None:
            self._waiter = self._loop.create_future()
            await self._waiter

    def set(self, outcome: Answer | psycopg.Error) -> None:
        if self.outcome is None:
            self.outcome = outcome
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


class SimulatedConnection:
    """psycopg's AsyncConnection in autocommit mode."""

    connection = None  # psycopg.sql asks for it; without one it quotes by itself

    def __init__(self, line: Line, session: Session) -> None:
        self.closed = False
        self.info = SimpleNamespace(transaction_status=TransactionStatus.IDLE)
        self.session = session
        self._line = line
        self._reply: Reply | None = None
        line.connections.append(self)

    async def execute(self, query: Any, values: Any = None) -> SimulatedCursor:
        """Send the statement and wait for what comes back."""
        text = _text(query)
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        loop = self._line.loop
        loop.note(f"{self._line.name}: {text[:60]}")
        self._reply = reply = Reply(loop)
        fate = self._line.fate(text)
        self._line.later(lambda: loop.spawn(self._deliver(text, values, reply, fate)))
        before = self.info.transaction_status
        self.info.transaction_status = TransactionStatus.ACTIVE
        try:
            answer = await self._answer(reply)
        except BaseException as error:
            if _is_lost(error) or self.closed:
                self.close_now()
            elif isinstance(reply.outcome, Answer):  # cancelled, and done all the same
                self._follow(reply.outcome)
            elif before is TransactionStatus.IDLE:
                self.info.transaction_status = before
            else:
                self.info.transaction_status = TransactionStatus.INERROR
            raise
        self._follow(answer)
        return SimulatedCursor(self, answer)

    def _follow(self, answer: Answer) -> None:
        inside = TransactionStatus.INTRANS if answer.inside else TransactionStatus.IDLE
        self.info.transaction_status = inside

    async def _answer(self, reply: Reply) -> Answer:
        try:
            await reply.wait()
        except asyncio.CancelledError:
            # As psycopg: ask the server to give up, and wait a while for what it says.
            self.session.cancel()
            try:
                async with asyncio.timeout(5.0):
                    await reply.wait()
            except TimeoutError:
                self._hang_up()
            except BaseException:  # cancelled again: the pool closes a connection that is still at it
                self._hang_up()
                raise
            if _is_lost(reply.outcome):
                self.close_now()
            raise
        if isinstance(reply.outcome, psycopg.Error):
            raise reply.outcome
        assert reply.outcome is not None
        return reply.outcome

    async def _deliver(self, text: str, values: Any, reply: Reply, cut: Cut) -> None:
        """The message's way, in the world: it goes on whatever becomes of the client."""
        loop, chance, session = self._line.loop, self._line.loop.chance, self.session
        if cut is Cut.LOST:
            self.lose()
            return
        if cut is Cut.UNDER_WAY:
            arrives = await self._held(reply)
            if not arrives:
                session.end()
                return
        try:
            answer = await session.execute(text, values)
        except psycopg.Error as error:
            reply.set(error)
            return
        if cut is Cut.UNDER_WAY:
            session.end()
            return
        if cut is Cut.ANSWER_LOST:
            loop.note(f"{self._line.name}: the answer to {text[:20]} is lost")
            self._line.broke.set()
            reply.set(psycopg.OperationalError("server closed the connection unexpectedly"))
            await asyncio.sleep(chance.choice([0, 0.01, 10.0]))
            session.end()
            return
        self._line.later(lambda: reply.set(answer))

    async def _held(self, reply: Reply) -> bool:
        """The client gives up; whether the message arrives in the end."""
        line = self._line
        reply.set(psycopg.OperationalError("server closed the connection unexpectedly"))
        line.broke.set()
        if line.network.commit_cuts == 0.0:  # a test decides
            line.decided = line.loop.create_future()
            return await line.decided
        await asyncio.sleep(line.loop.chance.uniform(0, 20))
        return line.loop.chance.random() < 0.5

    def lose(self) -> None:
        """The connection breaks. What the server is doing for it, it does to the end."""
        self._line.loop.note(f"{self._line.name}: connection lost")
        self._line.broke.set()
        if self._reply is not None:
            self._reply.set(psycopg.OperationalError("server closed the connection unexpectedly"))
        self._hang_up()

    def _hang_up(self) -> None:
        """The client closes its end. The server does what arrived before, and ends the session when it sees that."""
        seconds = self._line.loop.chance.choice([0, 0, 0.5, 30.0])
        self._line.loop.call_later(seconds, self.session.end, context=self._line.loop.world.context.copy())
        self.close_now()

    def close_now(self) -> None:
        self.closed = True
        self.info.transaction_status = TransactionStatus.UNKNOWN
        if self in self._line.connections:
            self._line.connections.remove(self)

    async def rollback(self) -> None:
        if not self.closed and self.info.transaction_status in (
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        ):
            await self.execute("ROLLBACK")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.closed:
            return
        if kind is not None:
            with suppress(psycopg.Error):  # as psycopg: a warning
                await self.rollback()
        elif self.info.transaction_status is not TransactionStatus.IDLE:
            await self.execute("COMMIT")

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[SimulatedCursor]:
        yield SimulatedCursor(self, Answer())


class SimulatedCursor:
    def __init__(self, connection: SimulatedConnection, answer: Answer) -> None:
        self._connection = connection
        self._rows = iter(answer.rows)
        self.rowcount = answer.count
        self.statusmessage = answer.tag

    async def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows)

    async def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows, None)

    async def stream(self, query: Any, values: Any = None) -> AsyncIterator[tuple[Any, ...]]:
        done = await self._connection.execute(query, values)
        for row in await done.fetchall():
            yield row

    @asynccontextmanager
    async def copy(self, query: Any) -> AsyncIterator[_Copy]:
        copy = _Copy()
        yield copy
        done = await self._connection.execute(query, b"".join(copy.chunks))
        self.rowcount = done.rowcount


class _Copy:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    async def write(self, chunk: bytes) -> None:
        self.chunks.append(chunk)


def _is_lost(outcome: object) -> bool:
    return isinstance(outcome, psycopg.OperationalError) and not isinstance(outcome, _SURVIVED)


def _text(query: Any) -> str:
    if isinstance(query, bytes):
        query = query.decode()
    elif isinstance(query, sql.Composable):
        query = query.as_string(None)
    return _NORMAL.setdefault(query, normal(query))


_NORMAL: dict[str, str] = {}
