"""The state of a table whose measures needed none so far: what its public rows have counted.

From then on everybody merges into it, whatever their page: see :meth:`Layout.keep_state`. Workers are replaced one by
one, and those with the page of before learn of it with their next commit (:meth:`Summaries.apply`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_expiry import STATE_GRACE
from streamproc.sinks.summaries_layout import ADDITIVE, Layout, published, readable
from streamproc.sinks.summaries_registry import Columns, Definition, exists
from streamproc.topology import DAY, Measure

_COMMA = sql.SQL(", ")

#: The longest disorder that a page can have: a watermark is at most that far behind its clock.
_DISORDER = 7 * DAY

#: The clock of the partition that is behind all others; null when there is none, or a log among them: logs of any age
#: may come, each with a clock of its own.
_CLOCK = """
    SELECT CASE WHEN bool_or(position('://' IN source) > 0) THEN NULL ELSE min(clock_us) END
    FROM streamproc.partitions WHERE stream = %s
"""

#: Types of measures, as a definition names them.
_TYPES = {
    str(type_): type_
    for type_ in (
        *(pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64(), pl.UInt8(), pl.UInt16(), pl.UInt32()),
        *(pl.Float32(), pl.Float64(), pl.Date(), pl.Datetime("us", "UTC")),
    )
}


async def is_behind(conn: AsyncConnection[Any], layout: Layout, before: Definition) -> bool:
    """Whether the state has still to be made, or made good, from the public rows.

    A session table always has one, and its public rows could not say it.
    """
    if layout.session or not layout.has_state:
        return False
    return not (before["state"] and await exists(conn, layout.state))


def with_former(layout: Layout, schema: str, before: Definition, there: Columns) -> Layout:
    """The table, with the counts, sums and extremes of earlier pages that are still ``there``: a worker that has not
    read the page of today goes on with them, and from now on in the state.
    """
    today = {measure.name for measure in layout.table.measures}
    former = [
        Measure(name, made["kind"], _TYPES[made["type"]])
        for name, made in before["measures"].items()
        if name not in today and there.get(name) is False
        if made["kind"] in ADDITIVE and made["type"] in _TYPES
    ]
    whole = Layout(replace(layout.table, measures=(*layout.table.measures, *former)), schema)
    whole.keep_state()
    return whole


async def catch_up(conn: AsyncConnection[Any], layout: Layout, schema: str, before: Definition) -> None:
    """Put into the state what only the public rows have counted, so far as it may still change. No worker may be at
    work on the table, which may hold the rows of years.

    Of a state that was kept up until some day, windows older than its oldest were finished then.
    """
    values = [column for column in layout.additive if column.name in before["measures"]]
    if not values:
        return
    columns, start = [*layout.key, *values], layout.span[0]
    oldest = published(start, sql.SQL("(SELECT min({}) FROM {})").format(start.id, layout.state))
    query = sql.SQL(
        "INSERT INTO {state} AS s ({names}) SELECT {values} FROM {public} t "
        "WHERE {start} >= coalesce({oldest}, '-infinity') AND {start} > {closed} "
        "ON CONFLICT ({key}) DO UPDATE SET {merges} WHERE ({old}) IS DISTINCT FROM ({new})"
    )
    await conn.execute(
        query.format(
            state=layout.state,
            names=_COMMA.join(column.id for column in columns),
            values=_COMMA.join(readable(column) for column in columns),
            public=layout.public,
            start=start.of("t"),
            oldest=oldest,
            closed=await _closed(conn, layout, schema, before),
            key=layout.conflict(state=True),
            merges=_COMMA.join(sql.SQL("{} = {}").format(c.id, c.of("excluded")) for c in values),
            old=_COMMA.join(column.of("s") for column in values),
            new=_COMMA.join(column.of("excluded") for column in values),
        )
    )


async def _closed(
    conn: AsyncConnection[Any], layout: Layout, schema: str, before: Definition
) -> sql.Composable:
    """SQL: windows that started then or before change no more. Their state would be deleted within minutes, see
    :func:`streamproc.sinks.summaries_expiry.expire`; workers with the page of before go by its lateness.
    """
    clock = None
    if await exists(conn, sql.Identifier("streamproc", "partitions")):
        row = await (await conn.execute(_CLOCK, [schema])).fetchone()
        clock = row[0] if row else None
    if clock is None:
        return sql.SQL("'-infinity'")
    patience = _DISORDER + max(layout.table.lateness, before["lateness"]) + STATE_GRACE
    return published(layout.span[0], sql.Literal(clock - patience - layout.table.window.size))
