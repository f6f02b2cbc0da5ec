"""Faults around the workers: the network, the database, the broker, the store, and who comes and goes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.faults.feed import RATE
from tests.faults.proxies import CommitCutter, FaultyHttp
from tests.faults.stage import Firing, NotSettled, Stage

Happen = Callable[[Stage, random.Random], Awaitable[tuple[Firing, float]]]


@dataclass(frozen=True)
class World:
    """A fault outside of the workers.

    ``alone``: it hits the servers of all runs, so it needs its own. ``long``: it takes minutes, and is left
    out unless it is asked for. ``missing``: why it cannot be done on this machine.
    """

    name: str
    happen: Happen
    alone: bool = False
    kafka: bool = False
    long: bool = False
    missing: str | None = None

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        return await self.happen(stage, chance)


async def two_workers(stage: Stage, **environment: str) -> None:
    """Both have partitions and commit."""
    await stage.feed()
    stage.start("one", **environment)
    stage.start("two", **environment)
    await stage.until(lambda: stage.owned_by("one") and stage.owned_by("two"), "both have partitions")
    begin = time.time()
    await stage.until(lambda: stage.all_go_on(begin), "all partitions are committed")


def commit_cuts(count: int) -> Happen:
    """So many COMMITs of epochs are lost, answered into the void, or late; at both workers."""

    async def happen(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        async with CommitCutter.between(stage.site.ledger, chance) as (proxy, url):
            await two_workers(stage, STREAMPROC_LEDGER=url, STREAMPROC_WAREHOUSE=url)
            # The records must last: who fails often waits longer and longer before the next attempt.
            stage.feeder.rate = min(RATE, 12 * RATE / count)
            proxy.cutting = True
            await stage.until(
                lambda: len(proxy.cuts) >= count or stage.feeder.at_end, "COMMITs are cut", 20.0 * count
            )
            proxy.cutting = False
            if len(proxy.cuts) < count:
                raise NotSettled(f"{len(proxy.cuts)} COMMITs were cut when the feed was at its end")
            last, how = proxy.cuts[-1]
            recovery = await stage.recovered(last)
            await stage.drain()  # the workers end before the proxy does
            return Firing("COMMIT", how, "", last, 1, len(proxy.cuts)), recovery

    return happen


async def postgres_crash(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """PostgreSQL is shut down the hard way, three times, and away for up to three seconds."""
    await two_workers(stage)
    for _ in range(3):
        at = time.time()
        await stage.crash_postgres(chance.uniform(0, 3))
        recovery = await went_on(stage, at)
    return Firing("PostgreSQL", "crash", "", at, 0, 3), recovery


async def broker_restart(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """The only Kafka broker is restarted, orderly or killed."""
    await two_workers(stage)
    at = time.time()
    await stage.restart_broker(kill=chance.random() < 0.5)
    return Firing("broker", "restart", "", at, 0), await went_on(stage, at)


async def went_on(stage: Stage, at: float) -> float:
    """As :meth:`Stage.recovered`, replacing workers that ended meanwhile."""
    waiting = asyncio.create_task(stage.recovered(at, 120))
    while not waiting.done():
        stage.replace_dead()
        await asyncio.wait({waiting}, timeout=0.2)
    return await waiting


def store_fault(setting: str, value: float, seconds: float) -> Happen:
    """The store misbehaves for some seconds; what recovers is counted from the end of that."""

    async def happen(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        async with AsyncExitStack() as stack:
            proxy, url = await stack.enter_async_context(FaultyHttp.before(stage.use_s3(), chance))
            await two_workers(stage, STREAMPROC_S3_ENDPOINT_URL=url, AWS_ENDPOINT_URL=url)
            at = time.time()
            before = proxy.hits
            memory = _memory(stage)
            setattr(proxy, setting, value)
            await asyncio.sleep(seconds)  # the fault itself: how long it lasts
            await stage.until(lambda: proxy.hits > before, "the store is asked for something")
            setattr(proxy, setting, type(value)(0))
            grown = _memory(stage) - memory
            if grown > 150e6:
                raise NotSettled(f"the workers grew by {grown / 1e6:.0f} MB while the store misbehaved")
            recovery = await went_on(stage, time.time())
            await stage.drain()
            return Firing("store", setting, "", at, 0, proxy.hits - before), recovery

    return happen


def _memory(stage: Stage) -> int:
    """Resident bytes of the largest worker."""
    pages = [int(Path(f"/proc/{w.process.pid}/statm").read_text().split()[1]) for w in stage.running]
    return max(pages) * os.sysconf("SC_PAGE_SIZE")


async def disk_full(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """The lake's disk fills up under the workers and is enlarged some seconds later."""
    stage.mount_lake("64m")
    await two_workers(stage)
    at = time.time()
    filler = stage.site.lake / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                break
    await asyncio.sleep(chance.uniform(3, 8))  # the fault itself
    if b"No space left" not in b"".join(worker.log.read_bytes() for worker in stage.workers):
        raise NotSettled("no worker met the full disk")
    freed = time.time()
    filler.unlink()
    return Firing("disk", "full", "", at, 0), await went_on(stage, freed)


