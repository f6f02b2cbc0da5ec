"""Rows of a table as a file: CSV that a spreadsheet cannot take for a program, and Parquet.

A file is made from pieces of an answer as they come: a million rows as Python's objects do not fit into 1 GiB.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import polars as pl

from streamproc.dashboard.reading import Answer

#: Rows and bytes of a download at most; more are a matter for `streamproc sql` or psql. The bytes are those of the CSV,
#: or of the rows that a Parquet file is made from, which need about twice as much while it is.
LIMIT, LARGEST = 1_000_000, 192 * 1024 * 1024

#: Rows that are asked for at a time.
PIECE = 5_000

#: Bytes of a Parquet file that are sent at a time.
_SENT = 64 * 1024

#: With one of these in front, Excel, LibreOffice and Google Sheets read a cell as a formula or eat the
#: character (OWASP, "CSV Injection").
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")


class TooLarge(Exception):
    """More rows or bytes than a download may have."""


def safe(value: object) -> str:
    """A cell. Text that a spreadsheet would run gets an apostrophe in front; numbers stay numbers."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return str(value)
        case datetime() | date():
            return value.isoformat()
        case bytes() | memoryview():
            return "\\x" + bytes(value).hex()
        case _:
            text = str(value)
            return f"'{text}" if text.startswith(_DANGEROUS) else text


async def as_csv(pieces: AsyncIterable[Answer]) -> Iterable[bytes | memoryview]:
    """RFC 4180 with a header, UTF-8. Null is an empty field. Raises :class:`TooLarge`."""
    lines: list[bytes] = []
    size = 0
    async for piece in _counted(pieces):
        head = [] if lines else [piece.columns]
        lines.append(await asyncio.to_thread(_lines, [*head, *piece.rows]))
        size += len(lines[-1])
        if size > LARGEST:
            raise TooLarge
    return lines


async def as_parquet(pieces: AsyncIterable[Answer]) -> Iterable[bytes | memoryview]:
    """One Parquet file; times are microseconds in UTC, sums of integers 64-bit integers. Raises :class:`TooLarge`."""
    frames: list[pl.DataFrame] = []
    size = 0
    async for piece in _counted(pieces):
        frames.append(await asyncio.to_thread(_frame, piece))
        size += int(frames[-1].estimated_size())
        if size > LARGEST:
            raise TooLarge
    return _cut(await asyncio.to_thread(_written, frames))


async def _counted(pieces: AsyncIterable[Answer]) -> AsyncIterator[Answer]:
    rows = 0
    async for piece in pieces:
        rows += len(piece.rows)
        if rows > LIMIT:
            raise TooLarge
        yield piece


def _lines(rows: Iterable[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(map(safe, row) for row in rows)
    return buffer.getvalue().encode()


def _frame(piece: Answer) -> pl.DataFrame:
    rows = [[_plain(value) for value in row] for row in piece.rows]
    return pl.DataFrame(rows, schema=list(piece.columns), orient="row", infer_schema_length=None)


def _written(frames: Sequence[pl.DataFrame]) -> memoryview:
    buffer = io.BytesIO()
    # A column that is null, or has whole numbers, in one piece may have another type in the next.
    pl.concat(frames, how="vertical_relaxed").write_parquet(buffer, compression="zstd")
    return buffer.getbuffer()


def _cut(whole: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(whole), _SENT):
        yield whole[start : start + _SENT]


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral() and abs(value) < 2**63 else float(value)
    return value
