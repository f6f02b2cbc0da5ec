"""Publication of what was committed, at least once.

What is to be published is noted in the transaction that commits it (``streamproc.outbox``) and taken out
after the broker has it. A worker that dies in between leaves the note to whichever worker looks next, so
nothing committed stays unpublished and nothing uncommitted is ever published; a note may be published twice.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import polars as pl
import structlog
from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.errors import ConfigError, Mistake
from streamproc.model import WrittenObject
from streamproc.sinks.lake import Lake
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

_ENLIST = """
    INSERT INTO streamproc.outbox (stream, epoch, kind, table_name, payload) VALUES (%s, %s, %s, %s, %s)
"""

#: Rows that another worker is publishing are left to it.
_NEXT = """
    SELECT id, kind, table_name, payload FROM streamproc.outbox
    WHERE stream = %s ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""


class Publish(Protocol):
    """Writes records to a topic and returns once the broker has them."""

    async def publish(
        self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
    ) -> None:
        """Write ``values`` under ``keys``; raises :class:`DependencyError`."""


class Outbox:
    """Notes and publishes enriched events and changed summary rows, as the topic page's ``[sinks]`` says.

    A published event is its lake row as JSON, keyed by the contract's key. A changed row is
    ``{"table", "version", "row"}``, keyed by the table's name and the row's key.
    Raises :class:`ConfigError` when events are to be published and there is no lake to read them from.
    """

    def __init__(self, topology: Topology, database: Database, lake: Lake | None, broker: Publish) -> None:
        if topology.sinks.publish_events and lake is None:
            fix = "Set lake = true, or take publish_events out"
            raise ConfigError([Mistake(f"{topology.name}: sinks.publish_events", "needs the lake", fix)])
        self._topology = topology
        self._database = database
        self._lake = lake
        self._broker = broker
        self._keys = {table.name: ("window_start", *table.by) for table in topology.tables} | {
            table.name: (table.window.key, "session_start")
            for table in topology.tables
            if table.window.kind == "session"
        }

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
        """Note what to publish, inside the committing transaction."""
        notes: list[tuple[str, uuid.UUID, str, str | None, bytes]] = []
        stream = self._topology.name
        keys = [done.plan.key for done in written if done.plan.kind == "events"]
        if self._topology.sinks.publish_events and keys:
            notes.append((stream, epoch, "events", None, "\n".join(keys).encode()))
        if self.wants_rows:
            notes += [
                (stream, epoch, "rows", table, rows.write_ndjson().encode())
                for table, rows in changed.items()
                if len(rows)
            ]
        if notes:
            async with conn.cursor() as cursor:
                await cursor.executemany(_ENLIST, notes)

    async def deliver(self) -> int:
        """Publish everything noted and not published yet; returns how many notes there were.

        Raises :class:`DependencyError`; what was not published stays noted.
        """
        delivered = 0
        while True:
            async with self._database.transaction("publish") as conn:
                row = await (await conn.execute(_NEXT, [self._topology.name])).fetchone()
                if row is None:
                    return delivered
                note, kind, table, payload = row
                if kind == "events":
                    await self._publish_events(payload.decode().split("\n"))
                else:
                    await self._publish_rows(note, table, payload)
                await conn.execute("DELETE FROM streamproc.outbox WHERE id = %s", [note])
            delivered += 1

    async def _publish_events(self, objects: Sequence[str]) -> None:
        topic = self._topology.sinks.publish_events
        if topic is None or self._lake is None:
            return  # the page has changed since: nobody wants them any more
        rows = await self._lake.read(objects, list(self._topology.columns))
        values = await asyncio.to_thread(lambda: rows.write_ndjson().encode().splitlines())
        key = self._topology.contract.key
        keys = [None if k is None else str(k).encode() for k in rows[key].to_list()] if key else None
        await self._broker.publish(topic, values, keys)

    async def _publish_rows(self, version: int, table: str, payload: bytes) -> None:
        topic = self._topology.sinks.publish_tables
        if topic is None or table not in self._keys:
            return
        values, keys = [], []
        for line in payload.splitlines():
            row = json.loads(line)
            values.append(json.dumps({"table": table, "version": version, "row": row}).encode())
            keys.append(json.dumps([table, *(row[name] for name in self._keys[table])]).encode())
        await self._broker.publish(topic, values, keys)
