"""How streamproc's cost of an event changes with the number of events, of windows kept, and of partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import msgspec

from benchmarks.comparison.lag import Lag, check_views, fill_lag
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.stamping import Templates
from benchmarks.comparison.streamproc_worker import StreamprocWorker
from streamproc.sources.kafka_client import KafkaConnection

#: A thousand events make a minute of event time when they are 60 ms apart.
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve: ``value`` is what the curve is over."""

    curve: str
    value: int
    events: int
    partitions: int
    step_ms: int

    @property
    def workload(self) -> str:
        """What its rounds are called."""
        return f"{self.curve}-{self.value}"


def points(events: int) -> list[Point]:
    """The points of all curves. ``events``: how many a point has; on the curve over them a quarter to four times."""
    over_events = [Point("scale-events", count, count, 4, 1) for count in (events // 4, events, 4 * events)]
    over_windows = [
        Point("scale-windows", windows, events, 4, windows * _MINUTE_MS // events)
        for windows in (events // _MINUTE_MS, 10 * events // _MINUTE_MS, 100 * events // _MINUTE_MS)
    ]
    over_partitions = [Point("scale-partitions", number, events, number, 1) for number in (4, 16, 64, 256)]
    return [*over_events, *over_windows, *over_partitions]


def fill(connection: KafkaConnection, templates: Templates, chosen: list[Point]) -> dict[Point, Lag]:
    """A topic for each point."""
    return {
        point: fill_lag(
            connection, Lag(point.workload, point.events, point.partitions), templates, step_ms=point.step_ms
        )
        for point in chosen
    }


def measure(worker: StreamprocWorker, filled: dict[Point, Lag]) -> Iterator[Round]:
    """A round for each point. The answer is checked by its sum."""
    for point, lag in filled.items():
        try:
            taken = worker.run(lag.dataset, check=partial(check_views, lag))
        except Failed as error:
            taken = Round(workload="", contestant=worker.name, title=worker.title, failed=str(error))
        yield msgspec.structs.replace(taken, workload=point.workload)
