"""Workers that claim, intend, put, commit, crash and wake up again in any order, against a simple model.

The model is what an operator believes: each partition has one rightful owner, the last who claimed it; only
that owner's commits count; every commit begins where the one before it ended; what is committed is loaded
once and never swept. It is plain dictionaries and shares nothing with the ledger.

The machine runs on a :class:`Stand`: PostgreSQL itself, or the simulated one, which must not be told apart.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from streamproc.errors import DependencyError, Fenced, Inconsistent
from streamproc.ledger import Ledger
from streamproc.model import Advance, Claim, EpochRecord, Partition, PlannedObject, WrittenObject
from streamproc.sinks.loader import Loader, LoadLimits
from streamproc.sinks.warehouse import Warehouse
from tests.ledger.epochs import P0, P1, P2, advance, planned, record
from tests.ledger.shelf import Shelf, encode

T = TypeVar("T")
Row = tuple[str, int]

WORKERS = ("a", "b", "c")
workers = st.sampled_from(WORKERS)
partition_sets = st.sets(st.sampled_from([P0, P1, P2]), min_size=1)
lengths = st.integers(1, 4)
steps = st.integers(0, 200)


class Fate(enum.Enum):
    """What happens while an epoch is being committed."""

    ANSWERED = "nothing"
    LOST = "the connection breaks before COMMIT arrives"
    ANSWER_LOST = "the connection breaks after COMMIT was executed"
    DELIVERED = "the connection breaks, others claim, and only then COMMIT arrives"
    DROPPED = "the connection breaks, others claim, and COMMIT never arrives"
    RACED = "somebody claims at the same moment"
    CANCELLED = "the worker is cancelled somewhere on the way"


fates = st.sampled_from(Fate)


class Stand(Protocol):
    """The servers under the machine, and the ways in which they fail."""

    ledgers: dict[str, Ledger]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end."""

    def now(self) -> datetime:
        """The database's clock."""

    def break_commit(self, worker: str, fate: Fate) -> None:
        """Let the worker's next COMMIT meet this fate."""

    async def broken(self, worker: str) -> None:
        """Return when that has happened."""

    async def decide(self, worker: str, *, arrives: bool) -> None:
        """Let the COMMIT that is under way arrive, or get lost."""

    async def tally(self, conn: Any, stream: str, partition: str, records: int) -> None:
        """Inside the epoch's transaction: add to a table."""

    async def tallies(self, stream: str) -> dict[str, int]:
        """That table: sums by partition."""

    async def warehouse(self, stream: str) -> Warehouse:
        """A stream's warehouse, ready."""

    def break_load(self) -> None:
        """Lose the answer to the next load's COMMIT, or the COMMIT."""

    def mend_load(self) -> None:
        """Forget about it, if there was nothing to load."""

    async def loaded(self, stream: str) -> list[Row]:
        """Rows in the warehouse: partition, position."""


@dataclass
class Model:
    """What should be true. ``rightful``: worker and number of its claim."""

    rightful: dict[Partition, tuple[str, int] | None] = field(default_factory=dict)
    through: dict[Partition, int] = field(default_factory=dict)
    tally: dict[str, int] = field(default_factory=dict)
    committed: dict[str, list[Row]] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)


@dataclass
class Held:
    """What a worker believes: its claims, right or not, as of one moment."""

    worker: str
    number: int
    claims: dict[Partition, Claim]


@dataclass
class Epoch:
    """An epoch intended under claim ``number`` of ``held``."""

    held: Held
    number: int
    record: EpochRecord
    rows: dict[str, list[Row]]
    claims: dict[Partition, Claim]

    @property
    def partitions(self) -> list[Partition]:
        return [part.claim.partition for part in self.record.advances]

    @property
    def plans(self) -> list[PlannedObject]:
        return [done.plan for done in self.record.objects]


