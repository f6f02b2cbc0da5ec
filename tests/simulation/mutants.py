"""Defects that the simulation has to find, and within how many seeds: see ``tests/faults/mutants.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.faults.mutants import MUTANTS, Change, Mutant, prepare

__all__ = ["SIMULATED", "kill", "prepare"]


@dataclass(frozen=True)
class Simulated:
    """``seeds``: this many are enough, from the first on."""

    mutant: Mutant
    seeds: int


def _of_bench(name: str, seeds: int) -> Simulated:
    """One that the other tests have to find as well."""
    return Simulated(next(mutant for mutant in MUTANTS if mutant.name == name), seeds)


def _new(name: str, seeds: int, *changes: Change) -> Simulated:
    return Simulated(Mutant(name, changes, ()), seeds)


SIMULATED = (
    _of_bench("objects are intended after they are put", 1_000),
    _of_bench("an epoch is acknowledged before its objects are put", 1_000),
    _of_bench("rejects are written outside of the epoch", 1_000),
    _of_bench("the tables have a transaction of their own", 1_000),
    _of_bench("event ids are forgotten when a partition changes hands", 1_000),
    _of_bench("a COMMIT without an answer is taken for one that happened", 1_000),
    _of_bench("a COMMIT without an answer is just tried again", 1_000),
    _of_bench("a partition that was claimed before is read from its beginning", 1_000),
    _new(
        "the next epoch is committed before the one before it is done",
        1_000,
        Change(
            "pipeline/pipeline.py",
            "                elif self._committing is not None and not self._committing.done():\n"
            "                    await asyncio.wait({self._committing})\n",
            "",
        ),
    ),
    _new(
        "an epoch begins where the claim stands",
        1_000,
        Change(
            "epoch.py",
            "PartitionEpoch(progress, progress.taken, through, progress.clock_us)",
            "PartitionEpoch(progress, progress.claim.position, through, progress.clock_us)",
        ),
    ),
    _new(
        "an epoch does not say how far its clock went",
        1_000,
        Change("epoch.py", "            share.clock_us = share.progress.clock_us\n", ""),
    ),
    _new(
        "an event is compared with the newest of its batch",
        1_000,
        Change(
            "progress.py",
            "        watermarks = clocks[:-1]\n",
            "        watermarks = np.full(len(times), clocks[-1])\n",
        ),
    ),
    _new(
        "the gates stay open when partitions are taken away",
        1_000,
        Change(
            "sources/kafka_claims.py",
            '        """Close all gates, and cancel a claim that is under way."""\n'
            "        self.readers.clear()\n        self.stopped.clear()\n",
            '        """Close all gates, and cancel a claim that is under way."""\n',
        ),
    ),
    _new(
        "a gap in the topic is passed without a word",
        1_000,
        Change(
            "sources/kafka_claims.py",
            "            elif problem := _misplaced(position, first, end, self._partition(tp)):\n"
            "                self.stop(tp, problem)\n                continue\n",
            "            elif _misplaced(position, first, end, self._partition(tp)):\n"
            "                position = first - 1\n",
        ),
    ),
    _new(
        "a fenced worker keeps what it has",
        1_000,
        Change(
            "runtimes/worker.py",
            "        self.pipeline.drop()\n        assert self._source is not None\n",
            "        assert self._source is not None\n",
        ),
    ),
    _new(
        "two attempts at an object share a key",
        1_000,
        Change("sinks/lake.py", "{secrets.token_hex(6)}", "0"),
        Change("sinks/lake.py", "advance.through, str(advance.claim.fence))", "advance.through, '0')"),
    ),
    _new(
        "what is taken does not count against the limits",
        1_000,
        Change(
            "pipeline/pipeline.py",
            "        if self._taken_records >= limits.max_records or self._taken_bytes >= limits.max_bytes:\n",
            "        if self._epoch.records >= 100 * limits.max_records:\n",
        ),
    ),
)


def kill(seeds: int, directory: Path, deadline: float = 600) -> subprocess.CompletedProcess[str]:
    """Simulate on the copy in ``directory`` until a seed fails; an exit code of 1 means that one did."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", str(seeds), "--parallel", "1", "--stop"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )
