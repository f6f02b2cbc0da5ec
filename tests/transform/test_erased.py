"""What a forgotten visitor left in the source is left out, and nothing else; the counts say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from streamproc.model import REJECT_SCHEMA, SYSTEM_COLUMNS, Counts, Transformed
from streamproc.transform.erased import Erased, visitor_hash

ASKED = datetime(2026, 7, 1, 12, tzinfo=UTC)
KEY = b"k" * 32


def microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def erased(*visitors: str) -> Erased:
    asked = {visitor_hash(visitor, KEY): microseconds(ASKED) for visitor in visitors}
    return Erased(["visitor_id"], KEY, asked)


def transformed(events: list[tuple[str | None, int, int | None]], rejects: list[bytes | None]) -> Transformed:
    """``events``: visitor, seconds after the asking, and the reject it is a copy of; of two partitions."""
    frame = pl.DataFrame(
        [
            (str(place % 2), place, ASKED + timedelta(seconds=seconds), of, visitor)
            for place, (visitor, seconds, of) in enumerate(events)
        ],
        schema={**SYSTEM_COLUMNS, "visitor_id": pl.String()},
        orient="row",
    )
    bad = pl.DataFrame(
        [("0", place, ASKED, "not_json", None, "why", original) for place, original in enumerate(rejects)],
        schema=REJECT_SCHEMA,
        orient="row",
    )
    counts = {"0": Counts(rejected=len(rejects)), "1": Counts()}
    for place in range(len(events)):
        counts[str(place % 2)].accepted += 1
    for each in counts.values():
        each.records = each.accepted + each.rejected
    return Transformed(frame, bad, counts)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.sampled_from(["ann", "bob", "eve"])),
            st.integers(-2, 2),
            st.one_of(st.none(), st.just(3)),
        ),
        max_size=12,
    ),
    st.sets(st.sampled_from(["ann", "bob"])),
)
def test_only_the_past_of_listed_visitors_goes_and_the_counts_stay_balanced(
    events: list[tuple[str | None, int, int | None]], listed: set[str]
) -> None:
    result = transformed(events, [])
    erased(*listed).leave_out(result)
    kept = [
        place
        for place, (visitor, seconds, of) in enumerate(events)
        if not (visitor in listed and (seconds <= 0 or of is not None))
    ]
    assert result.events["position"].to_list() == kept
    assert all(counts.balanced for counts in result.counts.values())
    assert sum(counts.accepted for counts in result.counts.values()) == len(kept)
    assert result.filtered_by == ({"erased": len(events) - len(kept)} if len(kept) < len(events) else {})


def test_rejects_that_name_a_listed_visitor_go() -> None:
    rejects = [b'{"visitor_id":"ann', b'{"visitor_id":"anna"', b"ann,1", None, b"x-ann", b"\xff ann \xfe"]
    result = transformed([], rejects)
    erased("ann").leave_out(result)
    assert result.rejects["original"].to_list() == [b'{"visitor_id":"anna"', None, b"x-ann"]
    assert (result.counts["0"].rejected, result.counts["0"].filtered) == (3, 3)
    assert result.counts["0"].balanced


def test_an_id_is_hashed_under_the_key() -> None:
    assert visitor_hash("ann", KEY) != visitor_hash("ann", b"other")
    assert b"ann" not in visitor_hash("ann", KEY)
