"""What a viewer of the page *Explore* has chosen, and how an address says it.

Names come from the catalog, never from the viewer: a choice holds only names that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from streamproc.dashboard.catalog import Column, Explorable

RANGES = {
    "1 hour": timedelta(hours=1),
    "6 hours": timedelta(hours=6),
    "24 hours": timedelta(days=1),
    "7 days": timedelta(days=7),
    "30 days": timedelta(days=30),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a viewer has chosen. ``grain``: name of a time step, ``""`` for the whole range as one.

    ``range``: one of :data:`RANGES`, or ``""`` where ``since`` and ``until`` (half-open) say it.
    ``order``: the time column, a dimension or a measure.
    """

    table: Explorable
    measures: tuple[str, ...]
    by: tuple[str, ...]
    grain: str
    range: str
    since: datetime
    until: datetime
    order: str
    descending: bool = True

    @property
    def step(self) -> int:
        """The grain in microseconds, 0 without one."""
        return self.table.grains[self.grain] if self.grain else 0

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that tell rows apart."""
        return (*((self.table.start,) if self.grain else ()), *self.by)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of an answer."""
        return (*self.keys, *self.measures)

    @property
    def merges(self) -> bool:
        """Whether a row of the answer may stand for several of the table."""
        return not self.table.whole_rows(self.by, self.step)

    @property
    def charted(self) -> Column | None:
        """The measure that the chart shows: the one it is sorted by, else the first. ``None`` if none is a number."""
        drawn = {name: self.table.measure(name) for name in self.measures if self.table.measure(name).numeric}
        return drawn.get(self.order) or next(iter(drawn.values()), None)

    def address(self) -> str:
        """The choice as a query string, which :func:`read_choice` reads."""
        window = (
            {"range": self.range}
            if self.range
            else {"from": self.since.isoformat(), "to": self.until.isoformat()}
        )
        return urlencode(
            {
                "table": self.table.name,
                "measures": ",".join(self.measures),
                "by": ",".join(self.by),
                "grain": self.grain,
                **window,
                "order": self.order,
                "direction": "down" if self.descending else "up",
            }
        )


def read_choice(given: Mapping[str, str], tables: Mapping[str, Explorable], clock: datetime) -> Choice:
    """The choice that a query string makes; what it does not say, or says wrongly, is what is usual.

    ``clock``: the newest event time; a range ends there.
    """
    table = tables.get(given.get("table", "")) or next(iter(tables.values()))
    offered = [column.name for column in table.measures]
    measures = _among(given.get("measures"), offered) or tuple(offered[:2])
    by = _among(given.get("by"), table.dimensions) if "by" in given else ()
    grains = table.grains
    grain = given.get("grain", _usual_grain(table))
    grain = grain if grain in grains or grain == "" else next(iter(grains))
    if not grain and not by and "by" not in given:
        by = tuple(table.dimensions[:1])
    span = given.get("range", "24 hours")
    since, until = _moment(given.get("from")), _moment(given.get("to"))
    if "from" not in given or since is None or until is None or since >= until:
        span = span if span in RANGES else "24 hours"
        until = clock + timedelta(microseconds=1)
        since = until - RANGES[span]
    else:
        span = ""
    keys = (*((table.start,) if grain else ()), *by)
    order = given.get("order", table.start if grain else measures[0])
    order = order if order in {*keys, *measures} else measures[0]
    return Choice(table, measures, by, grain, span, since, until, order, given.get("direction") != "up")


def unknown(given: Mapping[str, str], tables: Mapping[str, Explorable]) -> str:
    """What a query string names that there is not, in a sentence; empty if there is all.

    :func:`read_choice` makes something else of it. Tables and measures come and go, and addresses are kept.
    """
    name = given.get("table")
    if name is not None and name not in tables:
        return f"There is no table {name!r}."
    table = tables[name] if name is not None else next(iter(tables.values()))
    offered = {*(column.name for column in table.measures), *table.dimensions}
    asked = [each for key in ("measures", "by") for each in given.get(key, "").split(",") if each]
    if gone := [each for each in asked if each not in offered]:
        return f"The table {table.name} has no {', '.join(gone)}."
    if (grain := given.get("grain")) and grain not in table.grains:
        return f"The table {table.name} has no time step {grain!r}."
    if "from" in given:
        since, until = _moment(given["from"]), _moment(given.get("to"))
        return "" if since and until and since < until else "from and to are no times, one before the other."
    span = given.get("range")
    return f"There is no range {span!r}." if span and span not in RANGES else ""


def _usual_grain(table: Explorable) -> str:
    names = list(table.grains)
    return "hour" if table.session and "hour" in names else names[0]


def _among(given: str | None, offered: Sequence[str]) -> tuple[str, ...]:
    asked = (given or "").split(",")
    return tuple(name for name in offered if name in asked)


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
