"""Frames go into PostgreSQL and come out of it as they are, whatever is in them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from psycopg import AsyncConnection, sql

from streamproc import native
from streamproc.sinks.summaries_copy import copy_in, copy_out
from streamproc.sinks.summaries_layout import ARRAY, Column, stored_type

_TEXTS = ["plain", "", "a tab\tand a\nline", "\\", "\\N", "\\.", "ünï", None]


@pytest.fixture(params=["binary", "text"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of sending, of which the compiled one needs its code."""
    if request.param == "text":
        monkeypatch.setattr(native, "records", None)
    elif native.records is None:
        pytest.skip("the compiled part is not there")


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


async def test_every_type_arrives_as_the_server_would_write_it_itself(postgres: str) -> None:
    moment = datetime(2024, 2, 29, 23, 59, 59, 123456, UTC)
    values: dict[Column, list[object]] = {
        Column("small", pl.Int16()): [-(2**15), 2**15 - 1, None],
        Column("tiny", pl.UInt8()): [0, 255, None],
        Column("middle", pl.Int32()): [-(2**31), 2**31 - 1, None],
        Column("unsigned", pl.UInt32()): [0, 2**32 - 1, None],
        Column("large", pl.Int64()): [-(2**63), 2**63 - 1, None],
        Column("real", pl.Float32()): [0.5, -1.5, None],
        Column("double", pl.Float64()): [1e-300, float("inf"), None],
        Column("flag", pl.Boolean()): [True, False, None],
        Column("moment", pl.Datetime("us", "UTC")): [moment, moment - timedelta(days=30_000), None],
        Column("day", pl.Date()): [date(2024, 2, 29), date(1901, 1, 1), None],
        Column("times", ARRAY): [[1, None, -3], [], None],
        Column("text", pl.String()): ["a\tb\\", "", None],
    }
    frame = pl.DataFrame([pl.Series(c.name, v, dtype=c.type) for c, v in values.items()])
    columns = sql.SQL(", ").join(sql.SQL("{} {}").format(c.id, stored_type(c.type)) for c in values)
    async with await AsyncConnection.connect(postgres, autocommit=True) as conn:
        await conn.execute(sql.SQL("CREATE TEMP TABLE arrived ({})").format(columns))
        await copy_in(conn, sql.Identifier("arrived"), list(values), frame)
        rows = await (await conn.execute("SELECT * FROM arrived ORDER BY ctid")).fetchall()
    since = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert rows[0] == (
        -(2**15), 0, -(2**31), 0, -(2**63), 0.5, 1e-300, True, since, 19_782, [1, None, -3], "a\tb\\",
    )  # fmt: skip
    earlier = since - 30_000 * 86_400_000_000
    assert rows[1] == (
        2**15 - 1, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, -1.5, float("inf"), False, earlier, -25_202, [], "",
    )  # fmt: skip
    assert rows[2] == (None,) * len(values)


async def test_a_frame_whose_integers_are_of_another_width_is_sent_as_the_table_has_them(
    postgres: str,
) -> None:
    frame = pl.DataFrame({"a": pl.Series([7], dtype=pl.UInt32), "b": pl.Series([8], dtype=pl.Int64)})
    columns = [Column("a", pl.Int64()), Column("b", pl.Int16())]
    async with await AsyncConnection.connect(postgres, autocommit=True) as conn:
        await conn.execute("CREATE TEMP TABLE arrived (a bigint, b smallint)")
        await copy_in(conn, sql.Identifier("arrived"), columns, frame)
        assert await (await conn.execute("SELECT a, b FROM arrived")).fetchall() == [(7, 8)]


@pytest.mark.parametrize("text", ["\ufeffa", "\ufeff", "x^2", "x\x01ab", "x\u0680ab"])
async def test_a_text_that_the_answer_begins_with_is_not_taken_for_a_sign_of_what_it_is_written_in(
    postgres: str, text: str
) -> None:
    frame = pl.DataFrame(
        {"text": [text, "b", text], "number": [1, 2, 3]}, schema_overrides={"number": pl.Int32}
    )
    columns = [Column(name, type_) for name, type_ in frame.schema.items()]
    async with await AsyncConnection.connect(postgres, autocommit=True) as conn:
        await conn.execute("CREATE TEMP TABLE arrived (text text, number integer)")
        await copy_in(conn, sql.Identifier("arrived"), columns, frame)
        arrived = await copy_out(conn, sql.SQL("SELECT text, number FROM arrived ORDER BY number"), columns)
    assert arrived.equals(frame)
