"""CPU, memory and wall-clock time of a process and its children, and medians over rounds. Linux only."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """One round of one contestant. ``seconds`` and ``cpu_seconds`` cover the same stretch of work.

    ``equal``: its answer equals the reference, row for row. ``stages``: CPU or wall seconds by stage, where
    the contestant reports them.
    """

    name: str
    events: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    equal: bool
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds

    @property
    def cpu_seconds_per_million(self) -> float:
        return self.cpu_seconds / self.events * 1e6

    def to_json(self) -> dict[str, object]:
        """All fields and the two rates."""
        rates = {
            "events_per_second": round(self.events_per_second),
            "cpu_seconds_per_million": round(self.cpu_seconds_per_million, 3),
        }
        return asdict(self) | rates


@dataclass(frozen=True, slots=True)
class Summary:
    """The rounds of one contestant: medians, and the slowest and fastest round."""

    runs: Sequence[Run]

    @property
    def events_per_second(self) -> float:
        return self._median(lambda run: run.events_per_second)

    @property
    def slowest_and_fastest(self) -> tuple[float, float]:
        rates = [run.events_per_second for run in self.runs]
        return min(rates), max(rates)

    @property
    def cpu_seconds_per_million(self) -> float:
        return self._median(lambda run: run.cpu_seconds_per_million)

    @property
    def peak_rss_bytes(self) -> float:
        return max(run.peak_rss_bytes for run in self.runs)

    @property
    def equal(self) -> bool:
        return all(run.equal for run in self.runs)

    @property
    def stages_per_million(self) -> dict[str, float]:
        names = dict.fromkeys(stage for run in self.runs for stage in run.stages)
        return {
            name: statistics.median(run.stages.get(name, 0.0) / run.events * 1e6 for run in self.runs)
            for name in names
        }

    def _median(self, value: Callable[[Run], float]) -> float:
        return statistics.median(value(run) for run in self.runs)


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process, its living descendants and the children it has waited for."""
    total = 0.0
    for member in _tree(pid):
        try:
            # Fields are counted from behind the command name, which may hold spaces: see proc(5).
            stat = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since; whoever waited for it carries its time from now on
        total += sum(map(int, stat[11:15])) / _TICKS_PER_SECOND
    return total


def peak_rss_bytes(pid: int) -> int:
    """Largest resident size of a process and its living descendants, each at its own peak, summed."""
    total = 0
    for member in _tree(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    return total


def _tree(pid: int) -> list[int]:
    members = [pid]
    for member in members:
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += map(int, task.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return members
