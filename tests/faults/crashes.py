"""Faults inside a worker: every failpoint, killed, frozen and brought back, raising, cancelled.

Two workers share the topic while it is fed; one of them is armed. What it does to itself is followed by
what would happen around it: a dead one is replaced, a frozen one wakes up when others have its partitions.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass

from streamproc.failpoints import POINTS
from tests.faults.bench import SESSION_TIMEOUT
from tests.faults.stage import Firing, Stage

#: What cannot be done where: nothing is raised while COMMIT is on its way.
_NOT_RAISED = {"commit.sent"}

#: Where "does not answer" is what callers expect and try again.
_RETRIED = {
    "put.first",
    "put.middle",
    "put.last",
    "commit.fenced",
    "commit.merged",
    "sweep.delete",
    "load.copied",
}

#: Points that a worker meets as it begins, when there is something to do for them.
_AT_START = {"sweep.delete", "load.locked", "load.copied", "load.committed"}

#: Seconds between two sends in a series. What most of its CPU time goes to is epochs, and there is one a second
#: for each worker that gets records.
_TICK = 3.0

#: The same where a fault may strike just after a commit: there would often be nothing in flight.
_TICK_ANYWHERE = 0.4


@dataclass(frozen=True)
class Crash:
    """One failpoint and what it does."""

    point: str
    action: str
    alone: bool = False
    kafka: bool = False
    long: bool = False
    missing: str | None = None

    @property
    def name(self) -> str:
        return f"{self.action} at {self.point}"

    @property
    def in_commit(self) -> bool:
        """Whether the worker has an epoch that is not committed when it is there."""
        return self.point.startswith(("intend", "put")) or self.point in {
            "commit.fenced",
            "commit.merged",
            "commit.sent",
        }

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        """Two workers, one armed; returns the firing and the seconds until every partition went on."""
        await stage.feed()
        if self.point in _AT_START:
            await _begin_without(stage)
            armed = f"{self.point}={self.action}@1"
            stage.start("armed", armed)
        elif self.point in {"claim.before", "claim.after", "seek.done"} and chance.random() < 0.7:
            stage.start("other")
            await stage.until(lambda: stage.committed() > 0, "the other worker commits")
            stage.start("armed", f"{self.point}={self.action}@1")
        else:
            hit = 1 if self.point.startswith(("claim", "seek")) else chance.choice((1, 1, 2, 3, 5))
            stage.start("armed", f"{self.point}={self.action}@{hit}")
            stage.start("other")
        return await self._through(stage, chance)

    async def again(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        """As :meth:`run`, where workers run already: one of the two is armed, and two are left at the end.

        For what only happens as a worker begins, the armed one joins them as a third.
        """
        stage.firings.unlink(missing_ok=True)
        stage.feeder.tick = _TICK if self.in_commit else _TICK_ANYWHERE
        while len(stage.running) < 2:
            stage.start(stage.fresh("w"))
        begin = time.time()
        await stage.until(
            lambda: stage.all_go_on(begin) and all(stage.owned_by(worker.name) for worker in stage.running),
            "both have partitions and commit",
        )
        if self.point == "sweep.delete":
            await _orphans(stage, stage.fresh("early"), hit=1)
        if self.point.startswith(("claim", "seek", "sweep")):
            stage.start(stage.fresh("armed"), f"{self.point}={self.action}@1")
        else:
            hit = 1 if self.point.startswith("load") else chance.choice((1, 1, 2))
            await stage.arm(chance.choice(stage.running), f"{self.point}={self.action}@{hit}")
        firing, recovery = await self._through(stage, chance)
        victim = [worker for worker in stage.running if worker.name == firing.worker]
        if self.action in {"raise", "cancel"}:  # it may be on its way out, with the error that it was given
            await stage.retire(victim, well=False)
        running = stage.running
        await stage.retire(chance.sample(running, max(0, len(running) - 2)))
        return firing, recovery

    async def _through(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        """From the armed worker's start until all goes on."""
        await stage.until(stage.fired, f"{self.name} fires", 45)
        firing = stage.fired()
        assert firing is not None
        await _aftermath(stage, firing, chance)
        return firing, await _recovered(stage, firing)


