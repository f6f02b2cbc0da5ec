"""What an operator's command needs to know before it trusts a ledger, or interferes with it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from streamproc.database import Database
from streamproc.errors import LedgerError
from streamproc.ledger.migrate import migrations, refuse_newer, schema_version
from streamproc.model import Partition

#: A connection's ``application_name`` is cut to 63 bytes (PostgreSQL's NAMEDATALEN - 1).
_OWNER = """
    SELECT p.owner, p.owner IS NOT NULL AND EXISTS (
               SELECT FROM pg_stat_activity AS a
               WHERE a.datname = current_database() AND a.application_name <> ''
                 AND a.application_name = left('streamproc ' || p.owner, 63)),
           greatest(p.claimed_at, p.updated_at), clock_timestamp()
    FROM streamproc.partitions AS p
    WHERE p.stream = %s AND p.source = %s AND p.partition = %s
"""

#: A worker whose connections cannot be seen (a pooler may hide them) is taken for alive this long after it
#: last wrote to the partition.
_PRESUMED_ALIVE = timedelta(minutes=1)


class Owner(NamedTuple):
    """Who claimed a partition last and has not released it. ``name`` is ``None`` when it is free.

    ``connected``: a connection to the ledger carries the worker's name. ``idle``: since its last write.
    """

    name: str | None
    connected: bool
    idle: timedelta

    @property
    def alive(self) -> bool:
        """Whether a worker may still be at work on the partition."""
        return self.name is not None and (self.connected or self.idle < _PRESUMED_ALIVE)


async def owner(database: Database, stream: str, partition: Partition) -> Owner:
    """The partition's owner, as far as the ledger's database can tell."""
    async with database.connection("look for the owner") as conn:
        cursor = await conn.execute(_OWNER, [stream, partition.source, partition.id])
        row = await cursor.fetchone()
    if row is None:
        return Owner(None, False, timedelta.max)
    name, connected, written, now = row
    assert isinstance(written, datetime) and isinstance(now, datetime)
    return Owner(name, connected, now - written)


async def streams(database: Database) -> set[str]:
    """Names of the streams of which a partition was ever claimed."""
    async with database.connection("list the streams") as conn:
        rows = await (await conn.execute("SELECT DISTINCT stream FROM streamproc.partitions")).fetchall()
        return {name for (name,) in rows}


async def require_ledger(database: Database) -> None:
    """Raise :class:`LedgerError` unless the database has a ledger of exactly this release.

    Commands that look do not migrate: an older service may be running on it.
    """
    async with database.connection("look for the ledger") as conn:
        version = await schema_version(conn)
    if version is None:
        raise LedgerError(
            f"{database.place} has no ledger yet: `streamproc run` makes it when it starts, so does the demo"
        )
    refuse_newer(version)
    if version < migrations()[-1].number:
        raise LedgerError(
            f"the ledger's schema is version {version} and this release needs {migrations()[-1].number}: "
            "`streamproc run` of this release upgrades it when it starts"
        )
