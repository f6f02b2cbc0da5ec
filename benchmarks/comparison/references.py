"""The right answers, worked out one event at a time with the standard library: no code of any contestant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import events
from benchmarks.comparison.answers import Key

HOUR_MS = 3_600_000
SESSION_GAP_MS = 1_800_000


def minute_counts(values: Iterable[bytes]) -> dict[Key, tuple[int, ...]]:
    """w1: (window start, path) → (views, visitors), see :func:`benchmarks.events.reference`."""
    return {tuple(cell): tuple(total) for cell, total in events.reference(values).items()}


def sessions(values: Iterable[bytes]) -> dict[Key, tuple[int, ...]]:
    """w3: (visitor, start) → (end, events); the next event of a session is 30 minutes later at most."""
    times: dict[str, list[int]] = {}
    for event in _by_humans(values):
        times.setdefault(event["visitor_id"], []).append(event["event_time"])
    answer: dict[Key, tuple[int, ...]] = {}
    for visitor, moments in times.items():
        moments.sort()
        start, count = moments[0], 0
        for number, moment in enumerate(moments):
            count += 1
            last = number + 1 == len(moments)
            if last or moments[number + 1] - moment > SESSION_GAP_MS:
                answer[visitor, start] = (moment, count)
                start, count = (0 if last else moments[number + 1]), 0
    return answer


def visitor_hours(values: Iterable[bytes]) -> dict[Key, tuple[int, ...]]:
    """w5: (window start, visitor) → (events, latest time)."""
    answer: dict[Key, tuple[int, ...]] = {}
    for event in _by_humans(values):
        moment = event["event_time"]
        key = (moment // HOUR_MS * HOUR_MS, event["visitor_id"])
        count, latest = answer.get(key, (0, 0))
        answer[key] = (count + 1, max(latest, moment))
    return answer


def _by_humans(values: Iterable[bytes]) -> Iterator[Any]:
    return (event for value in values if "bot" not in (event := json.loads(value))["user_agent"])
