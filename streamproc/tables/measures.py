"""The algebra of measures: events → state → merged state, as polars expressions.

Every kind of measure is a commutative monoid over its *state columns*: merging the states of two sets of
events gives the state of their union, whatever the order, and the state of no event is null (or 0 for a
count). So events may be split over batches, epochs and workers in any way. Two exceptions are inherent:
sums of floating-point numbers agree up to rounding, and sketches beyond their exact range up to their error.

``first`` and ``last`` go by (event time, position, value): position breaks ties within a partition, the
value makes ties between partitions deterministic. All measures but ``count`` ignore nulls, and a measure of
nothing is null, as in SQL. What is no number (NaN) is a null to those that calculate.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl

from streamproc.tables.hyperloglog import coupons_of
from streamproc.topology import Measure

if TYPE_CHECKING:
    import numpy.typing as npt

    #: Row numbers.
    Order: TypeAlias = npt.NDArray[np.intp]

#: Sums stop here instead of overflowing: two of them still add up to a bigint, and as many as a table can have rows to
#: a finite double. PostgreSQL raises on overflow, so one absurd event could otherwise stop a stream for good, and three
#: whoever adds the rows up.
FLOAT_LIMIT = 1e290
INTEGER_LIMIT = 2**62 - 1

#: Kinds for which a fraction that is no number (NaN, of 0.0 / 0.0) is no value. It would stay in the row for good, and
#: PostgreSQL takes it for the largest of all.
_OF_NUMBERS = frozenset({"sum", "avg", "min", "max"})


class Merge(enum.Enum):
    """How a state column is merged with the same column of another state."""

    ADD = "add"
    LEAST = "least"
    GREATEST = "greatest"
    FIRST = "first"  # value, with its __at and __position
    LAST = "last"
    REPLACE = "replace"  # computed from another state column
    VALUES = "values"  # a list before sealing, an Apache DataSketches image after
    STEPS = "steps"  # the step events of a funnel


@dataclass(frozen=True, slots=True)
class StateColumn:
    """A column of a table's state. ``type`` is its polars type in a sealed frame."""

    name: str
    type: pl.DataType
    merge: Merge


def state_columns(measure: Measure) -> tuple[StateColumn, ...]:
    """The state of a measure in a sealed frame. The column named like the measure is its finished value;
    ``avg`` has none of that name: it is ``__sum / __count``. Raises :class:`ValueError` for an unknown kind.
    """
    name, type_ = measure.name, measure.type
    columns: list[tuple[str, pl.DataType, Merge]]
    match measure.kind:
        case "count" | "sum":
            columns = [(name, type_, Merge.ADD)]
        case "min":
            columns = [(name, type_, Merge.LEAST)]
        case "max":
            columns = [(name, type_, Merge.GREATEST)]
        case "avg":
            columns = [(f"{name}__sum", pl.Float64(), Merge.ADD), (f"{name}__count", pl.Int64(), Merge.ADD)]
        case "first" | "last":
            merge = Merge.FIRST if measure.kind == "first" else Merge.LAST
            order = [(f"{name}__{part}", pl.Int64(), merge) for part in ("at", "position")]
            columns = [(name, type_, merge), *order]
        case "distinct" | "approx_distinct" | "approx_percentile":
            columns = [(name, type_, Merge.REPLACE), (f"{name}__sketch", pl.Binary(), Merge.VALUES)]
        case "funnel":
            columns = [(column, kind, Merge.REPLACE) for column, kind in funnel_columns(measure)]
            columns.append((f"{name}__steps", pl.String(), Merge.STEPS))
        case kind:
            raise ValueError(f"unknown kind of measure: {kind}")
    return tuple(StateColumn(*column) for column in columns)


def funnel_columns(measure: Measure) -> list[tuple[str, pl.DataType]]:
    """The finished columns of a funnel: the deepest step reached, and when each step was."""
    at = [(f"{measure.name}_{step}_at", pl.Datetime("us", "UTC")) for step, _ in measure.steps]
    return [(f"{measure.name}_step", pl.Int32()), *at]


