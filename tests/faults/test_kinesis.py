"""A bounded part of the crash bench on Kinesis: kill, zombies, stolen leases, shards that split and merge."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

import pytest

from tests.faults.kinesis import KinesisBench
from tests.faults.kinesis_faults import FAULTS
from tests.faults.report import Run, table
from tests.faults.runner import run
from tests.support.kinesis_local import KinesisUnavailable, kinesis_local

CHOSEN = (
    "2 shards become 4 and then 3, and a worker is killed",
    "2 shards become 4 and then 3, and a worker is frozen",
    "leases are stolen 6 times",
    "one of two workers is killed",
    "kill at commit.sent",
    "stop at commit.fenced",
)

#: At a time: the local server takes more of the processor than the workers do.
PARALLEL = 2


async def _run_all(directory: Path) -> list[Run]:
    waiting = list(enumerate((f for f in FAULTS if f.name in CHOSEN), start=random.randrange(10**6)))
    done: list[Run] = []

    async def work(bench: KinesisBench) -> None:
        while waiting:
            seed, fault = waiting.pop(0)
            done.append(await run(bench, fault, seed))

    # What is checked is what becomes of the data: a busy machine may take its time.
    async with KinesisBench.open(directory, patience=3.0) as bench, asyncio.TaskGroup() as group:
        for _ in range(PARALLEL):
            group.create_task(work(bench))
    return done


@pytest.mark.faults
@pytest.mark.timeout(1800)
async def test_whatever_happens_on_kinesis_nothing_is_lost_doubled_or_wrong():
    try:
        kinesis_local()
    except KinesisUnavailable as reason:
        pytest.skip(str(reason))
    with tempfile.TemporaryDirectory(prefix="streamproc-", ignore_cleanup_errors=True) as directory:
        runs = await _run_all(Path(directory))
    print(table(runs))
    assert len(runs) == len(CHOSEN)
    assert [run.line() for run in runs if not run.clean] == []
    assert [run.fault for run in runs if not run.fired] == [], "nothing was in flight: these do not count"
