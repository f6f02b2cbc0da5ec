from __future__ import annotations

import asyncio
import itertools
from typing import Any

from streamproc.errors import Fenced
from streamproc.ledger import Ledger, NewPosition
from streamproc.model import Partition
from tests.ledger.epochs import P0, P1, P2, advance, nothing, record


async def test_of_two_that_claim_at_once_exactly_one_can_commit(ledger: Ledger, rival: Ledger) -> None:
    for through in range(0, 40, 2):
        mine, theirs = await asyncio.gather(ledger.claim([P0, P1]), rival.claim([P1, P0]))
        assert mine[P0].fence != theirs[P0].fence
        assert (mine[P0].fence > theirs[P0].fence) == (mine[P1].fence > theirs[P1].fence), "all or none"
        outcomes = await asyncio.gather(
            ledger.commit(record(*(advance(claim, through) for claim in mine.values())), nothing),
            rival.commit(record(*(advance(claim, through) for claim in theirs.values())), nothing),
            return_exceptions=True,
        )
        assert sorted(isinstance(outcome, Fenced) for outcome in outcomes) == [False, True]
    assert [row.position for row in await ledger.status()] == [38, 38]


async def test_a_claim_waits_for_the_commit_under_way_and_starts_behind_it(
    ledger: Ledger, rival: Ledger
) -> None:
    claims = await ledger.claim([P0])
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def linger(conn: Any) -> None:
        inside.set()
        await go_on.wait()

    committing = asyncio.create_task(ledger.commit(record(advance(claims[P0], 9)), linger))
    await inside.wait()
    claiming = asyncio.create_task(rival.claim([P0]))
    async with ledger.database.connection("look") as conn, asyncio.timeout(20):
        waiting = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while await (await conn.execute(waiting)).fetchone() is None:
            pass  # each question takes long enough
    assert not claiming.done()
    go_on.set()
    await committing
    assert (await claiming)[P0].position == 9


async def test_workers_that_claim_and_commit_overlapping_sets_in_any_order_never_deadlock(
    ledger: Ledger, postgres: str
) -> None:
    orders = list(itertools.permutations([P0, P1, P2]))

    async def churn(order: tuple[Partition, ...], number: int) -> int:
        commits = 0
        async with Ledger(postgres, "clicks", f"w{number}", pool_size=1) as worker:
            for _ in range(15):
                claims = await worker.claim(order)
                parts = [
                    advance(claims[partition], (claims[partition].position or 0) + 3) for partition in order
                ]
                try:
                    await worker.commit(record(*parts), nothing)
                    commits += 1
                except Fenced:
                    continue
        return commits

    commits = sum(await asyncio.gather(*(churn(order, number) for number, order in enumerate(orders))))
    epochs = await ledger.epochs(limit=1000)
    assert len(epochs) == commits > 0
    for row in await ledger.status():
        ranges = [
            part for epoch in reversed(epochs) for part in epoch.ranges if part.partition == row.partition
        ]
        assert ranges[0].after is None
        assert [part.after for part in ranges[1:]] == [part.through for part in ranges[:-1]]
        assert row.position == ranges[-1].through


async def test_claiming_nothing_is_fine(ledger: Ledger) -> None:
    assert await ledger.claim([]) == {}
    assert await ledger.release([]) == 0


async def test_the_log_of_a_position_is_noted_once_and_again_when_there_is_no_position(
    ledger: Ledger,
) -> None:
    claims = await ledger.claim([P0, P1])
    assert await ledger.note_log(list(claims.values()), "first") == {P0: "first", P1: "first"}
    await ledger.commit(record(advance(claims[P0], 9)), nothing)
    again = await ledger.claim([P0, P1])
    assert await ledger.note_log(list(again.values()), "second") == {P0: "first", P1: "second"}


async def test_a_position_set_by_hand_is_one_of_the_log_that_is_found_next(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    await ledger.note_log([claims[P0]], "first")
    await ledger.commit(record(advance(claims[P0], 9)), nothing)
    await ledger.set_position(NewPosition(P0, None, accept_repeat=True))
    claims = await ledger.claim([P0])
    assert await ledger.note_log([claims[P0]], "second") == {P0: "second"}


async def test_who_was_fenced_off_notes_no_log(ledger: Ledger, rival: Ledger) -> None:
    mine = await ledger.claim([P0])
    theirs = await rival.claim([P0])
    assert await ledger.note_log([mine[P0]], "stale") == {}
    assert await rival.note_log([theirs[P0]], "fresh") == {P0: "fresh"}


async def test_all_workers_read_one_key_of_visitors_that_migrating_again_leaves_as_it_is(
    ledger: Ledger, rival: Ledger
) -> None:
    key = await ledger.visitor_key()
    assert len(key) == 32
    assert await rival.migrate() == 0
    assert await rival.visitor_key() == key
