"""The connection breaks during COMMIT: what the ledger says afterwards is what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from streamproc.errors import Fenced
from streamproc.ledger import Ledger
from tests.ledger.epochs import P0, P1, advance, planned, record, written
from tests.ledger.proxy import Break, BreakingProxy


@pytest.fixture
async def broken(ledger: Ledger, postgres: str) -> AsyncIterator[tuple[Ledger, BreakingProxy]]:
    """A worker whose connections go through a proxy, and the proxy."""
    async with ledger.database.connection("prepare") as conn:
        await conn.execute("CREATE TABLE tally (n int)")
    async with (
        BreakingProxy.between(postgres) as (proxy, conninfo),
        Ledger(conninfo, "clicks", "fragile") as fragile,
    ):
        yield fragile, proxy


async def add(conn: Any) -> str:
    await conn.execute("INSERT INTO tally VALUES (1)")
    return "added"


async def truth(ledger: Ledger) -> tuple[int | None, int, int, list[str]]:
    """Position, tally, epochs and object states, which must agree."""
    async with ledger.database.connection("look") as conn:
        [tally] = await (await conn.execute("SELECT count(*) FROM tally")).fetchall()
        objects = await (await conn.execute("SELECT state FROM streamproc.objects")).fetchall()
    status = {row.partition: row.position for row in await ledger.status()}
    return status[P0], tally[0], len(await ledger.epochs()), [state for (state,) in objects]


async def eventually_waiting_for_a_lock(postgres: str) -> None:
    async with asyncio.timeout(20):
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as conn:
            waiting = (
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while await (await conn.execute(waiting)).fetchone() is None:
                pass  # each question takes long enough


async def test_a_commit_whose_answer_was_lost_is_found_to_have_happened(
    ledger: Ledger, broken: tuple[Ledger, BreakingProxy]
) -> None:
    fragile, proxy = broken
    claims = await fragile.claim([P0, P1])
    part = advance(claims[P0], 9)
    plan = planned(part)
    epoch = record(part, objects=written(plan))
    await fragile.intend(epoch.id, [plan], claims)
    proxy.arm(Break.ANSWER_LOST)
    done = await fragile.commit(epoch, add)
    assert done.result == "added"
    assert await truth(ledger) == (9, 1, 1, ["committed"])
    assert done.claims[P0].position == 9
    assert done.claims[P0].fence == claims[P0].fence + 1

    claims |= done.claims
    await fragile.commit(record(advance(claims[P0], 19), advance(claims[P1], 5)), add)
    assert await truth(ledger) == (19, 2, 2, ["committed"])


async def test_a_commit_that_never_arrived_is_found_not_to_have_happened(
    ledger: Ledger, broken: tuple[Ledger, BreakingProxy]
) -> None:
    fragile, proxy = broken
    claims = await fragile.claim([P0])
    part = advance(claims[P0], 9)
    plan = planned(part)
    epoch = record(part, objects=written(plan))
    await fragile.intend(epoch.id, [plan], claims)
    proxy.arm(Break.LOST)
    with pytest.raises(Fenced, match="was not committed"):
        await fragile.commit(epoch, add)
    assert await truth(ledger) == (None, 0, 0, ["abandoned"])
    claims = await fragile.claim([P0])
    await fragile.commit(record(advance(claims[P0], 9)), add)
    assert await truth(ledger) == (9, 1, 1, ["abandoned"])


async def test_the_outcome_of_a_commit_still_under_way_is_waited_for(
    ledger: Ledger, broken: tuple[Ledger, BreakingProxy], postgres: str
) -> None:
    fragile, proxy = broken
    claims = await fragile.claim([P0])
    proxy.arm(Break.UNDER_WAY)
    committing = asyncio.create_task(fragile.commit(record(advance(claims[P0], 9)), add))
    await proxy.broke.wait()
    await eventually_waiting_for_a_lock(postgres)
    assert await truth(ledger) == (None, 0, 0, []), "a bare SELECT would have said that it was lost"
    assert not committing.done()
    await proxy.deliver()
    done = await committing
    assert await truth(ledger) == (9, 1, 1, [])
    assert done.claims[P0].position == 9


async def test_a_commit_under_way_that_is_lost_after_all_is_waited_for_too(
    ledger: Ledger, broken: tuple[Ledger, BreakingProxy], postgres: str
) -> None:
    fragile, proxy = broken
    claims = await fragile.claim([P0])
    proxy.arm(Break.UNDER_WAY)
    committing = asyncio.create_task(fragile.commit(record(advance(claims[P0], 9)), add))
    await proxy.broke.wait()
    await eventually_waiting_for_a_lock(postgres)
    proxy.drop()
    with pytest.raises(Fenced):
        await committing
    assert await truth(ledger) == (None, 0, 0, [])


async def test_a_rival_that_claims_meanwhile_keeps_the_partition_and_starts_behind_the_commit(
    ledger: Ledger, rival: Ledger, broken: tuple[Ledger, BreakingProxy], postgres: str
) -> None:
    fragile, proxy = broken
    claims = await fragile.claim([P0])
    proxy.arm(Break.UNDER_WAY)
    claiming: asyncio.Task[Any] | None = None
    committing = asyncio.create_task(fragile.commit(record(advance(claims[P0], 9)), add))
    await proxy.broke.wait()
    claiming = asyncio.create_task(rival.claim([P0]))
    await eventually_waiting_for_a_lock(postgres)
    await proxy.deliver()
    theirs = (await claiming)[P0]
    mine = (await committing).claims[P0]
    assert theirs.position == mine.position == 9
    # Whoever came second has it; the other is refused. Both orders are right.
    [row] = await ledger.status()
    current, stale = (theirs, mine) if row.fence == theirs.fence else (mine, theirs)
    with pytest.raises(Fenced):
        await fragile.commit(record(advance(stale, 19)), add)
    await ledger.commit(record(advance(current, 19)), add)
    assert await truth(ledger) == (19, 2, 2, [])
