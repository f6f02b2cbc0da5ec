"""A small stream and its events, for the tests of the sinks."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from streamproc.model import REJECT_SCHEMA, Advance, Claim, Counts, Partition
from streamproc.topology import Contract, EventTime, Field, Sinks, Topic, Topology

COLUMNS: dict[str, pl.DataType] = {
    "event_id": pl.String(),
    "host": pl.String(),
    "value": pl.Float64(),
    "is_bot": pl.Boolean(),
    "event_time": pl.Datetime("us", "UTC"),
    "source_partition": pl.String(),
    "position": pl.Int64(),
    "received_at": pl.Datetime("us", "UTC"),
}


def topology(columns: Mapping[str, pl.DataType] = COLUMNS, name: str = "clicks") -> Topology:
    """A stream with these columns and nothing else to it."""
    contract = Contract(fields=(Field("event_id", ("event_id",)),), event_time=EventTime("event_time"))
    return Topology(name, Topic("clicks"), contract, (), (), (), (), Sinks(), columns)


def events(*times_us: int, partition: str = "0", first: int = 0) -> pl.DataFrame:
    """One event per time, at positions ``first`` and on."""
    count = len(times_us)
    return pl.DataFrame(
        {
            "event_id": [f"e{partition}-{first + row}" for row in range(count)],
            "host": [None if row % 3 == 0 else "shop.example" for row in range(count)],
            "value": [row * 0.1 for row in range(count)],
            "is_bot": [False] * count,
            "event_time": list(times_us),
            "source_partition": [partition] * count,
            "position": list(range(first, first + count)),
            "received_at": list(times_us),
        },
        schema=COLUMNS,
    )


def rejects(*times_us: int, partition: str = "0") -> pl.DataFrame:
    """One reject per time of receipt."""
    count = len(times_us)
    return pl.DataFrame(
        {
            "source_partition": [partition] * count,
            "position": list(range(count)),
            "received_at": list(times_us),
            "reason": ["not_json"] * count,
            "field": [None] * count,
            "detail": ["it is not JSON"] * count,
            "original": [b"\x00\xff{"] * count,
        },
        schema=REJECT_SCHEMA,
    )


def advance(
    accepted: int, rejected: int = 0, *, partition: str = "0", after: int | None = None, fence: int = 1
) -> Advance:
    """That many records of a partition, from ``after``."""
    claim = Claim(Partition("clicks", partition), fence, "7e57ab1e-0000-4000-8000-000000000000", after, None)
    records = accepted + rejected
    through = (-1 if after is None else after) + records
    return Advance(claim, after, through, 1, Counts(records, accepted, rejected=rejected))
