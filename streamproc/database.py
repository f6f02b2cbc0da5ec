"""PostgreSQL connections for the ledger, the summaries and the warehouse.

psycopg 3, no ORM. Connections are in autocommit mode and transactions are written out: ``BEGIN``, work,
``COMMIT``, and the command tag of the commit is looked at. Passwords never leave this module: an endpoint
is named by host and database only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection, errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from streamproc.errors import ConfigError, DependencyError, Inconsistent, LedgerError, Mistake
from streamproc.redaction import redact

#: Applied unless the connection string says otherwise. A peer that vanished without a word is noticed
#: after about a minute (30 + 3 * 10 s idle, 60 s with data under way); libpq's default is two hours.
_CONNECTION_DEFAULTS: Mapping[str, str] = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

#: The server's side of the same: a worker that froze in the middle of a transaction must not keep its row
#: locks for ever, because the next owner waits for them. ``synchronous_commit = off`` could lose the note
#: of an object that is about to be written, which nobody would ever delete then.
_SESSION_SETUP = """
    SELECT set_config('idle_in_transaction_session_timeout', '60s', false),
           set_config('tcp_keepalives_idle', '30', false),
           set_config('tcp_keepalives_interval', '10', false),
           set_config('tcp_keepalives_count', '3', false),
           set_config('TimeZone', 'UTC', false),
           CASE WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'on', false) END
"""

#: SQLSTATEs by which a server or a proxy says that it does not know whether a commit happened.
_UNKNOWN_OUTCOME = {"08007", "40003"}


#: Of the session, so they go with a process that is killed.
_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"


#: What to write for a database that :func:`other_encoding` says something of.
ENCODE = "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 makes one that can"


def other_encoding(conn: AsyncConnection[Any]) -> str | None:
    """The encoding of the connection's database unless it is UTF-8: no other holds every text that events may have."""
    encoding = conn.info.parameter_status("server_encoding")
    return None if encoding == "UTF8" else encoding


#: Who is mostly in the way of a lock that is not given.
_LEFT_OPEN = "see pg_stat_activity for a transaction that was left open, and end it"


async def wait_for_locks(conn: AsyncConnection[Any], patience: str) -> None:
    """Wait no longer than that (``5s``) for a lock, to the end of the transaction."""
    await conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(patience)))


@asynccontextmanager
async def patient(
    conn: AsyncConnection[Any], patience: str, what: str, problem: str, hint: str = _LEFT_OPEN
) -> AsyncIterator[None]:
    """:func:`wait_for_locks`; :class:`DependencyError` where one that the block asks for is not given by then."""
    await wait_for_locks(conn, patience)
    try:
        yield
    except errors.LockNotAvailable as error:
        raise DependencyError(what, problem, hint) from error


class OutcomeUnknown(DependencyError):
    """The connection was lost during COMMIT: the transaction is either all there or not there at all."""


