"""The sheets of a dashboard: which visuals a stream's tables give, and how they lie on the grid.

A table goes to the sheet that its ``by`` columns are about; sessions, funnels and hopping windows have sheets of their
own. A sheet without visuals is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streamproc.quicksight import visuals
from streamproc.quicksight.columns import Column
from streamproc.quicksight.data_sets import DataSet
from streamproc.quicksight.visuals import Json, Value
from streamproc.topology import DAY

#: The grid of a sheet has this many columns.
_WIDTH = 36

#: Width and height on the grid.
_SMALL, _HALF, _WHOLE = (6, 4), (18, 10), (36, 12)

#: Visuals of one sheet; the service's model allows 75, which nobody would scroll through.
_MOST = 50

#: Bar charts of one table; the table beside them has all its columns.
_BARS = 5

_ACQUISITION = re.compile(r"(referrer|utm|campaign|click|channel|medium|source)(_.*)?")
_AUDIENCE = re.compile(r"(country|continent|region|city|postal_code|language|browser|os|device|agent)(_.*)?")
_CONTENT = re.compile(r"(host|path|page|url|query|title|section|landing|exit)(_.*)?")


class Element(NamedTuple):
    """A visual, its width and height on the grid, and the data set it shows."""

    visual: Json
    size: tuple[int, int]
    data: DataSet


@dataclass
class Sheet:
    """A sheet in the making."""

    id: str
    name: str
    elements: list[Element] = field(default_factory=list)

    @property
    def data(self) -> dict[str, DataSet]:
        """What it shows, by identifier."""
        return {each.data.identifier: each.data for each in self.elements}

    @property
    def pages(self) -> list[Sheet]:
        """The sheet, or several when it has more visuals than one may have."""
        parts = [self.elements[at : at + _MOST] for at in range(0, len(self.elements), _MOST)]
        return [
            Sheet(f"{self.id}-{number}" if number > 1 else self.id, f"{self.name} {number}", part)
            if len(parts) > 1
            else self
            for number, part in enumerate(parts, start=1)
        ]

    def add(self, size: tuple[int, int], data: DataSet, what: str, make: Callable[[str], Json]) -> None:
        """Put a visual on the sheet; its id says what it shows, so that it stays the same over updates."""
        self.elements.append(Element(make(f"{self.id}-{data.key}-{what}"), size, data))

    def layout(self) -> list[Json]:
        """Left to right, a new row where the next does not fit."""
        placed, left, top, height = [], 0, 0, 0
        for visual, (width, tall), _ in self.elements:
            if left + width > _WIDTH:
                left, top, height = 0, top + height, 0
            (content,) = visual.values()
            placed.append(
                {
                    "ElementId": content["VisualId"],
                    "ElementType": "VISUAL",
                    "ColumnIndex": left,
                    "ColumnSpan": width,
                    "RowIndex": top,
                    "RowSpan": tall,
                }
            )
            left, height = left + width, max(height, tall)
        return placed


def sheets(data_sets: Sequence[DataSet]) -> list[Sheet]:
    """The sheets that have something to show, in the order of their tabs."""
    by_kind = {kind: [each for each in data_sets if each.kind == kind] for kind in _KINDS}
    entered = {each.identifier.partition(" ")[0] for each in by_kind["funnel"]}
    # A funnel's table holds the sessions that entered it; where all sessions are, is another one, if any.
    visits = [each for each in by_kind["sessions"] if each.identifier not in entered] or by_kind["sessions"]
    overview = Sheet("overview", "Overview")
    acquisition = Sheet("acquisition", "Acquisition")
    content = Sheet("content", "Content")
    audience = Sheet("audience", "Audience")
    sessions = Sheet("sessions", "Sessions and funnel")
    realtime = Sheet("realtime", "Realtime")
    about = [(_ACQUISITION, acquisition), (_AUDIENCE, audience), (_CONTENT, content)]

    _overview(overview, visits, by_kind["windows"])
    for data in by_kind["windows"]:
        subject = next((each for each in about if _matching(data.dimensions, each[0])), None)
        if subject:
            _windows(*subject, data)
    for data in visits:
        _sessions(sessions, data)
        for pattern, sheet in about:
            for dimension in _matching(data.dimensions, pattern):
                _by(sheet, data, _visits(data), dimension)
    for data in by_kind["funnel"]:
        _funnel(sessions, data)
    for data in by_kind["hops"]:
        _hops(realtime, data)
    for data in by_kind["events"]:
        _events(realtime, data)
    found = [overview, acquisition, content, audience, sessions, realtime]
    return [page for sheet in found for page in sheet.pages]


_KINDS = ("windows", "sessions", "funnel", "hops", "events")


def _matching(columns: Iterable[Column], pattern: re.Pattern[str]) -> list[Column]:
    return [each for each in columns if pattern.fullmatch(each.name)]


def _overview(sheet: Sheet, sessions: Sequence[DataSet], windows: Sequence[DataSet]) -> None:
    """Totals of the first session table, then a line for each table over windows."""
    for data in sessions[:1]:
        for value in (_visits(data), _visitors(data), *_values(data)):
            _kpi(sheet, data, value)
        _line(sheet, data, "Sessions", [_visits(data), _visitors(data)])
    for data in windows:
        sums = [value for value in _values(data) if value.column.additive]
        if not sessions and data is windows[0]:
            for value in sums:
                _kpi(sheet, data, value)
        if sums:
            _line(sheet, data, data.title, sums)


def _windows(subject: re.Pattern[str], sheet: Sheet, data: DataSet) -> None:
    """A table over windows: over time, by the columns the sheet is about, and all of it."""
    values = _values(data)
    if not values:
        return
    _lines(sheet, data, values)
    for dimension in _matching(data.dimensions, subject)[:_BARS]:
        _by(sheet, data, values[0], dimension)
    names = [each.name for each in data.dimensions]
    if names:
        sheet.add(_WHOLE, data, "table", lambda id_: visuals.table(id_, data.title, values, names))


def _sessions(sheet: Sheet, data: DataSet) -> None:
    for value in (_visits(data), _visitors(data), *_values(data)):
        _kpi(sheet, data, value)
    _line(sheet, data, f"{data.title} over time", [_visits(data), _visitors(data)])


def _funnel(sheet: Sheet, data: DataSet) -> None:
    value = Value.counted(data, "step_name", "Sessions that reached the step")
    sheet.add(_HALF, data, "steps", lambda id_: visuals.funnel(id_, data.title, value, "step_name"))
    title = f"{data.title} over time"
    unit = "DAY"
    sheet.add(_HALF, data, "time", lambda id_: visuals.line(id_, title, [value], unit, "step_name"))


def _hops(sheet: Sheet, data: DataSet) -> None:
    """The newest window against the one before, all that are kept, and the highest by each column."""
    unit = visuals.granularity(data.step)
    values = _values(data)
    for value in values:
        _kpi(sheet, data, value, trend=unit)
    _lines(sheet, data, values, unit)
    for dimension in data.dimensions[:_BARS]:
        # Hopping windows overlap: their counts cannot be added up over time.
        for value in values[:1]:
            highest = Value(data, value.column, "MAX", f"Highest {value.column.name.replace('_', ' ')}")
            _by(sheet, data, highest, dimension)


def _events(sheet: Sheet, data: DataSet) -> None:
    """What arrives, by type where the stream has one."""
    kinds = [each for each in data.dimensions if each.name in {"event_type", "event", "type"}][:1]
    value = Value.counted(data, "source_partition", "Events")
    colour = kinds[0].name if kinds else None
    sheet.add(_HALF, data, "time", lambda id_: visuals.line(id_, "Events", [value], "MINUTE", colour))
    for dimension in kinds:
        _by(sheet, data, value, dimension)


def _values(data: DataSet) -> list[Value]:
    return [Value.of(data, column) for column in data.measures]


def _visits(data: DataSet) -> Value:
    return Value.counted(data, data.by[0], "Sessions")


def _visitors(data: DataSet) -> Value:
    """Exact, and the only distinct count that holds over any range of time: sessions keep their key."""
    key = data.by[0]
    label = "Visitors" if key == "visitor_id" else f"Distinct {key.replace('_', ' ')}"
    return Value.counted(data, key, label, distinct=True)


def _kpi(sheet: Sheet, data: DataSet, value: Value, trend: str | None = None) -> None:
    what = f"{value.column.name}-{value.aggregation.lower()}"
    sheet.add(_SMALL, data, what, lambda id_: visuals.kpi(id_, value, trend=trend))


def _lines(sheet: Sheet, data: DataSet, values: Sequence[Value], unit: str | None = None) -> None:
    """What can be added up in one chart, anything else in one of its own, whose title says what is shown."""
    if sums := [each for each in values if each.column.additive]:
        _line(sheet, data, data.title, sums, unit)
    for value in values:
        if not value.column.additive:
            _line(sheet, data, f"{data.title}: {value.label.lower()}", [value], unit)


def _line(sheet: Sheet, data: DataSet, title: str, values: Sequence[Value], unit: str | None = None) -> None:
    unit = unit or ("DAY" if data.step and data.step % DAY == 0 else "HOUR")
    what = "time" if len(values) > 1 or values[0].column.additive else f"time-{values[0].column.name}"
    sheet.add(_HALF, data, what, lambda id_: visuals.line(id_, title, values, unit))


def _by(sheet: Sheet, data: DataSet, value: Value, dimension: Column) -> None:
    """A map of countries, bars of anything else."""
    draw = visuals.world if dimension.place == "COUNTRY" else visuals.bar
    title = f"{value.label} by {dimension.name.replace('_', ' ')}"
    sheet.add(_HALF, data, f"by-{dimension.name}", lambda id_: draw(id_, title, value, dimension.name))
