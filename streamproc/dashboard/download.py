"""Rows of a table as a file: CSV that a spreadsheet cannot take for a program, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import polars as pl

from streamproc.dashboard.reading import Answer

#: Rows of a download at most; more are a matter for `streamproc sql` or psql.
LIMIT = 1_000_000

#: With one of these in front, Excel, LibreOffice and Google Sheets read a cell as a formula or eat the
#: character (OWASP, "CSV Injection").
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")

_CHUNK = 1_000


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


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[bytes]:
    """RFC 4180 with a header, UTF-8, in pieces. Null is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(map(safe, columns))
    for number, row in enumerate(rows, start=1):
        writer.writerow(map(safe, row))
        if number % _CHUNK == 0:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


def as_parquet(answer: Answer) -> bytes:
    """One Parquet file; times are microseconds in UTC, sums of integers 64-bit integers."""
    rows = [[_plain(value) for value in row] for row in answer.rows]
    frame = pl.DataFrame(rows, schema=list(answer.columns), orient="row", infer_schema_length=None)
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral() and abs(value) < 2**63 else float(value)
    return value
