"""What is beyond its time goes, by way of a day in which readers with an older list still find it."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from streamproc.ledger import Ledger, compaction
from streamproc.ledger.redrives import Coordinate, Redrives, RedriveState
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replays
from streamproc.ledger.retention import expire_objects, expire_rejects, forget_redrives, forget_swept
from tests.ledger.epochs import P0, advance, nothing, planned, record, written
from tests.ledger.test_sweep import Store


async def committed(ledger: Ledger, *throughs: int) -> list[str]:
    """One object each, with one time: a thousand microseconds a position."""
    claims = await ledger.claim([P0])
    keys = []
    for through in throughs:
        part = advance(claims[P0], through)
        epoch = record(part, objects=written(planned(part)))
        await ledger.intend(epoch.id, [each.plan for each in epoch.objects], claims)
        claims |= (await ledger.commit(epoch, nothing)).claims
        keys.append(epoch.objects[0].plan.key)
    return keys


async def listed(ledger: Ledger) -> list[str]:
    return [each.plan.key async for each in ledger.manifest()]


async def test_objects_whose_newest_row_is_older_go_and_are_deleted_a_day_later(ledger: Ledger) -> None:
    old, edge, new = await committed(ledger, 10, 20, 30)
    assert await expire_objects(ledger.database, "clicks", "events", 20_000) == 1
    assert await listed(ledger) == [edge, new]
    store = Store()
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(hours=23)) == 0
    assert await ledger.sweep(store, now=datetime.now(UTC) + timedelta(hours=25)) == 1
    assert store.deleted == [old]
    assert await expire_objects(ledger.database, "clicks", "rejects", 10**15) == 0


async def test_ids_of_events_that_came_very_late_are_known_as_long_as_those_of_others(ledger: Ledger) -> None:
    """Their objects are beyond their time as soon as they are there, and a worker that claims reads the ids in them."""
    claims = await ledger.claim([P0])
    plan = replace(planned(advance(claims[P0], 10)), min_time_us=1, max_time_us=2)  # its clock is 10,000
    epoch = record(advance(claims[P0], 10), objects=written(plan))
    await ledger.intend(epoch.id, [plan], claims)
    await ledger.commit(epoch, nothing)
    assert await expire_objects(ledger.database, "clicks", "events", 9_000, recent_us=10_000) == 0
    assert [each.plan.key for each in await ledger.recent_objects(P0, 10_000)] == [plan.key]
    assert await expire_objects(ledger.database, "clicks", "events", 9_000, recent_us=10_001) == 1


async def test_a_clock_that_is_years_ahead_keeps_no_object_for_years(ledger: Ledger) -> None:
    """Every commit of the partition ends at it."""
    await committed(ledger, 10)
    now = time.time_ns() // 1000
    assert await expire_objects(ledger.database, "clicks", "events", now - 60_000_000, recent_us=10_000) == 0
    assert await expire_objects(ledger.database, "clicks", "events", now + 60_000_000, recent_us=10_000) == 1


async def test_rejects_of_an_old_log_are_kept_as_long_from_when_they_were_found(ledger: Ledger) -> None:
    """They were received when the log was last changed, here in 1970."""
    await rejected(ledger)
    now = time.time_ns() // 1000
    assert await expire_objects(ledger.database, "clicks", "rejects", now - 60_000_000) == 0
    assert await expire_objects(ledger.database, "clicks", "rejects", now + 60_000_000) == 1


async def test_a_worker_whose_clock_is_ahead_lets_go_of_no_rejects(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rejected(ledger)
    ahead = time.time_ns() + 90 * 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: ahead)
    monkeypatch.setattr(time, "time", lambda: ahead / 1e9)
    assert await expire_rejects(ledger.database, "clicks", 60_000_000) == 0
    assert await expire_rejects(ledger.database, "clicks", -60_000_000) == 1, "as if a minute had passed"


async def rejected(ledger: Ledger) -> str:
    """Rejects at the positions 0 to 10; returns their object's key."""
    claims = await ledger.claim([P0])
    part = advance(claims[P0], 10, records=11, rejected=11)
    epoch = record(part, objects=written(planned(part, "rejects")))
    await ledger.intend(epoch.id, [each.plan for each in epoch.objects], claims)
    await ledger.commit(epoch, nothing)
    return epoch.objects[0].plan.key