class Aggregation:
    """The measures of one table over frames of events and of states."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self.measures = tuple(measures)
        #: Columns of events of which the coupons are wanted, see :mod:`streamproc.tables.hyperloglog`.
        self.hashed: set[str] = set()
        self._inputs: dict[tuple[str | None, str | None, bool], str] = {}
        self._input_of = {m.name: self._input(m) for m in self.measures if m.kind != "funnel"}

    def _input(self, measure: Measure) -> str | None:
        """Measures of the same column under the same condition share one input column."""
        if measure.column is None and measure.where is None:
            return None
        column = measure.column
        if measure.kind == "approx_distinct":
            assert column is not None
            self.hashed.add(column)
            column = coupons_of(column)
        fraction = measure.kind in _OF_NUMBERS and measure.type.is_float()
        key = (measure.where, column, fraction)
        return self._inputs.setdefault(key, f"__input{len(self._inputs)}")

    def inputs(self) -> list[pl.Expr]:
        """Over events with the coupons of :attr:`hashed`: what is measured, null where a measure's condition is
        not true.
        """
        return [_masked(*key).alias(name) for key, name in self._inputs.items()]

    @property
    def ordered(self) -> list[Measure]:
        """The measures that depend on the order of events."""
        return [m for m in self.measures if m.kind in {"first", "last"}]

    def fold(self, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        """State of each group of events. ``frame`` has ``by``, the inputs and, for ``first``/``last``,
        ``__at`` (Unix microseconds) and ``position``. Values to be sketched stay lists until sealing.
        """
        aggregates = [state for measure in self.measures for state in self._unordered(measure)]
        if not self.ordered:
            return frame.group_by(by).agg(aggregates)
        frame = frame.sort("__at", "position").with_row_index("__row")
        for measure in self.ordered:
            row = pl.when(self._ordered_input(measure).is_not_null()).then(pl.col("__row"))
            aggregates.append((row.min() if measure.kind == "first" else row.max()).alias(_row(measure)))
        states = frame.group_by(by).agg(aggregates)
        rows = [states[_row(measure)] for measure in self.ordered]
        states = states.drop(map(_row, self.ordered))
        return (
            self._with_picked(states, frame, by) if _tied(frame) else self._with_ordered(states, frame, rows)
        )

    def fold_runs(self, runs: pl.DataFrame, events: pl.DataFrame, order: Order) -> pl.DataFrame:
        """The same where the groups are runs of the events sorted: then their order costs next to nothing.

        ``order``: the rows of ``events`` by run, ``__at`` and ``position``. ``runs``: in that order the number of
        each event's ``__run`` (0, 1, …), its ``__at`` and ``position``. One row for each run, in order, with the places
        of its ``__first`` and ``__last`` event in ``order``.
        """
        aggregates = [state for measure in self.measures for state in self._unordered(measure)]
        of_order = {measure.name for measure in self.ordered}
        inputs = {input_ for name, input_ in self._input_of.items() if input_ and name not in of_order}
        frame = runs.select(pl.col("__run").set_sorted())  # sorted groups are found without hashing
        if inputs:
            frame = frame.hstack(events.select(sorted(inputs))[order])
        states = frame.group_by("__run", maintain_order=True).agg(pl.len().alias("__length"), *aggregates)
        last = states["__length"].cum_sum().cast(pl.Int64).to_numpy() - 1
        first = last - states["__length"].to_numpy() + 1
        states = states.drop("__length").with_columns(__first=pl.Series(first), __last=pl.Series(last))
        if _tied(runs):
            return self._with_picked(states, events[order].with_columns(runs["__run"]), ["__run"])
        rows = [self._row_of_run(measure, events, order, (first, last)) for measure in self.ordered]
        return self._with_ordered(states, events, rows)

    def _row_of_run(
        self, measure: Measure, events: pl.DataFrame, order: Order, span: tuple[Order, Order]
    ) -> pl.Series:
        """The row of ``events`` that ``first`` or ``last`` takes of each run, of which the first and the last place
        in ``order`` are given.
        """
        value = events.select(self._ordered_input(measure)).to_series()
        first, last = span
        if not value.null_count():
            return pl.Series(order[first if measure.kind == "first" else last])
        places = np.flatnonzero(value.is_not_null().to_numpy()[order])
        if not len(places):
            return pl.repeat(None, len(first), dtype=pl.Int64, eager=True)
        if measure.kind == "first":
            found = np.searchsorted(places, first)
        else:
            found = np.searchsorted(places, last, side="right") - 1
        place = places[found.clip(0, len(places) - 1)]
        row = pl.Series(order[place])
        return row.set(pl.Series((place < first) | (place > last)), None)

    def _with_picked(self, states: pl.DataFrame, frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        """Add the states of ``first`` and ``last`` where events of two partitions may have the same order, and their
        values decide. ``frame`` has the events, sorted.
        """
        for measure in self.ordered:
            picked = _pick(self._ordered_states(frame, by, measure), by, measure)
            states = states.join(picked, on=list(by), how="left", nulls_equal=True, maintain_order="left")
        return states

    def _with_ordered(
        self, states: pl.DataFrame, events: pl.DataFrame, rows: Sequence[pl.Series]
    ) -> pl.DataFrame:
        """Add the states of ``first`` and ``last``, given the row of ``events`` that each group takes."""
        columns: list[pl.Series] = []
        for measure, row in zip(self.ordered, rows, strict=True):
            name = measure.name
            columns.append(events.select(self._ordered_input(measure)).to_series().gather(row).alias(name))
            columns.append(events["__at"].gather(row).alias(f"{name}__at"))
            columns.append(events["position"].gather(row).alias(f"{name}__position"))
        return states.hstack(columns)

    def _unordered(self, measure: Measure) -> list[pl.Expr]:
        """Aggregates of a measure that does not depend on the order of events."""
        name, source = measure.name, self._input_of.get(measure.name)
        column = pl.col(source or "")
        match measure.kind:
            case "count":
                return [(pl.len() if source is None else column.sum()).cast(pl.Int64).alias(name)]
            case "sum":
                return [_sum(column, measure.type).alias(name)]
            case "min" | "max":
                extreme = column.min() if measure.kind == "min" else column.max()
                return [extreme.cast(measure.type).alias(name)]
            case "avg":
                total, count = _sum(column, pl.Float64()), column.count().cast(pl.Int64)
                return [total.alias(f"{name}__sum"), count.alias(f"{name}__count")]
            case "distinct" | "approx_distinct" | "approx_percentile":
                return [column.alias(f"{name}__sketch")]
            case _:
                return []

    def _ordered_input(self, measure: Measure) -> pl.Expr:
        return pl.col(self._input_of[measure.name] or "").cast(measure.type)

    def _ordered_states(self, frame: pl.DataFrame, by: Sequence[str], measure: Measure) -> pl.DataFrame:
        name = measure.name
        return frame.select(
            *by,
            self._ordered_input(measure).alias(name),
            pl.col("__at").alias(f"{name}__at"),
            pl.col("position").alias(f"{name}__position"),
        )

    def merge(self, states: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        """Merge the unsealed or sealed states of each group. Sketches and funnels are left as lists of
        what was merged, for :mod:`streamproc.tables.sketches` and :mod:`streamproc.tables.funnels`.
        """
        aggregates: list[pl.Expr] = []
        for measure in self.measures:
            for column in state_columns(measure):
                if column.name not in states.columns:  # finished values are not there before sealing
                    continue
                if isinstance(states.schema[column.name], pl.List):
                    values = pl.col(column.name).explode().drop_nulls()
                    aggregates.append(values if measure.kind == "approx_percentile" else values.unique())
                else:
                    aggregates += _merged(column)
        merged = states.group_by(by).agg(aggregates)
        for measure in self.ordered:
            picked = _pick(states, by, measure)
            merged = merged.join(picked, on=list(by), how="left", nulls_equal=True)
        return merged


def _tied(frame: pl.DataFrame) -> bool:
    """Whether two neighbours of a sorted frame have the same ``__at`` and ``position``."""
    same = [pl.col(name) == pl.col(name).shift() for name in ("__at", "position")]
    return bool(frame.select(pl.all_horizontal(same).any()).item())


def _masked(where: str | None, column: str | None, fraction: bool) -> pl.Expr:
    value = pl.col(column) if column else None
    if value is not None and fraction:
        value = value.cast(pl.Float64).fill_nan(None)
    if where is None:
        assert value is not None
        return value
    condition = pl.sql_expr(where)
    return condition if value is None else pl.when(condition).then(value)


def _sum(column: pl.Expr, type_: pl.DataType) -> pl.Expr:
    if type_.is_integer():
        total = column.cast(pl.Int128).sum().clip(-INTEGER_LIMIT, INTEGER_LIMIT)
    else:
        # What is no number here comes of infinities of both signs, whose limits add up to nothing.
        total = column.cast(pl.Float64).sum().fill_nan(0).clip(-FLOAT_LIMIT, FLOAT_LIMIT)
    return pl.when(column.count() > 0).then(total).cast(type_)


def _merged(column: StateColumn) -> list[pl.Expr]:
    source = pl.col(column.name)
    match column.merge:
        case Merge.ADD:
            return [_sum(source, column.type).alias(column.name)]
        case Merge.LEAST:
            return [source.min()]
        case Merge.GREATEST:
            return [source.max()]
        case Merge.VALUES | Merge.STEPS:
            return [source.drop_nulls()]
        case Merge.REPLACE | Merge.FIRST | Merge.LAST:
            return []


def _row(measure: Measure) -> str:
    return f"__row_{measure.name}"


def _pick(states: pl.DataFrame, by: Sequence[str], measure: Measure) -> pl.DataFrame:
    """The first (last) non-null value of each group by (at, position, value), with its order."""
    name = measure.name
    columns = [name, f"{name}__at", f"{name}__position"]
    rows = states.select(*by, *columns).filter(pl.col(name).is_not_null())
    rows = rows.sort(f"{name}__at", f"{name}__position", name)
    return rows.group_by(by).agg(
        pl.col(columns).first() if measure.kind == "first" else pl.col(columns).last()
    )
