"""Creating and extending the tables.

An addition is carried out, anything that would change the meaning of rows already there is refused:
:mod:`streamproc.sinks.summaries_registry` tells the one from the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, errors, sql

from streamproc.database import patient
from streamproc.errors import ConfigError, Mistake
from streamproc.sinks.summaries_layout import (
    Column,
    Layout,
    finished_columns,
    public_type,
    stored_type,
    trusted,
)
from streamproc.sinks.summaries_registry import (
    Columns,
    Definition,
    columns_of_tables,
    definition,
    definitions,
    exists,
    incompatible,
    note_longest,
    registry,
)
from streamproc.sinks.summaries_seed import catch_up, is_behind, with_former
from streamproc.topology import Measure, Table

_COMMA = sql.SQL(", ")

#: How long a table is waited for that somebody reads or writes. Every commit and every reader waits behind whoever
#: waits for all of a table: a transaction that was left open must not hold up the stream for longer.
_PATIENCE = "5s"

#: Space for new versions of a row on its own page: an update then need not touch the indexes. Half of the open sessions
#: may go on in one epoch: with 75, 29 of 100 updates found no room, with 60 it was 3, in tables of the same size.
_FILLFACTOR, _SESSION_FILLFACTOR = 75, 60

#: What PostgreSQL raises of an expression that it does not compute, or of one that the rows there are do not fit; of a
#: column that something reads.
_REFUSED = (
    errors.ProgrammingError,
    errors.NotSupportedError,
    errors.DataError,
    errors.DependentObjectsStillExist,
)


async def ensure(conn: AsyncConnection[Any], layouts: Sequence[Layout], schema: str) -> None:
    """Create what is missing and extend what has grown, all or nothing.

    Raises :class:`ConfigError` listing every change that existing rows do not allow, or every derived column that
    PostgreSQL refuses; :class:`DependencyError` when a table that has grown is in use for long, and nothing is done.
    """
    async with conn.transaction():
        await conn.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"streamproc tables {schema}"]
        )
        await conn.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        await conn.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} (name text PRIMARY KEY, definition jsonb NOT NULL)"
            ).format(registry(schema))
        )
        known, there = await definitions(conn, schema), await columns_of_tables(conn, schema)
        for layout in layouts:
            if layout.table.name in known and not await exists(conn, layout.public):
                # Somebody dropped it to have it made anew; its state would be that of the rows that went.
                del known[layout.table.name]
                await conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(layout.state))
            if known.get(layout.table.name, {}).get("state"):
                layout.keep_state()
        mistakes = [
            mistake
            for layout in layouts
            if (before := known.get(layout.table.name)) is not None
            for mistake in incompatible(layout, schema, before, there.get(layout.table.name, {}))
        ]
        if mistakes:
            raise ConfigError(mistakes)
        refused: list[Mistake] = []
        for layout in layouts:
            before, mine = known.get(layout.table.name), there.get(layout.table.name, {})
            now = definition(layout, before)
            if before == now and all(column.name in mine for column in layout.columns):
                continue
            await note_longest(conn, schema, before, now)
            await _lock(conn, layout)
            behind = before is not None and await is_behind(conn, layout, before)
            whole = with_former(layout, schema, before or {}, mine) if behind else layout
            await _create(conn, whole)
            refused += await _extend(conn, whole, schema, before or {}, mine)
            if refused:
                continue  # for what else is refused; nothing of this is kept
            if behind:
                await catch_up(conn, whole, schema, before or {})
            await _describe(conn, layout)
            await conn.execute(
                sql.SQL(
                    "INSERT INTO {} VALUES (%s, %s) "
                    "ON CONFLICT (name) DO UPDATE SET definition = excluded.definition"
                ).format(registry(schema)),
                [layout.table.name, json.dumps(now)],
            )
        if refused:
            raise ConfigError(refused)


async def _lock(conn: AsyncConnection[Any], layout: Layout) -> None:
    """Wait for the commits under way, in their order. What follows asks for stronger and stronger locks: a commit that
    has begun with the table would wait for the weaker one, and the stronger one for the commit.
    """
    name = layout.public.as_string(conn).replace('"', "")
    async with patient(conn, _PATIENCE, name, f"is to be extended, and has been in use for {_PATIENCE}"):
        for table in (layout.state, layout.public):
            if await exists(conn, table):
                await conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))


async def _create(conn: AsyncConnection[Any], layout: Layout) -> None:
    # The state before the public table, as merging does: the other order could lock in a circle.
    if layout.has_state:
        columns: list[sql.Composable] = [_stored(column) for column in layout.staged]
        if layout.session:
            columns.append(sql.SQL("n bigint NOT NULL"))
        await _create_one(conn, layout, columns, state=True)
    span = {column.name for column in layout.span}
    columns = [
        sql.SQL("{} {} {}").format(
            column.id, public_type(column.type), sql.SQL("NOT NULL" if column.name in span else "")
        )
        for column in layout.columns
        if column not in layout.derived
    ]
    await _create_one(conn, layout, columns, state=False)


async def _create_one(
    conn: AsyncConnection[Any], layout: Layout, columns: Sequence[sql.Composable], *, state: bool
) -> None:
    name = layout.state if state else layout.public
    await conn.execute(
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}) WITH (fillfactor = {})").format(
            name,
            _COMMA.join(columns),
            sql.Literal(_SESSION_FILLFACTOR if layout.session else _FILLFACTOR),
        )
    )
    # by columns may be null, and a null is a value like any other here
    await conn.execute(
        sql.SQL("CREATE UNIQUE INDEX IF NOT EXISTS {} ON {} ({}) NULLS NOT DISTINCT").format(
            layout.state_index if state else layout.index, name, layout.conflict(state=state)
        )
    )
    former = layout.former_state_index if state else layout.former_index
    await conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(former))


def _stored(column: Column) -> sql.Composed:
    return sql.SQL("{} {}").format(column.id, stored_type(column.type))


async def _extend(
    conn: AsyncConnection[Any], layout: Layout, schema: str, before: Definition, there: Columns
) -> list[Mistake]:
    """Columns that came later. They are null in rows that were there before: nobody counted then. Returns what
    PostgreSQL refuses of derived ones.

    ``there``: the public table's by now. Derived ones go first, for a measure may have taken the name of one.
    """
    refused: list[Mistake] = []
    place = f"{schema}: tables.{layout.table.name}.derived"
    old: dict[str, str] = before.get("derived", {})
    now = {derived.name: derived.sql for derived in layout.table.derived}
    for name, formula in old.items():
        if now.get(name) != formula and there.get(name):  # computed from the row, so nothing is lost
            fix = "Drop what reads it, and make that anew when a worker has started; or change it back"
            async with _noting(conn, refused, f"{place}.{name}", fix):
                await conn.execute(
                    sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(layout.public, sql.Identifier(name))
                )
    add = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}")
    if layout.has_state:
        if (
            layout.session and "sessions" not in before
        ):  # they were numbered from the newest, which stays as it is
            await conn.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN n TYPE bigint").format(layout.state))
        for column in layout.staged:
            await conn.execute(add.format(layout.state, column.id, stored_type(column.type)))
        for sketch in layout.sketches:  # noise to a compressor
            await conn.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STORAGE EXTERNAL").format(layout.state, sketch.id)
            )
    for column in layout.measures:
        await conn.execute(add.format(layout.public, column.id, public_type(column.type)))
    for derived, column in zip(layout.table.derived, layout.derived, strict=True):
        fix = "Write what PostgreSQL computes of a row too: docs/tables.md, Derived columns"
        async with _noting(conn, refused, f"{place}.{derived.name}.sql", fix):
            await conn.execute(
                sql.SQL(
                    "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {} GENERATED ALWAYS AS ({}) STORED"
                ).format(layout.public, column.id, public_type(column.type), trusted(derived.sql))
            )
    return refused


@asynccontextmanager
async def _noting(
    conn: AsyncConnection[Any], refused: list[Mistake], place: str, fix: str
) -> AsyncIterator[None]:
    """Where PostgreSQL refuses what the block does, that is one mistake more, and the transaction goes on."""
    try:
        async with conn.transaction():
            yield
    except errors.InsufficientPrivilege:
        raise
    except _REFUSED as error:
        said = [error.diag.message_primary or str(error)]
        if isinstance(error, errors.DependentObjectsStillExist):  # details of other errors may quote a row
            said += (error.diag.message_detail or "").splitlines()
        refused.append(Mistake(place, f"is refused by PostgreSQL: {'; '.join(said)}", fix))


async def _describe(conn: AsyncConnection[Any], layout: Layout) -> None:
    table = layout.table
    await _comment(conn, sql.SQL("TABLE {}").format(layout.public), _about_table(table))
    comments = {column.name: f"{column.name} of the events" for column in layout.by}
    if layout.session:
        comments |= {
            layout.by[0].name: "Whose session it is",
            "session_start": "Time of the first event",
            "session_end": "Time of the last event",
        }
    else:
        comments |= {
            "window_start": "Start of the window, inclusive",
            "window_end": "End of the window, exclusive",
        }
    for measure in table.measures:
        comments |= _about_measure(measure)
    comments |= {d.name: f"{d.comment or 'Derived'} ({d.sql})" for d in table.derived}
    for name, comment in comments.items():
        column = sql.SQL("COLUMN {}.{}").format(layout.public, sql.Identifier(name))
        await _comment(conn, column, comment)
    if layout.has_state:
        text = f"Internal to streamproc: what is needed to merge more events into {table.name}"
        await _comment(conn, sql.SQL("TABLE {}").format(layout.state), text)


async def _comment(conn: AsyncConnection[Any], what: sql.Composable, text: str) -> None:
    await conn.execute(sql.SQL("COMMENT ON {} IS {}").format(what, sql.Literal(text)))


def _about_table(table: Table) -> str:
    window, seconds = table.window, 1_000_000
    about = {
        "tumbling": f"windows of {window.size // seconds} s",
        "hopping": f"windows of {window.size // seconds} s, every {window.hop // seconds} s",
        "session": f"sessions of one {window.key}, {window.gap // seconds} s without an event end them, "
        f"at most {window.cap // seconds} s long",
    }[window.kind]
    late = f"events up to {table.lateness // seconds} s behind the watermark count"
    return f"{table.comment or table.name}. Event time, {about}; {late}"


def _about_measure(measure: Measure) -> dict[str, str]:
    what = f"{measure.kind} of {measure.column}" if measure.column else f"{measure.kind} of events"
    comment = measure.comment or what.capitalize().replace("_", " ")
    if measure.where:
        comment += f", where {measure.where}"
    match measure.kind:
        case "approx_distinct":
            error = 104 / math.sqrt(2**measure.precision)
            comment += f". Approximate: HyperLogLog, relative standard error {error:.1f} %"
        case "distinct":
            comment += ". Exact up to a million, a theta sketch above (relative standard error 0.1 %)"
        case "approx_percentile":
            comment += f". Approximate: KLL, k = {measure.precision}; exact for fewer values than that"
        case "funnel":
            steps = [name for name, _ in measure.steps]
            number = (
                f"Steps reached: {', '.join(f'{i} {name}' for i, name in enumerate(steps, start=1))}; 0 none"
            )
            names = [name for name, _ in finished_columns(measure)]
            return dict(
                zip(names, [number, *(f"When step {name} was reached" for name in steps)], strict=True)
            )
    return {measure.name: comment}