async def erased(ledger: Ledger) -> None:
    """The one object of rejects is written anew, as an erasure does."""
    (source,) = await compaction.sources(ledger.database, "clicks", P0, None, 10)
    plan = replace(source.committed.plan, key=f"{source.committed.plan.key}-erased")
    async with ledger.database.transaction("erase") as conn:
        await compaction.intend(conn, "clicks", [plan], source)
        await compaction.replace(conn, "clicks", [source], written(plan), whole=False)


async def test_rejects_that_are_written_anew_are_kept_no_longer_for_that(ledger: Ledger) -> None:
    await rejected(ledger)
    now = time.time_ns() // 1000
    await erased(ledger)
    assert await expire_objects(ledger.database, "clicks", "rejects", now) == 1


@pytest.mark.parametrize("at", [3, 12])
async def test_that_a_reject_was_sent_again_is_known_as_long_as_it_is_there_or_its_copy(
    ledger: Ledger, at: int
) -> None:
    """Or a redrive would send it once more. The record 12 was none: what was rejected is its copy."""
    await rejected(ledger)
    redrives, sent = Redrives(ledger.database, "clicks", "r"), Coordinate(P0, at)
    await redrives.begin()
    await redrives.claim([sent])
    await redrives.confirm({sent: 7})
    ago = timedelta(days=-1)
    assert await forget_redrives(ledger.database, "clicks", ago) == 0
    assert await redrives.states([sent]) == {sent: RedriveState.SENT}
    await expire_objects(ledger.database, "clicks", "rejects", 10**16)
    assert await forget_redrives(ledger.database, "clicks", timedelta(days=1)) == 0
    assert await forget_redrives(ledger.database, "clicks", ago) == 1


async def test_what_was_sent_again_is_known_to_an_open_replay(ledger: Ledger) -> None:
    """Its promotion counts on it: the originals come from the replay, and the copies would stay."""
    redrives, replays = Redrives(ledger.database, "clicks", "r"), Replays(ledger.database, "clicks")
    await committed(ledger, 10)
    await redrives.claim([Coordinate(P0, 3)])
    await replays.create("fix", "f", "asked", "me", {P0: Span(-1, 10)})
    assert await forget_redrives(ledger.database, "clicks", timedelta(days=-1)) == 0


async def test_events_that_have_still_to_be_published_stay(ledger: Ledger, postgres: str) -> None:
    first, second = await committed(ledger, 10, 20)
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(
            "INSERT INTO streamproc.outbox (stream, epoch, kind, payload)"
            " VALUES ('clicks', gen_random_uuid(), 'events', %s)",
            [second.encode()],
        )
        assert await expire_objects(ledger.database, "clicks", "events", 10**15) == 1
        assert await listed(ledger) == [second]
        db.execute("DELETE FROM streamproc.outbox")
    assert await expire_objects(ledger.database, "clicks", "events", 10**15) == 1
    assert first not in await listed(ledger)


async def test_what_somebody_still_needs_stays(ledger: Ledger) -> None:
    first, second = await committed(ledger, 10, 20)

    async def needed(keys: object) -> set[str]:
        return {first}

    assert await expire_objects(ledger.database, "clicks", "events", 10**15, needed) == 1
    assert await listed(ledger) == [first]
    assert second not in await listed(ledger)


async def test_nothing_expires_while_a_replay_is_open(ledger: Ledger) -> None:
    keys = await committed(ledger, 10, 20)
    await Replays(ledger.database, "clicks").create("fix", "f", "asked", "me", {P0: Span(-1, 10)})
    assert await expire_objects(ledger.database, "clicks", "events", 10**15) == 0
    assert await listed(ledger) == keys


async def test_rows_of_swept_objects_are_forgotten_after_a_week(ledger: Ledger) -> None:
    await committed(ledger, 10)
    await expire_objects(ledger.database, "clicks", "events", 10**15)
    await ledger.sweep(Store(), now=datetime.now(UTC) + timedelta(days=2))
    assert await forget_swept(ledger.database, "clicks") == 0
    assert await forget_swept(ledger.database, "clicks", timedelta(days=-3)) == 1
    assert await ledger.object_totals() == []
