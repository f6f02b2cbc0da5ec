"""Merging a delta into a session table.

Nearly every piece starts a session or continues its key's newest one: those are merged in the server
(:mod:`streamproc.sinks.summaries_pieces`). The rest (events out of order, the cap) is read, stitched by
:class:`~streamproc.tables.sessions.SessionFold` and written back, under the locks taken before: the row of every
key of the delta is locked, or put in, in the order of the keys, before any of them is changed.
"""

from __future__ import annotations

from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_copy import copy_in, copy_out, worth_a_thread
from streamproc.sinks.summaries_known import until_placed
from streamproc.sinks.summaries_layout import Column, Layout, public_type, published, stored_type
from streamproc.sinks.summaries_pieces import (
    continue_newest,
    insert_newest,
    insert_next,
    insert_older,
    insert_public,
    lock_newest,
    number_ended,
    number_stored,
    public_sessions,
    replace_sessions,
    rows_apart,
    stored_sessions,
)
from streamproc.sinks.summaries_stage import FIRST, LAST, ROW, known_rows, numbered, stage
from streamproc.tables.fold import Delta
from streamproc.tables.sessions import SessionFold

#: What tells the sessions of a key apart in the state: see :mod:`streamproc.sinks.summaries_pieces`.
_N = Column("n", pl.Int64())


async def apply_sessions(
    conn: AsyncConnection[Any], layout: Layout, delta: Delta, *, changed: bool
) -> pl.DataFrame | None:
    """Merge the pieces of ``delta``; the changed public rows when asked for."""
    key = layout.by[0]
    rows = _in_order(layout, delta.rows)
    staged, known = await stage(conn, layout, "rows"), await known_rows(conn, layout)
    await copy_in(conn, staged, [*layout.incoming, ROW, FIRST, LAST], rows)
    several = not rows[LAST.name].all()
    await _place(conn, layout, staged, known, several=several)
    go_on = layout.rendered("continue", lambda: continue_newest(layout, staged, known))
    await conn.execute(go_on, prepare=False)
    number = layout.rendered("number", lambda: number_ended(layout, known))
    if (await conn.execute(number, prepare=False)).rowcount or several:
        following = layout.rendered("next", lambda: insert_next(layout, staged, known))
        await conn.execute(following, prepare=False)
    apart = await copy_out(conn, layout.rendered("apart", lambda: rows_apart(known)), [ROW])
    unmerged = rows.filter(
        pl.col("session_start").is_null() | pl.col(ROW.name).is_in(apart[ROW.name].implode())
    )
    if len(unmerged):
        await _stitch(conn, layout, delta, unmerged.select(key.name))
    if not changed:
        return None
    rows = await copy_out(conn, public_sessions(layout, staged), layout.columns)
    # A piece that reaches the cap lies in several sessions.
    spans = delta.rows.select(pl.col(key.name).to_physical(), __begin="session_start", __end="session_end")
    touched = rows.join(spans, on=key.name).filter(
        (pl.col("session_start") <= pl.col("__end")) & (pl.col("__begin") <= pl.col("session_end"))
    )
    return touched.select(rows.columns).unique(["session_start", key.name], maintain_order=True)


def _in_order(layout: Layout, pieces: pl.DataFrame) -> pl.DataFrame:
    """The pieces by key and start, numbered. Of the keys that have to be stitched whatever the table has, a row without
    a span stands for all.
    """
    name, window = layout.by[0].name, layout.table.window
    key, start, end = pl.col(name), pl.col("session_start"), pl.col("session_end")
    pieces = pieces.sort(name, "session_start")
    # A run that came apart (SessionFold.seal says why) begins within the gap of the piece before it.
    apart = (key == key.shift()) & (start - end.shift() <= window.gap)
    stitched = pieces.filter((end - start >= window.cap) | apart).select(name).unique()
    if len(stitched):
        rest = pieces.join(stitched, on=name, how="anti")
        pieces = pl.concat([rest, stitched], how="diagonal_relaxed").sort(name, "session_start")
    begins = (key != key.shift()).fill_null(True)
    return numbered(pieces).with_columns(
        pl.when(begins).then(ROW.name).forward_fill().alias(FIRST.name),
        begins.shift(-1).fill_null(True).alias(LAST.name),
    )


