from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from streamproc.errors import Fenced, LedgerError
from streamproc.ledger import Ledger, NewPosition, history, retention
from streamproc.ledger import objects as object_list
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replays
from streamproc.model import Counts
from streamproc.sinks import loader
from tests.ledger.epochs import P0, P1, advance, nothing, planned, record, written

SECOND = timedelta(seconds=1)


async def commit(
    ledger: Ledger, *times: tuple[int, int], partition: str = "0", kind: str = "events"
) -> list[str]:
    """One object for each (oldest, newest) event time, in one epoch; returns their keys."""
    where = P0._replace(id=partition)
    claims = await ledger.claim([where])
    first = -1 if claims[where].position is None else claims[where].position
    share = "accepted" if kind == "events" else "rejected"
    part = advance(claims[where], first + len(times), **{"records": len(times), share: len(times)})
    part = replace(part, clock_us=max(newest for _, newest in times))
    plans = [
        replace(planned(part, kind, rows=1), min_time_us=oldest, max_time_us=newest, clock_us=part.clock_us)
        for oldest, newest in times
    ]
    epoch = record(part, objects=written(*plans))
    await ledger.intend(epoch.id, plans, claims)
    await ledger.commit(epoch, nothing)
    return [plan.key for plan in plans]


async def keys(
    ledger: Ledger, kind: str = "events", since: int | None = None, until: int | None = None
) -> list[str]:
    return [one.plan.key async for one in ledger.manifest(kind, since, until)]


async def test_status_shows_every_partition_with_its_counts(ledger: Ledger) -> None:
    claims = await ledger.claim([P0, P1])
    part = advance(claims[P0], 9, records=10, accepted=4, filtered=3, rejected=2, duplicate=1)
    done = await ledger.commit(record(part), nothing)
    await ledger.commit(record(advance(done.claims[P0], 14)), nothing)
    await ledger.release([claims[P1]])
    first, second = await ledger.status()
    assert (first.partition, first.position, first.owner, first.clock_us) == (P0, 14, "w1", 14_000)
    assert first.counts == Counts(15, 9, 3, 2, 1)
    assert (second.partition, second.position, second.owner) == (P1, None, None)
    assert first.claimed_at <= first.updated_at
    assert first.updated_at.utcoffset() == timedelta(0)


async def test_epochs_come_newest_first_with_ranges_counts_and_seconds(ledger: Ledger) -> None:
    claims = await ledger.claim([P0, P1])
    one = record(advance(claims[P0], 9), advance(claims[P1], 4), page_views=2)
    claims |= (await ledger.commit(one, nothing)).claims
    two = record(advance(claims[P0], 11))
    await ledger.commit(two, nothing)
    newest, oldest = await ledger.epochs()
    assert (newest.id, oldest.id) == (two.id, one.id)
    assert [(part.partition, part.after, part.through) for part in oldest.ranges] == [
        (P0, None, 9),
        (P1, None, 4),
    ]
    assert oldest.ranges[0].counts == Counts(10, 10)
    assert (oldest.worker, oldest.late, oldest.seconds) == ("w1", {"page_views": 2}, {"decode": 0.5})
    assert [epoch.id for epoch in await ledger.epochs(limit=1)] == [two.id]
    assert [epoch.id for epoch in await ledger.epochs(since=newest.committed_at)] == [two.id]


