"""``streamproc sql``: a look at the tables without psql."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast

import click
import psycopg
from psycopg import AsyncConnection, AsyncCursor, IsolationLevel

from streamproc.cli.options import form_option
from streamproc.cli.rendering import Section, printable, show
from streamproc.cli.streams import set_up_options
from streamproc.database import Database
from streamproc.errors import LedgerError
from streamproc.runtimes.attach import attached
from streamproc.settings import Settings

Row = Sequence[object]

#: Rows of a table for a person; the other forms have no limit.
_SHOWN = 1000


@click.command(name="sql")
@click.argument("query")
@set_up_options
@form_option("json", "One JSON object a line, one for each row.")
@form_option("csv", "CSV with a header (RFC 4180); null is an empty field.")
def sql_command(settings: Settings, query: str, form: str | None) -> None:
    """Run a read-only query in the ledger's database.

    The tables of a stream are in the schema of its name, the ledger's in the schema streamproc, those of an
    embedded warehouse in the schema warehouse:

    \b
      streamproc sql "SELECT * FROM clickstream.page_views ORDER BY views DESC LIMIT 10"
      streamproc sql --csv "SELECT * FROM streamproc.partitions"

    One statement, in a read-only transaction: nothing can be changed by accident. An answer of any size can
    be piped on as JSON or CSV; without either, the first 1000 rows are shown.
    """
    if not query.strip(" \t\r\n;"):
        raise click.UsageError("QUERY is empty.")
    asyncio.run(_run(settings, query, {"json": _write_json, "csv": _write_csv, None: _write_table}[form]))


async def _run(settings: Settings, query: str, write: Callable[[Answer], Awaitable[None]]) -> None:
    async with attached(settings) as endpoints:
        database = Database(endpoints.ledger, "streamproc sql")  # for its words only: one connection will do
        with database.speaking("query"):
            conn = await AsyncConnection.connect(endpoints.ledger, application_name="streamproc sql")
            try:
                await conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
                await conn.set_read_only(True)
                await conn.execute("SET LOCAL TimeZone TO 'UTC'")
                await _ask(conn, query, write)
            except psycopg.ProgrammingError as error:
                if error.sqlstate is not None:
                    raise
                raise LedgerError(f"{database.place}: query: it does not answer with rows") from error
            finally:
                await conn.close()


async def _ask(conn: AsyncConnection[Any], query: str, write: Callable[[Answer], Awaitable[None]]) -> None:
    cursor = conn.cursor()
    # One row at a time, and by the protocol that takes a single statement only.
    stream = cast("AsyncGenerator[Row]", cursor.stream(query.encode()))  # declared as less than it is
    async with aclosing(stream) as rows:
        answer = Answer(cursor, rows)
        await write(answer)
    if not answer.columns:  # streamed, an answer without rows does not name its columns
        await cursor.execute(query.encode())
        await write(Answer(cursor, cursor))


class Answer:
    """The rows of a query as they come from the server; ``columns`` is known once the first was asked for."""

    def __init__(self, cursor: AsyncCursor[Any], rows: AsyncIterator[Row]) -> None:
        self._cursor = cursor
        self.rows = rows

    @property
    def columns(self) -> list[str]:
        """Names, as the query gives them."""
        return [column.name for column in self._cursor.description or ()]


async def _write_json(answer: Answer) -> None:
    async for row in answer.rows:
        values = {name: as_json(value) for name, value in zip(answer.columns, row, strict=True)}
        click.echo(json.dumps(values))


async def _write_csv(answer: Answer) -> None:
    clean = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    headed = False
    async for row in answer.rows:
        if not headed:
            writer.writerow(map(clean, answer.columns))
            headed = True
        writer.writerow("" if value is None else clean(as_text(value)) for value in row)
    if answer.columns and not headed:
        writer.writerow(map(clean, answer.columns))


async def _write_table(answer: Answer) -> None:
    rows: list[list[object]] = []
    async for row in answer.rows:
        if len(rows) == _SHOWN:
            click.echo(f"There are more than the first {_SHOWN} rows; --json and --csv give all.", err=True)
            break
        rows.append([_cell(value) for value in row])
    if answer.columns:
        show([Section("", answer.columns, rows)])


def as_json(value: object) -> object:
    r"""A PostgreSQL value as JSON: numbers stay numbers, times are ISO 8601, bytea ``\x`` and hex digits."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() | Decimal():
            if not math.isfinite(value):
                return str(value)
            return int(value) if isinstance(value, Decimal) and value == value.to_integral() else float(value)
        case dict():
            return {str(key): as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [as_json(each) for each in value]
        case _:
            return as_text(value)


def as_text(value: object) -> str:
    """A PostgreSQL value as text."""
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(value).hex()
        case dict() | list() | tuple():
            return json.dumps(as_json(value))
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _cell(value: object) -> object:
    """For a person: numbers for the right-hand side, long binary values cut."""
    if isinstance(value, bytes) and len(value) > 16:
        return f"{as_text(value[:16])}… ({len(value)} bytes)"
    whole = isinstance(value, Decimal) and value.is_finite() and value == value.to_integral()
    if (
        value is None
        or isinstance(value, datetime)
        or (isinstance(value, int) and not isinstance(value, bool))
    ):
        return value
    return int(value) if whole and isinstance(value, Decimal) else as_text(value)