async def _place(
    conn: AsyncConnection[Any],
    layout: Layout,
    staged: sql.Identifier,
    known: sql.Identifier,
    *,
    several: bool,
) -> None:
    """Lock the newest sessions of the staged keys, and put in all pieces that are sessions of their own; ``several``:
    some key has more than one.
    """
    lock = layout.rendered("lock", lambda: lock_newest(layout, staged, known))
    newest = layout.rendered("newest", lambda: insert_newest(layout, staged, known))
    first = [
        layout.rendered("older", lambda: insert_older(layout, staged, known)),
        layout.rendered("public", lambda: insert_public(layout, staged, known)),
    ]
    again = [
        layout.rendered("replace older", lambda: insert_older(layout, staged, known, replacing=True)),
        layout.rendered("replace public", lambda: insert_public(layout, staged, known, replacing=True)),
    ]
    used = slice(None) if several else slice(1, None)
    await until_placed(conn, [lock, newest, *first[used]], [lock, newest, *again[used]])


async def _stitch(conn: AsyncConnection[Any], layout: Layout, delta: Delta, keys: pl.DataFrame) -> None:
    key = layout.by[0].name
    pieces = delta.rows.join(keys, on=key, how="semi")
    spans = pieces.group_by(key).agg(pl.col("session_start").min(), pl.col("session_end").max())
    wanted = await stage(conn, layout, "keys")
    await copy_in(conn, wanted, [*layout.by, *layout.span], spans)
    stored = await copy_out(
        conn, layout.rendered("stored", lambda: stored_sessions(layout, wanted)), [*layout.staged, _N]
    )
    sessions = await worth_a_thread(len(keys), _stitched, layout, pieces, delta.events, stored)

    changed = stored.join(sessions, on=[key, "session_start", "n"], how="anti")
    moved = changed.join(sessions, on=[key, "session_start"], how="anti")
    if len(moved):
        await _delete(conn, layout, moved, state=True)
        await _delete(conn, layout, moved, state=False)
    # A visitor may have had thousands, of which an event changes one or two.
    written = sessions.join(stored, on=stored.columns, how="anti", nulls_equal=True)
    target = await stage(conn, layout, "sessions")
    await copy_in(conn, target, [*layout.staged, _N], written)
    if len(changed) > len(moved):
        number = layout.rendered("number stored", lambda: number_stored(layout, target))
        await conn.execute(number, prepare=False)
    await conn.execute(layout.rendered("replace", lambda: replace_sessions(layout, target)), prepare=False)


def _stitched(
    layout: Layout, pieces: pl.DataFrame, events: pl.DataFrame | None, stored: pl.DataFrame
) -> pl.DataFrame:
    """The ``stored`` sessions and the pieces, joined, with their numbers; times as integers, as in ``stored``."""
    assert events is not None
    key = layout.by[0].name
    fold = SessionFold(layout.table)
    known = stored.select(pl.col(column.name).cast(column.type) for column in layout.staged)
    sessions = fold.stitch(
        known.with_columns(pl.col("session_start", "session_end").to_physical()), pieces, events
    )
    start = pl.col("session_start")
    by_start = start + (start >= 0).cast(pl.Int64)  # as summaries_pieces.numbered_by_start
    newest = start == start.max().over(key)
    return sessions.with_columns(
        pl.all().to_physical(),
        pl.when(newest).then(pl.lit(0, pl.Int64)).otherwise(by_start).alias(_N.name),
    )


async def _delete(conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, state: bool) -> None:
    key = layout.by[0]
    other = _N if state else layout.span[0]
    value, theirs = sql.Identifier("gone", "__at"), layout.indexed(key, "gone")
    await conn.execute(
        sql.SQL(
            "DELETE FROM {table} t USING unnest(%s::{key_type}[], %s::bigint[]) AS gone ({key}, __at) "
            "WHERE {mine} = {theirs} AND {other} = {value}"
        ).format(
            table=layout.state if state else layout.public,
            key_type=stored_type(key.type) if key.type.is_temporal() else public_type(key.type),
            key=key.id,
            mine=layout.indexed(key, "t"),
            theirs=theirs if state else published(key, theirs),
            other=sql.Identifier("t", other.name),
            value=value if state else published(other, value),
        ),
        [rows[key.name].to_list(), rows[other.name].to_list()],
        prepare=False,
    )
