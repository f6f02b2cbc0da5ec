"""Deleting what event time has left behind."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_layout import Layout, published
from streamproc.topology import HOUR

#: State is kept this long after its window has closed (event time, microseconds). A window that is reopened without its
#: state, by a lateness that was raised, or by a new partition that has no watermark of its own yet, goes on with its
#: counts, sums and extremes only.
STATE_GRACE = 6 * HOUR

#: Pages looked at in one transaction: short enough that nobody waits for it.
_PAGES = 2_000


async def expire(
    conn: AsyncConnection[Any], layout: Layout, watermark_us: int, *, reopening: bool = False
) -> int:
    """Delete public rows beyond retention and state that cannot change any more; counts the former.

    ``reopening``: windows of any age can take events again, so state stays as long as its row.
    """
    table = layout.table
    # A session can be reached by an event a gap after its end, and that event may be late.
    grace = STATE_GRACE + table.lateness + (2 * table.window.gap if layout.session else 0)
    patience = table.retention if reopening else grace
    if layout.has_state and patience is not None:
        end = sql.SQL("session_end" if layout.session else "window_start + {}").format(
            sql.Literal(table.window.size)
        )
        closed = sql.SQL("{} <= {}").format(end, sql.Literal(watermark_us - patience))
        await _delete(conn, layout.state, closed)
    if table.retention is None:
        return 0
    end_column = layout.span[1]
    limit = published(end_column, sql.Literal(watermark_us - table.retention))
    return await _delete(conn, layout.public, sql.SQL("{} <= {}").format(end_column.id, limit))


async def _delete(conn: AsyncConnection[Any], table: sql.Identifier, condition: sql.Composable) -> int:
    """Walk the table page by page: no index has to be kept for it, and no row is looked at twice.

    Rows that somebody writes just now are left for the next time: waiting for them while holding others
    could lock in a circle.
    """
    name = table.as_string(conn)
    row = await (
        await conn.execute(
            "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint", [name]
        )
    ).fetchone()
    assert row is not None
    deleted = 0
    for page in range(0, row[0] + 1, _PAGES):
        result = await conn.execute(
            sql.SQL(
                "DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} "
                "WHERE ctid >= {low} AND ctid < {high} AND {condition} FOR UPDATE SKIP LOCKED)"
            ).format(
                table=table,
                low=sql.Literal(f"({page},0)"),
                high=sql.Literal(f"({page + _PAGES},0)"),
                condition=condition,
            )
        )
        deleted += result.rowcount
    return deleted
