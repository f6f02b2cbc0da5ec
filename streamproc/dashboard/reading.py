"""How the dashboard reads PostgreSQL: read-only sessions, every statement on a clock, one answer for all viewers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from psycopg import ProgrammingError, errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from streamproc.database import Database
from streamproc.errors import ConfigError, Mistake, StreamprocError

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Connections for all viewers together: their questions are the same ones, and asked once.
POOL = 6

#: A look-up that took long is not made again before so many times as long has passed, but after :data:`_LONGEST_REST`
#: seconds at the latest: where worker and database have a processor each, asking every two seconds took 7 % from them.
_REST = 20
_LONGEST_REST = 10.0


def read_only(conninfo: str, statement_timeout: float) -> str:
    """``conninfo`` whose sessions are read-only and stop statements after ``statement_timeout`` seconds.

    That is the second lock; the first is the role (:mod:`streamproc.dashboard.role`). ``jit`` is off: compiling
    costs more than a query of a page takes. Raises :class:`ConfigError` for what is no connection string.
    """
    try:
        given = conninfo_to_dict(conninfo)
    except ProgrammingError:  # its message quotes the string, password and all
        raise ConfigError(
            [
                Mistake(
                    "dashboard.database", "is not a PostgreSQL URL", "Write postgresql://user@host/database"
                )
            ]
        ) from None
    options = (
        f"-c default_transaction_read_only=on -c statement_timeout={round(statement_timeout * 1000)}"
        " -c lock_timeout=1000 -c jit=off"
    )
    return make_conninfo("", **{**given, "options": f"{given.get('options') or ''} {options}".strip()})


@dataclass(frozen=True, slots=True)
class Question:
    """A statement and its parameters. ``doing`` goes into error messages."""

    statement: sql.Composed
    parameters: Mapping[str, object]
    doing: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows, and the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[tuple[Any, ...]]


class Reader:
    """Asks questions. ``database`` connects as :func:`read_only` says; who opens the reader closes the database.

    It connects when it is first asked, and tries again when that failed: the database may be away at any time.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Connect unless that is done. Raises :class:`DependencyError`."""
        async with self._connecting:
            await self.database.open()

    async def ask(self, question: Question) -> Answer:
        """The answer, whole. Raises what :meth:`Database.speaking` does."""
        await self.connect()
        async with self.database.connection(question.doing) as conn:
            cursor = await conn.execute(question.statement, question.parameters)
            return Answer([column.name for column in cursor.description or ()], await cursor.fetchall())

    async def ask_for_pieces(self, question: Question, rows: int) -> AsyncGenerator[Answer]:
        """The answer, so many ``rows`` at a time, the last time fewer. Raises what :meth:`Database.speaking` does.

        The clock of a statement is that of one piece.
        """
        await self.connect()
        async with (
            self.database.connection(question.doing) as conn,
            conn.transaction(),
            conn.cursor("pieces") as cursor,
        ):
            await cursor.execute(question.statement, question.parameters)
            columns = [column.name for column in cursor.description or ()]
            more = True
            while more:
                found = await cursor.fetchmany(rows)
                more = len(found) == rows
                yield Answer(columns, found)


class Unforeseen(StreamprocError):
    """A look-up failed as it never should: the fault is the dashboard's own."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """What was last found out, and when (Unix seconds). ``problem``: why it is not newer; ``None`` when it is."""

    value: T | None
    at: float | None
    problem: StreamprocError | None


class Shared(Generic[T]):
    """One answer for all viewers, looked up again when somebody asks and it is older than ``keep`` seconds.

    While it is being looked up, whoever asks waits for the same look-up. When that fails, the last answer stays
    and says since when. A database that takes long over it is asked less often. ``clock``: seconds, monotonic.
    """

    def __init__(
        self, find: Callable[[], Awaitable[T]], keep: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find = find
        self._keep = self._rest = keep
        self._clock = clock
        self._lock = asyncio.Lock()
        self._tried = float("-inf")
        self._seen: Seen[T] = Seen(None, None, None)

    async def get(self) -> Seen[T]:
        """The newest answer; never raises what the look-up did."""
        async with self._lock:
            began = self._clock()
            if began - self._tried >= self._rest:
                self._rest = self._keep
                try:
                    value = await self._find()
                    self._seen = Seen(value, time.time(), None)
                    rest = min(_REST * (self._clock() - began), _LONGEST_REST)
                    self._rest = max(self._keep, rest)
                except StreamprocError as error:
                    self._seen = Seen(self._seen.value, self._seen.at, error)
                except Exception as error:
                    if not isinstance(self._seen.problem, Unforeseen):  # once, and not every two seconds
                        log.exception("look_up_failed")
                    self._seen = Seen(self._seen.value, self._seen.at, Unforeseen(repr(error)))
                self._tried = self._clock()
            return self._seen


def explain(problem: StreamprocError) -> tuple[str, str]:
    """A headline and a sentence for a viewer: what is going on, and what helps."""
    if isinstance(problem, Unforeseen):
        return ("This cannot be shown", "The fault is the dashboard's own: its log says more.")
    match problem.__cause__:
        case errors.UndefinedTable() | errors.InvalidSchemaName() | errors.UndefinedColumn():
            return (
                "Nothing to show yet",
                "The stream's tables are not there as the dashboard knows them. If it has not run since its topic "
                "page was written or changed, this page fills by itself when `streamproc run` has started. Start the "
                "dashboard again if the topic page has changed since then: it reads it only once.",
            )
        case errors.InsufficientPrivilege():
            return (
                "The dashboard may not read this",
                f"{problem}. `streamproc dashboard grant` writes the SQL that gives its role the rights it needs.",
            )
        case errors.QueryCanceled() | errors.LockNotAvailable():
            return (
                "That took too long",
                "The database was asked to stop: choose a shorter range or fewer columns, or try again.",
            )
        case _:
            said = str(problem)
            stop = "" if said.endswith((".", "?", "!")) else "."
            return ("The database does not answer", f"{said}{stop} The page goes on by itself when it does.")
