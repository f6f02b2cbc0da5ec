"""The events of the counting workload, and what counting them must give.

The same seed gives the same bytes. Run it to look at some: ``python benchmarks/events.py --events 3``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

#: Event time of the first event, Unix milliseconds: 2025-10-09 08:53:20 UTC. Events are 1 ms apart.
START_MS = 1_760_000_000_000
MINUTE_MS = 60_000

VISITORS = 50_000
PATHS = 2_000
CAMPAIGNS = 20
EVENT_TYPES = ("page_view", "page_view", "page_view", "click", "add_to_cart")
REFERRERS = ('"https://www.google.com/"', '"https://t.co/x"', "null")
USER_AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/125.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.4 Mobile/15E148 Safari/604.1",
    "Googlebot/2.1 (+http://www.google.com/bot.html)",
)


class Event(NamedTuple):
    """One record: ``key`` is the visitor, ``value`` JSON, 416 bytes on average."""

    key: bytes
    value: bytes


class Cell(NamedTuple):
    """One row of the answer: the window's start (Unix milliseconds) and the path."""

    window_ms: int
    path: str


class Total(NamedTuple):
    """What the row says: views, and visitors counted once each."""

    views: int
    visitors: int


#: Every row of the answer.
Answer = dict[Cell, Total]


def generate(count: int, seed: int, *, visitors: int = VISITORS, step_ms: int = 1) -> Iterator[Event]:
    """``count`` events in order of event time, ``step_ms`` apart, of so many ``visitors``.

    Visitors, campaigns, agents and referrers are uniform and one event in three is a bot's; paths follow a
    Pareto distribution (exponent 1.1), so the most viewed one has about half of the views.
    """
    rng = random.Random(seed)
    for number in range(count):
        visitor = rng.randrange(visitors)
        path = int(rng.paretovariate(1.1)) % PATHS
        value = (
            f'{{"event_id":"{uuid.UUID(int=rng.getrandbits(128))}",'
            f'"event_type":"{rng.choice(EVENT_TYPES)}",'
            f'"event_time":{START_MS + number * step_ms},'
            f'"visitor_id":"v{visitor}","session_id":"s{visitor // 3}",'
            f'"page_url":"https://shop.example.com/p/{path}'
            f'?utm_source=google&utm_campaign=c{rng.randrange(CAMPAIGNS)}",'
            f'"referrer":{rng.choice(REFERRERS)},'
            f'"user_agent":"{rng.choice(USER_AGENTS)}",'
            f'"ip":"81.2.{rng.randrange(256)}.{rng.randrange(256)}",'
            f'"props":{{"element":"buy","x":{rng.randrange(1000)}}}}}'
        )
        yield Event(b"v%d" % visitor, value.encode())


def reference(values: Iterable[bytes]) -> Answer:
    """The right answer, counted one event at a time with the standard library."""
    views: dict[Cell, int] = {}
    visitors: dict[Cell, set[str]] = {}
    for value in values:
        event = json.loads(value)
        if "bot" in event["user_agent"]:
            continue
        url = urlsplit(event["page_url"])
        parse_qs(url.query).get("utm_campaign")  # part of the work asked for, though no row shows it
        cell = Cell(event["event_time"] // MINUTE_MS * MINUTE_MS, url.path)
        views[cell] = views.get(cell, 0) + 1
        visitors.setdefault(cell, set()).add(event["visitor_id"])
    return {cell: Total(count, len(visitors[cell])) for cell, count in views.items()}


def main() -> None:
    """Write events to stdout, one on each line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for event in generate(options.events, options.seed):
        sys.stdout.buffer.write(event.value + b"\n")


if __name__ == "__main__":
    main()
