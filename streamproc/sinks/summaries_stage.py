"""Temporary tables in which a delta lies while it is merged."""

from __future__ import annotations

import hashlib
from typing import Any

from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_layout import Layout, stored_type


async def stage(conn: AsyncConnection[Any], layout: Layout, purpose: str) -> sql.Identifier:
    """An empty temporary table with the columns :attr:`Layout.incoming` and ``n``, made once per connection.

    The columns are part of its name: a connection may outlive a change of the table.
    """
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(column.id, stored_type(column.type)) for column in layout.incoming
    )
    text = f"{layout.public.as_string(None)} {columns.as_string(None)}"
    name = f"{layout.table.name[:30]}__{purpose}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    table = sql.Identifier("pg_temp", name)
    # Emptied because the transaction may have used it before.
    prepare = sql.SQL(
        "CREATE TEMPORARY TABLE IF NOT EXISTS {name} ({columns}, n smallint) ON COMMIT DELETE ROWS; "
        "DELETE FROM {table}"
    )
    await conn.execute(
        layout.rendered(
            f"stage {purpose}",
            lambda: prepare.format(name=sql.Identifier(name), columns=columns, table=table),
        )
    )
    return table
