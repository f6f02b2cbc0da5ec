"""How a Kafka mapping's records are taken apart: each offset once, whatever comes again, and no hole passed over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import Gap
from streamproc.model import Partition
from streamproc.runtimes.aws_lambda.kafka import batches_of
from tests.runtimes.lambda_events import kafka_event

PARTITION = Partition("t", "0")


def delivered(first: int, after: int) -> list[dict[str, Any]]:
    """Records as the mapping has them; every third arrives in another second."""
    event = kafka_event("t", {0: [(n, b"%d" % n) for n in range(first, after)]})
    found: list[dict[str, Any]] = event["records"]["t-0"]
    for record in found:
        record["timestamp"] += record["offset"] // 3 * 1000
    return found


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=12))
def test_each_offset_is_taken_once_and_a_hole_is_refused(windows: list[tuple[int, int]]) -> None:
    position: int | None = None
    begin: int | None = None
    taken: list[tuple[int, bytes | None]] = []
    for first, length in windows:
        if position is not None and first > position + 1:
            with pytest.raises(Gap):
                list(batches_of(delivered(first, first + length), PARTITION, position))
            continue
        begin = first if begin is None else begin
        for batch in batches_of(delivered(first, first + length), PARTITION, position):
            assert position is None or batch.after == position
            taken += zip(batch.positions, batch.values, strict=True)
            position = batch.through
    if begin is not None and position is not None:
        assert taken == [(n, b"%d" % n) for n in range(begin, position + 1)]


@given(st.integers(1, 30), st.data())
def test_a_hole_between_records_is_refused_wherever_it_is(length: int, data: st.DataObject) -> None:
    records = delivered(0, length + 2)
    del records[data.draw(st.integers(1, length))]
    with pytest.raises(Gap):
        list(batches_of(records, PARTITION, data.draw(st.sampled_from([None, -1]))))


def test_when_a_record_arrived_does_not_depend_on_what_came_with_it() -> None:
    whole = {n: b.received_ms for b in batches_of(delivered(0, 12), PARTITION, None) for n in b.positions}
    for first in range(1, 12):
        for batch in batches_of(delivered(first, 12), PARTITION, first - 1):
            assert all(whole[n] == batch.received_ms for n in batch.positions)


def test_a_header_without_a_value_says_nothing() -> None:
    records = delivered(0, 2)
    for record in records:
        record["headers"] = [{"trace": None}, {"streamproc.redrive.position": None}, {"empty": []}]
    (batch,) = batches_of(records, PARTITION, None)
    assert (list(batch.values), dict(batch.redriven)) == ([b"0", b"1"], {})
