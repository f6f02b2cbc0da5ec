"""What must become of each record, worked out by a plain loop over the topic. Shares no code with the service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from itertools import groupby

import crawleruseragents

from tests.e2e import oracle

Coordinates = tuple[str, int]

_BOTS = [re.compile(crawler["pattern"]) for crawler in crawleruseragents.CRAWLER_USER_AGENTS_DATA]

#: Milliseconds; the shipped page's ``contract.duplicates.horizon``.
_HORIZON = 600_000


def outcomes(topic: Mapping[Coordinates, bytes | None]) -> dict[Coordinates, str]:
    """``accepted``, ``filtered``, ``rejected`` or ``duplicate`` for every (partition, offset)."""
    became: dict[Coordinates, str] = {}
    for _, log in groupby(sorted(topic), key=lambda coordinates: coordinates[0]):
        clock = -(10**18)
        seen: dict[str, int] = {}
        for coordinates in log:
            event = _usable(topic[coordinates])
            if event is None:
                became[coordinates] = "rejected"
            elif event["event_type"] == "heartbeat" or _bot(event.get("user_agent")):
                became[coordinates] = "filtered"
            elif event["event_id"] in seen and clock - seen[event["event_id"]] <= _HORIZON:
                became[coordinates] = "duplicate"
            else:
                became[coordinates] = "accepted"
                clock = seen[event["event_id"]] = max(clock, event["event_time"])
    return became


@lru_cache(100_000)  # a series is gone over again after each of its runs
def _usable(value: bytes | None) -> dict | None:
    return oracle.usable(value)


@cache
def _bot(agent: str | None) -> bool:
    agent = (agent or "")[:1024]
    return not agent.strip() or any(pattern.search(agent) for pattern in _BOTS)
