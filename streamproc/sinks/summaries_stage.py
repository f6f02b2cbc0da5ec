"""Temporary tables in which a delta lies while it is merged."""

from __future__ import annotations

import hashlib
from typing import Any, LiteralString

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_layout import Column, Layout, stored_type

#: The place of a staged row in the order of the keys, by which all workers go.
ROW = Column("__row", pl.Int32())

#: Of a piece of a session table: the :data:`ROW` of the first piece of its key, and whether it is the last one.
FIRST, LAST = Column("__first", pl.Int32()), Column("__last", pl.Boolean())

_COMMA = sql.SQL(", ")


def numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows, which are in the order of their keys, with their :data:`ROW`."""
    return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(ROW.name))


async def stage(conn: AsyncConnection[Any], layout: Layout, purpose: str) -> sql.Identifier:
    """An empty temporary table with the columns :attr:`Layout.incoming` and :data:`ROW`; of a session table also ``n``,
    :data:`FIRST` and :data:`LAST`.
    """
    return await _empty(conn, layout, purpose, known=False)


async def known_rows(conn: AsyncConnection[Any], layout: Layout) -> sql.Identifier:
    """An empty temporary table for those staged rows whose key the table has: :data:`ROW`, and ``__at`` which
    ``ctid``; of a session table also ``__how`` they are merged. Two underscores: a page's columns have other names.
    """
    return await _empty(conn, layout, "known", known=True)


async def _empty(conn: AsyncConnection[Any], layout: Layout, purpose: str, *, known: bool) -> sql.Identifier:
    """Made once per connection. The columns are part of its name: a connection may outlive a change of the
    table.
    """
    columns = layout.rendered("columns known" if known else "columns", lambda: _columns(layout, known=known))
    name = f"{layout.table.name[:30]}__{purpose}_{_digest(layout.public.as_string(None), columns.as_string(None))}"
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


def _columns(layout: Layout, *, known: bool) -> sql.Composable:
    columns = [ROW] if known else [*layout.incoming, ROW]
    more: list[LiteralString] = ["__at tid"] if known else []
    if layout.session:
        more += ["__how text"] if known else ["n bigint"]
        columns += [] if known else [FIRST, LAST]
    typed = [sql.SQL("{} {}").format(column.id, stored_type(column.type)) for column in columns]
    return _COMMA.join([*typed, *map(sql.SQL, more)])


def _digest(*texts: str) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()[:12]