async def test_late_totals_outlive_the_epochs_they_came_from(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    for through, late in ((4, {"a": 1}), (5, {"a": 2, "b": 7}), (6, {})):
        claims |= (await ledger.commit(record(advance(claims[P0], through), **late), nothing)).claims
    assert await ledger.late() == {"a": 3, "b": 7}
    assert await ledger.forget(timedelta(hours=1)) == 0
    assert await ledger.forget(-SECOND) == 3
    assert await ledger.epochs() == []
    assert await ledger.late() == {"a": 3, "b": 7}
    await ledger.commit(record(advance(claims[P0], 9), a=10), nothing)
    assert await ledger.forget(-SECOND) == 1
    assert await ledger.late() == {"a": 13, "b": 7}
    [row] = await ledger.status()
    assert row.counts.records == 10


async def test_of_tables_without_late_events_nothing_is_noted(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    await ledger.commit(record(advance(claims[P0], 4), a=0, b=7, c=0), nothing)
    [epoch] = await ledger.epochs()
    assert epoch.late == {"b": 7}
    assert await ledger.late() == {"b": 7}


async def test_late_events_are_counted_without_looking_at_epochs_that_had_none(ledger: Ledger) -> None:
    async with ledger.database.connection("make history") as conn:
        await conn.execute(
            """INSERT INTO streamproc.epochs SELECT gen_random_uuid(), 'clicks', 'w1', now(), now(),
               CASE WHEN n % 1000 = 0 THEN '{"a": 2}' ELSE '{}' END::jsonb, '{}' FROM generate_series(1, 5000) AS n"""
        )
        await conn.execute("ANALYZE streamproc.epochs")
        analyzed = "EXPLAIN (ANALYZE, FORMAT JSON) " + history._LATE
        answer = await (await conn.execute(analyzed, {"stream": "clicks"})).fetchone()
    plans, visited = [answer[0][0]["Plan"]], []
    while plans:
        plan = plans.pop()
        plans += plan.get("Plans", [])
        if plan.get("Relation Name") == "epochs":
            visited.append(plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    assert visited == [5]
    assert await ledger.late() == {"a": 10}


@pytest.mark.parametrize(
    ("table", "query"),
    [
        ("epochs", history._FORGET_EPOCHS),
        ("objects", history._FORGET_SWEPT),
        ("objects", retention._FORGET_SWEPT),
    ],
)
async def test_what_goes_is_found_without_looking_at_what_stays(
    ledger: Ledger, table: str, query: str
) -> None:
    """Workers look for it every ten minutes, and there may be millions of what stays."""
    async with ledger.database.connection("make history") as conn:
        await conn.execute(
            """INSERT INTO streamproc.epochs SELECT gen_random_uuid(), 'clicks', 'w1', now(),
               now() - make_interval(days => CASE WHEN n % 1000 = 0 THEN 9 ELSE 1 END, secs => n), '{}', '{}'
               FROM generate_series(1, 5000) AS n"""
        )
        await conn.execute(
            """INSERT INTO streamproc.objects (key, stream, kind, source, partition, through, rows, epoch, fence, state,
                   intended_at, swept_at)
               SELECT n, 'clicks', 'events', 'clicks', '0', n, 1, gen_random_uuid(), 1,
                   CASE WHEN n % 10 = 0 THEN 'swept' ELSE 'abandoned' END, now(),
                   now() - make_interval(days => CASE WHEN n % 1000 = 0 THEN 9 ELSE 1 END, secs => n)
               FROM generate_series(1, 5000) AS n"""
        )
        await conn.execute("ANALYZE streamproc.epochs, streamproc.objects")
        analyzed = "EXPLAIN (ANALYZE, FORMAT JSON) " + query
        answer = await (
            await conn.execute(analyzed.encode(), {"stream": "clicks", "age": timedelta(days=7)})
        ).fetchone()
        left = await (await conn.execute(f"SELECT count(*) FROM streamproc.{table}".encode())).fetchone()
    plans, visited = [answer[0][0]["Plan"]], []
    while plans:
        plan = plans.pop()
        plans += plan.get("Plans", [])
        if plan.get("Relation Name") == table and plan["Node Type"] != "ModifyTable":
            visited.append(plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))
    assert (visited, left) == ([5], (4995,))


async def test_no_epoch_is_forgotten_while_a_replay_is_open(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    await ledger.commit(record(advance(claims[P0], 9), a=1), nothing)
    await Replays(ledger.database, "clicks").create("fix", "f", "asked", "me", {P0: Span(-1, 9)})
    assert await ledger.forget(-SECOND) == 0
    assert len(await ledger.epochs()) == 1
    async with ledger.database.connection("discard it") as conn:
        await conn.execute("DELETE FROM streamproc.replays")
    assert await ledger.forget(-SECOND) == 1


async def test_the_manifest_gives_objects_that_may_hold_a_time(ledger: Ledger) -> None:
    early, middle, late = await commit(ledger, (0, 100), (90, 200), (200, 300))
    [reject] = await commit(ledger, (150, 150), kind="rejects")
    assert await keys(ledger) == [early, middle, late]
    assert await keys(ledger, "rejects") == [reject]
    assert await keys(ledger, since=101) == [middle, late]
    assert await keys(ledger, since=100) == [early, middle, late]
    assert await keys(ledger, until=200) == [early, middle]
    assert await keys(ledger, since=150, until=160) == [middle]
    assert await keys(ledger, since=301) == []


async def test_objects_that_are_only_intended_are_in_no_list(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    plan = planned(advance(claims[P0], 9))
    await ledger.intend(record().id, [plan], claims)
    assert await keys(ledger) == []
    assert [page async for page in ledger.committed()] == []
    assert await ledger.recent_objects(P0, 0) == []
    assert [
        (total.kind, total.state, total.objects, total.rows) for total in await ledger.object_totals()
    ] == [("events", "intended", 1, 10)]


async def test_lists_go_past_a_page_without_losing_or_repeating_any(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_list, "PAGE", 3)
    monkeypatch.setattr(object_list, "NEWEST_PAGE", 4)
    times = [(number // 4, number // 4) for number in range(21)]
    written_keys = await commit(ledger, *times)
    listed = await keys(ledger)
    assert sorted(listed) == sorted(written_keys)
    pages = [page async for page in ledger.committed()]
    assert sorted(one.plan.key for page in pages for one in page) == sorted(written_keys)
    assert max(map(len, pages)) == 3
    backwards = [page async for page in ledger.newest_first()]
    assert [one for page in reversed(backwards) for one in reversed(page)] == [
        one for page in pages for one in page
    ]
    assert max(map(len, backwards)) == 4
    by_time = {one.plan.key: one.plan.max_time_us async for one in ledger.manifest()}
    assert list(by_time.values()) == sorted(by_time.values(), key=lambda time: time or 0)


async def test_objects_committed_since_a_time_are_the_newer_ones(ledger: Ledger) -> None:
    await commit(ledger, (0, 1))
    [first] = [one async for page in ledger.committed() for one in page]
    [newer] = await commit(ledger, (0, 1))
    found = [one.plan.key async for page in ledger.committed(since=first.committed_at) for one in page]
    assert found == [first.plan.key, newer]
    assert (first.size, first.checksum) == (1000, "0" * 64)


async def test_a_loader_on_a_machine_whose_clock_is_ahead_finds_what_was_committed_lately(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=1)

    class Loaded:
        """A warehouse that has everything, and knows what it was asked for."""

        asked: Sequence[str] = ()

        async def missing(self, keys: Sequence[str]) -> set[str]:
            self.asked = keys
            return set()

    monkeypatch.setattr(loader, "datetime", Ahead)
    warehouse: Any = Loaded()
    loading = loader.Loader(ledger, warehouse, store=warehouse)
    await commit(ledger, (0, 1))
    await loading.load_new()
    [newer] = await commit(ledger, (0, 1))
    await loading.load_new()
    assert newer in warehouse.asked


async def test_objects_share_their_positions_and_hour_with_others_where_a_position_was_set_back(
    ledger: Ledger,
) -> None:
    hour = 3_600_000_000
    [first] = await commit(ledger, (0, 1))
    [second, later] = await commit(ledger, (5, 6), (hour, hour + 6))  # of one commit, each of an hour
    [apart] = await commit(ledger, (0, 1), partition="1")
    await commit(ledger, (0, 1), partition="1", kind="rejects")
    plans = [one.plan async for one in ledger.manifest()]
    assert await ledger.unshared(plans) == {first, second, later, apart}
    await ledger.set_position(NewPosition(P0, 0, accept_repeat=True))
    [again] = await commit(ledger, (7, 8))
    assert await ledger.unshared(plans) == {first, later, apart}
    plans = [one.plan async for one in ledger.manifest()]
    assert again in {plan.key for plan in plans}
    assert await ledger.unshared(plans) == {first, later, apart}
    assert await ledger.unshared([]) == set()


async def test_recent_objects_are_the_partitions_own_in_order_from_a_clock_on(ledger: Ledger) -> None:
    for newest in (100, 200, 300):
        await commit(ledger, (0, newest))
    await commit(ledger, (0, 250), partition="1")
    await commit(ledger, (0, 250), kind="rejects")
    found = await ledger.recent_objects(P0, 200)
    assert [one.plan.clock_us for one in found] == [200, 300]
    assert [one.plan.through for one in found] == [1, 2]


async def test_an_operator_who_accepts_the_gap_moves_a_position_and_fences_the_worker(
    ledger: Ledger, rival: Ledger
) -> None:
    claims = await ledger.claim([P0])
    claims |= (await ledger.commit(record(advance(claims[P0], 9)), nothing)).claims
    plan = planned(advance(claims[P0], 19))
    await ledger.intend(record().id, [plan], claims)
    with pytest.raises(LedgerError, match="from 9 to 50 would skip records"):
        await rival.set_position(NewPosition(P0, 50, accept_repeat=True))
    with pytest.raises(LedgerError, match="from 9 back to 3 would count records twice"):
        await rival.set_position(NewPosition(P0, 3, accept_gap=True))
    assert await rival.position_changes() == []

    assert await rival.set_position(NewPosition(P0, 50, accept_gap=True, note="the broker lost them")) == 9
    with pytest.raises(Fenced):
        await ledger.commit(record(advance(claims[P0], 19)), nothing)
    assert (await ledger.claim([P0]))[P0].position == 50
    assert await rival.set_position(NewPosition(P0, None, accept_repeat=True)) == 50
    changes = [
        (change.before, change.after, change.worker, change.note)
        for change in await ledger.position_changes()
    ]
    assert changes == [(9, 50, "w2", "the broker lost them"), (50, None, "w2", "")]
    assert {total.state for total in await ledger.object_totals()} == {"abandoned"}


async def test_a_refused_change_of_position_disturbs_nobody(ledger: Ledger, rival: Ledger) -> None:
    claims = await ledger.claim([P0])
    with pytest.raises(LedgerError):
        await rival.set_position(NewPosition(P0, 50))
    await ledger.commit(record(advance(claims[P0], 9)), nothing)
