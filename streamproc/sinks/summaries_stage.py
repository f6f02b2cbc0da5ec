"""Temporary tables in which a delta lies while it is merged."""

from __future__ import annotations

import hashlib
from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_layout import Column, Layout, stored_type

#: The place of a staged row in the order of the keys, by which all workers go.
ROW = Column("__row", pl.Int32())

_COMMA = sql.SQL(", ")


def numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows, which are in the order of their keys, with their :data:`ROW`."""
    return rows.with_columns(pl.int_range(pl.len(), dtype=ROW.type).alias(ROW.name))


async def stage(conn: AsyncConnection[Any], layout: Layout, purpose: str) -> sql.Identifier:
    """An empty temporary table with the columns :attr:`Layout.incoming`, ``n`` and :data:`ROW`."""
    columns = [sql.SQL("{} {}").format(column.id, stored_type(column.type)) for column in layout.incoming]
    columns += [sql.SQL("n smallint"), sql.SQL("{} integer").format(ROW.id)]
    return await _empty(conn, layout, purpose, _COMMA.join(columns))


async def known_rows(conn: AsyncConnection[Any], layout: Layout) -> sql.Identifier:
    """An empty temporary table for those staged rows whose key the table has: :data:`ROW`, and ``at`` which
    ``ctid``.
    """
    return await _empty(conn, layout, "known", sql.SQL("{} integer, at tid").format(ROW.id))


async def _empty(
    conn: AsyncConnection[Any], layout: Layout, purpose: str, columns: sql.Composed
) -> sql.Identifier:
    """Made once per connection. The columns are part of its name: a connection may outlive a change of the
    table.
    """
    text = f"{layout.public.as_string(None)} {columns.as_string(None)}"
    name = f"{layout.table.name[:30]}__{purpose}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    table = sql.Identifier("pg_temp", name)
    # Emptied because the transaction may have used it before.
    prepare = sql.SQL(
        "CREATE TEMPORARY TABLE IF NOT EXISTS {name} ({columns}) ON COMMIT DELETE ROWS; DELETE FROM {table}"
    )
    await conn.execute(
        layout.rendered(
            f"stage {purpose}",
            lambda: prepare.format(name=sql.Identifier(name), columns=columns, table=table),
        )
    )
    return table
