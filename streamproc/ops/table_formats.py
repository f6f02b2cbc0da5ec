"""Rows of a table as JSON, CSV or an Arrow IPC stream."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import orjson
import polars as pl
import polars.selectors as cs

#: What a spreadsheet takes for the beginning of a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = r"^[=+\-@\t\r]"

JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"


def as_json(rows: pl.DataFrame, about: Mapping[str, object]) -> bytes:
    """``about``, and the ``rows`` as objects: times as ISO 8601 in UTC, bytes as base64, what is no number null."""
    plain = _readable(rows).with_columns(
        cs.float().fill_nan(None).replace([float("inf"), -float("inf")], None)
    )
    head = orjson.dumps(about)
    return head[:-1] + b',"rows":' + plain.write_json().encode() + b"}"


def as_csv(rows: pl.DataFrame, about: Mapping[str, object]) -> bytes:
    """RFC 4180 with a header. Null is an empty field, an empty text is ``""``. A text that a spreadsheet would
    calculate gets an apostrophe before it.
    """
    text = pl.col(pl.String)
    safe = rows.with_columns(
        pl.when(text.str.contains(_FORMULA)).then(pl.lit("'") + text).otherwise(text).name.keep()
    )
    body = io.BytesIO()
    _readable(safe).write_csv(body, line_terminator="\r\n")
    return body.getvalue()


def as_arrow(rows: pl.DataFrame, about: Mapping[str, object]) -> bytes:
    """An Arrow IPC stream with the table's own types; strings as every reader knows them, not as views."""
    body = io.BytesIO()
    rows.write_ipc_stream(body, compat_level=pl.CompatLevel.oldest())
    return body.getvalue()


#: Content type and writer by what ``format`` may be.
FORMATS: Mapping[str, tuple[str, Callable[[pl.DataFrame, Mapping[str, object]], bytes]]] = {
    "json": (JSON, as_json),
    "csv": (CSV, as_csv),
    "arrow": (ARROW, as_arrow),
}


def chosen(asked: str | None, accept: str) -> str | None:
    """The format that the parameter names or, without one, the ``Accept`` header; ``None`` for no such format."""
    if asked is not None:
        return asked if asked in FORMATS else None
    for name, (content_type, _) in FORMATS.items():
        if content_type in accept:
            return name
    return "json"


def _readable(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        cs.datetime().dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"), cs.binary().bin.encode("base64")
    )
