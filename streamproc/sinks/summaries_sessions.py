"""Merging a delta into a session table.

Nearly every piece starts a session or continues its key's newest one: those are merged in the server. The rest
(a visitor who came back, events out of order, the cap) is read, stitched by
:class:`~streamproc.tables.sessions.SessionFold` and written back, under the locks taken before: the row of every
key of the delta is locked, or put in, in the order of the keys, before any of them is changed.
"""

from __future__ import annotations

from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_copy import copy_in, copy_out, worth_a_thread
from streamproc.sinks.summaries_known import place, update_sessions
from streamproc.sinks.summaries_layout import Column, Layout, public_type, published
from streamproc.sinks.summaries_stage import ROW, known_rows, numbered, stage
from streamproc.sinks.summaries_statements import (
    public_sessions,
    replace_sessions,
    stored_sessions,
)
from streamproc.tables.fold import Delta
from streamproc.tables.sessions import SessionFold

#: The number of a session among those of its key, 0 for the newest.
_N = Column("n", pl.Int16())


async def apply_sessions(
    conn: AsyncConnection[Any], layout: Layout, delta: Delta, *, changed: bool
) -> pl.DataFrame | None:
    """Merge the pieces of ``delta``; the changed public rows when asked for."""
    key = layout.by[0]
    pieces = delta.rows
    too_long = pl.col("session_end") - pl.col("session_start") >= layout.table.window.cap
    stitched = pl.col(key.name).is_duplicated() | too_long
    locks = pieces.filter(stitched).select(key.name).unique()
    rows = pl.concat([pieces.filter(~stitched), locks], how="diagonal_relaxed").sort(key.name)
    staged, known = await stage(conn, layout, "rows"), await known_rows(conn, layout)
    await copy_in(conn, staged, [*layout.incoming, ROW], numbered(rows))
    await place(conn, layout, staged, known)
    unmerged = await copy_out(
        conn, layout.rendered("update", lambda: update_sessions(layout, staged, known)), [key]
    )
    if len(unmerged):
        await _stitch(conn, layout, delta, unmerged)
    if not changed:
        return None
    rows = await copy_out(conn, public_sessions(layout, staged), layout.columns)
    spans = pieces.select(key.name, begin="session_start", end="session_end")
    touched = rows.join(spans, on=key.name).filter(
        (pl.col("session_start") <= pl.col("begin")) & (pl.col("end") <= pl.col("session_end"))
    )
    return touched.select(rows.columns).unique(["session_start", key.name], maintain_order=True)


async def _stitch(conn: AsyncConnection[Any], layout: Layout, delta: Delta, keys: pl.DataFrame) -> None:
    key = layout.by[0].name
    wanted = await stage(conn, layout, "keys")
    await copy_in(conn, wanted, layout.by, keys)
    stored = await copy_out(
        conn, layout.rendered("stored", lambda: stored_sessions(layout, wanted)), [*layout.staged, _N]
    )
    sessions = await worth_a_thread(len(keys), _stitched, layout, delta, keys, stored)

    numbers = stored.join(sessions, on=[key, "n"], how="anti")
    if len(numbers):
        await _delete(conn, layout, numbers, state=True)
    moved = stored.join(sessions, on=[key, "session_start"], how="anti")
    if len(moved):
        await _delete(conn, layout, moved, state=False)
    target = await stage(conn, layout, "sessions")
    await copy_in(conn, target, [*layout.staged, _N], sessions)
    await conn.execute(layout.rendered("replace", lambda: replace_sessions(layout, target)), prepare=False)


def _stitched(layout: Layout, delta: Delta, keys: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    """All sessions of the keys, with their numbers."""
    assert delta.events is not None
    key = layout.by[0].name
    fold = SessionFold(layout.table)
    pieces = delta.rows.join(keys, on=key, how="semi")
    known = stored.select(pl.col(column.name).cast(column.type) for column in layout.staged)
    sessions = fold.stitch(
        known.with_columns(pl.col("session_start", "session_end").to_physical()), pieces, delta.events
    )
    newest_first = pl.col("session_start").rank("ordinal", descending=True).over(key)
    return sessions.with_columns((newest_first - 1).cast(pl.Int16).alias("n"))


async def _delete(conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, state: bool) -> None:
    key = layout.by[0]
    other = _N if state else layout.span[0]
    value = sql.Identifier("gone", "at")
    await conn.execute(
        sql.SQL(
            "DELETE FROM {table} t USING unnest(%s::{key_type}[], %s::bigint[]) AS gone ({key}, at) "
            "WHERE {mine} = {theirs} AND {other} = {value}"
        ).format(
            table=layout.state if state else layout.public,
            key_type=public_type(key.type),
            key=key.id,
            mine=layout.indexed(key, "t"),
            theirs=layout.indexed(key, "gone"),
            other=sql.Identifier("t", other.name),
            value=value if state else published(other, value),
        ),
        [rows[key.name].to_list(), rows[other.name].to_list()],
        prepare=False,
    )
