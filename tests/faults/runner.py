"""One fault, one seed, one run: from an empty database to a line in the log."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.faults.bench import Bench
from tests.faults.crashes import Crash
from tests.faults.records import records
from tests.faults.report import Run
from tests.faults.stage import Firing, NotSettled, Stage

#: Records there are to be fed, at most: more than it takes for any fault to happen and be over.
RECORDS = 60_000


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

    @property
    def long(self) -> bool:
        """Whether it takes minutes."""

    @property
    def missing(self) -> str | None:
        """Why it cannot be done on this machine."""

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        """Feed, start workers, let it happen; returns when that was and the seconds until all went on."""


async def run(bench: Bench, fault: Fault, seed: int) -> Run:
    """Run ``fault``; the same seed gives the same records and the same choices, not the same timing."""
    result = Run(fault.name, seed)
    begin = time.monotonic()
    async with AsyncExitStack() as stack:
        if fault.alone:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamproc-"))
            bench = await stack.enter_async_context(bench.another(Path(directory), kafka=fault.kafka))
        stage = await stack.enter_async_context(
            bench.stage("run", await asyncio.to_thread(records, RECORDS, seed))
        )
        await _fill(result, stage, lambda: fault.run(stage, _chance(fault, seed)), running=False)
    result.seconds = round(time.monotonic() - begin, 1)
    return result


async def series(bench: Bench, crashes: Sequence[Crash], seed: int) -> AsyncIterator[Run]:
    """One crash after the other in the same place, each followed by all checks of everything so far.

    Ends after the first that is not clean. ``seed`` is that of the records and of the first; each
    has the next one.
    """
    async with bench.stage("series", await asyncio.to_thread(records, RECORDS // 2, seed)) as stage:
        stage.feeder.rate /= 4  # each check goes over all that there is
        stage.feeder.backlog //= 4
        for number, crash in enumerate(crashes, start=seed):
            result = Run(crash.name, number)
            begin = time.monotonic()
            await stage.feed()
            await _fill(result, stage, partial(crash.again, stage, _chance(crash, number)), running=True)
            result.seconds = round(time.monotonic() - begin, 1)
            yield result
            if not result.clean:
                return
        await stage.stop_workers()


def _chance(fault: Fault, seed: int) -> random.Random:
    return random.Random(f"{fault.name} {seed}")


async def _fill(
    result: Run, stage: Stage, happen: Callable[[], Awaitable[tuple[Firing, float]]], *, running: bool
) -> None:
    before = stage.committed()
    try:
        firing, result.recovery = await happen()
        topic = await stage.settle(running=running)
    except NotSettled as failure:
        result.failure = str(failure)
        return
    except Exception:  # one run must not end the others
        result.failure = traceback.format_exc()
        return
    result.records = len(topic) - before
    result.in_flight = max(stage.in_flight(topic, firing.at), firing.uncommitted)
    result.times = firing.times
    result.fired = result.in_flight > 0
    verdict = await stage.verdict(topic)
    result.lost, result.duplicated = verdict.lost, verdict.duplicated
    result.wrong, result.notes = len(verdict.wrong), verdict.wrong[:10]
