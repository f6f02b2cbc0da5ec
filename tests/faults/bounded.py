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


async def assert_all_clean(
    kind: type[Bench], faults: Sequence[Fault], *, parallel: int, patience: float
) -> None:
    """Run them on a bench of this kind: each has to fire, and nothing may be lost, doubled or wrong.

    ``patience`` multiplies deadlines: what is checked is what becomes of the data, a busy machine may take its time.
    """
    waiting = list(enumerate(faults, start=random.randrange(10**6)))
    runs: list[Run] = []

    async def work(bench: Bench) -> None:
        while waiting:
            seed, fault = waiting.pop(0)
            runs.append(await run(bench, fault, seed))

    with tempfile.TemporaryDirectory(prefix="streamproc-", ignore_cleanup_errors=True) as directory:
        async with kind.open(Path(directory), patience=patience) as bench, asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(work(bench))
    print(table(runs))
    assert len(runs) == len(faults)
    assert [one.line() for one in runs if not one.clean] == []
    assert [one.fault for one in runs if not one.fired] == [], "nothing was in flight: these do not count"
