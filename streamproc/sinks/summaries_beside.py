"""Two schemas with the same tables: the live one, and one that a replay has filled beside it.

A replay rebuilds each table from some event time on (its :class:`Region`); what is older is the live table's
alone. Here is the SQL that says how the two differ there, and that puts the one in the place of the other.
Rows are matched by their text, which compares like the values do and takes a null for a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_copy import copy_out
from streamproc.sinks.summaries_layout import Column, Layout, published, readable
from streamproc.sinks.summaries_pieces import numbered_by_start
from streamproc.sinks.summaries_registry import definitions, exists, kept_states, registry
from streamproc.topology import Table

_COMMA = sql.SQL(", ")


@dataclass(frozen=True, slots=True)
class Region:
    """What of a table a replay rebuilds, in Unix microseconds.

    Windows that start at ``start`` or later; sessions that end at ``start`` or later. ``events``: events of
    this time and later are folded; for a session table also older ones of sessions that reach into it.
    """

    start: int
    events: int


def region(table: Table, since_us: int, lateness: int) -> Region:
    """The region of a table when no event older than ``since_us`` changes it, but for its ``lateness``."""
    window = table.window
    if window.kind == "session":
        events = since_us - lateness - window.gap
        return Region(events - window.gap, events)
    step = window.hop or window.size
    start = (since_us - lateness - window.size) // step * step
    return Region(start, start)


class Beside:
    """One table in its live schema and in that of a replay."""

    def __init__(self, table: Table, live: str, replay: str) -> None:
        self.live = Layout(table, live)
        self.replay = Layout(table, replay)
        self.table = table
        self._schema = live

    async def lateness(self, conn: AsyncConnection[Any], schema: str, since_us: int) -> int:
        """The longest lateness that events since ``since_us`` can have been judged by, µs: the page's, that which the
        live table was made with, or a longer one of before that was good until then.
        """
        if not await exists(conn, registry(schema)):
            return self.table.lateness
        made = (await definitions(conn, schema)).get(self.table.name)
        if made is None:
            return self.table.lateness
        longest = made.get("longest", {"lateness": 0, "until": None})
        was_good = longest["until"] is None or since_us <= longest["until"]
        return max(self.table.lateness, int(made["lateness"]), int(longest["lateness"]) if was_good else 0)

    async def session_starts(self, conn: AsyncConnection[Any], found: Region) -> pl.DataFrame:
        """Key and ``__start`` (µs) of live sessions that began before the region's events and reach into it."""
        key = self.live.by[0]
        columns = [key, Column("__start", self.live.span[0].type)]
        if not await exists(conn, self.live.public):
            return pl.DataFrame(schema={key.name: key.type, "__start": pl.Int64})
        query = sql.SQL(
            "SELECT {key}, min({start}) FROM {public} t WHERE {within} AND t.session_start < {events} GROUP BY 1"
        ).format(
            key=readable(key),
            start=readable(self.live.span[0]),
            public=self.live.public,
            within=self.within(found, "t"),
            events=published(self.live.span[0], sql.Literal(found.events)),
        )
        frame = await copy_out(conn, query, columns)
        return frame.select(pl.col(key.name).cast(key.type), pl.col("__start").cast(pl.Int64))

    async def lock(self, conn: AsyncConnection[Any]) -> None:
        """Keep other writers out of the live table until the transaction ends; readers go on.

        The state comes before the public table, as in a commit.
        """
        await self._ask(conn)
        await self._lock(conn)
        if await self._ask(conn):  # between the question and the lock
            await self._lock(conn)

    async def _lock(self, conn: AsyncConnection[Any]) -> None:
        for table in [self.live.state, self.live.public] if self.live.has_state else [self.live.public]:
            await conn.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table))

    async def _ask(self, conn: AsyncConnection[Any]) -> bool:
        """Whether the live table has got a state that its measures do not need."""
        if self.live.has_state:
            return False
        found = await (await conn.execute(kept_states(self._schema, [self.table.name]))).fetchone()
        if found is not None:
            self.live.keep_state()
        return found is not None

    async def swap(self, conn: AsyncConnection[Any], found: Region) -> None:
        """Make the live table what the replay's is within the region; touches only rows that differ.

        In the caller's transaction, which keeps other writers out.
        """
        if self.replay.has_state:
            await (self._swap_sessions if self.live.session else self._swap_state)(conn, found)
        columns = [*self.live.by, *self.live.span, *self.live.measures]
        await _replace(conn, self.live.public, self.replay.public, columns, self.within(found, "t"))
        if self.live.has_state and not self.replay.has_state:
            await self._restate(conn, found)

    async def _swap_state(self, conn: AsyncConnection[Any], found: Region) -> None:
        within = sql.SQL("t.window_start >= {}").format(sql.Literal(found.start))
        await _replace(conn, self.live.state, self.replay.state, self.live.staged, within)

    async def _restate(self, conn: AsyncConnection[Any], found: Region) -> None:
        """Of a table whose measures need no state today, the public rows say what its state is."""
        columns = [*self.live.key, *self.live.additive]
        await conn.execute(
            sql.SQL("DELETE FROM {} WHERE window_start >= {}").format(
                self.live.state, sql.Literal(found.start)
            )
        )
        await conn.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} t WHERE {}").format(
                self.live.state,
                _COMMA.join(column.id for column in columns),
                _COMMA.join(readable(column) for column in columns),
                self.live.public,
                self.within(found, "t"),
            )
        )

    async def _swap_sessions(self, conn: AsyncConnection[Any], found: Region) -> None:
        """Which session of a key is the newest may change: those of every key in question are numbered anew."""
        key, names = self.live.by[0].id, _COMMA.join(column.id for column in self.live.staged)
        start = sql.Literal(found.start)
        keys, sessions = sql.Identifier("__swapped_keys"), sql.Identifier("__swapped_sessions")
        for query in (
            "CREATE TEMP TABLE {keys} ON COMMIT DROP AS SELECT {key} FROM {replay} "
            "UNION SELECT {key} FROM {live} WHERE session_end >= {start}",
            "CREATE TEMP TABLE {sessions} ON COMMIT DROP AS "
            "SELECT {names} FROM {replay} WHERE session_start IS NOT NULL UNION ALL "
            "SELECT {names} FROM {live} WHERE session_end < {start} AND {key} IN (SELECT {key} FROM {keys})",
            "DELETE FROM {live} WHERE {key} IN (SELECT {key} FROM {keys})",
            "INSERT INTO {live} ({names}, n) SELECT {names}, "
            "CASE row_number() OVER (PARTITION BY {key} ORDER BY session_start DESC) WHEN 1 THEN 0 ELSE {number} END "
            "FROM {sessions}",
            "DROP TABLE {keys}, {sessions}",
        ):
            await conn.execute(
                sql.SQL(query).format(
                    keys=keys,
                    sessions=sessions,
                    key=key,
                    names=names,
                    live=self.live.state,
                    replay=self.replay.state,
                    start=start,
                    number=numbered_by_start(sql.Identifier("session_start")),
                ),
                prepare=False,
            )

    def within(self, found: Region, row: str) -> sql.Composed:
        """SQL: whether the public row is in the region."""
        column = self.live.span[1] if self.live.session else self.live.span[0]
        return sql.SQL("{} >= {}").format(
            sql.Identifier(row, column.name), published(column, sql.Literal(found.start))
        )


