"""The summaries: every table of a stream as typed PostgreSQL tables (15 or later).

The schema is named like the stream. All writing happens in the caller's transaction, which is what makes
a delta count once: it is merged in the same transaction that advances the positions it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks import summaries_schema
from streamproc.sinks.summaries_copy import copy_out
from streamproc.sinks.summaries_expiry import expire
from streamproc.sinks.summaries_layout import Layout, readable, trusted
from streamproc.sinks.summaries_registry import kept_states
from streamproc.sinks.summaries_sessions import apply_sessions
from streamproc.sinks.summaries_windows import apply_windows
from streamproc.tables.fold import Delta
from streamproc.topology import Table, Topology

#: For the transaction: a delta of some ten thousand rows is sorted in memory, and no query is compiled, which takes
#: longer than any of these runs. What is looked up was written lately and is in memory: if its pages did not count as
#: cheap, the server would rather scan a state of some hundred megabytes than look up ten thousand of its rows. And it
#: would sort the wide rows of both sides to join them, where hashing the numbers of one costs next to nothing (4 %).
_SETTINGS = """
    SELECT set_config('work_mem', '64MB', true), set_config('jit', 'off', true),
           set_config('random_page_cost', '0.01', true), set_config('enable_mergejoin', 'off', true)
"""


class Summaries:
    """The tables of one stream. ``schema`` is the stream's name; ``disorder`` its contract's, microseconds: without it
    :meth:`ensure` cannot tell whether that was raised too far.
    """

    def __init__(self, tables: Sequence[Table], schema: str, disorder: int | None = None) -> None:
        self.schema = schema
        # Every worker touches the tables in this order.
        self._layouts = {
            table.name: Layout(table, schema, disorder) for table in sorted(tables, key=lambda t: t.name)
        }

    @classmethod
    def of(cls, page: Topology) -> Self:
        """Those of a page's stream."""
        return cls(page.tables, page.name, page.contract.event_time.disorder)

    async def ensure(self, conn: AsyncConnection[Any]) -> None:
        """Create the tables, or extend them by the measures and derived columns that came later.

        Safe when several workers start at once. Rows that are there already get null in new columns.
        Raises :class:`~streamproc.errors.ConfigError` when a window, a key, a condition or a measure has
        changed its meaning, or PostgreSQL does not compute a derived column.
        """
        await summaries_schema.ensure(conn, list(self._layouts.values()), self.schema)

    async def apply(
        self, conn: AsyncConnection[Any], deltas: Mapping[str, Delta], *, changed: bool = False
    ) -> dict[str, pl.DataFrame]:
        """Merge an epoch's deltas (by table name) inside the caller's READ COMMITTED transaction.

        Returns the rows that changed, as analysts see them, for each table that has some; nothing unless
        ``changed``. Raises what psycopg raises.
        """
        results: dict[str, pl.DataFrame] = {}
        touched = {
            name: layout for name, layout in self._layouts.items() if name in deltas and len(deltas[name])
        }
        await self._begin(conn, touched)
        for name, layout in touched.items():
            delta = deltas[name]
            if layout.session:
                rows = await apply_sessions(conn, layout, delta, changed=changed)
            else:
                rows = await apply_windows(conn, layout, delta.rows, changed=changed)
            if rows is not None:
                results[name] = _typed(layout, rows)
        return results

    async def _begin(self, conn: AsyncConnection[Any], touched: Mapping[str, Layout]) -> None:
        """Settings; and whether tables that need no state have one by now, because a worker with a newer page needs it.

        That worker makes it while it has the table to itself. So once we have a lock on the table too, either the state
        is there, or what we merge will be put into it. All tables are locked in the order in which they are merged, and
        it is one message, because it is part of every commit.
        """
        alone = [name for name, layout in touched.items() if not layout.has_state]
        if not alone:
            await conn.execute(_SETTINGS)
            return
        tables = [
            table
            for layout in touched.values()
            for table in ([layout.state, layout.public] if layout.has_state else [layout.public])
        ]
        query = sql.SQL("{}; LOCK TABLE {} IN ROW EXCLUSIVE MODE; {}").format(
            trusted(_SETTINGS), sql.SQL(", ").join(tables), kept_states(self.schema, alone)
        )
        cursor = await conn.execute(query, prepare=False)
        while cursor.nextset():
            pass
        for (name,) in await cursor.fetchall():
            touched[name].keep_state()

    async def expire(
        self, conn: AsyncConnection[Any], name: str, watermark_us: int, *, reopening: bool = False
    ) -> int:
        """Delete what the watermark has left behind: public rows beyond the table's retention, and state of
        windows that closed a while ago. Returns the number of public rows deleted.

        ``watermark_us`` must be the smallest of the stream's partitions: of a window that takes an event after its
        state was gone, only counts, sums and extremes go on. Works in small transactions of its
        own (``conn`` in autocommit mode) and skips rows that are being written. ``reopening``: windows of any
        age can take events again; state goes with its row then, and any watermark will do.
        """
        return await expire(conn, self._layouts[name], watermark_us, reopening=reopening)

    async def rows(self, conn: AsyncConnection[Any], name: str) -> pl.DataFrame:
        """All public rows of a table, by key."""
        layout = self._layouts[name]
        query = sql.SQL("SELECT {} FROM {} t ORDER BY {}").format(
            sql.SQL(", ").join(readable(column) for column in layout.columns),
            layout.public,
            layout.conflict(state=False),
        )
        return _typed(layout, await copy_out(conn, query, layout.columns))


def _typed(layout: Layout, rows: pl.DataFrame) -> pl.DataFrame:
    """Integers back to times."""
    return rows.select(pl.col(column.name).cast(column.type) for column in layout.columns)
