"""PostgreSQL as far as exactly-once rests on it: READ COMMITTED transactions, row locks, sessions that end.

Every row that a transaction writes is locked by it until its end, so there is at most one uncommitted version
of a row: a transaction is an overlay over the committed rows and the locks it holds. A statement finds its
rows, waits for their locks and looks again at what the row then says, as PostgreSQL does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg import errors

from tests.simulation.loop import SimulatedLoop

Row = dict[str, Any]
Key = tuple[Any, ...]

#: Seconds after which the server ends a session that is idle inside a transaction (``streamproc.database``
#: sets it).
IDLE_IN_TRANSACTION = 60.0


@dataclass
class _Lock:
    """Held by some transactions in share mode, or by one exclusively."""

    shared: bool = False
    holders: list[Transaction] = field(default_factory=list)
    waiting: deque[tuple[Transaction, bool, asyncio.Future[None]]] = field(default_factory=deque)

    def admits(self, transaction: Transaction, shared: bool) -> bool:
        return all(holder is transaction for holder in self.holders) or (shared and self.shared)


class Rows:
    """The committed rows of all tables, by table and key, and the locks on them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, Row]] = {}
        self.locks: dict[tuple[str, Key], _Lock] = {}
        self.deadlocks = 0
        #: Called with the session's name and the changes, (table, key, before, after), of each commit.
        self.audit: list[Callable[[str, list[tuple[str, Key, Row | None, Row | None]]], None]] = []

    def table(self, name: str) -> dict[Key, Row]:
        return self.tables.setdefault(name, {})


class Transaction:
    """What one session has done since BEGIN."""

    def __init__(self, rows: Rows, application: str) -> None:
        self.application = application
        self._rows = rows
        self._changes: dict[tuple[str, Key], Row | None] = {}
        self._locks: list[tuple[str, Key]] = []
        self._waits_for: _Lock | None = None

    def get(self, table: str, key: Key) -> Row | None:
        if (table, key) in self._changes:
            return self._changes[table, key]
        return self._rows.table(table).get(key)

    def rows(self, table: str) -> Iterator[tuple[Key, Row]]:
        """Every row this transaction can see, by key."""
        seen = dict(self._rows.table(table))
        for (name, key), row in self._changes.items():
            if name == table:
                if row is None:
                    seen.pop(key, None)
                else:
                    seen[key] = row
        return iter(sorted(seen.items()))

    def put(self, table: str, key: Key, row: Row) -> None:
        assert (table, key) in self._locks, f"{table} {key} was not locked"
        self._changes[table, key] = row

    def delete(self, table: str, key: Key) -> None:
        assert (table, key) in self._locks, f"{table} {key} was not locked"
        self._changes[table, key] = None

    async def lock(self, table: str, key: Key, *, shared: bool = False) -> None:
        """Wait for the row, whether it is there or not. Raises DeadlockDetected instead of waiting for ever."""
        lock = self._rows.locks.setdefault((table, key), _Lock())
        held = self in lock.holders
        if held and (shared or not lock.shared):
            return
        if not lock.admits(self, shared) or (lock.waiting and not held):
            self._waits_for = lock
            try:
                if self._waits_in_a_circle():
                    self._rows.deadlocks += 1
                    raise errors.DeadlockDetected("deadlock detected")
                turn = asyncio.get_running_loop().create_future()
                lock.waiting.append((self, shared, turn))
                try:
                    await turn
                except asyncio.CancelledError:
                    lock.waiting = deque(each for each in lock.waiting if each[2] is not turn)
                    raise
            finally:
                self._waits_for = None
        if self not in lock.holders:
            lock.holders.append(self)
            self._locks.append((table, key))
        lock.shared = shared

    def _waits_in_a_circle(self) -> bool:
        seen = self._in_the_way()
        for other in seen:  # grows meanwhile
            behind = other._in_the_way()
            if self in behind:
                return True
            seen += [transaction for transaction in behind if transaction not in seen]
        return False

    def _in_the_way(self) -> list[Transaction]:
        """Whom this one waits for: those who hold the lock and those who wait in front of it."""
        lock = self._waits_for
        if lock is None:
            return []
        others = [holder for holder in lock.holders if holder is not self]
        for waiting, _, _ in lock.waiting:
            if waiting is self:
                break
            others.append(waiting)
        return others

    def commit(self) -> None:
        changes = [
            (table, key, self._rows.table(table).get(key), row) for (table, key), row in self._changes.items()
        ]
        for audit in self._rows.audit:
            audit(self.application, changes)
        for table, key, _, row in changes:
            if row is None:
                self._rows.table(table).pop(key, None)
            else:
                self._rows.table(table)[key] = row
        self.end()

    def end(self) -> None:
        """Let go of the locks; whoever waits longest goes on."""
        self._changes.clear()
        for name in self._locks:
            lock = self._rows.locks[name]
            lock.holders.remove(self)
            while lock.waiting:
                transaction, shared, turn = lock.waiting[0]
                if not lock.admits(transaction, shared):
                    break
                lock.waiting.popleft()
                if not turn.done():
                    lock.holders.append(transaction)
                    transaction._locks.append(name)
                    lock.shared = shared
                    turn.set_result(None)
            if not lock.holders and not lock.waiting:
                del self._rows.locks[name]
        self._locks.clear()


