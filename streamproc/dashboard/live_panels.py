"""Which tables of a topic page answer the questions of the page *Live*."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from streamproc.topology import HOUR, MINUTE, Measure, Table, Topology

#: Ranking → columns that can carry it, the better first. Without a value: whether it is shown.
_RANKINGS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "Top pages": (("path", "page_path"), False),
    "Referrers": (("referrer_source", "referrer_medium"), True),
    "Campaigns": (("utm_campaign",), False),
    "Countries": (("country",), True),
    "Devices": (("device_class",), True),
}

#: Columns of the newest sessions that are worth a place, as far as a page has them.
TOLD = ("landing_page", "exit_page", "referrer_medium", "utm_campaign", "country", "device_class")


@dataclass(frozen=True, slots=True)
class Ranking:
    """The biggest values of ``column`` in ``table`` by its ``measure``. ``blank``: whether null counts."""

    title: str
    table: Table
    column: str
    measure: Measure
    blank: bool

    @property
    def span(self) -> timedelta:
        """How far back it looks: an hour; two windows where windows are longer."""
        return timedelta(microseconds=HOUR if self.table.window.size < HOUR else 2 * self.table.window.size)


class Counting(NamedTuple):
    """A measure and its table."""

    table: Table
    measure: Measure


@dataclass(frozen=True, slots=True)
class Panels:
    """What a topic page has for the page *Live*; ``None`` where it has nothing.

    ``views``: page views, or what else is counted; ``counted`` says which, as a heading does.
    """

    views: Counting | None
    counted: str
    visitors: Counting | None
    rankings: Sequence[Ranking]
    sessions: Table | None
    funnel: Counting | None


def panels(topology: Topology) -> Panels:
    """The tables that answer best: shortest windows, then fewest columns."""
    windowed = sorted(
        (t for t in topology.tables if t.window.kind != "session"), key=lambda t: (t.window.size, len(t.by))
    )
    tumbling = [t for t in windowed if t.window.kind == "tumbling"]
    sessions = [t for t in topology.tables if t.window.kind == "session"]
    counted = [Counting(t, m) for t in tumbling for m in t.measures if m.kind == "count"]
    views = [c for c in counted if c.table.window.size <= 5 * MINUTE]
    pages = [
        c
        for c in views
        if not c.measure.where and ("page_view" in (c.table.where or "") or c.measure.name == "views")
    ]
    ids = {topology.contract.key, *(t.window.key for t in sessions)}
    visitors = [
        Counting(t, m)
        for t in sorted(windowed, key=_most_of_now)
        for m in t.measures
        if m.kind in {"approx_distinct", "distinct"}
        and t.window.size <= HOUR
        and not m.where
        and m.column in ids
    ]
    funnels = [Counting(t, m) for t in sessions for m in t.measures if m.kind == "funnel"]
    other = next(iter(views), None)
    best = min(pages, key=lambda c: c.measure.name != "views", default=other)
    return Panels(
        best,
        "Page views" if pages or other is None else other.measure.name.replace("_", " ").capitalize(),
        next(iter(visitors), None),
        list(_rankings(counted)),
        max(sessions, key=lambda t: sum(m.name in TOLD for m in t.measures), default=None),
        next(iter(funnels), None),
    )


def _most_of_now(table: Table) -> tuple[bool, bool, int, int]:
    """Of all events rather than of some, then of windows that overlap, then of short ones, then of few keys."""
    return table.where is not None, table.window.kind != "hopping", table.window.size, len(table.by)


def _rankings(counted: Iterable[Counting]) -> Iterable[Ranking]:
    counted = list(counted)
    for title, (columns, blank) in _RANKINGS.items():
        for column in columns:
            found = next((c for c in counted if column in c.table.by), None)
            if found is not None:
                yield Ranking(title, found.table, column, found.measure, blank)
                break
