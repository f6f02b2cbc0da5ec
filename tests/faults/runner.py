"""One fault, one seed, one run: from an empty database to a line in the log."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import traceback
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from tests.faults.bench import Bench
from tests.faults.records import records
from tests.faults.report import Run
from tests.faults.stage import Firing, NotSettled, Stage

#: Records there are to be fed, at most: more than it takes for any fault to happen and be over.
RECORDS = 40_000


class Fault(Protocol):
    """Something that goes wrong."""

    @property
    def name(self) -> str: ...

    @property
    def alone(self) -> bool:
        """Whether it needs servers of its own."""

    @property
    def kafka(self) -> bool:
        """Whether these have to be Apache Kafka."""

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        """Feed, start workers, let it happen; returns when that was and the seconds until all went on."""


async def run(bench: Bench, fault: Fault, seed: int) -> Run:
    """Run ``fault``; the same seed gives the same records and the same choices, not the same timing."""
    result = Run(fault.name, seed)
    begin = time.monotonic()
    try:
        async with AsyncExitStack() as stack:
            if fault.alone:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamproc-"))
                bench = await stack.enter_async_context(Bench.open(Path(directory), kafka=fault.kafka))
            stage = await stack.enter_async_context(
                bench.stage("run", await asyncio.to_thread(records, RECORDS, seed))
            )
            await _run(stage, fault, seed, result)
    finally:
        result.seconds = round(time.monotonic() - begin, 1)
    return result


async def _run(stage: Stage, fault: Fault, seed: int, result: Run) -> None:
    try:
        firing, result.recovery = await fault.run(stage, random.Random(f"{fault.name} {seed}"))
        topic = await stage.settle()
    except NotSettled as failure:
        result.failure = str(failure)
        return
    except Exception:  # one run must not end the others
        result.failure = traceback.format_exc()
        return
    result.records = len(topic)
    result.in_flight = max(stage.in_flight(topic, firing.at), firing.uncommitted)
    result.times = firing.times
    result.fired = result.in_flight > 0
    verdict = await stage.verdict(topic)
    result.lost, result.duplicated = verdict.lost, verdict.duplicated
    result.wrong, result.notes = len(verdict.wrong), verdict.wrong[:10]
