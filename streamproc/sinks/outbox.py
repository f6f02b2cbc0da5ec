"""Publication of what was committed, at least once.

What is to be published is noted in the transaction that commits it (``streamproc.outbox``) and taken out
after the broker has it. A worker that dies in between leaves the note to whichever worker looks next, so
nothing committed stays unpublished and nothing uncommitted is ever published; a note may be published twice.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson
import polars as pl
import polars.selectors as cs
import structlog
from psycopg import AsyncConnection

from streamproc.concurrency import end_if_cancelled
from streamproc.database import Database
from streamproc.errors import ConfigError, MissingObject, Mistake
from streamproc.model import WrittenObject
from streamproc.sinks.lake import Lake
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

_ENLIST = """
    INSERT INTO streamproc.outbox (stream, epoch, kind, table_name, payload) VALUES (%s, %s, %s, %s, %s)
"""

#: Rows that another worker is publishing are left to it. So is what only its page publishes: while workers are replaced
#: one by one, some have another.
_NEXT = """
    SELECT id, kind, table_name, payload FROM streamproc.outbox
    WHERE stream = %(stream)s AND kind = %(kind)s AND (table_name IS NULL OR table_name = ANY(%(tables)s))
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_BACKLOG = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
    FROM streamproc.outbox
    WHERE stream = %(stream)s AND kind = ANY(%(kinds)s) AND (table_name IS NULL OR table_name = ANY(%(tables)s))