class LedgerMachine(RuleBasedStateMachine):
    """Rules follow each other on one event loop; some do two things at once.

    Who wins such a race is the server's affair, and not the same when Hypothesis plays a run again. What it may draw
    must not depend on that: each rule adds one thing to its bundle whatever comes of it, and preconditions look at
    what there is before the first race.
    """

    held = Bundle("held")
    epochs = Bundle("epochs")

    def __init__(self, stand: Stand, stream: str) -> None:
        super().__init__()
        self.stand = stand
        self.stream = stream
        for ledger in stand.ledgers.values():
            ledger.stream = stream
        self.shelf = Shelf()
        self.model = Model()
        self.numbers = itertools.count()
        self.all_epochs: list[Epoch] = []
        self.all_held: list[Held] = []
        self.later = timedelta()
        self.warehouse = self.run(stand.warehouse(stream))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.stand.run(work)

    def is_rightful(self, worker: str, number: int, partitions: Iterable[Partition]) -> bool:
        return all(self.model.rightful[partition] == (worker, number) for partition in partitions)

    # -- claims --------------------------------------------------------------------------------------

    @initialize(target=held)
    def begin(self) -> Held:
        return self.claim("a", {P0, P1, P2})

    @rule(target=held, worker=workers, partitions=partition_sets)
    def claim(self, worker: str, partitions: set[Partition]) -> Held:
        return self.claimed(
            worker, self.run(self.stand.ledgers[worker].claim(sorted(partitions, reverse=True)))
        )

    def claimed(self, worker: str, claims: dict[Partition, Claim]) -> Held:
        number = next(self.numbers)
        for partition, claim in claims.items():
            assert claim.position == self.model.through.get(partition)
            self.model.rightful[partition] = (worker, number)
        self.all_held.append(Held(worker, number, dict(claims)))
        return self.all_held[-1]

    @rule(held=held)
    def release(self, held: Held) -> None:
        mine = [
            partition for partition in held.claims if self.is_rightful(held.worker, held.number, [partition])
        ]
        assert self.run(self.stand.ledgers[held.worker].release(list(held.claims.values()))) == len(mine)
        for partition in mine:
            self.model.rightful[partition] = None

    # -- epochs --------------------------------------------------------------------------------------

    @rule(target=epochs, held=held, length=lengths, bad=st.integers(0, 2), some=partition_sets)
    def intend(self, held: Held, length: int, bad: int, some: set[Partition]) -> Any:
        epoch = self.intended(held, length, bad, some)
        if epoch is None and self.all_epochs:
            return self.all_epochs[-1]  # one more, as if there were a new one: see above
        return multiple() if epoch is None else epoch

    def intended(self, held: Held, length: int, bad: int, some: set[Partition]) -> Epoch | None:
        wanted = sorted(some & held.claims.keys())
        if not wanted:
            return None
        rows: dict[str, list[Row]] = {}
        parts, plans = [], []
        for claim in map(held.claims.__getitem__, wanted):
            first = (-1 if claim.position is None else claim.position) + 1
            rejected = min(bad, length)
            part = advance(
                claim, first + length - 1, records=length, accepted=length - rejected, rejected=rejected
            )
            parts.append(part)
            plans += self.planned(part, first, rows)
        objects = tuple(
            WrittenObject(plan, len(body := encode(rows[plan.key])), hashlib.sha256(body).hexdigest())
            for plan in plans
        )
        epoch = Epoch(held, held.number, record(*parts, objects=objects), rows, dict(held.claims))
        rightful = self.is_rightful(held.worker, held.number, {plan.partition for plan in plans})
        try:
            self.run(self.stand.ledgers[held.worker].intend(epoch.record.id, plans, held.claims))
        except Fenced:
            assert not rightful
            return None
        assert rightful, "a worker that lost its partition noted an intent"
        self.all_epochs.append(epoch)
        return epoch

    def planned(self, part: Advance, first: int, rows: dict[str, list[Row]]) -> list[PlannedObject]:
        """Two objects for the accepted rows when there are several, one for the rejected."""
        partition, counts = part.claim.partition, part.counts
        accepted = [(partition.id, first + index) for index in range(counts.accepted)]
        rejected = [(partition.id, first + counts.accepted + index) for index in range(counts.rejected)]
        cuts = [("events", accepted[:1]), ("events", accepted[1:]), ("rejects", rejected)]
        plans = [(planned(part, kind, len(cut)), cut) for kind, cut in cuts if cut]
        rows.update({plan.key: cut for plan, cut in plans})
        return [plan for plan, _ in plans]

    @rule(epoch=epochs, count=st.integers(0, 3))
    def try_again(self, epoch: Epoch, count: int) -> None:
        """Some puts arrive, in time or long after. An answer was lost and the worker intends once more."""
        self.put(epoch, count)
        rightful, current = self.standing(epoch)
        again = self.stand.ledgers[epoch.held.worker].intend(epoch.record.id, epoch.plans, epoch.claims)
        try:
            self.run(again)
        except Fenced:
            assert not rightful
        except Inconsistent:
            assert rightful and not current, "its objects are committed, or given up, and nothing else"
        else:
            assert rightful

    def standing(self, epoch: Epoch) -> tuple[bool, bool]:
        """Whether its worker may commit it, and whether it begins where the partitions stand."""
        return self.is_rightful(epoch.held.worker, epoch.number, epoch.partitions), all(
            part.after == self.model.through.get(part.claim.partition) for part in epoch.record.advances
        )

    def put(self, epoch: Epoch, count: int | None = None) -> None:
        for plan in epoch.plans[:count]:
            self.shelf.fill(plan.key, epoch.rows[plan.key])

    @rule(target=held, epoch=epochs, fate=fates, rival=workers, others=partition_sets, steps=steps)
    def commit(self, epoch: Epoch, fate: Fate, rival: str, others: set[Partition], steps: int) -> Held:
        """``rival`` claims ``others`` meanwhile, or afterwards, where the fate has room for it."""
        return self.committed(epoch, fate, rival, others, steps)

    @rule(
        target=held,
        runs=st.lists(lengths, min_size=1, max_size=2),
        fate=fates,
        others=partition_sets,
        steps=steps,
    )
    def work(self, runs: list[int], fate: Fate, others: set[Partition], steps: int) -> Held:
        """The last who claimed does what a worker does: epoch after epoch; something breaks in the last."""
        mine = [held for held in self.all_held if self.is_rightful(held.worker, held.number, held.claims)]
        for number, length in enumerate(runs, 1):
            if (
                not mine
                or (epoch := self.intended(mine[-1], length, length // 3, set(mine[-1].claims))) is None
            ):
                return self.all_held[-1]
            last = number == len(runs)
            claimed = self.committed(epoch, fate if last else Fate.ANSWERED, mine[-1].worker, others, steps)
        return claimed

    def committed(self, epoch: Epoch, fate: Fate, rival: str, others: set[Partition], steps: int) -> Held:
        """Commit, if the model allows it. Returns what the rival holds then, or what the worker goes on with."""
        self.put(epoch)
        rightful, current = self.standing(epoch)
        if not (rightful and current):
            self.refused(epoch, Inconsistent if rightful else Fenced)
            return epoch.held
        match fate:
            case Fate.ANSWERED | Fate.ANSWER_LOST | Fate.LOST:
                self.run(self.commit_alone(epoch, fate))
                return epoch.held
            case Fate.RACED:
                return self.run(self.commit_raced(epoch, rival, others))
            case Fate.CANCELLED:
                return self.run(self.commit_cancelled(epoch, rival, steps))
            case Fate.DELIVERED | Fate.DROPPED:
                return self.run(self.commit_under_way(epoch, fate, rival, others))

    def refused(self, epoch: Epoch, error: type[Exception]) -> None:
        try:
            self.run(self.committing(epoch))
        except error:
            return
        raise AssertionError("a worker that lost its partition, or its place in it, wrote to the ledger")

    async def committing(self, epoch: Epoch) -> dict[Partition, Claim]:
        async def tally(conn: Any) -> str:
            for part in epoch.record.advances:
                await self.stand.tally(conn, self.stream, part.claim.partition.id, part.counts.records)
            return "tallied"

        # A worker may try again after DependencyError: the transaction had not come to its COMMIT.
        done = await self.stand.ledgers[epoch.held.worker].commit(epoch.record, tally)
        assert done.result == "tallied"
        assert {p: claim.position for p, claim in done.claims.items()} == {
            part.claim.partition: part.through for part in epoch.record.advances
        }
        return dict(done.claims)

    async def commit_alone(self, epoch: Epoch, fate: Fate) -> None:
        worker = epoch.held.worker
        if fate is not Fate.ANSWERED:
            self.stand.break_commit(worker, fate)
        try:
            claims = await self.committing(epoch)
        except Fenced:
            assert fate is Fate.LOST
            self.reclaimed(worker, epoch.partitions)
            return
        assert fate is not Fate.LOST
        self.happened(epoch)
        self.goes_on(epoch, claims, epoch.partitions, claimed_again=fate is Fate.ANSWER_LOST)

    async def commit_raced(self, epoch: Epoch, rival: str, others: set[Partition]) -> Held:
        claiming = self.stand.ledgers[rival].claim(others)
        results: list[Any] = list(
            await asyncio.gather(self.committing(epoch), claiming, return_exceptions=True)
        )
        committed, claims = results
        assert not isinstance(claims, BaseException), claims
        if isinstance(committed, BaseException):
            assert isinstance(committed, Fenced), committed
            assert others & set(epoch.partitions)
        else:
            self.happened(epoch)
            self.goes_on(epoch, committed, set(epoch.partitions) - others, claimed_again=False)
        return self.claimed(rival, claims)

    async def commit_cancelled(self, epoch: Epoch, rival: str, steps: int) -> Held:
        task = asyncio.ensure_future(self.committing(epoch))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        claims = await self.stand.ledgers[rival].claim(epoch.partitions)
        happened = {claims[part.claim.partition].position == part.through for part in epoch.record.advances}
        assert len(happened) == 1, "an epoch was committed by halves"
        if happened == {True}:
            self.happened(epoch)
        else:
            assert task.cancelled()
        return self.claimed(rival, claims)

    async def commit_under_way(self, epoch: Epoch, fate: Fate, rival: str, others: set[Partition]) -> Held:
        worker = epoch.held.worker
        self.stand.break_commit(worker, fate)
        task = asyncio.ensure_future(self.committing(epoch))
        await self.stand.broken(worker)
        claiming = asyncio.ensure_future(self.stand.ledgers[rival].claim(others))
        await asyncio.sleep(0)
        await self.stand.decide(worker, arrives=fate is Fate.DELIVERED)
        await asyncio.wait({task, claiming})
        mine = set(epoch.partitions) - others
        if fate is Fate.DELIVERED:
            claims = task.result()
            self.happened(epoch)
            self.goes_on(epoch, claims, mine, claimed_again=True)
        else:
            assert isinstance(task.exception(), Fenced)
            self.reclaimed(worker, mine)
        return self.claimed(rival, claiming.result())

    def happened(self, epoch: Epoch) -> None:
        for part in epoch.record.advances:
            partition = part.claim.partition
            self.model.through[partition] = part.through
            self.model.tally[partition.id] = self.model.tally.get(partition.id, 0) + part.counts.records
        for plan in epoch.plans:
            assert plan.key not in self.shelf.deletions, "an object was deleted and committed afterwards"
            self.model.committed[plan.key] = epoch.rows[plan.key]

    def reclaimed(self, worker: str, partitions: Iterable[Partition]) -> None:
        """The ledger claimed again to find out what happened, and nobody has that claim."""
        number = next(self.numbers)
        for partition in partitions:
            self.model.rightful[partition] = (worker, number)

    def goes_on(
        self, epoch: Epoch, claims: dict[Partition, Claim], mine: Iterable[Partition], *, claimed_again: bool
    ) -> None:
        """The worker goes on with the claims that the commit returned; what it held in common they replace."""
        held = epoch.held
        held.claims |= claims
        if claimed_again:
            before, held.number = held.number, next(self.numbers)
            for partition, owner in self.model.rightful.items():
                if partition not in claims and owner == (held.worker, before):
                    self.model.rightful[partition] = (held.worker, held.number)
            for partition in mine:
                self.model.rightful[partition] = (held.worker, held.number)
            for (
                other
            ) in self.all_epochs:  # those of partitions that were not claimed again are as good as before
                if (
                    other.held is held
                    and other.number == before
                    and not set(other.partitions) & claims.keys()
                ):
                    other.number = held.number

    # -- upkeep --------------------------------------------------------------------------------------

    @precondition(lambda self: self.all_epochs)
    @rule(after=st.sampled_from([timedelta(minutes=11), timedelta(hours=2), timedelta(days=2)]))
    def sweep(self, after: timedelta) -> None:
        self.later += after
        self.run(self.stand.ledgers["a"].sweep(self.shelf, now=self.stand.now() + self.later))

    @precondition(lambda self: self.all_epochs)
    @rule(how=st.sampled_from(["alone", "two at once", "store fails", "connection breaks"]))
    def load(self, how: str) -> None:
        self.run(self.loading(how))
        self.run(self.load_once())  # whoever comes next finishes the work
        self.model.loaded = {key for key in self.model.committed if key.startswith("events")}

    async def loading(self, how: str) -> None:
        both: list[Awaitable[int]] = [self.load_once()]
        if how == "two at once":
            both.append(self.load_once())
        elif how == "store fails":
            self.shelf.fail_after(1)
        elif how == "connection breaks":
            self.stand.break_load()
        for result in await asyncio.gather(*both, return_exceptions=True):
            if isinstance(result, BaseException):
                assert isinstance(result, DependencyError), result
        self.shelf.fail_after(None)
        self.stand.mend_load()

    async def load_once(self) -> int:
        loader = Loader(self.stand.ledgers["c"], self.warehouse, self.shelf, LoadLimits(objects=2))
        return (await loader.run_once()).objects

    # -- what must hold ------------------------------------------------------------------------------

    @invariant()
    def positions_chain_and_nothing_committed_is_lost(self) -> None:
        self.run(self.check())

    async def check(self) -> None:
        ledger, model = self.stand.ledgers["b"], self.model
        status = {row.partition: row for row in await ledger.status()}
        positions = {p: row.position for p, row in status.items() if row.position is not None}
        assert positions == model.through
        for partition, row in status.items():
            rightful = model.rightful[partition]
            assert row.owner == (None if rightful is None else rightful[0])
            assert (
                row.counts.records == model.tally.get(partition.id, 0) == model.through.get(partition, -1) + 1
            )
        ends: dict[Partition, int] = {}
        for epoch in reversed(await ledger.epochs(limit=10_000)):
            for part in epoch.ranges:
                assert part.after == ends.get(part.partition), "a gap or an overlap between two epochs"
                ends[part.partition] = part.through
        assert ends == model.through
        listed = [one.plan.key for kind in ("events", "rejects") async for one in ledger.manifest(kind)]
        paged = [
            one.plan.key
            for kind in ("events", "rejects")
            async for page in ledger.committed(kind)
            for one in page
        ]
        assert Counter(listed) == Counter(paged) == Counter(model.committed.keys()), "each is listed once"
        assert model.committed.keys() <= self.shelf.bodies.keys(), "a committed object was swept"
        assert await self.stand.tallies(self.stream) == model.tally
        rows = [row for key in model.loaded for row in model.committed[key]]
        assert Counter(await self.stand.loaded(self.stream)) == Counter(rows)

    def teardown(self) -> None:
        """All workers are gone, their last puts arrive, the sweep passes twice: only the lake is left."""
        self.claim("a", {P0, P1, P2})
        self.sweep(timedelta(minutes=11))
        for epoch in self.all_epochs:
            self.put(epoch)
        self.sweep(timedelta(days=2))
        assert self.shelf.bodies.keys() - self.shelf.hopeless == self.model.committed.keys()
        self.run(self.warehouse.close())
