"""Workers that claim, intend, put, commit, crash and wake up again in any order, against a simple model.

The model is what an operator believes: each partition has one rightful owner, the last who claimed it; only
that owner's commits count; every commit begins where the one before it ended.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from streamproc.errors import Fenced
from streamproc.ledger import Ledger
from streamproc.model import Advance, Claim, Partition, PlannedObject
from tests.ledger.epochs import P0, P1, P2, advance, planned, record, written

T = TypeVar("T")

WORKERS = ("a", "b", "c")
partition_sets = st.sets(st.sampled_from([P0, P1, P2]), min_size=1)


@dataclass
class Model:
    """What should be true."""

    rightful: dict[Partition, tuple[str, int] | None] = field(
        default_factory=dict
    )  # worker, number of its claim
    through: dict[Partition, int] = field(default_factory=dict)
    tally: dict[Partition, int] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    put: set[str] = field(default_factory=set)


@dataclass
class Held:
    """What a worker believes: its claims, right or not, as of one moment."""

    worker: str
    number: int
    claims: dict[Partition, Claim]


@dataclass
class Epoch:
    """An epoch intended under ``held``, not committed yet."""

    held: Held
    id: uuid.UUID
    parts: list[Advance]
    plans: list[PlannedObject]


class Store:
    def __init__(self, model: Model) -> None:
        self.model = model

    async def delete(self, key: str) -> None:
        self.model.put.discard(key)


class LedgerMachine(RuleBasedStateMachine):
    """Rules are run on one event loop, one at a time; interleaving is in their order."""

    held = Bundle("held")
    epochs = Bundle("epochs")

    def __init__(self, loop: asyncio.AbstractEventLoop, ledgers: dict[str, Ledger], stream: str) -> None:
        super().__init__()
        self.loop = loop
        self.ledgers = ledgers
        for ledger in ledgers.values():
            ledger.stream = stream
        self.model = Model()
        self.numbers = itertools.count()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def is_rightful(self, held: Held, partitions: Iterator[Partition] | list[Partition]) -> bool:
        return all(self.model.rightful[partition] == (held.worker, held.number) for partition in partitions)

    @rule(target=held, worker=st.sampled_from(WORKERS), partitions=partition_sets)
    def claim(self, worker: str, partitions: set[Partition]) -> Held:
        number = next(self.numbers)
        claims = self.run(self.ledgers[worker].claim(sorted(partitions, reverse=True)))
        for partition, claim in claims.items():
            assert claim.position == self.model.through.get(partition)
            self.model.rightful[partition] = (worker, number)
        return Held(worker, number, claims)

    @rule(held=held)
    def release(self, held: Held) -> None:
        mine = [partition for partition in held.claims if self.is_rightful(held, [partition])]
        assert self.run(self.ledgers[held.worker].release(list(held.claims.values()))) == len(mine)
        for partition in mine:
            self.model.rightful[partition] = None

    @rule(target=epochs, held=held, length=st.integers(1, 5), some=partition_sets)
    def intend_and_put(self, held: Held, length: int, some: set[Partition]) -> Any:
        wanted = sorted(some & held.claims.keys())
        parts = [
            advance(claim, (-1 if claim.position is None else claim.position) + length)
            for claim in map(held.claims.__getitem__, wanted)
        ]
        plans = [planned(part) for part in parts]
        epoch = Epoch(held, uuid.uuid4(), parts, plans)
        try:
            self.run(self.ledgers[held.worker].intend(epoch.id, plans, held.claims))
        except Fenced:
            assert not self.is_rightful(held, wanted)
            return multiple()
        assert self.is_rightful(held, wanted)
        self.model.put |= {plan.key for plan in plans}
        return epoch if parts else multiple()

    @rule(epoch=consumes(epochs))
    def commit(self, epoch: Epoch) -> None:
        held, partitions = epoch.held, [part.claim.partition for part in epoch.parts]
        stale = any(part.after != self.model.through.get(part.claim.partition) for part in epoch.parts)
        if stale and self.is_rightful(held, partitions):
            return  # the owner itself went on: its pipeline never commits an epoch it has overtaken

        async def tally(conn: Any) -> None:
            for part in epoch.parts:
                await conn.execute(
                    "INSERT INTO tally VALUES (%s, %s, %s)",
                    [self.ledgers[held.worker].stream, part.claim.partition.id, part.counts.records],
                )

        made = record(*epoch.parts, objects=written(*epoch.plans))
        made = type(made)(epoch.id, made.started_at, made.advances, made.objects)
        try:
            done = self.run(self.ledgers[held.worker].commit(made, tally))
        except Fenced:
            assert not self.is_rightful(held, partitions)
            return
        assert self.is_rightful(held, partitions), "a worker that lost its partition wrote to the ledger"
        held.claims |= done.claims
        for part in epoch.parts:
            self.model.through[part.claim.partition] = part.through
            self.model.tally[part.claim.partition] = (
                self.model.tally.get(part.claim.partition, 0) + part.counts.records
            )
        self.model.committed |= {plan.key for plan in epoch.plans}

    @rule(after=st.sampled_from([timedelta(minutes=11), timedelta(hours=2), timedelta(days=2)]))
    def sweep(self, after: timedelta) -> None:
        self.run(self.ledgers["a"].sweep(Store(self.model), now=datetime.now(UTC) + after))

    @invariant()
    def positions_chain_and_nothing_committed_is_lost(self) -> None:
        self.run(self.check())

    async def check(self) -> None:
        ledger, model = self.ledgers["b"], self.model
        status = {row.partition: row for row in await ledger.status()}
        assert {
            partition: row.position for partition, row in status.items() if row.position is not None
        } == model.through
        for partition, row in status.items():
            rightful = model.rightful[partition]
            assert row.owner == (None if rightful is None else rightful[0])
            assert row.counts.records == row.counts.accepted == model.tally.get(partition, 0)
            assert model.tally.get(partition, 0) == model.through.get(partition, -1) + 1
        ends: dict[Partition, int] = {}
        for epoch in reversed(await ledger.epochs(limit=10_000)):
            for part in epoch.ranges:
                assert part.after == ends.get(part.partition), "a gap or an overlap between two epochs"
                ends[part.partition] = part.through
        assert ends == model.through
        assert {one.plan.key async for one in ledger.manifest()} == model.committed
        assert model.committed <= model.put, "a committed object was swept"
        async with ledger.database.connection("look") as conn:
            rows = await conn.execute(
                "SELECT part, sum(n) FROM tally WHERE stream = %s GROUP BY part", [ledger.stream]
            )
            tallies = {Partition("clicks", part): int(n) for part, n in await rows.fetchall()}
        assert tallies == model.tally


@pytest.fixture
def loop_and_ledgers(postgres: str) -> Iterator[tuple[asyncio.AbstractEventLoop, dict[str, Ledger]]]:
    ledgers = {name: Ledger(postgres, "", name, pool_size=1) for name in WORKERS}
    with asyncio.Runner() as runner:

        async def start() -> None:
            for ledger in ledgers.values():
                await ledger.open()
            await ledgers["a"].migrate()
            async with ledgers["a"].database.connection("prepare") as conn:
                await conn.execute("CREATE TABLE tally (stream text, part text, n int)")

        async def stop() -> None:
            for ledger in ledgers.values():
                await ledger.close()

        runner.run(start())
        yield runner.get_loop(), ledgers
        runner.run(stop())


def test_whatever_the_order_positions_chain_and_a_fenced_worker_never_writes(
    loop_and_ledgers: tuple[asyncio.AbstractEventLoop, dict[str, Ledger]],
) -> None:
    loop, ledgers = loop_and_ledgers
    streams = itertools.count()
    run_state_machine_as_test(
        lambda: LedgerMachine(loop, ledgers, f"stream-{next(streams)}"),
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None),
    )