def join_and_leave(seconds: float) -> Happen:
    """Workers come, go and are killed every one to three seconds."""

    async def happen(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        await two_workers(stage)
        at = time.time()
        changes = 0
        while time.time() < at + seconds:
            running = stage.running
            if len(running) < 2 or (len(running) < 4 and chance.random() < 0.5):
                stage.start(f"w{changes}")
            else:
                leaving = chance.choice(running)
                leaving.process.send_signal(chance.choice((signal.SIGTERM, signal.SIGKILL)))
            changes += 1
            await asyncio.sleep(chance.uniform(1, 3))  # the fault itself: how soon the next comes or goes
        stage.forget_dead()
        while len(stage.running) < 2:
            stage.start(f"last{len(stage.workers)}")
        last = time.time()
        recovery = await went_on(stage, last)
        return Firing("group", "join and leave", "", at, 0, changes), recovery

    return happen


async def burst(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """Ten times the records, for five seconds."""
    await two_workers(stage)
    at = time.time()
    stage.feeder.rate *= 10
    await asyncio.sleep(5)  # the fault itself
    stage.feeder.rate /= 10
    return Firing("feed", "burst", "", at, 1), await went_on(stage, time.time())


def lacks(capability: int, *commands: str) -> str | None:
    """What this process lacks: a capability of Linux, or commands."""
    status = Path("/proc/self/status")
    if not status.exists():
        return "needs Linux"
    line = next(line for line in status.read_text().splitlines() if line.startswith("CapEff"))
    if not int(line.split()[1], 16) >> capability & 1:
        return "needs root"
    absent = [command for command in commands if shutil.which(command) is None]
    return f"needs {', '.join(absent)}" if absent else None


CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21

WORLD = [
    World("connection cut during COMMIT, 12 times", commit_cuts(12)),
    World("connection cut during COMMIT, 200 times", commit_cuts(200), long=True),
    World("PostgreSQL crashes 3 times", postgres_crash, alone=True),
    World("Kafka broker restarts", broker_restart, alone=True, kafka=True),
    World("S3 answers 30% with 503", store_fault("refuse", 0.3, 10)),
    World("S3 resets a third of the PUTs", store_fault("cut", 0.33, 10)),
    World("S3 takes up to 3 s an answer", store_fault("delay", 3.0, 10)),
    World("S3 takes no PUT for half a minute", store_fault("hold", True, 30)),
    World("S3 takes no PUT for three minutes", store_fault("hold", True, 180), long=True),
    World("workers join and leave for half a minute", join_and_leave(30)),
    World("workers join and leave for three minutes", join_and_leave(180), long=True),
    World("ten times the records for 5 s", burst),
    World("the lake's disk is full", disk_full, missing=lacks(CAP_SYS_ADMIN, "mount", "umount")),
]
