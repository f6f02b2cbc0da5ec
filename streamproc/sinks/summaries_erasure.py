"""Taking a visitor's rows out of a stream's tables: those of today's page, and those that earlier pages have left."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from psycopg import AsyncConnection, sql

from streamproc.database import Database
from streamproc.sinks.summaries_registry import Definition, columns_of_tables, definitions, exists, registry
from streamproc.topology import Table

#: Measures whose result is one of the values they measure.
_SHOWING = ("first", "last", "min", "max")

_NOTES = """
    SELECT id FROM streamproc.outbox WHERE stream = %s AND kind = 'rows' AND table_name = %s ORDER BY id
"""

#: A note that is being published is waited for, and gone then.
_NOTE = "SELECT payload FROM streamproc.outbox WHERE id = %s FOR UPDATE"
_RENOTE = "UPDATE streamproc.outbox SET payload = %s WHERE id = %s"
_FORGET_NOTE = "DELETE FROM streamproc.outbox WHERE id = %s"


@dataclass(frozen=True, slots=True)
class Identifying:
    """One table with ids of visitors.

    ``keys``: columns that say whose a row is: a session's key, or some of ``by``. ``shown``: measures that earlier
    pages had, with the id of one visitor in a row of many.
    """

    table: str
    keys: Sequence[str]
    shown: Sequence[str]


async def identifying(
    conn: AsyncConnection[Any], schema: str, tables: Sequence[Table], columns: Collection[str]
) -> list[Identifying]:
    """The tables in which one of the ``columns`` of events stands: of today's ``tables``, and of all before them."""
    there = await exists(conn, registry(schema))
    known = await definitions(conn, schema) if there else {}
    keys = {name: _keys(made) for name, made in known.items()}
    keys |= {each.name: (each.window.key,) if each.window.kind == "session" else each.by for each in tables}
    found = []
    for name, whose in sorted(keys.items()):
        mine = [key for key in whose if key in columns]
        shown = _shown(known[name], columns) if name in known else []
        if mine or shown:
            found.append(Identifying(name, mine, shown))
    return found


def _keys(made: Definition) -> Sequence[str]:
    return (made["window"]["key"],) if made["window"]["kind"] == "session" else tuple(made["by"])


def _shown(made: Definition, columns: Collection[str]) -> list[str]:
    """Measures of an id. Today's page has none: it would be refused."""
    measures = made["measures"].items()
    return [name for name, each in measures if each["kind"] in _SHOWING and each["column"] in columns]


async def erase(
    conn: AsyncConnection[Any], schema: str, found: Identifying, values: Sequence[str], *, dry: bool
) -> int | None:
    """Delete the rows and the state of one table in which one of its keys is one of ``values``; where a measure shows
    one, it becomes null.

    Returns the number of public rows (``dry`` only counts them), ``None`` when there is no such table. One transaction
    a table, in the tables' order: a row that a commit holds is waited for.
    """
    there, names = await columns_of_tables(conn, schema), {"values": list(values)}
    rows: int | None = None
    for table in (f"{found.table}__state", found.table):  # as a commit does
        written = {column for column, computed in there.get(table, {}).items() if not computed}
        keys, shown = ([c for c in columns if c in written] for columns in (found.keys, found.shown))
        if not keys and not shown:
            continue
        place = sql.Identifier(schema, table)
        if dry:
            query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(place, _any([*keys, *shown]))
            row = await (await conn.execute(query, names)).fetchone()
            rows = int(row[0]) if row else 0
            continue
        rows = 0
        if keys:
            delete = sql.SQL("DELETE FROM {} WHERE {}").format(place, _any(keys))
            rows += (await conn.execute(delete, names)).rowcount
        if shown:
            rows += (await conn.execute(_emptied(place, shown), names)).rowcount
    return rows


async def erase_notes(database: Database, stream: str, found: Identifying, values: Sequence[str]) -> None:
    """Take the rows that :func:`erase` took out of one table out of what has still to be published of it.

    Call it when that is committed: no later commit notes a row from before. One transaction a note, so that a table's
    rows are not held while somebody publishes.
    """
    theirs = frozenset(values)
    async with database.connection("look for rows that have still to be published") as conn:
        notes = await (await conn.execute(_NOTES, [stream, found.table])).fetchall()
    for (note,) in notes:
        async with database.transaction("erase a visitor from what has still to be published") as conn:
            row = await (await conn.execute(_NOTE, [note])).fetchone()
            if row is None:
                continue
            left = await asyncio.to_thread(_without, row[0], found, theirs)
            if not left:
                await conn.execute(_FORGET_NOTE, [note])
            elif left != row[0]:
                await conn.execute(_RENOTE, [left, note])


def _without(payload: bytes, found: Identifying, values: Collection[str]) -> bytes:
    """The NDJSON of changed rows without those of visitors."""
    lines = []
    for line in payload.rstrip(b"\n").split(b"\n"):
        row = orjson.loads(line)
        if any(_is_one(row.get(key), values) for key in found.keys):
            continue
        shown = [name for name in found.shown if _is_one(row.get(name), values)]
        lines.append(orjson.dumps(row | dict.fromkeys(shown)) if shown else line)
    return b"".join(line + b"\n" for line in lines)


def _is_one(value: object, values: Collection[str]) -> bool:
    """Whether it is one of the values, as PostgreSQL writes those that earlier pages had as a number."""
    if value is None:
        return False
    if isinstance(value, float):
        return str(value).removesuffix(".0") in values
    return (str(value).lower() if isinstance(value, bool) else str(value)) in values


def _emptied(table: sql.Identifier, columns: Sequence[str]) -> sql.Composed:
    empty = sql.SQL("{0} = CASE WHEN {1} THEN NULL ELSE {0} END")
    changes = [empty.format(sql.Identifier(column), _any([column])) for column in columns]
    return sql.SQL("UPDATE {} SET {} WHERE {}").format(table, sql.SQL(", ").join(changes), _any(columns))


def _any(columns: Sequence[str]) -> sql.Composed:
    """SQL: whether one of the columns, which earlier pages may have had as a number, is one of the values."""
    return sql.SQL(" OR ").join(
        sql.SQL("{}::text = ANY(%(values)s)").format(sql.Identifier(column)) for column in columns
    )
