"""Merging a delta into a tumbling or hopping table."""

from __future__ import annotations

from typing import Any

import polars as pl
from psycopg import AsyncConnection

from streamproc.sinks.summaries_copy import copy_in, copy_out, worth_a_thread
from streamproc.sinks.summaries_known import (
    known_sketches,
    null_keys,
    place,
    placed_rows,
    rendered,
    update_windows,
)
from streamproc.sinks.summaries_layout import Layout
from streamproc.sinks.summaries_stage import ROW, known_rows, numbered, stage
from streamproc.tables.sketches import SKETCHED, union


async def apply_windows(
    conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, changed: bool
) -> pl.DataFrame | None:
    """Merge ``rows`` (a :class:`~streamproc.tables.fold.Delta`'s); the changed public rows when asked for."""
    staged, known = await stage(conn, layout, "rows"), await known_rows(conn, layout)
    rows, nulls = numbered(rows), null_keys(layout, rows)
    await copy_in(conn, staged, [*layout.staged, ROW], rows)
    await place(conn, layout, staged, known, nulls)
    target = staged
    if layout.sketches:
        sketches = await copy_out(
            conn,
            layout.rendered("sketches", lambda: known_sketches(layout, known)),
            [ROW, *layout.sketches],
        )
        rows = rows.join(sketches.select(ROW.name), on=ROW.name, how="semi", maintain_order="left")
        rows = await worth_a_thread(len(sketches), _with_sketches, layout, rows, sketches)
        target = await stage(conn, layout, "merged")
        await copy_in(conn, target, [*layout.staged, ROW], rows)
    if len(rows):
        update = rendered(layout, nulls, "update", lambda: update_windows(layout, target, known, nulls))
        await conn.execute(update, prepare=False)
    if not changed:
        return None
    placed = rendered(layout, nulls, "placed", lambda: placed_rows(layout, staged, nulls))
    return await copy_out(conn, placed, layout.columns)


def _with_sketches(layout: Layout, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The delta's rows with sketches and estimates of everything so far, of which ``known`` has the sketches."""
    names = [column.name for column in layout.sketches]
    known = known.filter(pl.any_horizontal(pl.col(names).is_not_null()))
    if known.is_empty():
        return rows
    known = known.rename({name: f"{name}__known" for name in names})
    rows = rows.join(known, on=ROW.name, how="left", maintain_order="left")
    for measure in layout.table.measures:
        if measure.kind in SKETCHED:
            name = f"{measure.name}__sketch"
            images = rows.select(pl.concat_list(name, f"{name}__known").list.drop_nulls()).to_series()
            rows = rows.with_columns(union(measure, images))
    return rows.drop(f"{name}__known" for name in names)
