"""One run: servers, producers, workers under a supervisor, and everything that goes wrong, all from a seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiokafka import TopicPartition

from streamproc.errors import DependencyError, StreamprocError
from streamproc.ledger.positions import NewPosition
from streamproc.model import Partition
from streamproc.pipeline import Limits
from streamproc.sinks.loader import Loader
from tests.simulation import clock, statements_warehouse, stream
from tests.simulation.audit import Audit
from tests.simulation.broker import TOPIC, Broker
from tests.simulation.connection import Line, Network
from tests.simulation.database import SimulatedLedger, hang_up
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.postgres import Server
from tests.simulation.statements_upkeep import STATEMENTS
from tests.simulation.store import Bucket, SimulatedStore
from tests.simulation.worker import Servers, SimulatedWorker, loader_of, merge

#: Simulated seconds: how long things go wrong, and how long the workers may take to catch up afterwards.
TROUBLED = 25.0
RECOVERY = 900.0

#: Seconds an operator takes to notice something.
OPERATOR = 12.0

#: By then every server has noticed which connections are gone.
NOTICED = 70.0

#: One seed in this many has the real transform and fold.
REAL_EVERY = 16


@dataclass
class Slot:
    """Where a worker runs; the supervisor starts another one when it ends."""

    number: int
    worker: SimulatedWorker | None = None
    process: Process | None = None
    ending: asyncio.Event | None = None
    task: asyncio.Task[Any] | None = None


@dataclass
class World:
    """``happened``: how often each fault struck. ``wrong``: what must not be."""

    seed: int
    loop: SimulatedLoop
    happened: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = self.chance = self.loop.chance
        self.real = self.seed % REAL_EVERY == 0
        self.database = Server(self.loop, STATEMENTS | {"merge": merge})
        self.database.copy = statements_warehouse.copy
        statements_warehouse.prepare(self.database, stream.TOPOLOGY.name, dict(stream.TOPOLOGY.columns))
        self.audit = Audit(self.loop.note)
        self.database.rows.audit.append(self.audit.commit)
        compacted = chance.random() < 0.2
        self.broker = Broker(self.loop, chance.randrange(1, 4), compacted=compacted)
        self.bucket = Bucket(self.loop)
        self.servers = Servers(self.database, self.broker, self.bucket)
        most = chance.choice([8, 20, 60])
        self.limits = Limits(
            flush_interval=chance.choice([0.2, 1.0, 3.0]),
            fold_records=chance.choice([4, 10, 30]),
            max_records=most,
            max_bytes=chance.choice([2_000, 1 << 20]),
            drain_deadline=chance.choice([1.0, 8.0]),
        )
        self.slots = [Slot(number) for number in range(chance.choice([1, 2, 2, 3]))]
        self._incarnations = 0
        self._held_back = False  # while an operator is at work
        self._over = False

    @property
    def partitions(self) -> list[TopicPartition]:
        return sorted(self.broker.logs)

    # -- workers -------------------------------------------------------------------------------------

    async def supervise(self, slot: Slot) -> None:
        """Start a worker, and another one when it is gone, as Kubernetes does."""
        await asyncio.sleep(self.chance.choice([0, 0, 1, 5]))
        while not self._over:
            while self._held_back:
                await asyncio.sleep(0.5)
            if self._over:
                return
            self._start(slot)
            assert slot.task is not None and slot.process is not None
            while not slot.task.done() and not slot.process.dead:
                await asyncio.wait({slot.task}, timeout=0.25)
            self._ended(slot)
            await asyncio.sleep(self.chance.uniform(0.1, 2))

    def _start(self, slot: Slot) -> None:
        self._incarnations += 1
        name = f"w{slot.number}.{self._incarnations}"

        async def main() -> None:
            slot.worker = SimulatedWorker(name, self.servers, self.limits, real=self.real)
            slot.ending = asyncio.Event()
            await slot.worker.run(slot.ending)

        slot.worker = slot.ending = None
        slot.process, slot.task = self.loop.start(name, main)

    def _ended(self, slot: Slot) -> None:
        assert slot.task is not None and slot.process is not None
        if slot.worker is not None:
            most, limits = slot.worker.most_held, self.limits
            bound = 2 * (limits.max_records + limits.fold_records + 3 * stream.LARGEST_BATCH)
            if most > bound:
                self.wrong.append(f"{slot.process.name} held {most} records, {bound} are allowed")
            for batch in slot.worker.too_late:
                self.wrong.append(f"{slot.process.name} was given {batch.partition} after its revocation")
            if slot.process.dead:
                hang_up(slot.worker.line)
                hang_up(slot.worker.loading)
        if slot.process.dead or slot.task.cancelled():
            return
        error = slot.task.exception()
        if error is not None:
            self.loop.note(f"{slot.process.name} ended: {error!r}")
            if not isinstance(error, DependencyError):
                self.wrong.append(f"{slot.process.name} ended: {error!r}")

    def alive(self) -> list[Slot]:
        return [
            slot
            for slot in self.slots
            if slot.process is not None
            and slot.worker is not None
            and not slot.process.dead
            and slot.task is not None
            and not slot.task.done()
        ]

    async def stop_all(self, seconds: float) -> None:
        """SIGTERM to all, SIGKILL to those that are still there afterwards."""
        deadline = self.loop.time() + seconds
        for slot in self.slots:
            if slot.ending is not None:
                slot.ending.set()
            if slot.process is not None and slot.process.frozen:
                self.loop.thaw(slot.process)
        while (alive := [s for s in self.slots if s.task and not s.task.done() and not s.process.dead]) and (
            self.loop.time() < deadline
        ):
            await asyncio.sleep(0.5)
        for slot in alive:
            assert slot.process is not None
            self.kill(slot)

    def kill(self, slot: Slot) -> None:
        assert slot.process is not None
        self.loop.kill(slot.process)

    # -- operators -----------------------------------------------------------------------------------

    def ledger(self, name: str) -> SimulatedLedger:
        """An operator's or a test's own, on a line without trouble."""
        return SimulatedLedger(Line(self.database, Network(), name), stream.TOPOLOGY.name, name)

    async def sweep(self, later: timedelta) -> None:
        """The sweep, as if that much time had passed."""
        ledger = self.ledger("sweeper")
        await ledger.open()
        with suppress(DependencyError):  # next time
            await ledger.sweep(SimulatedStore(self.bucket), now=clock.now(self.loop) + later)
        await ledger.close()

    async def load(self) -> None:
        """A loader beside those of the workers."""
        ledger = self.ledger("operator")
        await ledger.open()
        warehouse = loader_of(Line(self.database, self.servers.network, "loader"))
        await warehouse.open()
        with suppress(DependencyError):
            await Loader(ledger, warehouse, SimulatedStore(self.bucket)).run_once()
        await ledger.close()

    async def set_position(self, tp: TopicPartition, position: int | None, *, gap: bool) -> None:
        """``streamproc offsets set``, with the workers stopped, as it demands."""
        self._held_back = True
        await self.stop_all(20.0)
        ledger = self.ledger("operator")
        await ledger.open()
        new = NewPosition(Partition(TOPIC, str(tp.partition)), position, accept_gap=gap, note="simulated")
        try:
            await ledger.set_position(new)
            self.happened["an operator sets a position"] += 1
        except StreamprocError as error:
            self.loop.note(f"operator: {error}")
        await ledger.close()
        self._held_back = False

    def committed(self, tp: TopicPartition) -> int | None:
        row = self.database.rows.table("partitions").get((stream.TOPOLOGY.name, TOPIC, str(tp.partition)))
        return None if row is None else row["position"]

    async def mend_gaps(self) -> None:
        """Look for partitions that retention has overtaken. Nobody but an operator may pass the gap, who takes
        some time to see that a partition has stopped.
        """
        for tp in self.partitions:
            position, first = self.committed(tp), self.broker.logs[tp].first
            if position is None or position + 1 >= first:
                continue
            self.happened["retention overtakes a position"] += 1
            await asyncio.sleep(OPERATOR)
            if position == self.committed(tp):
                await self.set_position(tp, first - 1, gap=True)

    # -- the run -------------------------------------------------------------------------------------

    async def produce(self, tp: TopicPartition) -> None:
        producer = stream.Producer(self.chance, tp.partition)
        pace = self.chance.choice([0.2, 1.0, 3.0])
        aborts = self.chance.choice([0.0, 0.0, 0.15])
        for _ in range(self.chance.randrange(2, 11)):
            await asyncio.sleep(self.chance.uniform(0, pace))
            records = producer.records(self.chance.randrange(1, stream.LARGEST_BATCH + 1))
            now_ms = int((clock.BEGIN + self.loop.time()) * 1000)
            self.broker.append(tp, records, now_ms, abort=self.chance.random() < aborts)

    async def run(self, trouble: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Everything until nothing is under way any more; what is left is for the oracle."""
        producing = [self.loop.spawn(self.produce(tp)) for tp in self.partitions]
        supervisors = [self.loop.spawn(self.supervise(slot)) for slot in self.slots]
        await trouble(self)
        self.mend()
        await asyncio.wait(producing)
        await self.until_caught_up()
        self._over = True
        await self.stop_all(60.0)
        await asyncio.wait(supervisors)
        await asyncio.sleep(max(0.0, self.bucket.last_put - self.loop.time()) + NOTICED)
        for later in (timedelta(hours=2), timedelta(hours=3), timedelta(days=2), timedelta(days=4)):
            await self.sweep(later)
        await self.load()

    def mend(self) -> None:
        """No more trouble."""
        self.servers.network.cuts = self.servers.network.commit_cuts = 0.0
        self.servers.network.slow = self.bucket.trouble.slow = self.broker.slow = 0.005
        self.database.up = True
        self.bucket.trouble.refused = self.bucket.trouble.unanswered = self.bucket.trouble.late = 0.0
        self.bucket.trouble.away = False
        self.broker.trouble = 0.0
        for slot in self.slots:
            if slot.process is not None and slot.process.frozen:
                self.loop.thaw(slot.process)
        self.broker.group.rebalance()

    async def until_caught_up(self) -> None:
        deadline = self.loop.time() + RECOVERY
        while self.loop.time() < deadline:
            await self.mend_gaps()
            if all(self.committed(tp) == (log.end - 1 if log.end else None) or not log.end
                   for tp, log in self.broker.logs.items()):  # fmt: skip
                return
            await asyncio.sleep(1.0)
        lag = {tp.partition: (self.committed(tp), log.end - 1) for tp, log in self.broker.logs.items()}
        self.wrong.append(f"the workers do not catch up: {lag}")


def new_world(seed: int, trace: Callable[[str], None] | None = None) -> World:
    return World(seed, SimulatedLoop(random.Random(seed), trace))