"""

#: What a note is about.
KINDS = ("events", "rows")

#: Rows that are made into JSON at a time. All that an epoch changes in a table can be more than a column takes, 1 GB.
_SLICE = 10_000

#: Bytes of the longest value with its key that is published: brokers take 1 MiB with everything around it, by default,
#: and one that is refused would be tried for ever.
_LONGEST = 1_000_000


class Publish(Protocol):
    """Writes records to a topic and returns once the broker has them."""

    async def publish(
        self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
    ) -> None:
        """Write ``values`` under ``keys``; raises :class:`DependencyError`."""


class Backlog(NamedTuple):
    """What is noted and not published: how many notes, and how old the oldest is, in seconds."""

    notes: int
    oldest: float


class Outbox:
    """Notes and publishes enriched events and changed summary rows, as the topic page's ``[sinks]`` says.

    A published event is its lake row as JSON, keyed by the contract's key. A changed row is
    ``{"table", "version", "row"}``, keyed by the table's name and the row's key. Times are ISO 8601 in UTC,
    bytes base64. ``database`` is used by :meth:`deliver` and :meth:`backlog` only, one connection at a time.
    Raises :class:`ConfigError` when events are to be published and there is no lake to read them from.
    """

    def __init__(self, topology: Topology, database: Database, lake: Lake | None, broker: Publish) -> None:
        if topology.sinks.publish_events and lake is None:
            fix = "Set lake = true, or take publish_events out"
            raise ConfigError([Mistake(f"{topology.name}: sinks.publish_events", "needs the lake", fix)])
        #: Set when something was noted and committed; whoever delivers clears it.
        self.noted = asyncio.Event()
        self._topology = topology
        self._database = database
        self._lake = lake
        self._broker = broker
        self._keys = {table.name: ("window_start", *table.by) for table in topology.tables} | {
            table.name: (table.window.key, "session_start")
            for table in topology.tables
            if table.window.kind == "session"
        }
        topics = {"events": topology.sinks.publish_events, "rows": topology.sinks.publish_tables}
        self._kinds = [kind for kind in KINDS if topics[kind] is not None]
        #: What of the notes this page publishes.
        self._mine = {"stream": topology.name, "kinds": self._kinds, "tables": list(self._keys)}

    @property
    def wants_rows(self) -> bool:
        """Whether changed summary rows are published."""
        return self._topology.sinks.publish_tables is not None

    async def enlist(
        self,
        conn: AsyncConnection[Any],
        epoch: uuid.UUID,
        written: Sequence[WrittenObject],
        changed: Mapping[str, pl.DataFrame],
    ) -> None:
        """Note what to publish, inside the committing transaction: each object, and the rows of each table in parts."""
        notes: list[tuple[str, uuid.UUID, str, str | None, bytes]] = []
        stream = self._topology.name
        if self._topology.sinks.publish_events:
            notes += [
                (stream, epoch, "events", None, done.plan.key.encode())
                for done in written
                if done.plan.kind == "events"
            ]
        if self.wants_rows:
            notes += [
                (stream, epoch, "rows", table, part.write_ndjson().encode())
                for table, rows in changed.items()
                for part in rows.iter_slices(_SLICE)
            ]
        if notes:
            async with conn.cursor() as cursor:
                await cursor.executemany(_ENLIST, notes)

    async def deliver(self, kind: str, within: float = math.inf) -> bool:
        """Publish what is noted of this kind, oldest first, until nothing is left or ``within`` seconds have passed;
        at least one note, however short they are. Returns whether there may be more.

        What this page does not publish stays noted, for workers whose page does. Raises :class:`DependencyError`; what
        was not published stays noted.
        """
        if kind not in self._kinds:
            return False
        clock = asyncio.get_running_loop().time
        end = clock() + within
        while True:
            end_if_cancelled()
            async with self._database.transaction("publish") as conn:
                row = await (await conn.execute(_NEXT, {**self._mine, "kind": kind})).fetchone()
                if row is None:
                    return False
                note, _, table, payload = row
                if kind == "events":
                    await self._publish_events(conn, payload.decode())
                else:
                    await self._publish_rows(note, table, payload)
                await conn.execute("DELETE FROM streamproc.outbox WHERE id = %s", [note])
            if clock() >= end:
                return True

    async def backlog(self) -> Backlog:
        """What is waiting, of what this page publishes. Raises :class:`DependencyError`."""
        async with self._database.connection("count what is to be published") as conn:
            row = await (await conn.execute(_BACKLOG, self._mine)).fetchone()
        return Backlog(*row) if row is not None else Backlog(0, 0.0)

    async def _publish_events(self, conn: AsyncConnection[Any], key: str) -> None:
        topic = self._topology.sinks.publish_events
        assert topic is not None and self._lake is not None, "others are not asked for"
        try:
            rows = await self._lake.read([key], list(self._topology.columns))
        except MissingObject as error:
            # It was committed, so it was there: somebody has deleted it, and waiting does not bring it back.
            log.error("not_published", what=key, why=f"not in the lake any more: {error}")
            return
        for part in rows.iter_slices(_SLICE):
            values, keys = await asyncio.to_thread(_events, part, self._topology.contract.key)
            await self._publish(topic, values, keys)
            # The server ends a transaction in which nobody says a word for a minute (streamproc.database). The events
            # of a large object take longer where a broker is slow, and all would be published again and again.
            await conn.execute("SELECT 1")

    async def _publish_rows(self, version: int, table: str, payload: bytes) -> None:
        topic = self._topology.sinks.publish_tables
        assert topic is not None, "others are not asked for"
        try:
            values, keys = await asyncio.to_thread(_rows, table, self._keys[table], version, payload)
        except KeyError as error:
            # The table was made anew with another key since: nobody could tell which of its rows these were.
            log.error("not_published", what=table, why=f"its rows had no {error.args[0]} when they changed")
            return
        await self._publish(topic, values, keys)

    async def _publish(self, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None]) -> None:
        sizes = (len(value) + len(key or b"") for value, key in zip(values, keys, strict=True))
        fitting = [place for place, size in enumerate(sizes) if size <= _LONGEST]
        if len(fitting) < len(values):
            log.error("not_published", what=topic, why="too large", records=len(values) - len(fitting))
            values, keys = [values[place] for place in fitting], [keys[place] for place in fitting]
        if values:
            await self._broker.publish(topic, values, keys)


def _events(rows: pl.DataFrame, key: str | None) -> tuple[list[bytes], list[bytes | None]]:
    """Values and keys of events."""
    readable = rows.with_columns(cs.binary().bin.encode("base64"))
    keys = [None] * len(rows) if key is None else rows[key].cast(pl.String).to_list()
    values = readable.write_ndjson().encode().split(b"\n")[: len(rows)]
    return values, [None if value is None else value.encode() for value in keys]


def _rows(
    table: str, key: Sequence[str], version: int, payload: bytes
) -> tuple[list[bytes], list[bytes | None]]:
    """Values and keys of changed rows, which are noted as NDJSON. Raises :class:`KeyError` naming what a row lacks."""
    lines = payload.rstrip(b"\n").split(b"\n")
    opening = b'{"table":%s,"version":%d,"row":' % (orjson.dumps(table), version)
    rows = map(orjson.loads, lines)
    keys: list[bytes | None] = [orjson.dumps([table, *(row[name] for name in key)]) for row in rows]
    return [opening + line + b"}" for line in lines], keys
