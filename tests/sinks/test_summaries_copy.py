"""Frames go into PostgreSQL and come out of it as they are, whatever is in them."""

from __future__ import annotations

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_copy import copy_in, copy_out
from streamproc.sinks.summaries_layout import Column

_TEXTS = ["plain", "", "a tab\tand a\nline", "\\", "\\N", "\\.", "ünï", None]


async def test_a_frame_that_is_sent_in_several_parts_arrives_whole_and_in_order(postgres: str) -> None:
    rows = 20_001  # two whole parts and some
    frame = pl.DataFrame(
        {
            "number": pl.int_range(rows, dtype=pl.Int32, eager=True),
            # Only one part has anything to escape.
            "text": [_TEXTS[n % len(_TEXTS)] if n < 5_000 else f"text {n}" for n in range(rows)],
            "image": [None if n % 3 else n.to_bytes(4, "big") for n in range(rows)],
        },
        schema_overrides={"image": pl.Binary()},
    )
    columns = [Column(name, type_) for name, type_ in frame.schema.items()]
    async with await AsyncConnection.connect(postgres, autocommit=True) as conn:
        await conn.execute("CREATE TEMP TABLE arrived (number integer, text text, image bytea)")
        await copy_in(conn, sql.Identifier("arrived"), columns, frame)
        await copy_in(conn, sql.Identifier("arrived"), columns, frame.clear())
        query = sql.SQL("SELECT number, text, image FROM arrived ORDER BY ctid")
        arrived = await copy_out(conn, query, columns)
        cursor = await conn.execute("SELECT text FROM arrived WHERE number < 8 ORDER BY number")
        assert [text for (text,) in await cursor.fetchall()] == _TEXTS
    assert arrived.equals(frame)