class Killed(Crash):
    """One of two workers is killed from outside, at any moment, and nobody takes its place but the other one."""

    @property
    def name(self) -> str:
        return "one of two workers is killed"

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        await stage.feed()
        return await self.again(stage, chance)

    async def again(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        stage.feeder.tick = _TICK_ANYWHERE
        while len(stage.running) < 2:
            stage.start(stage.fresh("w"))
        begin = time.time()
        await stage.until(
            lambda: all(stage.owned_by(worker.name) for worker in stage.running) and stage.all_go_on(begin),
            "both have partitions and commit",
        )
        await asyncio.sleep(chance.uniform(0, 2))  # the fault itself: when
        await stage.until_in_flight()
        victim = chance.choice(stage.running)
        at = time.time()
        victim.kill()
        stage.forget_dead()
        recovery = await stage.recovered(at)
        return Firing("anywhere", "kill", victim.name, at, 0), recovery


KILLED = Killed("anywhere", "kill")

#: The bench's workers pass all points but those of merging objects and of forgetting a visitor, which have tests of
#: their own (tests/cli/test_lake_compact.py, tests/e2e/test_compaction.py, tests/e2e/test_erasure.py).
_PASSED = [point for point in POINTS if not point.startswith(("compact.", "erase."))]

_AT_POINTS = [
    Crash(point, action)
    for point in _PASSED
    for action in ("kill", "stop", "raise", "cancel", "unavailable")
    if (action != "raise" or point not in _NOT_RAISED) and (action != "unavailable" or point in _RETRIED)
]

CRASHES: list[Crash] = [KILLED, *_AT_POINTS]


async def _begin_without(stage: Stage) -> None:
    """A worker commits, another one dies over a put: there are objects to load and objects to sweep."""
    stage.start("other")
    await _orphans(stage, "early", hit=3)


async def _orphans(stage: Stage, name: str, hit: int) -> None:
    """A worker of this name dies over a put, and what it leaves behind can be swept."""
    early = stage.start(name, f"put.middle=kill@{hit}")
    await stage.until(stage.fired, "the early worker is killed")
    stage.firings.unlink()
    stage.workers.remove(early)
    early.process.wait(10)
    await stage.until(lambda: not stage.owned_by(name), "its partitions are claimed")
    # Ten minutes pass for what it left behind, so that the next worker sweeps it as it begins.
    stage.db.execute(
        "update streamproc.objects set abandoned_at = abandoned_at - interval '11 minutes' where state = 'abandoned'"
    )


async def _aftermath(stage: Stage, firing: Firing, chance: random.Random) -> None:
    victim = next(worker for worker in stage.workers if worker.name == firing.worker)
    if firing.action == "stop":
        held = stage.owned_by(victim.name)

        def overtaken() -> bool:
            waited = time.time() - firing.at
            taken = held <= stage.claimed_since(firing.at, victim.name)
            # Over its row locks nobody can claim: then it only has to be longer than the session timeout.
            return waited > SESSION_TIMEOUT + 1 and (taken or waited > 2 * SESSION_TIMEOUT + 2)

        await stage.until(overtaken, "the frozen worker is overtaken")
        await asyncio.sleep(chance.uniform(0, 1.5))  # part of the fault: how long it stays frozen
        os.kill(victim.process.pid, signal.SIGCONT)
    elif firing.action == "kill":
        await stage.until(lambda: victim.process.poll() is not None, "the killed worker is gone")
        await asyncio.sleep(chance.choice((0, 0, 3)))  # part of the fault: when it is replaced
        stage.replace_dead()


async def _recovered(stage: Stage, firing: Firing) -> float:
    """Whoever ends is replaced, until all partitions go on."""
    waiting = asyncio.create_task(stage.recovered(firing.at))
    while not waiting.done():
        stage.replace_dead()
        await asyncio.wait({waiting}, timeout=0.2)
    recovery = await waiting
    # A worker that is on its way out may still be at it: it has to be gone or well before the run goes on.
    stage.replace_dead()
    return recovery
