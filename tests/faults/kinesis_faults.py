"""What goes wrong on Kinesis: what does on Kafka, and shards that split and merge, and leases that vanish."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from streamproc.sources.kinesis_client import connected
from streamproc.sources.kinesis_connection import KinesisConnection
from tests.faults.crashes import CRASHES, Crash
from tests.faults.kinesis import LEASE_TIMEOUT, REGION, KinesisStage
from tests.faults.runner import Fault
from tests.faults.stage import Firing, Stage
from tests.faults.world import World, commit_cuts, join_and_leave, postgres_crash, went_on


class Resharding(Crash):
    """Two shards become four, then three, under load; on the way a worker is killed, or frozen."""

    @property
    def name(self) -> str:
        return (
            f"2 shards become 4 and then 3, and a worker is {'killed' if self.action == 'kill' else 'frozen'}"
        )

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        await stage.feed()
        return await self.again(stage, chance)

    async def again(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        assert isinstance(stage, KinesisStage)
        await _two_commit(stage)
        async with connected(KinesisConnection(REGION, stage.site.broker)) as client:
            await stage.merge(client, chance.randrange(2))
            await stage.split_all(client)
            assert len(await stage.open_shards(client)) == 4
            await asyncio.sleep(chance.uniform(0, 3))  # part of the fault: where in the four they are
            victim = chance.choice(stage.running)
            await stage.until_in_flight()
            at = time.time()
            if self.action == "kill":
                victim.kill()
                stage.replace_dead()
            else:
                os.kill(victim.process.pid, signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0, 2))  # part of the fault: what was begun of them
            await stage.merge(client, chance.randrange(3))
            if self.action != "kill":
                # Others have its shards by then; part of the fault.
                await asyncio.sleep(LEASE_TIMEOUT + chance.uniform(1, 3))
                os.kill(victim.process.pid, signal.SIGCONT)
            end = time.time()
            left = {shard.info.id for shard in await stage.open_shards(client)}
            assert len(left) == 3
            await stage.until(
                lambda: stage.unfinished() == left, "all others are committed to their ends", 120
            )
        await went_on(stage, end)
        return Firing("reshard", self.action, victim.name, at, 0), time.time() - end


class LeaseTheft(Crash):
    """Leases go from their holders to the others at once, six times, as if clocks or networks had gone mad.

    For some seconds two workers read what is, or was, theirs.
    """

    @property
    def name(self) -> str:
        return "leases are stolen 6 times"

    async def run(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        await stage.feed()
        return await self.again(stage, chance)

    async def again(self, stage: Stage, chance: random.Random) -> tuple[Firing, float]:
        await _two_commit(stage)
        await stage.until_in_flight()
        at, stolen = time.time(), 0
        for _ in range(6):
            stolen += stage.db.execute(
                "update streamproc.shards as s set lease = lease + 1, wanted_by = null, holder = thief.worker,"
                " expires_at = clock_timestamp() + make_interval(secs => %s)"
                " from (select stream, worker from streamproc.members"
                "       where seen_at > clock_timestamp() - interval '5 s' order by random()) as thief"
                " where thief.stream = s.stream and thief.worker <> s.holder",
                [LEASE_TIMEOUT],
            ).rowcount
            await asyncio.sleep(chance.uniform(0.3, 3.0))  # part of the fault: what comes between two
        assert stolen
        end = time.time()
        return Firing("lease", "theft", "", at, 0, stolen), await went_on(stage, end)


async def _two_commit(stage: Stage) -> None:
    while len(stage.running) < 2:
        stage.start(stage.fresh("w"))
    begin = time.time()
    await stage.until(
        lambda: all(stage.owned_by(worker.name) for worker in stage.running) and stage.all_go_on(begin),
        "both have shards and commit",
    )


#: ``tell`` copies positions to Kafka.
_CRASHES = [crash for crash in CRASHES if crash.point != "tell"]

FAULTS: list[Fault] = [
    Resharding("anywhere", "kill"),
    Resharding("anywhere", "stop"),
    LeaseTheft("anywhere", "theft"),
    World("connection cut during COMMIT, 12 times", commit_cuts(12)),
    World("workers join and leave for half a minute", join_and_leave(30)),
    World("PostgreSQL crashes 3 times", postgres_crash, alone=True),
    *_CRASHES,
]
