"""Deleting what event time has left behind."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_layout import Column, Layout, published
from streamproc.topology import HOUR

#: State is kept this long after its window has closed (event time, microseconds). A window that is reopened without its
#: state, by a lateness that was raised, or by a new partition that has no watermark of its own yet, goes on with its
#: counts, sums and extremes only.
STATE_GRACE = 6 * HOUR

#: Rows deleted, or pages looked at, in one transaction: short enough that nobody waits for it.
_ROWS, _PAGES = 5_000, 2_000


async def expire(
    conn: AsyncConnection[Any], layout: Layout, watermark_us: int, *, reopening: bool = False
) -> int:
    """Delete public rows beyond retention and state that cannot change any more; counts the former.

    ``reopening``: windows of any age can take events again, so state stays as long as its row.
    """
    table, (start, end) = layout.table, layout.span
    # A session can be reached by an event a gap after its end, and that event may be late.
    grace = STATE_GRACE + table.lateness + (2 * table.window.gap if layout.session else 0)
    patience = table.retention if reopening else grace
    # A window ends so long after its start; a session may be of a single event.
    size = 0 if layout.session else table.window.size
    if layout.has_state and patience is not None:
        limit = watermark_us - patience
        if layout.session:
            await _delete_by_pages(conn, layout.state, sql.SQL("{} <= {}").format(end.id, sql.Literal(limit)))
        else:
            closed = sql.SQL("{} <= {}").format(start.id, sql.Literal(limit - size))
            await _delete_oldest(conn, layout.state, start, closed)
    if table.retention is None:
        return 0
    limit = watermark_us - table.retention
    beyond = sql.SQL("{} <= {} AND {} <= {}").format(
        start.id,
        published(start, sql.Literal(limit - size)),
        end.id,
        published(end, sql.Literal(limit)),
    )
    return await _delete_oldest(conn, layout.public, start, beyond)


async def _delete_oldest(
    conn: AsyncConnection[Any], table: sql.Identifier, start: Column, condition: sql.Composable
) -> int:
    """Walk the table's unique index, which begins with ``start``, as far as the ``condition`` on it goes; counts rows.

    Rows that somebody writes just now are left for the next time: waiting for them while holding others
    could lock in a circle.
    """
    deleted = 0
    since: sql.Composable = sql.SQL("TRUE")
    while True:
        # The array is made once, and its rows are fetched by their places, whatever the planner thinks of their number.
        query = sql.SQL(
            "WITH gone AS (DELETE FROM {table} WHERE ctid = ANY(ARRAY("
            "SELECT ctid FROM {table} WHERE {condition} AND {since} ORDER BY {start} LIMIT {most} "
            "FOR UPDATE SKIP LOCKED)) RETURNING {start}) SELECT count(*), max({start})::text FROM gone"
        )
        row = await (
            await conn.execute(
                query.format(
                    table=table, condition=condition, since=since, start=start.id, most=sql.Literal(_ROWS)
                )
            )
        ).fetchone()
        assert row is not None
        deleted += int(row[0])
        if row[0] < _ROWS:
            return deleted
        # What was deleted is in the index until a vacuum: the next turn does not walk through it.
        since = sql.SQL("{} >= {}").format(start.id, sql.Literal(row[1]))


async def _delete_by_pages(
    conn: AsyncConnection[Any], table: sql.Identifier, condition: sql.Composable
) -> None:
    """Walk the table page by page: a state of sessions has no index by time, and keeps those of some hours.

    Rows that somebody writes just now are left for the next time, as by :func:`_delete_oldest`.
    """
    name = table.as_string(conn)
    row = await (
        await conn.execute(
            "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint", [name]
        )
    ).fetchone()
    assert row is not None
    for page in range(0, row[0] + 1, _PAGES):
        await conn.execute(
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
