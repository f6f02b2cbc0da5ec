"""Funnels: how far a session came through ordered steps, and when.

Step 1 counts at its first event; step k at the first event of step k that comes after the event of step
k-1, in the order of (event time, position). So a purchase before any product view does not count, and one
event never counts for two steps.

The state of a funnel is the session's step events, because whether an event counts depends on what came
before it, which another epoch or worker may hold. The earliest :data:`MAX_STEP_EVENTS` of a session are kept:
"the earliest n" of a union is the earliest n of the earliest n of its parts, so the bound does not make the
answer depend on how the events were split; step events after that many do not count.

Stored form: ``step:at:position;`` for each event, step from 1, at in Unix microseconds.
"""

from __future__ import annotations

import polars as pl

from streamproc.tables.measures import funnel_columns
from streamproc.topology import Measure

#: Step events kept of one session. Ten bot-like reloads of each step of a long funnel fit.
MAX_STEP_EVENTS = 256

#: Columns of the long form: one row for each step event of each session.
LONG: dict[str, pl.DataType] = {
    "session": pl.UInt32(),
    "step": pl.Int32(),
    "at": pl.Int64(),
    "position": pl.Int64(),
}


def step_bits(measure: Measure) -> pl.Expr:
    """Over events: a bit for each step the event matches (step 1 is bit 0)."""
    bits = [
        pl.when(pl.sql_expr(condition)).then(1 << index).otherwise(0).cast(pl.UInt32)
        for index, (_, condition) in enumerate(measure.steps)
    ]
    return pl.sum_horizontal(bits).cast(pl.UInt32)


def long_form(events: pl.DataFrame, bits: str, steps: int) -> pl.DataFrame:
    """:data:`LONG` of events with the columns ``session``, ``__at``, ``position`` and ``bits``."""
    events = events.filter(pl.col(bits) > 0)
    parts = [
        events.filter((pl.col(bits) & (1 << index)) > 0).select(
            pl.col("session").cast(pl.UInt32),
            pl.lit(index + 1, dtype=pl.Int32).alias("step"),
            pl.col("__at").alias("at"),
            "position",
        )
        for index in range(steps)
    ]
    return _bounded(pl.concat(parts))


def decode(states: pl.Series) -> pl.DataFrame:
    """:data:`LONG` of stored forms (or null); ``session`` is the row's number."""
    rows = pl.DataFrame({"session": pl.int_range(len(states), dtype=pl.UInt32, eager=True), "text": states})
    parts = pl.col("text").str.split_exact(":", 2)
    return _bounded(
        rows.filter(pl.col("text").str.len_bytes() > 0)
        .with_columns(pl.col("text").str.strip_suffix(";").str.split(";"))
        .explode("text")
        .select(
            "session",
            parts.struct.field("field_0").cast(pl.Int32).alias("step"),
            parts.struct.field("field_1").cast(pl.Int64).alias("at"),
            parts.struct.field("field_2").cast(pl.Int64).alias("position"),
        )
    )


def finish(measure: Measure, long: pl.DataFrame, sessions: int) -> pl.DataFrame:
    """Stored form and finished columns, one row for each of ``sessions`` numbers."""
    text = pl.format("{}:{}:{};", "step", "at", "position")
    stored = long.group_by("session", maintain_order=True).agg(
        text.str.join().alias(f"{measure.name}__steps")
    )
    every = pl.DataFrame({"session": pl.int_range(sessions, dtype=pl.UInt32, eager=True)})
    stored = every.join(stored, on="session", how="left", maintain_order="left")
    return stored.drop("session").hstack(reach(measure, long, sessions))


def reach(measure: Measure, long: pl.DataFrame, sessions: int, reached: int = 0) -> pl.DataFrame:
    """The finished columns, had every session reached step ``reached`` before its first event here.

    Times of steps up to ``reached`` are null; the step is at least ``reached``.
    """
    order = pl.struct("at", "position").rank("dense").cast(pl.Int64)
    long = long.with_columns(order.alias("order"))
    index = pl.int_range(sessions, dtype=pl.UInt32, eager=True).alias("session")
    after = pl.repeat(0, sessions, dtype=pl.Int64, eager=True)
    deepest = pl.repeat(reached, sessions, dtype=pl.Int32, eager=True)
    columns: list[pl.Series] = []
    for number, (name, type_) in enumerate(funnel_columns(measure)[1:], start=1):
        if number <= reached:
            columns.append(pl.Series(name, [None], dtype=type_).new_from_index(0, sessions))
            continue
        candidates = long.filter(pl.col("step") == number)
        candidates = candidates.filter(candidates["order"] > after.gather(candidates["session"]))
        first = candidates.group_by("session").agg(pl.col("order", "at").sort_by("order").first())
        hit = index.to_frame().join(first, on="session", how="left", maintain_order="left")
        columns.append(hit["at"].cast(type_).alias(name))
        after = hit["order"]  # null where not reached: no later step compares greater than null
        deepest = (
            pl.select(pl.when(after.is_not_null()).then(number).otherwise(deepest)).to_series().cast(pl.Int32)
        )
    return pl.DataFrame([deepest.alias(f"{measure.name}_step"), *columns])


def _bounded(long: pl.DataFrame) -> pl.DataFrame:
    long = long.sort("session", "at", "position", "step").unique(maintain_order=True)
    return long.filter(pl.int_range(pl.len()).over("session") < MAX_STEP_EVENTS)
