"""Why a record cannot be used: the reasons, and the frame of rejects made of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import polars as pl

from streamproc.model import REJECT_SCHEMA


class Reason(enum.StrEnum):
    """Every ``reason`` a reject can carry. The slugs are stable: people count and alert on them.

    ``meaning`` is the sentence for the documentation and for ``rejects list``.
    """

    meaning: str

    def __new__(cls, slug: str, meaning: str) -> Self:  # noqa: D102 (how an enum carries a second value)
        member = str.__new__(cls, slug)
        member._value_ = slug
        member.meaning = meaning
        return member

    TOMBSTONE = "tombstone", "The record has no value (Kafka's null): a deletion marker is not an event"
    EMPTY = "empty", "The value is empty or nothing but whitespace"
    TOO_LARGE = "too_large", "The value is larger than the contract's max_record_bytes"
    NOT_UTF8 = "not_utf8", "The value is not UTF-8"
    TOO_DEEP = "too_deep", "Objects and arrays are nested deeper than 256 levels"
    NOT_JSON = "not_json", "The value is not one JSON value: truncated, malformed, or followed by more"
    NOT_AN_OBJECT = "not_an_object", "The value is JSON, but a list, text, number, true, false or null"
    LONE_SURROGATE = "lone_surrogate", "Half of a UTF-16 surrogate pair stands alone: it is no character"
    NUL_CHARACTER = "nul_character", "A contract field holds U+0000, which PostgreSQL text cannot store"
    DUPLICATE_KEY = "duplicate_key", "A contract key stands twice in one object, so its value is ambiguous"
    WRONG_TYPE = "wrong_type", "A contract field has another JSON type than the contract says"
    NUMBER_OUT_OF_RANGE = (
        "number_out_of_range",
        "A number does not fit 64 bits, or no reader would agree on it",
    )
    MISSING_FIELD = "missing_field", "A required field is absent or null"
    TOO_LONG = "too_long", "A text is longer than the contract's max_length"
    BAD_EVENT_TIME = "bad_event_time", "The event time cannot be read, or is not in the years 1970 to 9999"
    FUTURE_EVENT = "future_event", "The event time is further ahead of the broker's clock than future_skew"
    OLD_EVENT = "old_event", "The event time is further behind the broker's clock than max_age"
    TRUNCATED_OBJECT = "truncated_object", "The object ends in the middle of its compressed data"
    CORRUPT_OBJECT = (
        "corrupt_object",
        "The object's compressed data, or its header, cannot be read from here on",
    )
    OVERSIZED_OBJECT = "oversized_object", "The object holds more than logs.max_size or logs.max_ratio allow"
    BAD_LOG_LINE = "bad_log_line", "The line is not in the log format that the page names"


class Problem(NamedTuple):
    """What is wrong with one record: the first thing found, in a fixed order, never its neighbours' doing."""

    reason: Reason
    field: str | None
    detail: str


#: Characters of a value that a sentence about it has: a record may be a megabyte of one.
_QUOTED = 100


def quoted(value: object) -> str:
    """The value as a sentence has it: of a long text the beginning."""
    if isinstance(value, str) and len(value) > _QUOTED:
        return f"{value[:_QUOTED]!r}…"
    return repr(value)


def reject_frame(
    system: pl.DataFrame, records: Sequence[bytes | None], problems: Mapping[int, Problem]
) -> pl.DataFrame:
    """Rejects in input order.

    ``system``: the system columns, one row per record; ``records``: their bytes. ``problems``: by row.
    """
    if not problems:
        return pl.DataFrame(schema=REJECT_SCHEMA)
    rows = sorted(problems)
    found = [problems[row] for row in rows]
    return (
        system[rows]
        .with_columns(
            pl.Series("reason", [str(p.reason) for p in found], dtype=pl.String),
            pl.Series("field", [p.field for p in found], dtype=pl.String),
            pl.Series("detail", [p.detail for p in found], dtype=pl.String),
            pl.Series("original", [records[row] for row in rows], dtype=pl.Binary),
        )
        .select(*REJECT_SCHEMA)
    )
