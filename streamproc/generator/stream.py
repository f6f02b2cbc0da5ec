"""The stream of events: visits side by side on a clock of event time, with what goes wrong on the way."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from random import Random
from typing import NamedTuple

from streamproc.generator.audience import Audience
from streamproc.generator.mess import Mess
from streamproc.generator.site import Site
from streamproc.generator.visits import Step, Visits

#: Event time of the first events: Monday 2025-01-06 09:00 UTC. Fixed, so that a seed's bytes never change.
DEFAULT_START = datetime(2025, 1, 6, 9, tzinfo=UTC)

#: Traffic by hour of the day (UTC), in percent of the average: least at four, most at eight in the evening.
_DAY = (
    55, 42, 34, 30, 29, 34, 48, 70, 92, 108, 118, 124,
    128, 126, 124, 124, 128, 136, 148, 160, 166, 156, 122, 98,
)  # fmt: skip

#: Milliseconds an event is behind the clock when it is sent: mostly little, now and then up to 4 seconds.
_DELAYS = [n * n // 256 for n in range(240)] + [300 + 250 * n for n in range(16)]

# Out of 2^14 events: producers' retries (0.3 %) and events from devices that were offline (0.2 %).
_RETRIED, _LATE = 49, 33


class Record(NamedTuple):
    """``key``: the visitor. ``value``: the event as JSON; with a ``bad_ratio`` anything, even ``None``."""

    key: bytes
    value: bytes | None


class Generator:
    """``events`` records of a clickstream with the fields of ``topics/clickstream.toml``.

    The same arguments give the same bytes on any machine and Python. ``rate``: events a second of event
    time, over a day; ``steady``: as many at night as in the evening; ``start``: event time of the first.
    ``bad_ratio``: how many of the records, 0 to 1, are of no use and meant to be rejected. ``one_line``: leaves
    out the bad records that cannot be a line of text, those with a line feed or without a value. Memory is
    bounded by the visits under way at a time.

    Raises ValueError for arguments out of their range.

    Timestamps are in order within 5 seconds but for the late ones, 2 minutes to 6 hours behind.
    """

    def __init__(
        self,
        seed: int,
        events: int,
        *,
        bad_ratio: float = 0.0,
        start: datetime = DEFAULT_START,
        rate: int = 500,
        steady: bool = False,
        one_line: bool = False,
    ) -> None:
        if events < 0 or rate < 1 or not 0 <= bad_ratio <= 1:
            raise ValueError("events >= 0, rate >= 1 and 0 <= bad_ratio <= 1")
        if start.tzinfo is None:
            raise ValueError("start needs a time zone")
        self._seed = seed
        self._events = events
        self._bad_ratio = bad_ratio
        self._start = int(start.timestamp())
        self._rate = rate
        self._day = (100,) * 24 if steady else _DAY
        self._one_line = one_line

    def records(self) -> Iterator[Record]:
        """All records, from the beginning."""
        for batch in self.batches(1_000):
            yield from map(Record._make, batch)

    def batches(self, size: int) -> Iterator[list[tuple[bytes, bytes | None]]]:
        """The same records as lists of ``size`` (key, value): the quick way."""
        good = self._good()
        stream: Iterator[tuple[bytes, bytes | None]] = good
        if self._bad_ratio:
            # Draws of its own: the good events are the same ones, whatever is put between them.
            mess = Mess(_draws(f"mess {self._seed}"), self._one_line)
            stream = mess.mixed(good, self._bad_ratio)
        stream = itertools.islice(stream, self._events)
        while batch := list(itertools.islice(stream, size)):
            yield batch

    def _good(self) -> Iterator[tuple[bytes, bytes]]:
        random = _draws(f"visits {self._seed}")
        audience = Audience(random)
        visits = Visits(random, Site(random))
        bits = random.getrandbits
        # By second: the visits with an event then, that event, and how to get the one after it.
        due: defaultdict[int, list[tuple[bytes, Step, Callable[[], Step | None]]]] = defaultdict(list)
        retries: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for second in itertools.count(self._start):
            yield from retries.pop(second, ())
            under_way = due.pop(second, [])
            for _ in range(self._arrivals(second, len(under_way))):
                visitor = audience.visitor()
                visit = visits.visit(visitor)
                under_way.append((visitor.key, next(visit), functools.partial(next, visit, None)))
            clock = second * 1000
            for key, (wait, members), advance in under_way:
                if (following := advance()) is not None:
                    due[second + wait].append((key, following, advance))
                draw = bits(32)
                time = clock + (draw & 1023) - _DELAYS[draw >> 10 & 255]
                luck = draw >> 18
                if luck < _LATE:
                    time -= 120_000 + bits(32) % 21_480_000
                value = f'{{"event_id":"{bits(128):032x}","event_time":{time},{members}}}'.encode()
                if luck >= 16384 - _RETRIED:
                    retries[second + 1 + (draw & 15)].append((key, value))
                yield key, value

    def _arrivals(self, second: int, under_way: int) -> int:
        """Visits that begin: what is missing at the daily curve's rate, at least a sixteenth of it."""
        hour, rest = divmod(second % 86_400, 3_600)
        percent = (self._day[hour] * (3_600 - rest) + self._day[(hour + 1) % 24] * rest) / 3_600
        wanted = int(self._rate * percent / 100)
        return max(wanted - under_way, wanted // 16, 1 if second % 8 == 0 else 0)


def _draws(seed: str) -> Random:
    return Random(seed)  # noqa: S311 (believable visitors, not secrets)
