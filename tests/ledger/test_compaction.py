"""Any order of commits, compactions, claims and rivals leaves ranges that chain and every row listed once."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.errors import LedgerError
from streamproc.ledger import Ledger, compaction
from streamproc.ledger.compaction import Moved, Source
from streamproc.ledger.replay_spans import Span, forgotten, narrowed, widened
from streamproc.ledger.replays import Replays
from streamproc.model import Claim, Partition, PlannedObject
from tests.ledger.epochs import P0, P1, advance, nothing, planned, record, written

pytestmark = pytest.mark.slow

_STEPS = st.one_of(
    st.tuples(st.just("commit"), st.integers(0, 1), st.integers(0, 3)),
    st.tuples(st.sampled_from(["compact", "rival", "claimed", "dies"]), st.integers(0, 1), st.integers(0, 5)),
)


class Stand:
    """One stream; ``expected``: rows by partition, as they were committed."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.claims: dict[Partition, Claim] = {}
        self.expected = {P0: 0, P1: 0}

    async def step(self, what: str, number: int, size: int) -> None:
        partition = (P0, P1)[number]
        if what == "commit":
            await self._commit(partition, size)
        else:
            await self._compact(what, partition, size)
        await self._check()

    async def _commit(self, partition: Partition, objects: int) -> None:
        """``objects`` of five rows each; none at all is a commit of filtered records only."""
        claim = self.claims[partition]
        part = advance(claim, (-1 if claim.position is None else claim.position) + 5 * max(objects, 1))
        counts = part.counts
        if not objects:
            counts.filtered, counts.accepted = counts.accepted, 0
        epoch = record(part, objects=written(*(planned(part, rows=5) for _ in range(objects))))
        await self.ledger.intend(epoch.id, [each.plan for each in epoch.objects], self.claims)
        done = await self.ledger.commit(epoch, nothing)
        self.claims |= done.claims
        self.expected[partition] += 5 * objects

    async def _compact(self, what: str, partition: Partition, skip: int) -> None:
        """A run of the partition's commits, without the first ``skip``."""
        stream, database = self.ledger.stream, self.ledger.database
        listed = [
            each async for each in compaction.commits(database, stream, 0, 0) if each.partition == partition
        ]
        run = listed[skip:]
        if not run:
            return
        found = await compaction.sources(database, stream, partition, run[0].after, run[-1].through)
        plan = merged(found)
        async with database.transaction("intend") as conn:
            await compaction.intend(conn, stream, [plan], found[0])
        if what == "dies":
            return
        if what == "claimed":
            self.claims |= await self.ledger.claim([partition])
        if what == "rival":
            other = merged(found)
            async with database.transaction("intend") as conn:
                await compaction.intend(conn, stream, [other], found[0])
            await self._replace(found, other)
        if what in {"claimed", "rival"}:
            with pytest.raises(Moved):
                await self._replace(found, plan)
        else:
            await self._replace(found, plan)

    async def _replace(self, found: Sequence[Source], plan: PlannedObject) -> None:
        async with self.ledger.database.transaction("replace") as conn:
            await compaction.replace(conn, self.ledger.stream, found, written(plan))

    async def _check(self) -> None:
        listed = [each.plan async for each in self.ledger.manifest()]
        for partition, rows in self.expected.items():
            mine = [plan for plan in listed if plan.partition == partition]
            assert sum(plan.rows for plan in mine) == rows
            ranges = sorted({(-1 if plan.after is None else plan.after, plan.through) for plan in mine})
            assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))


def merged(found: Sequence[Source]) -> PlannedObject:
    plans = [each.committed.plan for each in found]
    return replace(
        plans[0],
        key=f"merged/{uuid.uuid4().hex}.parquet",
        through=plans[-1].through,
        rows=sum(plan.rows for plan in plans),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEPS, min_size=3, max_size=14))
def test_any_order_leaves_every_row_in_one_listed_object_and_ranges_that_do_not_overlap(
    postgres: str, steps: list[tuple[str, int, int]]
) -> None:
    async def run() -> None:
        async with Ledger(postgres, f"clicks_{uuid.uuid4().hex[:12]}", "w1") as ledger:
            await ledger.migrate()
            stand = Stand(ledger)
            stand.claims = await ledger.claim([P0, P1])
            for step in steps:
                await stand.step(*step)

    asyncio.run(run())


async def test_an_object_that_reaches_into_the_run_keeps_it_from_being_merged(ledger: Ledger) -> None:
    stand = Stand(ledger)
    stand.claims = await ledger.claim([P0, P1])
    for _ in range(3):
        await stand.step("commit", 0, 1)
    listed = [each async for each in compaction.commits(ledger.database, "clicks", 0, 0)]
    found = await compaction.sources(ledger.database, "clicks", P0, None, listed[-1].through)
    plan = merged([found[0], found[2]])
    async with ledger.database.transaction("intend") as conn:
        await compaction.intend(conn, "clicks", [plan], found[0])
    with pytest.raises(Moved, match="other objects reach into"):
        await stand._replace([found[0], found[2]], plan)
    await stand._check()


async def test_a_replay_takes_merged_objects_as_a_whole(ledger: Ledger) -> None:
    stand = Stand(ledger)
    stand.claims = await ledger.claim([P0, P1])
    for _ in range(4):
        await stand.step("commit", 0, 1)
    await stand.step("compact", 0, 1)  # (4, 19] of (-1, 19]
    inside = {P0: Span(9, 14)}
    assert await widened(ledger.database, "clicks", inside) == {P0: Span(4, 19)}
    assert await narrowed(ledger.database, "clicks", {P0: Span(9, 24)}) == {P0: Span(19, 24)}
    assert await forgotten(ledger.database, "clicks", {P0: Span(4, 19)}) == 0
    replays = Replays(ledger.database, "clicks")
    with pytest.raises(LedgerError, match="compacted just now"):
        await replays.create("cut", "f", "asked", "me", inside)
    assert await replays.all() == []
    await replays.create("whole", "f", "asked", "me", {P0: Span(4, 19)})
    with pytest.raises(Moved, match="replay whole has begun"):
        await stand.step("compact", 0, 0)