@dataclass
class Answer:
    """What a statement gives back."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    count: int = 0
    tag: str = ""
    #: The session was inside a transaction when it answered.
    inside: bool = False


Statement = Callable[[Transaction, Any, "Server"], Any]


class Session:
    """One connection, as the server sees it. Messages are worked off one after the other."""

    def __init__(self, server: Server, application: str) -> None:
        self.application = application
        self.ended = False
        self.failed = False
        self.transaction: Transaction | None = None
        self._server = server
        self._turn = asyncio.Lock()
        self._running: asyncio.Task[Any] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def execute(self, text: str, values: Any) -> Answer:
        """Raises psycopg's errors; OperationalError when the session has ended."""
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            self._refuse_ended()
            self._running = asyncio.current_task()
            try:
                answer = await self._execute(text, values)
                self._refuse_ended()
                answer.inside = self.transaction is not None
                return answer
            except asyncio.CancelledError:
                self.failed = True
                raise errors.QueryCanceled("canceling statement due to user request") from None
            except errors.Error:
                self.failed = True
                raise
            finally:
                self._running = None
                if self.ended:
                    self._roll_back()
                elif self.transaction is not None:
                    loop = asyncio.get_running_loop()
                    self._idle = loop.call_later(IDLE_IN_TRANSACTION, self.end)

    def _refuse_ended(self) -> None:
        if self.ended:
            raise errors.AdminShutdown("terminating connection")

    async def _execute(self, text: str, values: Any) -> Answer:
        word = text.split(maxsplit=1)[0] if text else ""
        if word == "BEGIN":
            assert self.transaction is None
            self.transaction, self.failed = self._server.begin(self.application), False
            return Answer(tag="BEGIN")
        if word in ("COMMIT", "ROLLBACK"):
            transaction, self.transaction = self.transaction, None
            if transaction is None:
                return Answer(tag=word)
            if word == "ROLLBACK" or self.failed:
                transaction.end()
                return Answer(tag="ROLLBACK")
            transaction.commit()
            return Answer(tag="COMMIT")
        if self.failed and self.transaction is not None:
            raise errors.InFailedSqlTransaction("current transaction is aborted")
        if self.transaction is not None:
            return await self._server.run(self.transaction, text, values)
        alone = self._server.begin(self.application)
        try:
            answer = await self._server.run(alone, text, values)
            self._refuse_ended()
            alone.commit()
        finally:
            alone.end()
        return answer

    def cancel(self) -> None:
        """The client asks that the running statement be given up: it is, if it waits for a lock."""
        if self._running is not None:
            self._running.cancel()

    def end(self) -> None:
        """The connection is gone, or the server wants it gone: roll back, after what is running."""
        if not self.ended:
            self.ended = True
            self._server.sessions.remove(self)
            if self._running is None:
                self._roll_back()

    def _roll_back(self) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.end()


class Server:
    """``statements``: what is done for each SQL text (white space does not matter)."""

    def __init__(self, loop: SimulatedLoop, statements: dict[str, Statement]) -> None:
        self.loop = loop
        self.rows = Rows()
        self.sessions: list[Session] = []
        self.up = True
        self.copy: Callable[[Transaction, str, Any], Any] | None = None
        self._statements = statements

    def connect(self, application: str) -> Session:
        """Raises OperationalError while the server is away."""
        if not self.up:
            raise errors.CannotConnectNow("the database system is starting up")
        session = Session(self, application)
        self.sessions.append(session)
        return session

    def begin(self, application: str) -> Transaction:
        return Transaction(self.rows, application)

    async def run(self, transaction: Transaction, text: str, values: Any) -> Answer:
        if not text:
            return Answer()
        statement = self._statements.get(text)
        if statement is None and self.copy is not None:
            answer = await self.copy(transaction, text, values)
            if answer is not None:
                return answer
        if statement is None:
            raise NotImplementedError(f"this statement is not modelled: {text}")
        return await statement(transaction, values, self)

    def stop(self) -> None:
        """All sessions end, whatever they were doing."""
        self.up = False
        for session in list(self.sessions):
            session.end()
            session.cancel()
