"""``GET /api/v1/tables`` and ``/api/v1/tables/{name}``: the summaries over HTTP, from the worker's port.

A worker's first job is its stream, so a question may cost it little: connections of its own (two, opened
with the first question), two questions at a time and few waiting, a page of rows each, and a limit to the
time that the database spends on one. Transactions are read-only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiohttp import web
from psycopg import AsyncConnection, errors, sql

from streamproc.database import Database
from streamproc.errors import DependencyError, LedgerError
from streamproc.ops.access import Access, problem
from streamproc.ops.table_formats import FORMATS, chosen
from streamproc.ops.table_query import BadQuestion, Question, read_question
from streamproc.sinks.summaries_copy import decode
from streamproc.sinks.summaries_layout import Layout, public_type
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Questions under way, and those that may wait for their turn; further ones are sent away (503).
_AT_ONCE, _WAITING = 2, 8
#: Seconds that the database may spend on one, and that one may take in all.
_STATEMENT_SECONDS, _SECONDS = 5, 15
#: Bytes of a page as the database sends it; one that would be larger ends earlier.
_PAGE_BYTES = 8 * 1024 * 1024

#: What is to be asked again later.
_BUSY, _AWAY = "too many questions at once", "the database does not answer"

_READ_ONLY = f"""
    BEGIN READ ONLY;
    SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s';
    SET LOCAL lock_timeout = '1s';
    SET LOCAL work_mem = '16MB';
    SET LOCAL max_parallel_workers_per_gather = 0;
    SET LOCAL jit = off
"""


class TablesApi:
    """The tables of the streams in ``pages``, all of which lie in the database behind ``conninfo``."""

    def __init__(self, pages: Sequence[Topology], conninfo: str, worker: str) -> None:
        self._layouts = {page.name: {t.name: Layout(t, page.name) for t in page.tables} for page in pages}
        self._database = Database(conninfo, f"streamproc {worker} api", size=_AT_ONCE)
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._inside = 0

    def add_routes(self, app: web.Application, access: Access) -> None:
        """Serve them."""
        app.router.add_get("/api/v1/tables", access.guarded(self._list))
        app.router.add_get("/api/v1/tables/{name}", access.guarded(self._rows))

    async def close(self) -> None:
        """Close the connections."""
        await self._database.close()

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "tables": [
                    {
                        "name": f"{stream}.{name}",
                        "comment": layout.table.comment,
                        "window": layout.table.window.kind,
                        "by": [column.name for column in layout.by],
                        "columns": _types(layout),
                    }
                    for stream, tables in self._layouts.items()
                    for name, layout in tables.items()
                ]
            }
        )

    async def _rows(self, request: web.Request) -> web.StreamResponse:
        found = self._find(request.match_info["name"])
        if isinstance(found, web.Response):
            return found
        written = chosen(request.query.get("format"), request.headers.get("Accept", ""))
        if written is None:
            return problem(400, f"format is one of {', '.join(FORMATS)}")
        try:
            question = read_question(found, list(request.query.items()))
        except BadQuestion as error:
            return problem(400, str(error))
        if self._inside >= _AT_ONCE + _WAITING:
            return problem(503, _BUSY, {"Retry-After": "1"})
        self._inside += 1
        why = _BUSY
        try:
            async with asyncio.timeout(_SECONDS), self._slots:
                why = _AWAY  # it stops what takes long by itself, and before that
                return await self._answer(request, question, written)
        except (DependencyError, LedgerError, TimeoutError) as error:
            return _failed(error, why)
        finally:
            self._inside -= 1

    def _find(self, name: str) -> Layout | web.Response:
        """A table by its name, or by stream and name where several streams have one of that name."""
        stream, dot, table = name.rpartition(".")
        found = [
            tables[table]
            for each, tables in self._layouts.items()
            if table in tables and (not dot or each == stream)
        ]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{stream}.{table}" for stream, tables in self._layouts.items() for table in tables)
        why = "several streams have such a table, write stream.table" if found else "there is no such table"
        return problem(404, f"{why}. There are: {known}")

    async def _answer(self, request: web.Request, question: Question, written: str) -> web.Response:
        async with self._opening:
            await self._database.open()
        async with self._database.connection("read a table") as conn:
            await conn.execute(_READ_ONLY)  # the pool ends the transaction
            body, more = await _read(conn, question.query())
        return await asyncio.to_thread(_written, request, question, (body, more), written)


async def _read(conn: AsyncConnection[Any], query: sql.Composed) -> tuple[bytes, bool]:
    """Rows in COPY's text format, and whether there are more than these because there were too many bytes."""
    rows: list[bytes] = []
    size, more = 0, False
    async with conn.cursor() as cursor, cursor.copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as copy:
        async for row in copy:
            if size > _PAGE_BYTES:
                more = True  # read to the end all the same: a COPY that is left costs the connection
                continue
            rows.append(bytes(row))
            size += len(row)
    return b"".join(rows), more


def _written(
    request: web.Request, question: Question, read: tuple[bytes, bool], written: str
) -> web.Response:
    body, more = read
    rows, token = question.page(decode(body, question.columns), more=more)
    content_type, write = FORMATS[written]
    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if written == "csv":
        headers["Content-Type"] += "; charset=utf-8"
        headers["Content-Disposition"] = f'attachment; filename="{question.layout.table.name}.csv"'
    if token is not None:
        following = request.rel_url.update_query(after=token)
        headers["Link"] = f'<{following}>; rel="next"'
    layout = question.layout
    about = {"table": layout.table.name, "columns": _types(layout), "next": token}
    return web.Response(body=write(rows, about), headers=headers)


def _types(layout: Layout) -> dict[str, str]:
    """Each column's PostgreSQL type, in order."""
    return {column.name: public_type(column.type).as_string(None) for column in layout.columns}


def _failed(error: Exception, why: str) -> web.Response:
    """The answer to a question that has none. ``why``: in case that all its time is over."""
    if isinstance(error, TimeoutError):
        return problem(503, why, {"Retry-After": "5"})
    if isinstance(error.__cause__, errors.QueryCanceled):
        return problem(504, f"it took longer than {_STATEMENT_SECONDS} seconds: narrow the time range")
    if isinstance(error.__cause__, errors.DataError):
        return problem(400, f"PostgreSQL refuses a value: {error.__cause__.diag.message_primary}")
    if isinstance(error.__cause__, errors.UndefinedTable | errors.UndefinedColumn):
        return problem(503, "the worker has not made the table yet", {"Retry-After": "5"})
    log.warning("table_not_read", why=str(error))
    # The log says what; whoever asks need not know the database's name.
    return problem(503, _AWAY, {"Retry-After": "5"})
