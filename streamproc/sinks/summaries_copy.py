"""Frames in and out of PostgreSQL through COPY.

In by the binary format, which compiled code writes. Without that, and out: by the text format, which polars writes and
reads without a Python object for each value; not CSV, because servers before 18 take a line that reads ``\\.`` for the
end of the data even inside quotes.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc import native
from streamproc.sinks.summaries_layout import ARRAY, Column

#: What COPY's text format escapes. It writes the last three too, and reads them either way.
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
#: Any of them. polars keeps a compiled expression, but makes the automaton of ``contains_any`` anew each time.
_SPECIAL = "[" + "".join(map(re.escape, _ESCAPES)) + "]"
_NULL = "\\N"

#: What stands before the rows in COPY's binary format (signature, flags, length of an extension), and behind them.
_BINARY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_BINARY_END = b"\xff\xff"

#: About a millisecond's work.
_THREAD_ROWS = 500

#: Rows that are sent together. The server takes in some while the next are encoded, and only they are here as text.
_SENT_ROWS = 8_192

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def worth_a_thread(
    rows: int, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Do ``work`` on ``rows`` rows beside the event loop, or here when handing over would take longer."""
    if rows < _THREAD_ROWS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def copy_in(
    conn: AsyncConnection[Any], table: sql.Composable, columns: Sequence[Column], frame: pl.DataFrame
) -> None:
    """Append the frame's ``columns`` to a table that stores times as integers."""
    names = sql.SQL(", ").join(column.id for column in columns)
    binary = native.records is not None
    form = sql.SQL("(FORMAT binary)" if binary else "")
    frame = frame.select(_stored(column, frame.schema[column.name]) for column in columns)
    async with (
        conn.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN {}").format(table, names, form)) as copy,
    ):
        if binary:
            await copy.write(_BINARY_HEAD)
        for rows in frame.iter_slices(_SENT_ROWS):
            await copy.write(await worth_a_thread(rows.height, encode_binary if binary else encode, rows))
        if binary:
            await copy.write(_BINARY_END)


def _stored(column: Column, given: pl.DataType) -> pl.Expr:
    """The column as the type of :func:`~streamproc.sinks.summaries_layout.stored_type` has it."""
    value = pl.col(column.name)
    if isinstance(given, pl.Datetime):
        value = value.dt.cast_time_unit("us").to_physical()
    if isinstance(column.type, pl.Datetime):
        return value.cast(pl.Int64)
    return value.cast(pl.Int32 if column.type == pl.Date() else column.type)


def encode_binary(frame: pl.DataFrame) -> bytes:
    """The frame's rows in COPY's binary format, without what stands before and behind them. Integers are as wide as
    PostgreSQL's type that holds all of theirs.
    """
    assert native.records is not None
    rows: bytes = native.records.rows(frame)
    return rows


async def copy_out(
    conn: AsyncConnection[Any], query: sql.Composable, columns: Sequence[Column]
) -> pl.DataFrame:
    """What a query (SELECT, or INSERT … RETURNING) gives, with times as integers; ``columns`` name and
    type its columns in order, Datetime standing for microseconds and Date for days.
    """
    async with conn.cursor() as cursor, cursor.copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as copy:
        chunks = [bytes(chunk) async for chunk in copy]
    return await worth_a_thread(len(chunks), decode, b"".join(chunks), columns)  # a chunk is a row


def encode(frame: pl.DataFrame) -> bytes:
    """The frame in COPY's text format."""
    # One pass over all columns each: a call of polars by column and step costs more than its work on few rows.
    special = _any(frame, pl.col(pl.String).str.contains(_SPECIAL))
    columns = [_encoded(name, type_, special=name in special) for name, type_ in frame.schema.items()]
    body = io.BytesIO()
    frame.select(columns).write_csv(
        body, include_header=False, separator="\t", quote_style="never", null_value=_NULL
    )
    return body.getvalue()


def _any(frame: pl.DataFrame, condition: pl.Expr) -> set[str]:
    """The columns in which the condition is true of some row."""
    found = frame.select(condition.any())
    return {name for name in found.columns if found[name][0]}


def _encoded(name: str, type_: pl.DataType, *, special: bool) -> pl.Expr:
    column = pl.col(name)
    if special:  # few columns hold anything to escape, and asking is cheaper than replacing
        return column.str.replace_many(list(_ESCAPES), list(_ESCAPES.values()))
    if type_ == pl.Binary:
        return (pl.lit("\\\\x") + column.bin.encode("hex")).alias(name)
    if type_ == ARRAY:
        items = column.cast(pl.List(pl.String)).list.eval(pl.element().fill_null("NULL"))
        return pl.format("{{{}}}", items.list.join(",")).alias(name)
    return column


def decode(body: bytes, columns: Sequence[Column]) -> pl.DataFrame:
    """The reverse of :func:`encode`; times stay integers."""
    schema = {column.name: _wire_type(column.type) for column in columns}
    if not body:
        frame = pl.DataFrame(schema=schema)
    else:
        # Behind a line of names, for the first column may be a visitor's text: polars passes over a byte order mark at
        # the beginning, and unpacks what begins like a packed file, as "x^" does.
        frame = pl.read_csv(
            "\t".join(schema).encode() + b"\n" + body,
            separator="\t",
            quote_char=None,
            null_values=_NULL,
            empty_string_is_null=False,
            schema=schema,
        )
    special = _any(frame, pl.col(pl.String).str.contains("\\", literal=True))
    return frame.select(_decoded(column, special=column.name in special) for column in columns)


def _wire_type(type_: pl.DataType) -> pl.DataType:
    if isinstance(type_, pl.Datetime):
        return pl.Int64()
    if type_ == pl.Date():
        return pl.Int32()
    return pl.String() if type_ in (pl.Boolean(), pl.Binary()) else type_


def _decoded(column: Column, *, special: bool) -> pl.Expr:
    value = pl.col(column.name)
    if column.type == pl.Boolean():
        return value == "t"
    if column.type == pl.Binary():
        return value.str.strip_prefix("\\\\x").str.decode("hex")
    if column.type == pl.String() and special:
        return value.str.replace_many(list(_ESCAPES.values()), list(_ESCAPES))
    return value
