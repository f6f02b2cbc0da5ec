"""The bounded part of the bench that CI runs: some faults, each once, several at a time."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.report import Run, table
from tests.faults.runner import Fault, run

#: How often a fault may find nothing in flight before it counts as one that does not fire.
MISSES = 2


async def assert_all_clean(
    kind: type[Bench], faults: Sequence[Fault], *, parallel: int, patience: float
) -> None:
    """Run them on a bench of this kind: each has to fire, and nothing may be lost, doubled or wrong.

    ``patience`` multiplies deadlines: what is checked is what becomes of the data, a busy machine may take its time.
    """
    first = random.randrange(10**6)
    waiting = [(first + number, fault, 0) for number, fault in enumerate(faults)]
    runs: list[Run] = []

    async def work(bench: Bench) -> None:
        while waiting:
            seed, fault, missed = waiting.pop(0)
            one = await run(bench, fault, seed)
            # A place that this run did not come by: one in ten does not, so another may.
            if one.clean and not one.fired and missed < MISSES:
                waiting.append((seed + 10**6, fault, missed + 1))
            else:
                runs.append(one)

    with tempfile.TemporaryDirectory(prefix="streamproc-", ignore_cleanup_errors=True) as directory:
        async with kind.open(Path(directory), patience=patience) as bench, asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(work(bench))
    print(table(runs))
    assert len(runs) == len(faults)
    assert [one.line() for one in runs if not one.clean] == []
    assert [one.fault for one in runs if not one.fired] == [], "nothing was in flight: these do not count"
