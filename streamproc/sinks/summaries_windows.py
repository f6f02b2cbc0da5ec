"""Merging a delta into a tumbling or hopping table."""

from __future__ import annotations

from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_copy import copy_in, copy_out, worth_a_thread
from streamproc.sinks.summaries_layout import Layout, readable
from streamproc.sinks.summaries_stage import stage
from streamproc.sinks.summaries_statements import merge_windows, touch
from streamproc.tables.sketches import SKETCHED, union


async def apply_windows(
    conn: AsyncConnection[Any], layout: Layout, rows: pl.DataFrame, *, changed: bool
) -> pl.DataFrame | None:
    """Merge ``rows`` (a :class:`~streamproc.tables.fold.Delta`'s); the changed public rows when asked for."""
    if layout.sketches:
        keys = await stage(conn, layout, "keys")
        await copy_in(conn, keys, layout.key, rows)
        known = await copy_out(
            conn, layout.rendered("touch", lambda: touch(layout, keys)), [*layout.key, *layout.sketches]
        )
        rows = await worth_a_thread(len(known), _with_sketches, layout, rows, known)
    staged = await stage(conn, layout, "rows")
    await copy_in(conn, staged, layout.staged, rows)
    statement = layout.rendered("merge", lambda: merge_windows(layout, staged))
    if not changed:
        await conn.execute(statement, prepare=False)  # a plan made for one size of delta is wrong for another
        return None
    returned = sql.SQL(", ").join(readable(column) for column in layout.columns)
    return await copy_out(conn, sql.SQL("{} RETURNING {}").format(statement, returned), layout.columns)


def _with_sketches(layout: Layout, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The delta's rows with sketches and estimates of everything so far."""
    names = [column.name for column in layout.sketches]
    known = known.filter(pl.any_horizontal(pl.col(names).is_not_null()))
    if known.is_empty():
        return rows
    keys = [column.name for column in layout.key]
    known = known.rename({name: f"{name}__known" for name in names})
    rows = rows.join(known, on=keys, how="left", nulls_equal=True, maintain_order="left")
    for measure in layout.table.measures:
        if measure.kind in SKETCHED:
            name = f"{measure.name}__sketch"
            images = rows.select(pl.concat_list(name, f"{name}__known").list.drop_nulls()).to_series()
            rows = rows.with_columns(union(measure, images))
    return rows.drop(f"{name}__known" for name in names)
