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

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from streamproc.tables.measures import funnel_columns
from streamproc.topology import Measure

if TYPE_CHECKING:
    import numpy.typing as npt

#: Step events kept of one session: eight reloads of each step of the longest funnel.
MAX_STEP_EVENTS = 256

#: A stored form this short cannot hold more events than that.
MAX_STEP_EVENTS_BYTES = MAX_STEP_EVENTS * len("1:0:0;")

#: Comes after every event: for sessions that did not get as far.
_NEVER = 2**62

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
    rest = hits.collect(engine="in-memory")
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
    text = long.select("session", text=pl.format("{}:{}:{};", "step", "at", "position"))
    # A list first: joining within the groups takes four times as long.
    stored = (
        text.group_by("session", maintain_order=True).agg("text").with_columns(pl.col("text").list.join(""))
    )
    every = pl.repeat(None, sessions, dtype=pl.String, eager=True).alias(f"{measure.name}__steps")
    every = every.scatter(stored["session"], stored["text"])
    times = _Steps(measure, long, sessions).reached()
    deepest = pl.sum_horizontal(pl.col(name).is_not_null() for name in times.columns)
    reached = times.select(deepest.cast(pl.Int32).alias(f"{measure.name}_step"), pl.all())
    return every.to_frame().hstack(reached.cast(dict(funnel_columns(measure))))


def onward(measure: Measure, long: pl.DataFrame, sessions: int) -> pl.Series:
    """When each session reaches which step, had it come to step 1, 2, … before its first event here.

    A list (Int64) named ``<measure>__onward``: the times of all steps from step 1, then from step 2 and so on, null
    up to the step it starts from. Null where nothing is reached.
    """
    steps = _Steps(measure, long, sessions)
    starts = range(1, len(measure.steps))
    times = pl.concat(
        [steps.reached(start).rename(f"{start}:{{}}".format) for start in starts], how="horizontal"
    )
    reached = pl.any_horizontal(pl.all().is_not_null())
    return times.select(
        pl.when(reached).then(pl.concat_list(pl.all())).alias(f"{measure.name}__onward")
    ).to_series()


class _Steps:
    """The events of each step, ready to be searched for many sessions at once."""

    def __init__(self, measure: Measure, long: pl.DataFrame, sessions: int) -> None:
        self._names = [name for name, _ in funnel_columns(measure)[1:]]
        self._sessions = np.arange(sessions)
        same = [pl.col(name) == pl.col(name).shift() for name in ("session", "at", "position")]
        # Grows with each event, also from one session to the next.
        order = (~pl.all_horizontal(same)).fill_null(True).cum_sum()
        columns = long.select("session", "at", order.alias("order"), "step").cast(pl.Int64).to_numpy().T
        self._by_step = [columns[:3, columns[3] == number] for number in range(1, len(self._names) + 1)]

    def reached(self, start: int = 0) -> pl.DataFrame:
        """When each step is reached (Unix microseconds) by sessions that come from step ``start``: for each
        step a binary search for its first event after that of the step before. Null up to ``start``.
        """
        columns: list[pl.Series] = []
        after: npt.NDArray[np.int64] | None = None
        for number, name in enumerate(self._names):
            if number < start:
                columns.append(pl.repeat(None, len(self._sessions), dtype=pl.Int64, eager=True).alias(name))
                continue
            session, at, order = self._by_step[number]
            if after is None:
                found = np.searchsorted(session, self._sessions)
            else:
                found = np.searchsorted(order, after, side="right")
            there = found < len(session)
            there[there] = session[found[there]] == self._sessions[there]
            found = found[there]
            column = np.zeros(len(self._sessions), dtype=np.int64)
            column[there] = at[found]
            columns.append(
                pl.select(pl.when(pl.Series(there)).then(pl.Series(column)).alias(name)).to_series()
            )
            after = np.full(len(self._sessions), _NEVER, dtype=np.int64)
            after[there] = order[found]
        return pl.DataFrame(columns)


def _bounded(long: pl.DataFrame) -> pl.DataFrame:
    session = long["session"]
    if not (session == session.shift(MAX_STEP_EVENTS)).any():  # sorted: nobody has as many, as a rule
        return long
    return long.filter(pl.int_range(pl.len()).over("session") < MAX_STEP_EVENTS)
