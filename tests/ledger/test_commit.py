from __future__ import annotations

import pytest

from streamproc.errors import Fenced, Inconsistent
from streamproc.ledger import Ledger
from tests.ledger.epochs import P0, P1, advance, nothing, planned, record, written


async def test_a_first_claim_has_no_position_and_the_next_one_stands_where_the_commit_ended(
    ledger: Ledger,
) -> None:
    claims = await ledger.claim([P0, P1])
    assert claims[P0].position is None
    part = advance(claims[P0], 9)
    plan = planned(part)
    epoch = record(part, objects=written(plan), page_views=2)
    await ledger.intend(epoch.id, [plan], claims)
    done = await ledger.commit(epoch, nothing)
    assert done.claims[P0].position == 9
    assert done.claims[P0].fence == claims[P0].fence
    again = await ledger.claim([P0])
    assert (again[P0].position, again[P0].clock_us) == (9, 9000)
    assert again[P0].fence > claims[P0].fence
