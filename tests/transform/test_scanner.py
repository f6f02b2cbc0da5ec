"""The compiled scanner finds what the parser finds, leaves the rest alone, and stays inside of what it is given."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from streamproc import native
from streamproc.model import RecordBatch
from streamproc.packed import Packed
from streamproc.topology import Contract
from streamproc.transform.decode import Decoded, _decoder, decode
from streamproc.transform.scanner import scanner_of
from tests.transform.decoding import BOUNDED, FLAT, NESTED, NOW, batch_of, first_of_duplicates
from tests.transform.test_decode_properties import EXAMPLES, records

if native.records is None:
    pytest.skip("the compiled part is not there: no C compiler", allow_module_level=True)

#: Without the field that reads inside of an object which is kept as text: no scanner serves that.
READ_APART = replace(NESTED, fields=tuple(field for field in NESTED.fields if field.name != "property_url"))
CONTRACTS = {
    "flat": FLAT,
    "nested": READ_APART,
    "flat, first of duplicates, none too old": first_of_duplicates(BOUNDED),
    "nested, first of duplicates": first_of_duplicates(READ_APART),
}


def by_parser(batch: RecordBatch, contract: Contract) -> Decoded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "records", None)
        _decoder.cache_clear()
        found = decode([batch], contract)
    _decoder.cache_clear()
    return found


def scan(*values: bytes, contract: Contract = FLAT) -> tuple[pl.DataFrame, list[int]]:
    scanner = scanner_of(contract)
    assert scanner is not None
    found = scanner.scan([Packed.of(values)])
    assert found is not None
    return found.columns, found.doubtful


def is_doubtful(value: bytes, contract: Contract = FLAT) -> bool:
    return scan(value, contract=contract)[1] == [0]


@pytest.mark.parametrize("name", CONTRACTS)
def test_whatever_the_bytes_the_columns_and_rejects_are_those_of_the_parser(name: str) -> None:
    contract = CONTRACTS[name]

    @settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(records(contract), min_size=1, max_size=12), st.booleans())
    def check(values: list[bytes | None], packed: bool) -> None:
        batch = batch_of(Packed.of(values) if packed else values)
        found, expected = decode([batch], contract), by_parser(batch, contract)
        assert_frame_equal(found.frame, expected.frame)
        assert_frame_equal(found.rejects, expected.rejects)

    check()


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"value": -1.25, "signed_in": True},
        {"value": 123456789012345, "signed_in": False},
        {"agent": None, "value": None, "signed_in": None, "properties": None},
        {"agent": "Größe 中 \U0001f600", "unknown": ["a", {"b": [None, -1e-5, 12e10]}]},
        {"properties": {"a": [1, 2.5, "x"], "b": {"event_id": "twice is its own affair"}}},
        {"agent": 'a "quoted" / \\ \b\f\n\r\t text'},
        {"properties": {"text": 'an "escape"'}},
    ],
)
def test_plain_records_are_not_left_to_the_parser(members: dict[str, object]) -> None:
    event = {"event_id": "e", "event_time": NOW, "page_url": "http://x/", **members}
    for spaced in (
        json.dumps(event, ensure_ascii=False),
        json.dumps(event, ensure_ascii=False, separators=(",", ":")),
    ):
        columns, doubtful = scan(f" {spaced} ".encode())
        assert not doubtful
        assert columns["event_time"].to_list() == [NOW]
        agent = members.get("agent")
        assert columns["agent"].to_list() == [agent]
        assert columns["value"].to_list() == [members.get("value")]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b'{"event_id":"a","event_id":"b"}',
        b'{"event_id":1}',
        b'{"event_id":"a"',
        b'{"event_id":"a"}{}',
        b'{"event_id":"a",}',
        b'{"event_id":"\\u0061"}',
        b'{"event_\\u0069d":"a"}',
        b'{"event_\\/id":"a"}',
        b'{"event_time":1.0}',
        b'{"event_time":01}',
        b'{"event_time":-0}',
        b'{"event_time":1e3}',
        b'{"event_time":1234567890123456789}',
        b'{"value":1234567890123456}',
        b'{"value":0.1234567890123456}',
        b'{"value":.5}',
        b'{"value":5.}',
        b'{"signed_in":"true"}',
        b'{"signed_in":tru}',
        b'{"event_id":"a\xff"}',
        b'{"event_id":"\xed\xa0\x80"}',
        b'{"event_id":"\xc0\x80"}',
        b'{"event_id":"\xe4\xb8"}',
        b'{"event_id":"a\n"}',
        b'{"event_id":\t"a"}',
        b'{"zz":1e400}',
        b'{"zz":' + b"9" * 40 + b"}",
        b'{"zz":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"zz":NaN}',
        b'{"zz":"\\x"}',
        b'{"zz":"\\',
        b'{"zz"',
        b'{"',
        b"{",
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_the_parser(value: bytes) -> None:
    assert is_doubtful(value)


def test_every_beginning_of_a_record_is_left_to_the_parser() -> None:
    record = b'{"event_id":"\xc3\xa9\\"","event_time":12,"value":-1.5,"properties":{"a":[true,null]},"signed_in":false}'
    assert not is_doubtful(record)
    assert all(is_doubtful(record[:length]) for length in range(len(record)))


def test_rows_between_doubtful_ones_keep_their_order() -> None:
    values = [b'{"event_id":"%d"}' % number if number % 3 else b"{" for number in range(50)]
    columns, doubtful = scan(*values)
    assert doubtful == list(range(0, 50, 3))
    assert columns["event_id"].to_list() == [str(number) for number in range(50) if number % 3]


def test_columns_outlive_what_they_were_read_from() -> None:
    texts = [f"{number:>40}" for number in range(1000)]
    columns, _ = scan(*(json.dumps({"page_url": text}).encode() for text in texts))
    others, _ = scan(*(json.dumps({"page_url": text[::-1]}).encode() for text in texts))
    kept = columns.filter(pl.col("page_url").str.ends_with("9"))
    del columns, others
    assert kept["page_url"].to_list() == texts[9::10]


def test_a_span_outside_of_its_payload_is_refused() -> None:
    plan = native.records.Plan(((b"a", 0, ()),))
    for start, length in ((0, 9), (8, 1), (-1, 2), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match="outside"):
            plan.scan([(b"12345678", struct.pack("=ii", start, length))], 100)


@given(st.binary(max_size=200), st.integers(-1, 40))
def test_whatever_the_bytes_a_walk_ends_inside_of_them(payload: bytes, count: int) -> None:
    found = native.records.walk(payload, count, "ours.")
    if found is not None:
        spans, size = found
        packed = Packed(payload, memoryview(spans).cast("i"), size)
        assert len(packed) == count
        assert sum(len(value or b"") for value in packed) == packed.size <= len(payload)


@given(st.lists(st.none() | st.binary(max_size=5), max_size=8), st.data())
def test_packed_values_are_a_sequence_like_any_other(values: list[bytes | None], data: st.DataObject) -> None:
    packed = Packed.of(values)
    assert list(packed) == values == packed
    assert packed.size == sum(len(value or b"") for value in values)
    start, end = (data.draw(st.integers(0, len(values))) for _ in range(2))
    assert list(packed[start:end]) == values[start:end]
    assert packed[start:end].size == sum(len(value or b"") for value in values[start:end])
    for place in range(-len(values), len(values)):
        assert packed[place] == values[place]
    with pytest.raises(IndexError):
        packed[len(values)]