class Database:
    """A small pool of connections to one database.

    ``name`` says who connects (``application_name``); ``size`` is the largest number of connections.
    Raises :class:`ConfigError` when ``conninfo`` (URL or libpq keywords) cannot be parsed.
    """

    def __init__(self, conninfo: str, name: str, *, size: int = 4, timeout: float = 15.0) -> None:
        self._conninfo = _complete(conninfo, name)
        self.place = _place(self._conninfo)
        self._timeout = timeout
        self._size = size
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] | None = None

    def __repr__(self) -> str:
        return f"Database({self.place})"

    async def open(self) -> None:
        """Connect. Raises :class:`DependencyError` saying why it cannot."""
        if self._pool is not None:
            return
        with self.speaking("connect"):
            # The pool retries in the background and reports only that time ran out; one connection made
            # by hand says what is wrong.
            probe = await AsyncConnection.connect(self._conninfo, autocommit=True)
            await probe.close()
        pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            self._conninfo,
            kwargs={"autocommit": True},
            min_size=1,
            max_size=self._size,
            timeout=self._timeout,
            name=self.place,
            configure=_configure,
            check=AsyncConnectionPool.check_connection,
            open=False,
        )
        with self.speaking("connect"):
            await pool.open(wait=True, timeout=self._timeout)
        self._pool = pool

    async def close(self) -> None:
        """Close the pool. Calling it again does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self, doing: str) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection in autocommit mode, for single statements. ``doing`` goes into error messages.

        A server that only reads (after a failover it may be the one that was the primary) is a
        :class:`DependencyError`, and the connection to it is given up: the next may lead to another server.
        """
        if self._pool is None:
            raise DependencyError(self.place, f"{doing}: not connected", "call open() first")
        with self.speaking(doing):
            async with self._pool.connection() as conn:
                try:
                    yield conn
                except errors.ReadOnlySqlTransaction as error:
                    await conn.close()
                    raise DependencyError(
                        self.place,
                        f"{doing}: {_message(error)}",
                        "after a failover: does its name lead to the primary yet?",
                    ) from error

    @asynccontextmanager
    async def alone(self, what: str, doing: str) -> AsyncIterator[bool]:
        """Whether nobody else is in such a block for ``what``. It takes a connection for as long as it lasts."""
        async with self.connection(doing) as conn:
            row = await (await conn.execute(_TRY_LOCK, [what])).fetchone()
            got = bool(row and row[0])
            try:
                yield got
            finally:
                if got and not conn.closed:
                    await conn.execute(_UNLOCK, [what])

    @asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[AsyncConnection[Any]]:
        """A READ COMMITTED transaction: committed when the block ends, rolled back when it raises.

        Raises :class:`OutcomeUnknown` when the connection is lost during COMMIT, :class:`Inconsistent`
        when the server answers COMMIT with anything but COMMIT, and what :meth:`speaking` raises.
        """
        async with self.connection(doing) as conn:
            # Each statement must see what was committed before it began, above all after a wait for a row
            # lock, whatever the database's default isolation level.
            await conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            yield conn  # an exception leaves through the pool's connection(), which rolls back
            await self._commit(conn, doing)

    async def _commit(self, conn: AsyncConnection[Any], doing: str) -> None:
        if conn.info.transaction_status is not TransactionStatus.INTRANS:
            raise Inconsistent(f"{doing}: the transaction failed or was ended before its commit")
        try:
            tag = (await conn.execute("COMMIT")).statusmessage
        except psycopg.Error as error:
            if conn.closed or error.sqlstate in _UNKNOWN_OUTCOME:
                raise OutcomeUnknown(self.place, f"{doing}: connection lost during COMMIT") from error
            raise
        if tag != "COMMIT":
            raise Inconsistent(f"{doing}: PostgreSQL answered {tag} to COMMIT; nothing was kept")

    @contextmanager
    def speaking(self, doing: str) -> Iterator[None]:
        """Turn psycopg's exceptions into this project's.

        Unreachable, overloaded, shutting down, timeouts (also that of a transaction in which a frozen process
        said nothing), deadlocks, missing rights: :class:`DependencyError`; a violated constraint:
        :class:`Inconsistent`; the rest: :class:`LedgerError`.
        """
        try:
            yield
        except (PoolTimeout, TooManyRequests, PoolClosed) as error:
            raise DependencyError(self.place, f"{doing}: no connection: {error}") from error
        except errors.InsufficientPrivilege as error:
            raise DependencyError(
                self.place, f"{doing}: {_message(error)}", "grant the missing right"
            ) from error
        except (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            errors.IdleInTransactionSessionTimeout,
            errors.TransactionTimeout,
        ) as error:
            raise DependencyError(self.place, f"{doing}: {_message(error)}") from error
        except psycopg.IntegrityError as error:
            raise Inconsistent(f"{self.place}: {doing}: {_message(error)}") from error
        except psycopg.Error as error:
            raise LedgerError(f"{self.place}: {doing}: {_message(error)}") from error


def _complete(conninfo: str, name: str) -> str:
    """The connection string with our defaults under what it says itself."""
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # The string is not shown: in one that cannot be parsed nobody can find the password to hide it.
        # psycopg's message quotes it, so the exception is not chained either.
        mistake = Mistake(
            "database", "is not a PostgreSQL URL", "Write postgresql://user:password@host:5432/database"
        )
        raise ConfigError([mistake]) from None
    return make_conninfo("", **{**_CONNECTION_DEFAULTS, "application_name": name, **given})


def _place(conninfo: str) -> str:
    parts = conninfo_to_dict(conninfo)
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"PostgreSQL {host}{port}/{parts.get('dbname') or parts.get('user') or ''}"


def _message(error: psycopg.Error) -> str:
    """The server's words on one line; a table and column say nothing about a password, values might."""
    text = error.diag.message_primary or str(error) or type(error).__name__
    return redact(" ".join(text.split()))


async def _configure(conn: AsyncConnection[Any]) -> None:
    await conn.execute(_SESSION_SETUP)
