from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger, SweepTimes, promotion
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replays
from tests.ledger.epochs import P0, P1, advance, nothing, planned, record, written

LATER = timedelta(seconds=60)  # covers what a test takes


class Store:
    """Notes what is deleted; ``broken`` keys cannot be."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.broken: set[str] = set()

    async def delete(self, key: str) -> None:
        if key in self.broken:
            raise DependencyError("store", "refuses")
        self.deleted.append(key)


async def abandoned(ledger: Ledger, count: int = 1) -> list[str]:
    claims = await ledger.claim([P0])
    part = advance(claims[P0], 9)
    plans = [planned(part) for _ in range(count)]
    await ledger.intend(uuid.uuid4(), plans, claims)
    await ledger.claim([P0])
    return [plan.key for plan in plans]


async def test_an_abandoned_object_is_deleted_after_ten_minutes_and_again_after_a_day(ledger: Ledger) -> None:
    [key] = await abandoned(ledger)
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=9)) == 0
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=10) + LATER) == 1
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(hours=23)) == 0
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(days=1) + LATER) == 1
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(days=9)) == 0
    assert store.deleted == [key, key]
    assert [total.state for total in await ledger.object_totals()] == ["swept"]


async def test_committed_objects_and_intents_that_can_still_be_committed_are_left_alone(
    ledger: Ledger,
) -> None:
    claims = await ledger.claim([P0, P1])
    part = advance(claims[P0], 9)
    epoch = record(part, objects=written(planned(part)))
    pending = planned(advance(claims[P1], 9))
    await ledger.intend(epoch.id, [epoch.objects[0].plan, pending], claims | {})
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(days=9)) == 0
    both = record(part, advance(claims[P1], 9), objects=written(epoch.objects[0].plan, pending))
    await ledger.commit(type(both)(epoch.id, both.started_at, both.advances, both.objects), nothing)
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(days=9)) == 0
    assert store.deleted == []


async def test_an_intent_overtaken_by_its_own_owner_is_abandoned_after_an_hour(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    part = advance(claims[P0], 9)
    overtaken = planned(part)
    await ledger.intend(uuid.uuid4(), [overtaken], claims)
    await ledger.commit(record(part), nothing)
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=30)) == 0
    later = datetime.now(UTC) + timedelta(hours=1) + LATER
    assert await ledger.sweep(store, now=later) == 0
    assert [total.state for total in await ledger.object_totals()] == ["abandoned"]
    assert await ledger.sweep(store, now=later + timedelta(minutes=10)) == 1
    assert store.deleted == [overtaken.key]


async def test_an_intent_of_a_log_whose_row_was_folded_is_abandoned_after_an_hour(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    left = planned(advance(claims[P0], 9))
    await ledger.intend(uuid.uuid4(), [left], claims)
    async with ledger.database.connection("fold") as conn:
        await conn.execute("DELETE FROM streamproc.partitions")
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=30)) == 0
    assert [total.state for total in await ledger.object_totals()] == ["intended"]
    later = datetime.now(UTC) + timedelta(hours=1) + LATER
    assert await ledger.sweep(store, now=later) == 0
    assert await ledger.sweep(store, now=later + timedelta(minutes=10)) == 1
    assert store.deleted == [left.key]


async def test_a_store_that_refuses_is_asked_again_next_time(ledger: Ledger) -> None:
    keys = await abandoned(ledger, 3)
    store = Store()
    store.broken = {keys[1]}
    times = SweepTimes(first=timedelta(0), again=timedelta(days=1))
    with pytest.raises(DependencyError, match="store: refuses"):
        await ledger.sweep(store, times, now=datetime.now(UTC) + LATER)
    store.broken.clear()
    assert await ledger.sweep(store, times, now=datetime.now(UTC) + LATER) == 3
    assert set(store.deleted) == set(keys)


async def test_a_sweep_goes_past_a_page(ledger: Ledger) -> None:
    keys = await abandoned(ledger, 1201)
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=11) + LATER) == 1201
    assert sorted(store.deleted) == sorted(keys)


async def test_what_a_replay_has_abandoned_is_deleted_after_it_was_discarded(
    ledger: Ledger, postgres: str
) -> None:
    await ledger.commit(record(advance((await ledger.claim([P0]))[P0], 9)), nothing)
    replay = await Replays(ledger.database, "clicks").create("fix", "f", "asked", "me", {P0: Span(-1, 9)})
    async with Ledger(postgres, replay.namespace, "w2") as own:
        [key] = await abandoned(own)
    async with ledger.database.transaction("discard") as conn:
        await promotion.discard(conn, replay)
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=9)) == 0
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(minutes=10) + LATER) == 1
    assert store.deleted == [key]


async def test_swept_objects_are_forgotten_in_the_end(ledger: Ledger) -> None:
    await abandoned(ledger)
    await ledger.sweep(Store(), now=datetime.now(UTC) + timedelta(days=2))
    await ledger.forget(timedelta(days=-3))
    assert await ledger.object_totals() == []
