"""Funnels: how far a session came through ordered steps, and when.

Step 1 counts at its first event; step k at the first event of step k that comes after the event of step
k-1, in the order of (event time, position). So a purchase before any product view does not count, and one
event never counts for two steps.

The state of a funnel is the session's step events, because whether an event counts depends on what came
before it, which another epoch or worker may hold. The earliest :data:`MAX_STEP_EVENTS` of a session are kept:
"the earliest n" of a union is the earliest n of the earliest n of its parts, so the bound does not make the
answer depend on how the events were split; step events after that many do not count.

A piece that follows all events of a session so far need not be merged event by event: it also says
:func:`onward` how it would go on from each step the session may have reached.

Stored form: ``step:at:position;`` for each event, step from 1, at in Unix microseconds.
"""

from __future__ import annotations

import polars as pl

from streamproc.tables.measures import funnel_columns
from streamproc.topology import Measure

#: Step events kept of one session: eight reloads of each step of the longest funnel.
MAX_STEP_EVENTS = 256

#: A stored form this short cannot hold more events than that.
MAX_STEP_EVENTS_BYTES = MAX_STEP_EVENTS * len("1:0:0;")

_ORDER = ("session", "at", "position", "step")

#: Columns of the long form: one row for each step of each event, sorted by session, at and position.
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


def long_form(events: pl.DataFrame, bits: str) -> pl.DataFrame:
    """:data:`LONG` of events with the columns ``session``, ``__at``, ``position`` and ``bits``, sorted so."""
    hits = events.lazy().filter(pl.col(bits) > 0)
    hits = hits.select(pl.col("session").cast(pl.UInt32), bits, pl.col("__at").alias("at"), "position")
    step = pl.col(bits).bitwise_trailing_zeros().cast(pl.Int32) + 1
    parts = []
    rest = hits.collect()
    while len(rest):  # once, unless events match several steps
        parts.append(rest.select("session", step.alias("step"), "at", "position"))
        rest = rest.with_columns(pl.col(bits) & (pl.col(bits) - 1)).filter(pl.col(bits) > 0)
    if len(parts) < 2:
        return _bounded(parts[0] if parts else pl.DataFrame(schema=LONG))
    return _bounded(pl.concat(parts).sort(list(_ORDER)))


def decode(states: pl.Series) -> pl.DataFrame:
    """:data:`LONG` of stored forms (or null), in any order; ``session`` is the row's number."""
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
        .sort(list(_ORDER))
    )


def finish(measure: Measure, long: pl.DataFrame, sessions: int) -> pl.DataFrame:
    """Stored form and finished columns, one row for each of ``sessions`` numbers."""
    text = pl.format("{}:{}:{};", "step", "at", "position")
    stored = long.group_by("session").agg(text.str.join().alias(f"{measure.name}__steps"))
    every = pl.DataFrame({"session": pl.int_range(sessions, dtype=pl.UInt32, eager=True)})
    stored = every.join(stored, on="session", how="left", maintain_order="left")
    times = _reached(measure, long, every["session"])
    deepest = pl.sum_horizontal(pl.col(at.name).is_not_null() for at in times)
    reached = pl.DataFrame(times).select(deepest.cast(pl.Int32).alias(f"{measure.name}_step"), pl.all())
    return stored.drop("session").hstack(reached.cast(dict(funnel_columns(measure))))


def onward(measure: Measure, long: pl.DataFrame, sessions: int) -> pl.Series:
    """When each session reaches which step, had it come to step 1, 2, … before its first event here.

    An array literal of PostgreSQL (bigint[]) named ``<measure>__onward``: the times of all steps from step
    1, then from step 2 and so on, null up to the step it starts from. Null where nothing is reached.
    """
    index = pl.int_range(sessions, dtype=pl.UInt32, eager=True)
    count = len(measure.steps)
    times = pl.DataFrame(
        {
            f"{start}:{number}": at
            for start in range(1, count)
            for number, at in enumerate(_reached(measure, long, index, start), start=1)
        }
    )
    texts = pl.concat_str(pl.all().cast(pl.String).fill_null("NULL"), separator=",")
    literal = pl.when(pl.any_horizontal(pl.all().is_not_null())).then(pl.format("{{{}}}", texts))
    return times.select(literal.alias(f"{measure.name}__onward")).to_series()


def _reached(measure: Measure, long: pl.DataFrame, sessions: pl.Series, start: int = 0) -> list[pl.Series]:
    """When each step is reached (Unix microseconds) by sessions that come from step ``start``: for each
    step a binary search for its first event after that of the step before. Null up to ``start``.
    """
    same = [pl.col(name) == pl.col(name).shift() for name in ("session", "at", "position")]
    long = long.with_columns(
        (~pl.all_horizontal(same)).fill_null(True).cum_sum().cast(pl.Int64).alias("order")
    )
    columns: list[pl.Series] = []
    after: pl.Series | None = None
    for number, (name, _) in enumerate(funnel_columns(measure)[1:], start=1):
        if number <= start:
            columns.append(pl.repeat(None, len(sessions), dtype=pl.Int64, eager=True).alias(name))
            continue
        events = long.filter(pl.col("step") == number)
        if after is None:
            found = events["session"].search_sorted(sessions)
        else:  # past every event for those who did not get as far
            found = events["order"].search_sorted(after.fill_null(long.height + 1), side="right")
        found = found.set(found >= events.height, None)
        found = found.set((events["session"].gather(found) != sessions).fill_null(False), None)
        columns.append(events["at"].gather(found).alias(name))
        after = events["order"].gather(found)
    return columns


def _bounded(long: pl.DataFrame) -> pl.DataFrame:
    number = pl.int_range(pl.len()).over("session")
    return long.filter(number < MAX_STEP_EVENTS) if long.height > MAX_STEP_EVENTS else long
