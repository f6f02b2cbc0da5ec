"""The results file: every round as it is taken, so that an interrupted run loses none that is finished."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import msgspec

from benchmarks.comparison.rounds import Round
from streamproc import __version__

RESULTS = Path(__file__).parents[1] / "results"


class BadResults(Exception):
    """A results file cannot be read; the message names it."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were measured on. ``memory_bytes``: of the machine."""

    streamproc: str
    python: str
    cpus: int
    cpu_model: str
    memory_bytes: int
    broker: str


class Results(msgspec.Struct, kw_only=True):
    """A whole run. ``skipped``: contestant → why it did not run. ``started_at``: UTC, ISO 8601."""

    started_at: str
    machine: Machine
    rounds: list[Round] = []
    skipped: dict[str, str] = {}


def this_machine(broker: str) -> Machine:
    """The machine this runs on. ``broker``: which one, in words."""
    return Machine(
        streamproc=__version__,
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        cpu_model=_cpu_model(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        broker=broker,
    )


class ResultsFile:
    """Writes :class:`Results` again after each round."""

    def __init__(self, path: Path, results: Results) -> None:
        self.path = path
        self.results = results
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, it: Round) -> None:
        """Keep a round."""
        self.results.rounds.append(it)
        self._write()

    def skip(self, contestant: str, reason: str) -> None:
        """Keep why a contestant did not run."""
        self.results.skipped[contestant] = reason
        self._write()

    def _write(self) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(self.results), indent=1) + b"\n")
        aside.replace(self.path)


def new_results(broker: str, folder: Path = RESULTS) -> ResultsFile:
    """An empty file of this moment in ``folder``."""
    now = time.gmtime()
    results = Results(started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", now), machine=this_machine(broker))
    return ResultsFile(folder / f"peers-{time.strftime('%Y%m%dT%H%M%SZ', now)}.json", results)


def read_results(path: Path) -> Results:
    """A results file. Raises :class:`BadResults`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise BadResults(f"{path}: {error}") from error


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
