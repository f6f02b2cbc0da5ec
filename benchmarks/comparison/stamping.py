"""Events made of templates: far faster than new ones, for runs of ten million events or at a rate by the clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks import events

_MARK = b'"event_time":'
_TEMPLATES = 100_000


class Stamped(NamedTuple):
    """Records, and how many of them are no bot's: so many views they make."""

    keys: list[bytes]
    values: list[bytes]
    humans: int


@dataclass(frozen=True, slots=True)
class Templates:
    """Events of the counting workload around a hole for their time. ``is_human``: 1 where they count."""

    keys: Sequence[bytes]
    heads: Sequence[bytes]
    tails: Sequence[bytes]
    is_human: Sequence[int]

    def __len__(self) -> int:
        return len(self.keys)

    def stamped(self, first: int, times_ms: Sequence[int]) -> Stamped:
        """An event for each time; the ``first`` one is of that template, the others of those that follow it, in turn.

        An event's id comes back every 100,000 events: only for pages that do not look for duplicates.
        """
        numbers = [number % len(self.keys) for number in range(first, first + len(times_ms))]
        values = [
            self.heads[number] + str(time).encode() + self.tails[number]
            for number, time in zip(numbers, times_ms, strict=True)
        ]
        humans = sum(self.is_human[number] for number in numbers)
        return Stamped([self.keys[number] for number in numbers], values, humans)


def make_templates(seed: int, count: int = _TEMPLATES) -> Templates:
    """Templates of ``count`` events of :func:`benchmarks.events.generate`."""
    keys, heads, tails, is_human = [], [], [], []
    for key, value in events.generate(count, seed):
        before, mark, rest = value.partition(_MARK)
        keys.append(key)
        heads.append(before + mark)
        tails.append(rest[rest.index(b",") :])
        is_human.append(0 if b"bot" in value else 1)
    return Templates(keys, heads, tails, is_human)


def probe(number: int, time_ms: int) -> tuple[bytes, bytes]:
    """Key and value of an event on a page of its own, ``/probe/NUMBER``: its row says when it can be read."""
    fields = {
        "event_id": f"probe-{number}",
        "event_type": "page_view",
        "event_time": time_ms,
        "visitor_id": f"probe{number}",
        "page_url": f"https://shop.example.com/probe/{number}?utm_campaign=probe",
        "user_agent": "Mozilla/5.0",
    }
    return b"probe%d" % number, json.dumps(fields, separators=(",", ":")).encode()
