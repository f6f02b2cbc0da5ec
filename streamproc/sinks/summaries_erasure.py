"""Taking a visitor's rows out of a stream's tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_layout import Layout
from streamproc.topology import Table


def identifying(tables: Sequence[Table], columns: Collection[str]) -> list[tuple[Table, list[str]]]:
    """The tables with rows of one visitor each, and the columns that say whose: a session's key, or ``by``."""
    found = []
    for table in sorted(tables, key=lambda each: each.name):
        keys = (table.window.key,) if table.window.kind == "session" else table.by
        if mine := [key for key in keys if key in columns]:
            found.append((table, mine))
    return found


async def erase(
    conn: AsyncConnection[Any],
    schema: str,
    found: tuple[Table, list[str]],
    values: Sequence[str],
    *,
    dry: bool,
) -> int:
    """Delete the rows and the state of one table in which one of its columns is one of ``values``.

    Returns the number of public rows; ``dry`` only counts them. One transaction a table, in the tables' order: a
    row that a commit holds is waited for.
    """
    table, columns = found
    layout = Layout(table, schema)
    theirs = sql.SQL(" OR ").join(sql.SQL("{} = ANY(%(values)s)").format(sql.Identifier(c)) for c in columns)
    names = {"values": list(values)}
    there = await conn.execute("SELECT to_regclass(%s) IS NOT NULL", [layout.public.as_string(conn)])
    if await there.fetchone() != (True,):
        return 0  # the page is newer than the tables, or never ran
    if dry:
        count = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(layout.public, theirs)
        row = await (await conn.execute(count, names)).fetchone()
        return int(row[0]) if row else 0
    if layout.has_state:
        await conn.execute(sql.SQL("DELETE FROM {} WHERE {}").format(layout.state, theirs), names)
    return (
        await conn.execute(sql.SQL("DELETE FROM {} WHERE {}").format(layout.public, theirs), names)
    ).rowcount
