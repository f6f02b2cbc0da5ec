"""w2's right answer, worked out one event at a time with the standard library: no code of any contestant.

It is the part of ``topics/clickstream.toml`` that peers are asked for: see ../peers/README.md. The generator's events
have no defects and URLs are plain, so a few lines of rules are enough for them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from benchmarks.comparison.answers import Answer, Key

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
SESSION_GAP_MS = 1_800_000
#: The page's ``disorder``. What is further behind the latest event before it is late.
DISORDER_MS = 30_000
_HOPS = 5

#: A row of the lake, as far as it is compared: id, time, visitor, host, path, campaign (empty if there is none).
LakeRow = tuple[str, int, str, str, str, str]


class PageEvent(NamedTuple):
    """An accepted event. ``late`` and ``repeated``: as it stands in the topic; a producer's retry is repeated."""

    event_id: str
    time: int
    kind: str
    visitor: str
    host: str
    path: str
    campaign: tuple[str, str, str]
    cents: int
    late: bool
    repeated: bool

    @property
    def lake_row(self) -> LakeRow:
        return self.event_id, self.time, self.visitor, self.host, self.path, self.campaign[2]


Rows = dict[Key, tuple[int | str, ...]]


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """The accepted events in the order of the topic, repeated ones too."""

    events: Sequence[PageEvent]

    def lake(self, *, repeats: bool) -> Counter[LakeRow]:
        """Every row of the Parquet files."""
        return Counter(event.lake_row for event in self.events if repeats or not event.repeated)

    def table(self, name: str, *, repeats: bool, late: bool) -> Answer:
        """Every row of one of :data:`TABLES`, with or without the events that are repeated or late."""
        return TABLES[name](
            event for event in self.events if (repeats or not event.repeated) and (late or not event.late)
        )

    def late_visitors(self) -> set[str]:
        """Visitors of whom an event is late."""
        return {event.visitor for event in self.events if event.late}


def whole_page(values: Iterable[bytes]) -> PageAnswer:
    """w2: what is accepted of the events in a topic."""
    accepted: list[PageEvent] = []
    seen: set[str] = set()
    latest = 0
    for value in values:
        event = json.loads(value)
        time: int = event["event_time"]
        late = time < latest - DISORDER_MS
        latest = max(latest, time)
        if is_bot(event["user_agent"]) or event["event_type"] == "heartbeat":
            continue
        url = urlsplit(event["page_url"])
        found = parse_qs(url.query)
        source, medium, campaign = (
            found.get(f"utm_{name}", [""])[0] for name in ("source", "medium", "campaign")
        )
        event_id = event["event_id"]
        accepted.append(
            PageEvent(
                event_id,
                time,
                event["event_type"],
                event["visitor_id"],
                url.netloc,
                url.path,
                (source, medium, campaign),
                round(100 * event["value"]) if event["event_type"] == "purchase" else 0,
                late,
                event_id in seen,
            )
        )
        seen.add(event_id)
    return PageAnswer(accepted)


def is_bot(agent: str) -> bool:
    """Is it one of the generator's crawlers? Of the 1,500 patterns that the page knows these are enough."""
    return any(text in agent.lower() for text in ("bot", "facebookexternalhit", "python-requests"))


def page_views(events: Iterable[PageEvent]) -> Rows:
    """(window start, host, path) → (views, visitors)."""
    pages = (event for event in events if event.kind == "page_view")
    return _counted(((event.time // MINUTE_MS * MINUTE_MS, event.host, event.path), event) for event in pages)


def traffic_sources(events: Iterable[PageEvent]) -> Rows:
    """(window start, host, source, medium, campaign) → (views, visitors)."""
    pages = (event for event in events if event.kind == "page_view")
    return _counted(
        ((event.time // HOUR_MS * HOUR_MS, event.host, *event.campaign), event) for event in pages
    )


def site_activity(events: Iterable[PageEvent]) -> Rows:
    """(window start, host) → (events, page views, visitors); each event is in five windows of five minutes."""
    totals: dict[Key, tuple[int, int, set[str]]] = {}
    for event in events:
        minute = event.time // MINUTE_MS
        for start in range(minute - _HOPS + 1, minute + 1):
            key = (start * MINUTE_MS, event.host)
            count, pages, visitors = totals.get(key, (0, 0, set()))
            visitors.add(event.visitor)
            totals[key] = count + 1, pages + (event.kind == "page_view"), visitors
    return {key: (count, pages, len(visitors)) for key, (count, pages, visitors) in totals.items()}


def sessions(events: Iterable[PageEvent]) -> Rows:
    """(visitor, start) → (end, events, pages, landing page, exit page, revenue in cents)."""
    by_visitor: dict[str, list[PageEvent]] = {}
    for event in events:
        by_visitor.setdefault(event.visitor, []).append(event)
    rows: Rows = {}
    for visitor, its in by_visitor.items():
        its.sort(key=lambda event: event.time)
        first = 0
        for number in range(1, len(its) + 1):
            if number == len(its) or its[number].time - its[number - 1].time > SESSION_GAP_MS:
                rows[visitor, its[first].time] = _session(its[first:number])
                first = number
    return rows


def _session(events: Sequence[PageEvent]) -> tuple[int | str, ...]:
    pages = [(event.time, event.path) for event in events if event.kind == "page_view"]
    landing, leaving = (min(pages)[1], max(pages)[1]) if pages else ("", "")
    return events[-1].time, len(events), len(pages), landing, leaving, sum(event.cents for event in events)


def _counted(keyed: Iterable[tuple[Key, PageEvent]]) -> Rows:
    visitors: dict[Key, list[str]] = {}
    for key, event in keyed:
        visitors.setdefault(key, []).append(event.visitor)
    return {key: (len(its), len(set(its))) for key, its in visitors.items()}


#: The tables of the page that peers are asked for, and how their rows follow from events.
TABLES: Mapping[str, Callable[[Iterable[PageEvent]], Rows]] = {
    "page_views": page_views,
    "site_activity": site_activity,
    "traffic_sources": traffic_sources,
    "sessions": sessions,
}
