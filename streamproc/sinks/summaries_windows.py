"""Merging a delta into a tumbling or hopping table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_copy import copy_in, copy_out, worth_a_thread
from streamproc.sinks.summaries_known import known_sketches, place, placed_rows, update_windows
from streamproc.sinks.summaries_layout import Layout, readable
from streamproc.sinks.summaries_stage import ROW, known_rows, numbered, stage
from streamproc.sinks.summaries_statements import merge_windows, touch
from streamproc.tables.sketches import SKETCHED, union


async def apply_windows(
    conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, changed: bool
) -> pl.DataFrame | None:
    """Merge ``rows`` (a :class:`~streamproc.tables.fold.Delta`'s); the changed public rows when asked for.

    Keys with a null in them cannot be looked up by a join, and are few: they come after all others.
    """
    partial = pl.any_horizontal(pl.col(column.name).is_null() for column in layout.key)
    frames = []
    for part, merged in ((rows.filter(~partial), _merge_whole), (rows.filter(partial), _merge_partial)):
        if len(part):
            frames.append(await merged(conn, layout, part, changed=changed))
    return pl.concat(frame for frame in frames if frame is not None) if changed else None


async def _merge_whole(
    conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, changed: bool
) -> pl.DataFrame | None:
    staged, known = await stage(conn, layout, "rows"), await known_rows(conn, layout)
    rows = numbered(rows)
    await copy_in(conn, staged, [*layout.staged, ROW], rows)
    await place(conn, layout, staged, known)
    target = staged
    if layout.sketches:
        sketches = await copy_out(
            conn,
            layout.rendered("sketches", lambda: known_sketches(layout, known)),
            [ROW, *layout.sketches],
        )
        rows = rows.join(sketches.select(ROW.name), on=ROW.name, how="semi", maintain_order="left")
        rows = await worth_a_thread(len(sketches), _with_sketches, layout, rows, sketches, [ROW.name])
        target = await stage(conn, layout, "merged")
        await copy_in(conn, target, [*layout.staged, ROW], rows)
    if len(rows):
        update = layout.rendered("update", lambda: update_windows(layout, target, known))
        await conn.execute(update, prepare=False)
    if not changed:
        return None
    return await copy_out(
        conn, layout.rendered("placed", lambda: placed_rows(layout, staged)), layout.columns
    )


async def _merge_partial(
    conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, changed: bool
) -> pl.DataFrame | None:
    if layout.sketches:
        keys = await stage(conn, layout, "keys")
        await copy_in(conn, keys, layout.key, rows)
        known = await copy_out(
            conn, layout.rendered("touch", lambda: touch(layout, keys)), [*layout.key, *layout.sketches]
        )
        names = [column.name for column in layout.key]
        rows = rows.with_columns(pl.col(names).to_physical())  # times as integers, as in what is known
        rows = await worth_a_thread(len(known), _with_sketches, layout, rows, known, names)
    staged = await stage(conn, layout, "partial")
    await copy_in(conn, staged, layout.staged, rows)
    statement = layout.rendered("merge", lambda: merge_windows(layout, staged))
    if not changed:
        await conn.execute(statement, prepare=False)  # a plan made for one size of delta is wrong for another
        return None
    returned = sql.SQL(", ").join(readable(column) for column in layout.columns)
    return await copy_out(conn, sql.SQL("{} RETURNING {}").format(statement, returned), layout.columns)


def _with_sketches(
    layout: Layout, rows: pl.DataFrame, known: pl.DataFrame, keys: Sequence[str]
) -> pl.DataFrame:
    """The delta's rows with sketches and estimates of everything so far; ``known`` ones are joined by ``keys``."""
    names = [column.name for column in layout.sketches]
    known = known.filter(pl.any_horizontal(pl.col(names).is_not_null()))
    if known.is_empty():
        return rows
    known = known.rename({name: f"{name}__known" for name in names})
    rows = rows.join(known, on=keys, how="left", nulls_equal=True, maintain_order="left")
    for measure in layout.table.measures:
        if measure.kind in SKETCHED:
            name = f"{measure.name}__sketch"
            images = rows.select(pl.concat_list(name, f"{name}__known").list.drop_nulls()).to_series()
            rows = rows.with_columns(union(measure, images))
    return rows.drop(f"{name}__known" for name in names)
