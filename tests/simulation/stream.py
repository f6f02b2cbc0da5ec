"""The simulated stream: its page, its records, and cheap stand-ins for the two pure parts that cost most.

Transform and fold are functions without effects and tested by themselves. On the handful of records that a
simulated batch has they would take nine tenths of a run, so most seeds use plain loops with the same
signatures; one seed in sixteen uses the real ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from streamproc.model import REJECT_SCHEMA, Counts, RecordBatch, Transformed
from streamproc.topic_pages import load_page
from streamproc.topology import Table
from streamproc.transform import Resources, Transform
from tests.simulation.clock import BEGIN

TOPOLOGY = load_page(Path(__file__).with_name("clicks.toml"))

#: Of the page, in microseconds.
WINDOW, LATENESS = 60_000_000, 120_000_000

#: Records of the largest batch a producer sends.
LARGEST_BATCH = 6

_KINDS = ("view", "view", "buy", "heartbeat")


@dataclass
class Producer:
    """Makes one partition's records: in rough order, some late, some again, some rubbish."""

    chance: random.Random
    partition: int

    def __post_init__(self) -> None:
        self._clock_ms = int((BEGIN - 86_400) * 1000)  # never from the future, whatever the jumps
        self._number = 0
        self._sent: list[bytes] = []

    def records(self, count: int) -> list[bytes | None]:
        return [self._record() for _ in range(count)]

    def _record(self) -> bytes | None:
        luck = self.chance.random()
        if luck < 0.05:
            return self.chance.choice([None, b"rubbish", b"{}", b"[1]"])
        if luck < 0.17 and self._sent:
            return self.chance.choice(self._sent[-8:])
        self._clock_ms += self.chance.choice(
            [0, 1_000, 20_000, 50_000, 50_000, 700_000 if luck > 0.95 else 5]
        )
        late = self.chance.choice([0, 0, 0, 3_000, 90_000, 400_000])
        self._number += 1
        record = orjson.dumps(
            {
                "id": f"{self.partition}-{self._number}",
                "event_time": self._clock_ms - late,
                "kind": self.chance.choice(_KINDS),
                "visitor": "v",
                "amount": self._number,
            }
        )
        self._sent.append(record)
        return record


def real_transform() -> Transform:
    return Transform(TOPOLOGY, Resources({}, Path()))


class PlainTransform:
    """What the page says, in a loop."""

    def __call__(self, batches: Sequence[RecordBatch]) -> Transformed:
        out = Transformed(_EMPTY, _NO_REJECTS)
        events: list[tuple[Any, ...]] = []
        rejects: list[tuple[Any, ...]] = []
        for batch in batches:
            counts = out.counts.setdefault(batch.partition.id, Counts())
            counts.records += len(batch)
            received = batch.received_ms * 1000
            for value, position in zip(batch.values, batch.positions, strict=True):
                at = (batch.partition.id, position, received)
                try:
                    record = orjson.loads(value or b"")
                    fields = (record["id"], record["event_time"] * 1000, record["kind"], record["visitor"])
                except (ValueError, KeyError, TypeError):
                    rejects.append((*at, "not_usable", None, "", value))
                    counts.rejected += 1
                    continue
                if fields[2] == "heartbeat":
                    counts.filtered += 1
                else:
                    origin = batch.redriven.get(position)
                    events.append((*fields, record["amount"], *at, origin))
                    counts.accepted += 1
        if events:
            out.events = _frame(events, TOPOLOGY.columns)
        if rejects:
            out.rejects = _frame(rejects, REJECT_SCHEMA)
        return out


def _frame(rows: list[tuple[Any, ...]], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Times are in microseconds. Column by column: casting a whole frame costs a millisecond."""
    columns = zip(*rows, strict=True)
    return pl.DataFrame(
        [
            pl.Series(name, values, pl.Int64 if dtype == pl.Datetime else dtype).cast(dtype)
            for (name, dtype), values in zip(schema.items(), columns, strict=True)
        ]
    )


_EMPTY = pl.DataFrame(schema=dict(TOPOLOGY.columns))
_NO_REJECTS = pl.DataFrame(schema=REJECT_SCHEMA)


class PlainFold:
    """The page's table, in a loop: sums by (window start in µs, kind)."""

    hashed: frozenset[str] = frozenset()

    def __init__(self, table: Table) -> None:
        self.table = table

    def partial(self, events: pl.DataFrame) -> tuple[dict[tuple[int, str], list[int]], int]:
        sums: dict[tuple[int, str], list[int]] = {}
        late = 0
        columns = (
            events["event_time"].to_physical().to_list(),
            events["watermark"].to_physical().to_list(),
            events["kind"].to_list(),
            events["amount"].to_list(),
        )
        for time, watermark, kind, amount in zip(*columns, strict=True):
            start = time // WINDOW * WINDOW
            if watermark is not None and start + WINDOW + LATENESS <= watermark:
                late += 1
                continue
            add(sums, (start, kind), 1, amount)
        return sums, late

    def merge(
        self, partials: Sequence[Mapping[tuple[int, str], list[int]]]
    ) -> dict[tuple[int, str], list[int]]:
        sums: dict[tuple[int, str], list[int]] = {}
        for partial in partials:
            for key, (events, amount) in partial.items():
                add(sums, key, events, amount)
        return sums

    def seal(self, partial: dict[tuple[int, str], list[int]]) -> dict[tuple[int, str], list[int]]:
        return partial


def add(sums: dict[Any, list[int]], key: Any, events: int, amount: int) -> None:
    into = sums.setdefault(key, [0, 0])
    into[0] += events
    into[1] += amount


def delta_rows(delta: Any) -> dict[tuple[int, str], list[int]]:
    """A delta of either fold as sums by key."""
    if isinstance(delta, dict):
        return delta
    rows = delta.rows.select("window_start", "kind", "events", "amount").iter_rows()
    return {(start, kind): [events, amount] for start, kind, events, amount in rows}