async def _replace(
    conn: AsyncConnection[Any],
    live: sql.Identifier,
    replay: sql.Identifier,
    columns: Sequence[Column],
    within: sql.Composed,
) -> None:
    """Make the rows of ``live`` within equal to those of ``replay``. Text joins by hash; nulls are values."""
    names = _COMMA.join(column.id for column in columns)
    other = sql.SQL("(SELECT {text} AS __row FROM {table} t WHERE {within}) o")
    await conn.execute(
        sql.SQL(
            "DELETE FROM {live} t WHERE {within} AND NOT EXISTS (SELECT FROM {other} WHERE o.__row = {text})"
        ).format(
            live=live,
            within=within,
            other=other.format(text=as_text(columns, "t"), table=replay, within=within),
            text=as_text(columns, "t"),
        ),
        prepare=False,
    )
    await conn.execute(
        sql.SQL(
            "INSERT INTO {live} ({names}) SELECT {names} FROM {replay} t "
            "WHERE {within} AND NOT EXISTS (SELECT FROM {other} WHERE o.__row = {text})"
        ).format(
            live=live,
            names=names,
            replay=replay,
            within=within,
            other=other.format(text=as_text(columns, "t"), table=live, within=within),
            text=as_text(columns, "t"),
        ),
        prepare=False,
    )


def as_text(columns: Sequence[Column], row: str) -> sql.Composed:
    """SQL: columns of a row as one text, equal where they are; a null is a value."""
    return sql.SQL("ROW({})::text").format(
        _COMMA.join(sql.Identifier(row, column.name) for column in columns)
    )
