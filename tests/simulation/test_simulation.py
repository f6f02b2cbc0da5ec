"""A few seeds every time, and that a seed is what it is said to be. More: ``make test-simulation``."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.e2e.harness import REPOSITORY
from tests.simulation.loop import Endless, SimulatedLoop
from tests.simulation.run import run


def test_whatever_happens_nothing_is_lost_doubled_or_wrong():
    outcomes = [run(seed) for seed in range(16, 36)]  # 16 and 32 have the real transform
    assert [(outcome.seed, outcome.wrong) for outcome in outcomes if outcome.wrong] == []
    assert sum(outcome.commits for outcome in outcomes) > 40
    assert len({fault for outcome in outcomes for fault in outcome.happened}) > 5


def test_the_same_seed_is_the_same_run_and_another_one_is_not():
    assert run(5).line() == run(5).line()
    assert run(5).digest != run(6).digest


def test_a_traced_run_in_another_process_is_the_same_run():
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--trace", "5"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"^seed 5, trace (\w+)", done.stdout, re.MULTILINE) == [run(5).digest]
    assert "COMMIT" in done.stdout and "epoch_committed" in done.stdout


# -- the loop -----------------------------------------------------------------------------------------


def looping(seconds: float, prepare: Callable[[SimulatedLoop], object]) -> SimulatedLoop:
    loop = SimulatedLoop(random.Random(1))
    prepare(loop)
    loop.call_later(seconds, loop.stop)
    loop.run_forever()
    return loop


async def tick(ticks: list[float], every: float = 1.0) -> None:
    try:
        while True:
            ticks.append(asyncio.get_running_loop().time())
            await asyncio.sleep(every)
    finally:
        ticks.append(-1.0)


def test_a_killed_process_does_nothing_more_not_even_clean_up():
    ticks: list[float] = []

    def prepare(loop: SimulatedLoop) -> None:
        process, _ = loop.start("worker", lambda: tick(ticks))
        loop.call_later(2.5, loop.kill, process)

    loop = looping(10, prepare)
    assert ticks == [0.0, 1.0, 2.0]
    loop.dispose()


def test_a_frozen_process_goes_on_where_it_was():
    ticks: list[float] = []

    def prepare(loop: SimulatedLoop) -> None:
        process, _ = loop.start("worker", lambda: tick(ticks))
        loop.call_later(2.5, loop.freeze, process)
        loop.call_later(7.25, loop.thaw, process)
        loop.call_later(7.25, loop.note, "somebody else has to wake the loop")

    loop = looping(9, prepare)
    assert ticks == [0.0, 1.0, 2.0, 7.25, 8.25]
    loop.dispose()


def test_a_thread_that_is_waited_for_no_more_does_its_work_all_the_same():
    done: list[str] = []

    async def give_up() -> None:
        work = asyncio.ensure_future(asyncio.to_thread(done.append, "done"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        work.cancel()

    loop = looping(1, lambda loop: loop.start("worker", give_up))
    assert done == ["done"]
    loop.dispose()


def test_a_world_in_which_everybody_waits_is_noticed():
    loop = SimulatedLoop(random.Random(1))
    loop.spawn(asyncio.Event().wait())
    with pytest.raises(Endless):
        loop.run_forever()
    loop.dispose()
