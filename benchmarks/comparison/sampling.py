"""CPU and memory of a process and all its descendants, sampled from outside while it runs. Linux only."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from types import TracebackType
from typing import NamedTuple, Self

from benchmarks.measure import members_of, process_cpu_seconds, process_peak_rss_bytes

#: 20 times a second: what a span of some seconds cannot tell from an exact reading.
_PERIOD_SECONDS = 0.05
#: Looking for new descendants reads a file for each thread, so it happens once in this many samples.
_SAMPLES_BETWEEN_SEARCHES = 10


class Sample(NamedTuple):
    """Seconds of ``CLOCK_MONOTONIC``, and the CPU seconds used until then."""

    at: float
    cpu_seconds: float


class Sampler:
    """A thread that watches ``pid`` and its descendants from ``with`` until its end."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: list[Sample] = []
        self._members = [pid]
        self._cpu_of: dict[int, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self.peak_rss_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def cpu_between(self, begin: float, end: float) -> float:
        """CPU seconds used between two moments of ``CLOCK_MONOTONIC``, each interpolated between two samples."""
        return cpu_at(self._samples, end) - cpu_at(self._samples, begin)

    @property
    def members(self) -> list[int]:
        """The processes last seen, some of which may have ended."""
        return self._members

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of its whole life so far."""
        return self._samples[-1].cpu_seconds if self._samples else 0.0

    def _watch(self) -> None:
        number = 0
        while True:
            if number % _SAMPLES_BETWEEN_SEARCHES == 0:
                # From each that is known: one whose parent has ended is found below that parent no more.
                self._members = list(dict.fromkeys(it for known in self._members for it in members_of(known)))
            self._take(self._members)
            number += 1
            if self._stopped.wait(_PERIOD_SECONDS):
                return

    def _take(self, members: list[int]) -> None:
        memory = 0
        for member in members:
            cpu = process_cpu_seconds(member)
            if cpu is not None:
                self._cpu_of[member] = cpu
                memory += process_peak_rss_bytes(member)
            elif member != self._pid:
                self._cpu_of.pop(member, None)  # it has ended: its parent carries its time from now on
        self._samples.append(Sample(time.monotonic(), sum(self._cpu_of.values())))
        self.peak_rss_bytes = max(self.peak_rss_bytes, memory)


def cpu_at(samples: list[Sample], moment: float) -> float:
    """CPU seconds used until ``moment``: between two samples in proportion, outside of them the nearest one's."""
    if not samples:
        return 0.0
    after = bisect_left(samples, moment, key=lambda sample: sample.at)
    if after == 0:
        return samples[0].cpu_seconds
    if after == len(samples):
        return samples[-1].cpu_seconds
    (before_at, before), (after_at, behind) = samples[after - 1], samples[after]
    return before + (behind - before) * (moment - before_at) / (after_at - before_at)
