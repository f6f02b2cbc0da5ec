"""Contracts and record batches for the tests of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from streamproc.model import Partition, RecordBatch
from streamproc.topology import DAY, Contract, EventTime, Field, FieldType
from streamproc.transform.decode import Decoded, decode

#: The broker's clock of every batch here: 2025-01-06 09:00 UTC.
RECEIVED_MS = 1_736_154_000_000
NOW = RECEIVED_MS


def field(name: str, kind: str = "string", path: str = "", **rest: Any) -> Field:
    return Field(name, tuple((path or name).split(".")), FieldType(kind), **rest)


FLAT = Contract(
    fields=(
        field("event_id", required=True, max_length=16),
        field("event_time", "integer", required=True),
        field("page_url", required=True, max_length=64),
        field("agent", max_length=8, truncate=True),
        field("value", "number"),
        field("signed_in", "boolean"),
        field("properties", "json", max_length=400),
    ),
    event_time=EventTime("event_time"),
    max_record_bytes=20_000,
)

#: The same, and no event may be older than that.
OLDEST_MS = 30 * 86_400_000
BOUNDED = replace(FLAT, event_time=EventTime("event_time", max_age=30 * DAY))

#: Keys below keys, the same name at several places, an object both kept as text and read from.
NESTED = Contract(
    fields=(
        field("id", path="id", required=True),
        field("at", "integer", path="context.at"),
        field("url", path="context.page.url"),
        field("title", path="context.page.title"),
        field("shown", "boolean", path="context.page.shown"),
        field("properties", "json"),
        field("property_url", path="properties.url"),
        field("traits", "json", path="context.traits"),
    ),
    event_time=EventTime("at"),
    max_record_bytes=20_000,
)


def first_of_duplicates(contract: Contract) -> Contract:
    return Contract(
        contract.fields,
        contract.event_time,
        duplicate_keys="first",
        max_record_bytes=contract.max_record_bytes,
    )


def batch_of(values: Sequence[bytes | None], after: int = -1, partition: str = "0") -> RecordBatch:
    through = after + len(values)
    return RecordBatch(
        partition=Partition("test", partition),
        after=after,
        through=through,
        values=values,
        positions=range(after + 1, through + 1),
        received_ms=RECEIVED_MS,
        size=sum(len(value or b"") for value in values),
    )


def decode_values(*values: bytes | None, contract: Contract = FLAT) -> Decoded:
    return decode([batch_of(values)], contract)


def outcomes(decoded: Decoded) -> dict[int, dict[str, Any]]:
    """What became of each position: the event's columns, or ``reason`` and the rest of a reject."""
    rows = decoded.frame.to_dicts() + decoded.rejects.to_dicts()
    by_position = {row["position"]: row for row in rows}
    assert len(by_position) == len(rows), "a record came out twice"
    return by_position


def reason_of(value: bytes | None, contract: Contract = FLAT) -> str | None:
    """The reason a record is rejected for, ``None`` when it is not."""
    rejects: pl.DataFrame = decode_values(value, contract=contract).rejects
    return rejects["reason"][0] if rejects.height else None
