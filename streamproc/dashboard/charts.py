"""Charts as ECharts options.

Values of keys that begin with a colon are JavaScript, run in the browser: the page's colours (:file:`look.js`), so
that a chart is dark where the page is. No text of an event is ever part of such a script.

Lines differ in dash and symbol as well as in colour; the colours are those of Okabe and Ito (2008), which the common
kinds of colour blindness tell apart. What may still change is drawn dashed, on a shaded ground; of what a range cuts
the point is hollow, and the line to it dashed.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any

from streamproc.dashboard.live import EARLIER, Minute
from streamproc.dashboard.pipeline_view import BIN, SPAN, Bin

Options = dict[str, Any]

_SYMBOLS = ("circle", "rect", "triangle", "diamond", "roundRect", "pin")
_DASHES: tuple[Any, ...] = ("solid", [8, 3], [3, 3], [10, 3, 2, 3], [2, 2], [14, 4])


def _axis_text() -> Options:
    return {":color": "ink('--muted')", "fontSize": 11, "hideOverlap": True}


def _base(left: int = 8) -> Options:
    return {
        "animation": False,
        "aria": {"enabled": True},
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "grid": {"left": left, "right": 18, "top": 12, "bottom": 8, "containLabel": True},
        "tooltip": {
            "trigger": "axis",
            "confine": True,
            ":backgroundColor": "ink('--card')",
            ":borderColor": "ink('--line')",
            "textStyle": {":color": "ink('--ink')", "fontSize": 12},
            ":valueFormatter": "value => count(value)",
        },
    }


def _time_axis() -> Options:
    return {
        "type": "time",
        "axisLabel": _axis_text(),
        "axisLine": {"lineStyle": {":color": "ink('--line')"}},
        "axisTick": {"show": False},
        "splitLine": {"show": False},
    }


def _value_axis(unit: str = "") -> Options:
    return {
        "type": "value",
        "axisLabel": {**_axis_text(), ":formatter": f"value => count(value) + {unit!r}"},
        "splitLine": {"lineStyle": {":color": "ink('--line')"}},
        "splitNumber": 4,
    }


def _at(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _still_open(since: datetime, until: datetime) -> Options:
    return {
        "silent": True,
        "itemStyle": {":color": "shade('--earlier', 0.13)"},
        "label": {"show": True, "position": "insideTopRight", ":color": "ink('--muted')", "fontSize": 11},
        "data": [[{"xAxis": _at(since), "name": "still open"}, {"xAxis": _at(until)}]],
    }


def minutes(rows: Sequence[Minute], size: timedelta) -> Options:
    """Page views per minute, or whatever ``size`` windows have, beside those of the same time in earlier hours."""
    options = _base()
    series: list[Options] = []
    for back in range(EARLIER, 0, -1):
        points = [[_at(row.start), row.earlier[back - 1]] for row in rows]
        if any(value is not None for _, value in points):
            series.append(
                {
                    "name": f"{back} h before",
                    "type": "line",
                    "data": points,
                    "symbol": "none",
                    "lineStyle": {
                        "width": 1.3,
                        ":color": "ink('--earlier')",
                        "type": _DASHES[back],
                        "opacity": 0.9,
                    },
                    "itemStyle": {":color": "ink('--earlier')"},
                }
            )
    settled = [row for row in rows if not row.open]
    moving = [row for row in rows if row.open]
    line = {"width": 2.6, ":color": "ink('--c1')"}
    series.append(
        {
            "name": "this hour",
            "type": "line",
            "data": [[_at(row.start), row.views] for row in settled],
            "symbol": "none",
            "lineStyle": line,
            "itemStyle": {":color": "ink('--c1')"},
        }
    )
    if moving:
        joined = [*settled[-1:], *moving]
        series.append(
            {
                "name": "still open",
                "type": "line",
                "data": [
                    {"value": [_at(row.start), row.views], "symbol": "emptyCircle" if row.filling else "none"}
                    for row in joined
                ],
                "symbolSize": 8,
                "lineStyle": {**line, "type": [6, 4]},
                "itemStyle": {":color": "ink('--c1')"},
                "markArea": _still_open(moving[0].start, moving[-1].start + size),
            }
        )
    return {**options, "xAxis": _time_axis(), "yAxis": {**_value_axis(), "min": 0}, "series": series}


def throughput(bins: Sequence[Bin], now: datetime) -> Options:
    """Records a second by outcome, over what was committed in ten seconds; nothing committed is nothing drawn."""
    options = _base()
    seconds = BIN.total_seconds()
    bins = _without_gaps(bins, now)
    series = [
        {
            "name": name,
            "type": "bar",
            "stack": "records",
            "barCategoryGap": "15%",
            "data": [[_at(each.start), round(getattr(each, name) / seconds, 1)] for each in bins],
            "itemStyle": {
                ":color": f"ink('--c{colour}')",
                "decal": {"symbol": decal, "symbolSize": 0.7, "rotation": 0.6}
                if decal
                else {"symbol": "none"},
            },
        }
        for name, colour, decal in (
            ("accepted", 1, ""),
            ("filtered", 6, ""),
            ("duplicate", 5, "rect"),
            ("rejected", 2, "triangle"),
        )
    ]
    axis = {**_time_axis(), "min": _at(now - SPAN), "max": _at(now)}
    return {
        **options,
        "xAxis": axis,
        "yAxis": _value_axis("/s"),
        "series": series,
        "legend": _legend(),
        "grid": _below_legend(),
    }


def _without_gaps(bins: Sequence[Bin], now: datetime) -> Sequence[Bin]:
    """With empty bins between: a bar is as wide as the two that are nearest to each other lie apart."""
    there = {each.start: each for each in bins}
    if not there:
        return []
    start, whole = min(there), []
    while start <= now:
        whole.append(there.get(start) or Bin(start, 0, 0, 0, 0, 0.0, start))
        start += BIN
    return whole


def freshness(commits: Sequence[Bin], events: Sequence[tuple[datetime, float]], now: datetime) -> Options:
    """Seconds from the newest event of an epoch, and from its first record, to the commit."""
    lines = [
        ("newest event to commit", [[_at(moment), round(value, 2)] for moment, value in events], 1),
        ("first record to commit", [[_at(each.start), round(each.seconds, 2)] for each in commits], 2),
    ]
    series = [
        {
            "name": name,
            "type": "line",
            "data": points,
            "symbol": _SYMBOLS[number - 1],
            "symbolSize": 5,
            "lineStyle": {"width": 2, ":color": f"ink('--c{number}')", "type": _DASHES[number - 1]},
            "itemStyle": {":color": f"ink('--c{number}')"},
        }
        for name, points, number in lines
    ]
    axis = {**_time_axis(), "min": _at(now - SPAN), "max": _at(now)}
    base = _base()
    base["tooltip"][":valueFormatter"] = "duration"
    return {
        **base,
        "xAxis": axis,
        "yAxis": {**_value_axis(), "min": 0, "axisLabel": {**_axis_text(), ":formatter": "duration"}},
        "series": series,
        "legend": _legend(),
        "grid": _below_legend(),
    }


def _legend() -> Options:
    return {
        "top": 0,
        "left": 0,
        "type": "scroll",
        "itemHeight": 9,
        "itemWidth": 22,
        "textStyle": {":color": "ink('--muted')", "fontSize": 11},
        "pageTextStyle": {":color": "ink('--muted')"},
        ":pageIconColor": "ink('--accent')",
    }


def _below_legend() -> Options:
    return {"left": 8, "right": 18, "top": 36, "bottom": 8, "containLabel": True}


Points = list[tuple[datetime, float | None]]
Series = dict[str, Points]


def lines(
    series: Series, open_from: datetime | None, until: datetime, cut: Set[datetime] = frozenset()
) -> Options:
    """A line of each group over time. From ``open_from`` on windows may still change.

    ``cut``: times of points, at the ends, that stand for a part of their time only.
    """
    drawn: list[Options] = []
    for number, (name, points) in enumerate(series.items()):
        colour = f"ink('--c{number % 6 + 1}')"
        style = {"width": 2, ":color": colour}
        loose = {t for t, _ in points if t in cut or (open_from is not None and t >= open_from)}
        settled = [p for p in points if p[0] not in loose]
        begun = next((place for place, (t, _) in enumerate(points) if t not in loose), len(points))
        shared = {
            "name": name,
            "type": "line",
            "symbol": _SYMBOLS[number % 6],
            "symbolSize": 6,
            # A point between two breaks of its line is seen by its symbol alone.
            "showSymbol": len(points) <= 80 or any(value is None for _, value in points),
            "itemStyle": {":color": colour},
        }
        drawn.append(
            {
                **shared,
                "data": [[_at(t), v] for t, v in settled],
                "lineStyle": {**style, "type": _DASHES[number % 6]},
            }
        )
        ended = points[begun + len(settled) :]
        for end in ([*points[:begun], *settled[:1]], [*settled[-1:], *ended]):
            data = [{"value": [_at(t), v], "symbol": "emptyCircle" if t in loose else "none"} for t, v in end]
            if any(t in loose for t, _ in end):
                dashed = {**style, "type": [4, 4]}
                drawn.append({**shared, "data": data, "showSymbol": True, "lineStyle": dashed})
    if drawn and open_from is not None and open_from < until:
        drawn[0]["markArea"] = _still_open(open_from, until)
    options = {**_base(), "xAxis": _time_axis(), "yAxis": _value_axis(), "series": drawn}
    if len(series) > 1:
        options |= {"legend": {**_legend(), "data": list(series)}, "grid": _below_legend()}
    return options


def bars(rows: Sequence[tuple[str, float | None]]) -> Options:
    """The biggest groups, the biggest on top."""
    options = _base()
    options["tooltip"]["trigger"] = "item"
    category = {
        "type": "category",
        "inverse": True,
        "data": [name for name, _ in rows],
        "axisLabel": {**_axis_text(), "width": 190, "overflow": "truncate", ":color": "ink('--ink')"},
        "axisTick": {"show": False},
        "axisLine": {"lineStyle": {":color": "ink('--line')"}},
    }
    series = {
        "type": "bar",
        "data": [value for _, value in rows],
        "barMaxWidth": 22,
        "itemStyle": {":color": "ink('--c1')", "borderRadius": [0, 3, 3, 0]},
    }
    return {**options, "xAxis": _value_axis(), "yAxis": category, "series": [series]}
