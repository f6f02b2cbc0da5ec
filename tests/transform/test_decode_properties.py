"""Whatever the bytes: the oracle agrees, and neighbours change nothing."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.topology import Contract
from streamproc.transform.decode import decode
from tests.transform.decode_oracle import Pairs, expected
from tests.transform.decoding import (
    BOUNDED,
    FLAT,
    NESTED,
    NOW,
    OLDEST_MS,
    RECEIVED_MS,
    batch_of,
    decode_values,
    first_of_duplicates,
    outcomes,
)

pytestmark = pytest.mark.usefixtures("both_ways")

CONTRACTS = {
    "flat": FLAT,
    "nested": NESTED,
    "flat, first of duplicates, none too old": first_of_duplicates(BOUNDED),
    "nested, first of duplicates": first_of_duplicates(NESTED),
}

#: For a long search: ``STREAMPROC_TEST_EXAMPLES=2000``.
EXAMPLES = int(os.environ.get("STREAMPROC_TEST_EXAMPLES", "60"))

KEYS = [
    *("event_id", "event_time", "page_url", "agent", "value", "signed_in", "properties"),
    *("id", "context", "at", "page", "url", "title", "shown", "traits", "zz"),
]
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "12",
            "-1.5e3",
            "true",
            "{}",
            '{"id":1}',
            "[",
            '"id":"',
            '\\"event_id\\":',
            "a\nb",
            "é" * 9,
            "a\0",
            "\ud800",
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([2**63, -(2**63), 10**38, 10**45, 1.5, -0.0, 1e300, NOW, NOW + 600_000, NOW + 600_001]),
    st.sampled_from([NOW - OLDEST_MS, NOW - OLDEST_MS - 1]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(TEXTS, NUMBERS, st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=3)
    ),
    max_leaves=5,
)
FRAGMENTS = st.sampled_from(
    [
        *(
            b"\n",
            b" ",
            b"\r\n",
            b'"',
            b"\\",
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"\0",
            b"\xff",
            b"\x01",
            b"\x0b",
        ),
        *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud83d", b"\\ude00", b"\\ud83d\\ude00", b"\\u0000", b"\\u"),
        *(b'"id":null,', b'"event_id":"b",', b'"event\\u005fid":"b",', b',"properties":{}', b',"zz":NaN'),
        *(
            b',"zz":1e400',
            b',"zz":' + b"9" * 50,
            b"1e3",
            b"-",
            b"0",
            b"[" * 300 + b"]" * 300,
            b"tru",
            b"null",
        ),
    ]
)


def good(contract: Contract) -> dict[str, Any]:
    """An event with nothing wrong, for the contract."""
    if "event_id" in {field.name for field in contract.fields}:
        return {
            "event_id": "e",
            "event_time": NOW,
            "page_url": "http://x/",
            "value": 1.5,
            "properties": {"a": [1]},
        }
    page = {"url": "http://x/", "title": "t", "shown": True}
    context = {"at": NOW, "page": page, "traits": {"url": "u"}}
    return {"id": "1", "context": context, "properties": {"url": "http://y/", "n": 1}}


@st.composite
def records(draw: st.DrawFn, contract: Contract) -> bytes | None:
    """Good events, events with other members, and both with their bytes tampered with."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(
            st.one_of(st.none(), st.binary(max_size=20), st.just(b""), VALUES.map(lambda v: dump(v).encode()))
        )
    event = good(contract)
    if kind >= 4:
        event |= draw(st.dictionaries(st.sampled_from(KEYS) | TEXTS, VALUES, max_size=3))
    text = dump(
        event,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, None, 1])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])),
    )
    value = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(1, 2)) if kind >= 7 else 0):
        at = draw(st.integers(0, len(value)))
        cut = draw(st.sampled_from([0, 0, 0, 1, 2, len(value)]))
        value = value[:at] + draw(FRAGMENTS) + value[at + cut :]
    return value


def dump(value: Any, **options: Any) -> str:
    return json.dumps(value, **options)


def as_pairs(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


@pytest.mark.parametrize("name", CONTRACTS)
def test_decoding_agrees_with_an_oracle_in_plain_python(name: str) -> None:
    contract = CONTRACTS[name]
    json_fields = {field.name for field in contract.fields if field.type.value == "json"}

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(records(contract), min_size=1, max_size=12))
    def check(values: list[bytes | None]) -> None:
        found = outcomes(decode_values(*values, contract=contract))
        assert sorted(found) == list(range(len(values))), "every record is an event or a reject"
        for position, value in enumerate(values):
            want = expected(value, RECEIVED_MS, contract)
            got = found[position]
            if isinstance(want, str):
                assert got.get("reason") == want, (value, got)
                assert got["original"] == value
                continue
            assert "reason" not in got, (value, got)
            for column, wanted in want.items():
                if column in json_fields and wanted is not None:
                    assert as_pairs(got[column]) == wanted, (value, column)
                else:
                    assert got[column] == wanted, (value, column)

    check()


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_outcome_of_a_record_does_not_depend_on_its_neighbours(name: str) -> None:
    contract = CONTRACTS[name]

    @settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(records(contract), min_size=1, max_size=10), st.data())
    def check(values: list[bytes | None], data: st.DataObject) -> None:
        together = outcomes(decode_values(*values, contract=contract))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(values)), max_size=3)) | {0, len(values)})
        apart: dict[int, dict[str, Any]] = {}
        for start, end in pairwise(cuts):
            apart |= outcomes(decode([batch_of(values[start:end], after=start - 1)], contract))
        one_by_one: dict[int, dict[str, Any]] = {}
        for position, value in enumerate(values):
            one_by_one |= outcomes(decode([batch_of([value], after=position - 1)], contract))
        assert together == apart
        assert together == one_by_one

    check()
