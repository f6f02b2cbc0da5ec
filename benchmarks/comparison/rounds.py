"""One round of one contestant, and what several rounds come to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec


class Failed(Exception):
    """A contestant ended early, not at all, or with a wrong answer; the message holds the end of what it said."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What a contestant needed for the events of a workload.

    ``seconds`` and ``cpu_seconds`` cover the same stretch: from its first event to the last one being in its
    result. ``cpu_seconds_in_all`` and ``peak_rss_bytes`` (bytes, children included) cover its whole life, its
    start included. ``stages``: seconds by stage, where the contestant tells. ``more``: numbers by name, of its own
    or of the workload. ``failed``: why there are no figures; the others are 0 then.
    """

    workload: str
    contestant: str
    title: str
    events: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    cpu_seconds_in_all: float = 0.0
    peak_rss_bytes: int = 0
    stages: dict[str, float] = {}
    more: dict[str, float] = {}
    failed: str = ""
    left_out: str = ""

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds

    @property
    def cpu_seconds_per_million(self) -> float:
        return self.cpu_seconds / self.events * 1e6


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of a figure over the rounds."""

    median: float
    smallest: float
    largest: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The rounds of one contestant on one workload, at least one of which has figures."""

    rounds: Sequence[Round]

    @property
    def title(self) -> str:
        return self.rounds[0].title

    @property
    def events(self) -> int:
        return self._finished[0].events

    @property
    def events_per_second(self) -> Spread:
        return self.spread(lambda it: it.events_per_second)

    @property
    def cpu_seconds_per_million(self) -> Spread:
        return self.spread(lambda it: it.cpu_seconds_per_million)

    @property
    def peak_rss_bytes(self) -> Spread:
        return self.spread(lambda it: it.peak_rss_bytes)

    @property
    def failures(self) -> int:
        return len(self.rounds) - len(self._finished)

    @property
    def stages_per_million(self) -> dict[str, float]:
        """Seconds per million events by stage: medians."""
        names = dict.fromkeys(stage for it in self._finished for stage in it.stages)
        return {
            name: statistics.median(it.stages.get(name, 0.0) / it.events * 1e6 for it in self._finished)
            for name in names
        }

    @property
    def more(self) -> dict[str, float]:
        """Further figures: medians."""
        names = dict.fromkeys(name for it in self._finished for name in it.more)
        return {
            name: statistics.median(it.more[name] for it in self._finished if name in it.more)
            for name in names
        }

    def spread(self, figure: Callable[[Round], float]) -> Spread:
        """Median, smallest and largest of ``figure`` over the rounds that have figures."""
        figures = [figure(it) for it in self._finished]
        return Spread(statistics.median(figures), min(figures), max(figures))

    @property
    def _finished(self) -> list[Round]:
        return [it for it in self.rounds if not it.failed]


def summarise(rounds: Sequence[Round], workload: str) -> dict[str, Summary]:
    """By contestant, in the order in which they ran; those of which no round has figures are left out."""
    by_name: dict[str, list[Round]] = {}
    for it in rounds:
        if it.workload == workload:
            by_name.setdefault(it.contestant, []).append(it)
    return {name: Summary(of_one) for name, of_one in by_name.items() if not all(it.failed for it in of_one)}
