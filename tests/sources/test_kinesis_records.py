"""Pages of GetRecords by columns, and records packed by producers, against Amazon's own packing and hashing."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.sources.kinesis_records import (
    ALL_KEYS,
    HashRange,
    Page,
    decode_page,
    hash_key,
    pack,
    runs,
    unpack,
)

#: Packed by Amazon's aws-kinesis-agg 1.2.3: five user records, two of them with explicit hash keys.
BY_AMAZON = bytes.fromhex(
    "f3899ac20a0976697369746f722d310a0976697369746f722d320a01780ac801"
    + "79" * 200
    + "12273334303238323336363932303933383436333436333337343630373433313736383231313435351201311a0b08001a07"
    "7b2261223a317d1a0e08011a0a7b2262223a22c3a4227d1a0408001a001a9301080210001a8c01"
    + "00ff" * 70
    + "1a07080310011a017ae73cd5cbd15309c7f145b454eddabce8"
)
INSIDE = [b'{"a":1}', '{"b":"ä"}'.encode(), b"", b"\x00\xff" * 70, b"z"]

values = st.binary(max_size=40).filter(lambda value: not value.startswith(b"\xf3\x89\x9a\xc2"))
pairs = st.tuples(st.binary(max_size=10), values)


def test_what_amazons_library_packed_is_unpacked():
    assert unpack(BY_AMAZON) == INSIDE


def test_of_a_packed_record_only_what_belongs_to_the_shard_is_taken():
    middle = 2**127
    keys = [b"visitor-1", b"visitor-2", b"visitor-1"]
    hashes = [int(hashlib.md5(key).hexdigest(), 16) for key in keys] + [2**128 - 1, 1]
    low, high = HashRange(0, middle - 1), HashRange(middle, 2**128 - 1)
    assert unpack(BY_AMAZON, low) == [v for v, h in zip(INSIDE, hashes, strict=True) if h < middle]
    assert unpack(BY_AMAZON, high) == [v for v, h in zip(INSIDE, hashes, strict=True) if h >= middle]


@given(st.lists(pairs, min_size=1, max_size=20))
def test_packing_and_unpacking_gives_the_same_records(records):
    assert unpack(pack(records)) == [value for _, value in records]


@given(st.lists(pairs, min_size=1, max_size=20), st.integers(1, 2**128 - 1))
def test_two_halves_of_a_split_shard_share_the_records_of_a_packed_one(records, border):
    packed = pack(records)
    low, high = unpack(packed, HashRange(0, border - 1)), unpack(packed, HashRange(border, 2**128 - 1))
    assert low == [value for key, value in records if hash_key(key) < border]
    assert high == [value for key, value in records if hash_key(key) >= border]


@given(st.binary(max_size=200))
def test_bytes_that_only_look_packed_are_a_record_as_they_are(tail):
    record = b"\xf3\x89\x9a\xc2" + tail
    assert unpack(record) == [record]


@given(st.binary(max_size=60))
def test_a_right_digest_over_nonsense_does_not_make_it_packed(body):
    record = b"\xf3\x89\x9a\xc2" + body + hashlib.md5(body).digest()
    found = unpack(record)
    assert found == [record] or all(isinstance(value, bytes) for value in found)


def body(records: list[tuple[bytes, str, float]], **more: object) -> bytes:
    return json.dumps(
        {
            "Records": [
                {
                    "Data": base64.b64encode(data).decode(),
                    "SequenceNumber": sequence,
                    "PartitionKey": "k",
                    "ApproximateArrivalTimestamp": arrival,
                    "EncryptionType": "NONE",
                }
                for data, sequence, arrival in records
            ],
            **more,
        }
    ).encode()


def test_an_answer_is_read_by_columns():
    page = decode_page(
        body([(b"a", "12", 1.5), (b"", "13", 2)], NextShardIterator="next", MillisBehindLatest=7)
    )
    assert page == Page([b"a", b""], ["12", "13"], [1.5, 2.0], "next", 7, 1)


def test_the_last_answer_of_a_closed_shard_has_no_iterator():
    assert decode_page(body([], MillisBehindLatest=0, ChildShards=[{"ShardId": "x"}])).iterator is None


def test_what_is_no_answer_is_refused():
    with pytest.raises(msgspec.DecodeError):
        decode_page(b"<html>")


arrivals = st.floats(1.7e9, 1.7e9 + 5)
kinesis_records = st.lists(
    st.tuples(st.one_of(values, st.lists(pairs, min_size=1).map(pack)), arrivals), max_size=30
)


@given(kinesis_records, st.lists(st.integers(0, 30), max_size=4))
def test_values_and_arrivals_do_not_depend_on_how_a_shard_is_cut_into_pages(records, cuts):
    def read(some: list[tuple[bytes, float]], base: int) -> list[tuple[bytes, int]]:
        page = Page(
            [value for value, _ in some],
            [str(base + n) for n in range(len(some))],
            [arrival for _, arrival in some],
        )
        return [(value, run.arrived_ms) for run in runs(page, ALL_KEYS) for value in run.values]

    borders = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    cut = [each for a, b in itertools.pairwise(borders) for each in read(records[a:b], a)]
    # One record after the other, as slowly as can be.
    expected = [
        (value, math.ceil(arrival * 1000 / 1000) * 1000)
        for record, arrival in records
        for value in unpack(record)
    ]
    assert cut == read(records, 0) == expected


def test_a_run_is_named_by_the_record_that_holds_its_last_value():
    nobody = HashRange(5, 5)
    foreign = pack([(b"k", b"x")])
    page = Page([b"a", b"b", foreign, foreign], ["1", "2", "3", "4"], [1.0] * 4)
    assert [(run.values, run.sequence) for run in runs(page, nobody)] == [([b"a", b"b"], 2)]
    page = Page([foreign, b"a", foreign, b"b"], ["1", "2", "3", "4"], [1.0] * 4)
    assert [(run.values, run.sequence) for run in runs(page, nobody)] == [([b"a", b"b"], 4)]
    assert list(runs(Page([foreign], ["1"], [1.0]), nobody)) == []
