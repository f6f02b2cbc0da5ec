"""What can be asked of a table: its dimensions, its measures, and how a measure of several rows is made one.

Counts and sums of several rows add up, smallest and largest values compare. Distinct counts, averages and
percentiles do neither: of several rows the largest is shown, and called a peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import LiteralString

import polars as pl

from streamproc.quantities import show_duration
from streamproc.sinks.summaries_layout import Layout
from streamproc.topology import DAY, HOUR, MINUTE, Derived, Measure, Table, Topology

#: Grains that are offered, microseconds: each a multiple of the one before, aligned to 1970 UTC as windows are.
GRAINS = {"minute": MINUTE, "5 minutes": 5 * MINUTE, "hour": HOUR, "day": DAY}

#: Number of rows of a session table, and of another that has no number. No column can have a name with a blank in it.
ROWS, WINDOWS = "number of sessions", "number of rows"


@dataclass(frozen=True, slots=True)
class Column:
    """A measure as a page shows it.

    ``name``: the page's name for it. ``column``: of the table (``""``: rows are counted). ``fold``: SQL
    aggregate that makes several rows one. ``step``: of a funnel, rows that came this far are counted.
    ``additive``: the fold says the same as one row for all would. ``error``: of an approximate value, in words.
    ``numeric``: whether it can be drawn; the earliest and latest of dates and moments cannot. ``counts``: whether it is
    0 where there is no row; else it is null there, as in a row of which nothing was measured.
    """

    name: str
    column: str
    fold: LiteralString
    comment: str
    additive: bool = True
    error: str = ""
    step: int = 0
    numeric: bool = True
    counts: bool = False


@dataclass(frozen=True, slots=True)
class Explorable:
    """A declared table. ``start``, ``end``: its time columns. ``dimensions``: columns to group by. ``texts``: those of
    them that are. ``singles``: measures whose numbers are PostgreSQL's ``real``, which a double seldom equals.
    """

    stream: str
    table: Table
    start: str
    end: str
    dimensions: Sequence[str]
    texts: Set[str]
    singles: Set[str]
    measures: Sequence[Column]

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    @property
    def session(self) -> bool:
        """Whether a row is a session."""
        return self.table.window.kind == "session"

    @property
    def grains(self) -> dict[str, int]:
        """Time steps by name; a window's own when it is none of the usual ones. Steps never cut a window."""
        window = self.table.window
        if self.session:
            return dict(GRAINS)
        own = window.hop if window.kind == "hopping" else window.size
        usual = {n: us for n, us in GRAINS.items() if us == own or (us > own and us % window.size == 0)}
        return usual if own in usual.values() else {"window": own, **usual}

    def pace(self, grain: str) -> str:
        """What stands behind a measure's name: ``per hour``, or of windows that overlap ``in 5m, every 1m``."""
        window = self.table.window
        if window.kind == "hopping" and self.grains[grain] == window.hop:
            return f"in {show_duration(window.size)}, every {show_duration(window.hop)}"
        return f"per {grain}"

    @property
    def settles(self) -> int:
        """Microseconds after its end until a window (a session: its last event) cannot change any more."""
        return self.table.lateness + (self.table.window.gap if self.session else 0)

    def measure(self, name: str) -> Column:
        """The measure of this name. Raises KeyError."""
        return {column.name: column for column in self.measures}[name]

    def whole_rows(self, by: Sequence[str], grain: int) -> bool:
        """Whether grouping like this leaves every row alone."""
        window = self.table.window
        own = window.hop if window.kind == "hopping" else window.size
        return not self.session and grain == own and set(self.table.by) <= set(by)


def explorable(topology: Topology) -> dict[str, Explorable]:
    """Every table of a stream, by name."""
    return {table.name: _explorable(topology.name, table) for table in topology.tables}


def _explorable(stream: str, table: Table) -> Explorable:
    layout = Layout(table, stream)
    start, end = (column.name for column in layout.span)
    dimensions = {column.name: column.type for column in layout.by}
    measures = [Column(ROWS, "", "count", "Number of sessions", counts=True)] if layout.session else []
    for measure in table.measures:
        if measure.kind in {"first", "last"} and not measure.type.is_numeric():
            if layout.session and measure.type in {pl.String(), pl.Boolean()}:
                dimensions[measure.name] = measure.type
        elif measure.kind == "funnel":
            measures += _steps(measure)
        else:
            measures.append(_column(measure))
    for derived in table.derived:
        if derived.type in {pl.String(), pl.Boolean()}:
            dimensions[derived.name] = derived.type
        elif derived.type.is_numeric():
            measures.append(_derived(derived))
    if not any(measure.numeric for measure in measures):
        measures.append(Column(WINDOWS, "", "count", "Number of rows", counts=True))
    texts = {name for name, type_ in dimensions.items() if type_ == pl.String()}
    numbers = [*layout.measures, *layout.derived]
    singles = {column.name for column in numbers if column.type == pl.Float32()}
    return Explorable(stream, table, start, end, list(dimensions), texts, singles, measures)


def _column(measure: Measure) -> Column:
    what = f"{measure.kind.replace('_', ' ')} of {measure.column or 'events'}"
    comment = measure.comment or what[0].upper() + what[1:]
    if measure.where and not measure.comment:
        comment += f", where {measure.where}"
    match measure.kind:
        case "count" | "sum":
            return Column(measure.name, measure.name, "sum", comment, counts=measure.kind == "count")
        case "min" | "max":
            fold: LiteralString = "min" if measure.kind == "min" else "max"
            return Column(measure.name, measure.name, fold, comment, numeric=measure.type.is_numeric())
        case _:
            counts = measure.kind in {"distinct", "approx_distinct"}
            error = error_of(measure)
            return Column(
                measure.name, measure.name, "max", comment, additive=False, error=error, counts=counts
            )


def _derived(derived: Derived) -> Column:
    return Column(derived.name, derived.name, "max", derived.comment or derived.sql, additive=False)


def _steps(measure: Measure) -> list[Column]:
    return [
        Column(
            f"{measure.name} · {step}",
            f"{measure.name}_step",
            "count",
            f"Came to step {step}",
            step=number,
            counts=True,
        )
        for number, (step, _) in enumerate(measure.steps, start=1)
    ]


def error_of(measure: Measure) -> str:
    """The error of a measure's values in words, empty for exact ones. Sources: docs/tables.md."""
    match measure.kind:
        case "approx_distinct":
            return f"±{104 / math.sqrt(2**measure.precision):.1f} % standard error"
        case "distinct":
            return "exact to a million, ±0.1 % above"
        case "approx_percentile":
            # Single-sided rank error of DataSketches' KLL at 99 % confidence: 2.296 / k^0.9723.
            return f"rank ±{229.6 / measure.precision**0.9723:.2g} %"
        case _:
            return ""


def marked(column: Column) -> bool:
    """Whether a value of the column is an estimate that a page has to mark."""
    return bool(column.error) and not column.error.startswith("exact")
