"""Where a topic begins that is read from its newest records on: decided once, for all of its partitions."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from streamproc.errors import Inconsistent
from streamproc.ledger import Ledger, NewPosition
from tests.ledger.epochs import P0, P1, P2, advance, nothing, record


async def test_whoever_is_first_decides_for_all_and_what_comes_later_has_no_position(
    ledger: Ledger, rival: Ledger
) -> None:
    assert await ledger.begun([P0]) is None
    assert await ledger.begin_behind({P0: 4, P1: -1}, "log") == {P0: 4, P1: -1}
    assert await rival.begun([P2, P1]) == {P2: None, P1: -1}
    assert await rival.begin_behind({P0: 9, P1: 9, P2: 9}, "log") == {P0: 4, P1: -1, P2: None}
    claims = await rival.claim([P0, P1, P2])
    assert {partition: claim.position for partition, claim in claims.items()} == {P0: 4, P1: -1, P2: None}
    assert {row.partition: row.owner for row in await ledger.status()} == dict.fromkeys(claims, "w2")


async def test_of_two_that_begin_at_once_both_go_on_from_the_same_positions(
    ledger: Ledger, rival: Ledger
) -> None:
    decided, other = await asyncio.gather(
        ledger.begin_behind({P0: 1, P1: 1}, None), rival.begin_behind({P1: 2, P0: 2}, None)
    )
    assert decided == other
    assert set(decided.values()) in ({1}, {2})


async def test_a_claim_made_before_commits_behind_what_was_decided_and_nothing_else(ledger: Ledger) -> None:
    claim = (await ledger.claim([P0]))[P0]
    await ledger.begin_behind({P0: 4}, "log")
    with pytest.raises(Inconsistent, match="committed through 4, the epoch begins after None"):
        await ledger.commit(record(advance(claim, 9)), nothing)
    await ledger.commit(record(advance(replace(claim, position=4), 9)), nothing)
    (epoch,) = await ledger.epochs()
    assert [(part.after, part.through, part.counts.records) for part in epoch.ranges] == [(4, 9, 5)]


async def test_a_source_that_was_read_from_its_first_record_has_begun(ledger: Ledger) -> None:
    claims = await ledger.claim([P0, P1])
    await ledger.commit(record(advance(claims[P0], 9)), nothing)
    assert await ledger.begin_behind({P0: 20, P1: 20}, None) == {P0: 9, P1: None}


async def test_a_position_set_by_hand_before_the_first_run_decides_about_its_partition_only(
    ledger: Ledger, rival: Ledger
) -> None:
    await rival.set_position(NewPosition(P0, 7, accept_gap=True, note="from here on"))
    assert await ledger.begin_behind({P0: 20, P1: 20}, None) == {P0: 7, P1: 20}
    await rival.set_position(NewPosition(P1, 15, accept_repeat=True, note="a little more"))
    assert await ledger.begin_behind({P0: 30, P1: 30, P2: 30}, None) == {P0: 7, P1: 15, P2: None}


async def test_what_was_decided_is_of_the_log_that_was_there_then(ledger: Ledger) -> None:
    await ledger.begin_behind({P0: 4, P1: 4}, "first")
    claims = await ledger.claim([P0, P1])
    assert await ledger.note_log(list(claims.values()), "second") == {P0: "first", P1: "first"}
