"""The ledger's tables: numbered SQL files, applied once each, in order, under an advisory lock."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from streamproc.database import ENCODE, other_encoding, patient
from streamproc.errors import ConfigError, LedgerError, Mistake

#: Any fixed number; it only has to differ from other advisory locks of the same database.
_LOCK = 7_203_664_170_551_290_413

#: How long the tables are waited for: every commit waits behind whoever waits for one of them.
_PATIENCE = "5s"

_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<name>\w+)\.sql")


class Migration(NamedTuple):
    """One file of ``ledger/migrations``. A released one is never edited, only followed by another."""

    number: int
    name: str
    sql: str


@cache
def migrations() -> tuple[Migration, ...]:
    """Those this release brings, in order."""
    files = resources.files("streamproc.ledger").joinpath("migrations").iterdir()
    return tuple(
        sorted(
            Migration(int(match["number"]), match["name"], file.read_text("utf-8"))
            for file in files
            if (match := _FILE_NAME.fullmatch(file.name))
        )
    )


async def migrate(conn: AsyncConnection[Any]) -> int:
    """Bring the schema up to this release inside the caller's transaction; returns how many were applied.

    Raises :class:`LedgerError` when the database was written by a newer release, :class:`ConfigError` when it cannot
    hold every text, and :class:`DependencyError` when somebody keeps its tables in use (a backup may).
    """
    if encoding := other_encoding(conn):
        problem = f"the database {conn.info.dbname} is encoded in {encoding}, which cannot hold every text"
        raise ConfigError([Mistake("ledger", problem, ENCODE)])
    await conn.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    # Asking first: CREATE ... IF NOT EXISTS demands the right to create even where there is nothing to do.
    version = await schema_version(conn)
    if version is None:
        await conn.execute("CREATE SCHEMA IF NOT EXISTS streamproc")
        await conn.execute(
            "CREATE TABLE streamproc.migrations ("
            " number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        version = 0
    refuse_newer(version)
    pending = [migration for migration in migrations() if migration.number > version]
    async with patient(conn, _PATIENCE, "ledger", f"is to be migrated, and has been in use for {_PATIENCE}"):
        for migration in pending:
            await conn.execute(migration.sql.encode())
            await conn.execute(
                "INSERT INTO streamproc.migrations (number, name) VALUES (%s, %s)",
                [migration.number, migration.name],
            )
    return len(pending)


async def schema_version(conn: AsyncConnection[Any]) -> int | None:
    """Number of the newest migration applied; ``None`` in a database without a ledger."""
    exists = await (await conn.execute("SELECT to_regclass('streamproc.migrations') IS NOT NULL")).fetchone()
    if not (exists and exists[0]):
        return None
    row = await (await conn.execute("SELECT COALESCE(max(number), 0) FROM streamproc.migrations")).fetchone()
    return int(row[0]) if row else 0


def refuse_newer(version: int) -> None:
    """Raise :class:`LedgerError` when the schema is ahead of the code: it may mean other things by now."""
    newest = migrations()[-1].number
    if version > newest:
        raise LedgerError(
            f"the ledger's schema is version {version} and this release knows {newest}: "
            "a newer release has been here; run that one"
        )
