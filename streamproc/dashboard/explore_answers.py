"""How answers of the page *Explore* look: headings, rows, lines of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from itertools import pairwise
from math import isfinite
from typing import Any

from streamproc.dashboard import charts, markup
from streamproc.dashboard.catalog import Column, marked
from streamproc.dashboard.choice import Choice
from streamproc.dashboard.explore import BARS, POINTS, SERIES
from streamproc.dashboard.reading import Answer

#: Up to here a browser has all whole numbers. Those beyond 64 bits cannot even be sent to it.
_LARGEST_WHOLE = 2**53


def open_from(choice: Choice, watermark: datetime | None) -> datetime | None:
    """The first row in time that may still change; with no watermark all may."""
    if watermark is None or not choice.grain:
        return None
    settles = timedelta(microseconds=choice.table.settles)
    step = timedelta(microseconds=choice.step)
    window = choice.table.table.window
    ends = max(step, timedelta(microseconds=window.size))
    # the first multiple of the step whose end, and the time it takes to settle, is after the watermark
    behind = watermark - settles - ends
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return behind + step - (behind - epoch) % step


def is_cut(choice: Choice, start: datetime) -> bool:
    """Whether the range begins or ends within the time of the row that begins at ``start``, which so has a part of it.

    The newest row of a range that ends now has all there is: it is open, and shown as such.
    """
    # Windows begin so far from each other, sessions at any microsecond.
    apart = 1 if choice.table.session else choice.table.table.window.size
    newest = timedelta(microseconds=max(choice.step - apart, 0))
    return start < choice.since or (not choice.range and choice.until - start <= newest)


def heading(choice: Choice, name: str, column: Column | None, numeric: bool) -> str:
    """A column's heading, a button that sorts by it."""
    mark, sorting = "", "none"
    if name == choice.order:
        mark, sorting = ("▼", "descending") if choice.descending else ("▲", "ascending")
    text = escape(name.replace("_", " "))
    if column is not None and marked(column):
        text = f"≈ {text}"
    if column is not None and not column.additive and choice.merges:
        text += " · peak"
    sign = f'<span class="mark" aria-hidden="true">{mark}</span>'
    about = escape(" · ".join(filter(None, [column.comment, column.error])) if column else "")
    return (
        f'<th scope="col" aria-sort="{sorting}"{" class=num" if numeric else ""}>'
        f'<button class="sort" data-column="{escape(name)}" title="{about}">{sign if numeric else ""}{text}'
        f"{'' if numeric else sign}</button></th>"
    )


def row(
    choice: Choice, row: Sequence[Any], columns: dict[str, Column], open_from: datetime | None
) -> list[markup.Cell]:
    """The cells of a row; estimates are marked, so are rows that may still change, and those that the range cuts."""
    cells: list[markup.Cell] = []
    for name, value in zip(choice.columns, row, strict=True):
        if name == choice.table.start:
            tags = ["open"] if open_from is not None and value >= open_from else []
            tags += ["part"] if is_cut(choice, value) else []
            marks = "".join(f' <span class="tag">{tag}</span>' for tag in tags)
            cells.append(markup.Raw(markup.when(value).html + marks))
        elif isinstance(value, datetime):
            cells.append(markup.when(value))
        elif name in columns and marked(columns[name]):
            cells.append(markup.approximate(value, columns[name].error))
        else:
            cells.append(value)
    return cells


def about(choice: Choice) -> str:
    """What the chosen table holds, and what is to be known of its numbers."""
    parts = [choice.table.table.comment or choice.table.name]
    if any(not choice.table.measure(name).additive for name in choice.measures) and choice.merges:
        parts.append(
            "Distinct counts, averages and percentiles do not add up: where a row stands for several windows or keys, "
            "their largest value is shown as the peak"
        )
    errors = {name: choice.table.measure(name).error for name in choice.measures}
    parts += [f"≈ {name}: {error}" for name, error in errors.items() if error]
    window = choice.table.table.window
    if window.kind == "hopping":
        parts.append(
            "Windows overlap: their values do not add up over time"
            if choice.step == window.hop
            else "Windows overlap; only every one that follows the last is counted"
        )
    return escape(". ".join(parts) + ".")


def chart_title(choice: Choice, points: int) -> str:
    """The heading of a chart of so many points, as HTML."""
    column = choice.charted
    assert column is not None, "there is nothing to draw"
    error = f" · ≈ {column.error}" if marked(column) else ""
    peak = " · peak of a row" if not column.additive and choice.merges else ""
    by = " by " + ", ".join(choice.by) if choice.by else ""
    step = f" {choice.table.pace(choice.grain)}" if choice.grain else ""
    note = ""
    if choice.by or not choice.grain:
        note = f" · the biggest {SERIES} groups" if choice.grain else f" · the biggest {BARS}"
    if choice.grain and points >= POINTS:
        note += f" · only the newest {POINTS:,} points: a longer time step shows the whole range"
    return (
        f"<h2>{escape(column.name)}{escape(by + step)}</h2>"
        f'<p class="sub">{escape(column.comment + error + peak)}{note}</p>'
    )


def chart_options(choice: Choice, answer: Answer, open_from: datetime | None) -> dict[str, Any]:
    """The chart: lines over time, bars without it."""
    if choice.grain:
        cut = {row[0] for row in answer.rows if is_cut(choice, row[0])}
        step = timedelta(microseconds=choice.step)
        nothing = 0 if choice.charted is not None and choice.charted.counts else None
        drawn = {name: _with_gaps(points, step, nothing) for name, points in series(answer).items()}
        return charts.lines(drawn, open_from, choice.until, cut)
    return charts.bars([(label(row[:-1]), plain(row[-1])) for row in answer.rows])


def _with_gaps(points: charts.Points, step: timedelta, nothing: float | None) -> charts.Points:
    """``nothing`` at both ends of where time steps are missing: a line between the neighbours would say that there was
    something.
    """
    whole = list(points[:1])
    for (before, _), point in pairwise(points):
        if point[0] - before > step:
            whole += [(end, nothing) for end in sorted({before + step, point[0] - step})]
        whole.append(point)
    return whole


def series(answer: Answer) -> charts.Series:
    """The lines of a chart, the biggest first."""
    groups: dict[tuple[Any, ...], charts.Points] = {}
    for time, *dimensions, value in reversed(answer.rows):
        groups.setdefault(tuple(dimensions), []).append((time, plain(value)))
    series: charts.Series = {}
    for group, points in sorted(groups.items(), key=lambda item: -sum(v or 0 for _, v in item[1])):
        name = label(group)
        while name in series:  # "a · b" and "c" read like "a" and "b · c"
            name += "\N{PRIME}"
        series[name] = points
    return series


def label(dimensions: Sequence[Any]) -> str:
    """The name of a group. A text that reads like what stands for no text is in quotation marks."""
    return " · ".join(map(_named, dimensions)) or "all"


def _named(value: Any) -> str:
    match value:
        case None:
            return "(none)"
        case bool():
            return "yes" if value else "no"
        case "(none)" | "(empty)":
            return f'"{value}"'
        case _:
            return markup.visible(str(value)) or "(empty)"


def plain(value: Any) -> float | None:
    """A number as a chart takes it, a large one as a fraction; what is none, or has no end, is not drawn."""
    if value is None or not isfinite(value):
        return None
    return int(value) if abs(value) <= _LARGEST_WHOLE and value == int(value) else float(value)
