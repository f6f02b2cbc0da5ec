"""The list of visitors who asked to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from streamproc.database import Database
from streamproc.errors import LedgerError

_NOTE = """
    INSERT INTO streamproc.erasures AS e (stream, visitor, asked_at, operator)
    SELECT %(stream)s, visitor, clock_timestamp(), %(operator)s FROM unnest(%(visitors)s::bytea[]) AS asked (visitor)
    ON CONFLICT (stream, visitor) DO UPDATE
        SET asked_at = clock_timestamp(), operator = excluded.operator, done_at = NULL, report = NULL
"""

_LIST = "SELECT visitor, (extract(epoch FROM asked_at) * 1000000)::bigint FROM streamproc.erasures WHERE stream = %s"

_ANY = "SELECT EXISTS (SELECT FROM streamproc.erasures WHERE stream = %s)"

#: As a promotion does: what workers have taken and not committed may hold the visitor, and they must read the list.
_FENCE = """
    UPDATE streamproc.partitions SET fence = fence + 1, token = gen_random_uuid(), owner = NULL WHERE stream = %s
"""

_LOCK = "SELECT FROM streamproc.partitions WHERE stream = %s ORDER BY source, partition FOR UPDATE"

_DONE = """
    UPDATE streamproc.erasures SET done_at = clock_timestamp(), report = %(report)s
    WHERE stream = %(stream)s AND visitor = ANY(%(visitors)s)
"""


class Erasures:
    """The list of one stream."""

    def __init__(self, database: Database, stream: str) -> None:
        self._database = database
        self._stream = stream

    async def key(self) -> bytes:
        """The key under which identifying values are hashed."""
        async with self._database.connection("read the erasures' key") as conn:
            row = await (
                await conn.execute("SELECT value FROM streamproc.keys WHERE name = 'erasures'")
            ).fetchone()
        if row is None:
            raise LedgerError("streamproc.keys has no row 'erasures': nobody could be recognised")
        return bytes(row[0])

    async def listed(self) -> dict[bytes, int]:
        """Hash → when it was asked, Unix microseconds."""
        async with self._database.connection("read the erasures") as conn:
            rows = await (await conn.execute(_LIST, [self._stream])).fetchall()
        return {bytes(visitor): asked for visitor, asked in rows}

    async def any(self) -> bool:
        """Whether anybody is on the list."""
        async with self._database.connection("look for erasures") as conn:
            row = await (await conn.execute(_ANY, [self._stream])).fetchone()
        return bool(row and row[0])

    async def note(self, visitors: Sequence[bytes], operator: str) -> None:
        """Put the hashes on the list, and void every claim of the stream.

        When this returns, nothing of the visitors' past is committed any more: each worker has committed what it
        had, or has to claim again, and reads the list then.
        """
        async with self._database.transaction("note an erasure") as conn:
            names = {"stream": self._stream, "operator": operator, "visitors": list(visitors)}
            await conn.execute(_NOTE, names)
        await self.fence()

    async def fence(self) -> None:
        """Void every claim: workers forget what they remember of recent events, and read it again."""
        async with self._database.transaction("fence for an erasure") as conn:
            await self._lock(conn)
            await conn.execute(_FENCE, [self._stream])

    async def done(self, visitors: Sequence[bytes], report: Mapping[str, object]) -> None:
        """Note that everything is erased."""
        async with self._database.transaction("note an erasure as done") as conn:
            names = {"stream": self._stream, "visitors": list(visitors), "report": Jsonb(dict(report))}
            await conn.execute(_DONE, names)

    async def _lock(self, conn: AsyncConnection[Any]) -> None:
        """In the order in which commits lock them."""
        await conn.execute(_LOCK, [self._stream])
