"""The rights of the dashboard's database role: to read the tables and what the pages need of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, sql

#: What the pages read. Not ``keys``: who has the visitors' key can find out whose id an address has.
LEDGER_TABLES = (
    "partitions",
    "epochs",
    "epoch_ranges",
    "late_totals",
    "objects",
    "replays",
    "replay_ranges",
    "shards",
    "shard_marks",
)


def grants(role: str, streams: Sequence[str], *, warehouse: bool) -> sql.Composed:
    """SQL that creates ``role`` where it is missing, and gives it what it needs; for the owner of the tables.

    It may be run again, and has to be when a stream has run for the first time: schemas that are not there are left
    out. Tables that come later in the schemas of the streams are readable by themselves. ``warehouse``: the
    warehouse is in this database too.
    """
    name = sql.Identifier(role)
    statements = [
        sql.SQL(
            "DO $$ BEGIN CREATE ROLE {} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        ).format(name),
        sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(name),
        sql.SQL("GRANT USAGE ON SCHEMA streamproc TO {}").format(name),
        sql.SQL("GRANT SELECT ON {} TO {}").format(
            sql.SQL(", ").join(sql.Identifier("streamproc", table) for table in LEDGER_TABLES), name
        ),
    ]
    statements += [
        sql.SQL(
            "DO $$ BEGIN IF to_regnamespace({text}) IS NOT NULL THEN"
            " GRANT USAGE ON SCHEMA {schema} TO {role};"
            " GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};"
            " ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role};"
            " END IF; END $$"
        ).format(text=sql.Literal(f'"{schema}"'), schema=sql.Identifier(schema), role=name)
        for schema in [*streams, *(["warehouse"] if warehouse else [])]
    ]
    return sql.SQL("").join(sql.SQL("{};\n").format(statement) for statement in statements)


async def existing(conn: AsyncConnection[Any], schemas: Sequence[str]) -> list[str]:
    """Those of the schemas that are there."""
    cursor = await conn.execute("SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", [list(schemas)])
    there = [name for (name,) in await cursor.fetchall()]
    return [schema for schema in schemas if schema in there]
