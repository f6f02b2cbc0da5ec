"""What each table of a stream was made for, kept beside the tables (``<stream>.__tables``): the catalog knows columns
but not windows. So an addition is told from a change that rows already there contradict.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from psycopg import AsyncConnection, sql

from streamproc.errors import Mistake
from streamproc.sinks.summaries_expiry import STATE_GRACE
from streamproc.sinks.summaries_layout import Layout
from streamproc.topology import HOUR, Measure

#: A table's entry, as JSON.
Definition: TypeAlias = dict[str, Any]

#: What cannot change once there are rows, and where the page says it.
_FIXED = {"window": "window", "key": "window.key", "by": "by", "where": "where"}


def registry(schema: str) -> sql.Identifier:
    """The table that holds the definitions of a stream's tables."""
    return sql.Identifier(schema, "__tables")


async def exists(conn: AsyncConnection[Any], table: sql.Identifier) -> bool:
    """Whether there is such a table."""
    row = await (await conn.execute("SELECT to_regclass(%s)", [table.as_string(conn)])).fetchone()
    return row != (None,)


async def definitions(conn: AsyncConnection[Any], schema: str) -> dict[str, Definition]:
    """Every table that a page of the stream ever had, by name."""
    query = sql.SQL("SELECT name, definition FROM {}").format(registry(schema))
    rows = await (await conn.execute(query)).fetchall()
    return {name: _completed(made) for name, made in rows}


def _completed(made: Definition) -> Definition:
    """A definition with what a version before has left out: its sessions were all of a text."""
    return {"key": "String", **made} if made["window"]["kind"] == "session" else made


def definition(layout: Layout) -> Definition:
    """What a table is made for today."""
    table, window = layout.table, layout.table.window
    return {
        **({"sessions": "numbered by start", "key": str(layout.by[0].type)} if layout.session else {}),
        "window": {name: getattr(window, name) for name in ("kind", "size", "hop", "key", "gap", "cap")},
        "by": dict(zip(table.by, map(str, table.by_types), strict=False)),
        "where": table.where,
        "lateness": table.lateness,
        "measures": {measure.name: _meaning(measure) for measure in table.measures},
        "derived": {derived.name: derived.sql for derived in table.derived},
        "comments": [
            table.comment,
            *(m.comment for m in table.measures),
            *(d.comment for d in table.derived),
        ],
    }


def _meaning(measure: Measure) -> Definition:
    meaning = {name: getattr(measure, name) for name in ("kind", "column", "where", "at", "precision")}
    return {**meaning, "type": str(measure.type), "steps": [list(step) for step in measure.steps]}


def incompatible(layout: Layout, schema: str, before: Definition) -> list[Mistake]:
    """The changes since ``before`` that the rows of a table contradict."""
    table = layout.table
    now = definition(layout)
    place = f"{schema}.{table.name}"
    rename = f"Change it back or give the table a new name; drop {place} when its rows are not wanted"
    mistakes = [
        Mistake(
            f"{schema}: tables.{table.name}.{path}",
            f"has changed from {json.dumps(before.get(part))} to {json.dumps(now.get(part))}, "
            f"and {place} has rows of the former",
            rename,
        )
        for part, path in _FIXED.items()
        if before.get(part) != now.get(part)
    ]
    if layout.has_state and now["lateness"] - before["lateness"] > STATE_GRACE:
        hours = STATE_GRACE // HOUR
        problem = f"has been raised by more than {hours} hours, and would reopen windows that are finished"
        fix = f"Raise it by {hours} hours at most, or give the table a new name"
        mistakes.append(Mistake(f"{schema}: tables.{table.name}.lateness", problem, fix))
    for name, meaning in now["measures"].items():
        old = before["measures"].get(name, meaning)
        mistakes += [
            Mistake(
                f"{schema}: tables.{table.name}.measures.{name}.{part}",
                f"has changed from {json.dumps(old[part])} to {json.dumps(value)}, "
                f"and column {name} of {place} has values of the former",
                "Give the new measure a new name",
            )
            for part, value in meaning.items()
            if old[part] != value
        ]
    return mistakes
