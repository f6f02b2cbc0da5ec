"""What decoding makes of each kind of record, good and bad."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from streamproc.model import REJECT_SCHEMA, SYSTEM_COLUMNS, Partition, RecordBatch
from streamproc.topology import Contract, EventTime
from streamproc.transform.decode import decode
from streamproc.transform.decode_rejects import Reason
from tests.transform.decoding import (
    BOUNDED,
    FLAT,
    NESTED,
    NOW,
    OLDEST_MS,
    RECEIVED_MS,
    batch_of,
    decode_values,
    field,
    first_of_duplicates,
    outcomes,
    reason_of,
)

pytestmark = pytest.mark.usefixtures("both_ways")

BASE = {"event_id": "e", "event_time": NOW, "page_url": "http://x/"}


def event(**members: Any) -> bytes:
    """A good event with these members added or replaced."""
    return json.dumps(BASE | members).encode()


def ending_in(members: bytes) -> bytes:
    """A good event with these bytes in place of its closing brace."""
    return event()[:-1] + members


def columns_of(value: bytes, contract: Contract = FLAT) -> dict[str, Any]:
    decoded = decode_values(value, contract=contract)
    assert decoded.rejects.is_empty(), decoded.rejects.to_dicts()
    row: dict[str, Any] = decoded.frame.to_dicts()[0]
    return row


def test_an_event_becomes_typed_columns() -> None:
    decoded = decode_values(event(value=2, signed_in=False, properties={"a": [1, 2.50]}, ignored="x"))
    assert decoded.frame.schema == pl.Schema(
        {
            "event_id": pl.String(),
            "event_time": pl.Datetime("us", "UTC"),
            "page_url": pl.String(),
            "agent": pl.String(),
            "value": pl.Float64(),
            "signed_in": pl.Boolean(),
            "properties": pl.String(),
            **SYSTEM_COLUMNS,
        }
    )
    row = decoded.frame.to_dicts()[0]
    assert row["event_time"] == datetime(2025, 1, 6, 9, tzinfo=UTC)
    assert (row["value"], row["signed_in"], row["agent"]) == (2.0, False, None)
    assert json.loads(row["properties"]) == {"a": [1, 2.5]}


def test_system_columns_come_from_the_record_batches() -> None:
    values = [event(event_id=str(n)) for n in range(4)]
    first = replace(batch_of(values[:2], after=9), received_ms=NOW - 5_000)
    compacted = RecordBatch(Partition("test", "7"), 99, 205, values[2:], [103, 205], NOW, 200, {205: 101})
    frame = decode([first, compacted], FLAT).frame
    assert frame["source_partition"].to_list() == ["0", "0", "7", "7"]
    assert frame["position"].to_list() == [10, 11, 103, 205]
    assert frame["received_at"].dt.epoch("ms").to_list() == [NOW - 5_000, NOW - 5_000, NOW, NOW]
    assert frame["redriven_from"].to_list() == [None, None, None, 101]
    assert frame["event_id"].to_list() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "received_ms",
    [NOW * 1_000, 9 * 10**15, NOW * 1_000_000, 2**63 - 1],
    ids=["microseconds", "behind polars' calendar", "nanoseconds", "the largest"],
)
def test_a_record_timestamp_beyond_all_calendars_stops_nothing(received_ms: int) -> None:
    batch = replace(batch_of([event(), event(page_url=None), b"{"]), received_ms=received_ms)
    decoded = decode([batch, batch_of([event()], after=2)], FLAT)
    rejected = decoded.rejects.select("position", "reason", "received_at").rows()
    end = datetime(9999, 1, 1, tzinfo=UTC)
    assert rejected == [(1, "missing_field", end), (2, "not_json", end)]
    assert decoded.frame.select("position", "received_at").rows() == [
        (0, end),
        (3, datetime(2025, 1, 6, 9, tzinfo=UTC)),
    ]


def test_no_records_give_empty_frames_of_the_usual_schema() -> None:
    for batches in ([], [batch_of([])], [batch_of([None])]):
        decoded = decode(batches, FLAT)
        assert decoded.frame.schema == decode_values(event()).frame.schema
        assert decoded.rejects.schema == pl.Schema(REJECT_SCHEMA)
        assert decoded.frame.is_empty()


def test_rejects_name_the_place_the_field_and_keep_the_bytes() -> None:
    bad = event(event_time="soon")
    rejects = decode_values(event(), bad, b"\xff").rejects.to_dicts()
    assert [row["position"] for row in rejects] == [1, 2]
    assert rejects[0]["reason"] == "wrong_type"
    assert rejects[0]["field"] == "event_time"
    assert "int" in rejects[0]["detail"] and "str" in rejects[0]["detail"]
    assert [row["original"] for row in rejects] == [bad, b"\xff"]
    assert rejects[1]["field"] is None


REASONS: dict[str, tuple[Reason, bytes | None]] = {
    "no value": (Reason.TOMBSTONE, None),
    "nothing": (Reason.EMPTY, b""),
    "spaces": (Reason.EMPTY, b"  \t"),
    "line feeds": (Reason.EMPTY, b"\r\n\n"),
    "too many bytes": (Reason.TOO_LARGE, event(zz="x" * 20_000)),
    "latin-1": (Reason.NOT_UTF8, ending_in(b',"agent":"caf\xe9"}')),
    "latin-1 in a field nobody reads": (Reason.NOT_UTF8, ending_in(b',"zz":"caf\xe9"}')),
    "an encoded surrogate": (Reason.NOT_UTF8, ending_in(b',"zz":"\xed\xa0\x80"}')),
    "an overlong encoding": (Reason.NOT_UTF8, ending_in(b',"zz":"\xc0\xaf"}')),
    "random bytes": (Reason.NOT_UTF8, b"\x80\x81\xfe\xff"),
    "cut off": (Reason.NOT_JSON, event()[:-5]),
    "an unfinished escape": (Reason.NOT_JSON, ending_in(b',"zz":"\\u00')),
    "two objects": (Reason.NOT_JSON, event() + event()),
    "two lines": (Reason.NOT_JSON, event() + b"\n" + event()),
    "a trailing comma": (Reason.NOT_JSON, ending_in(b",}")),
    "a byte order mark": (Reason.NOT_JSON, b"\xef\xbb\xbf" + event()),
    "python's repr": (Reason.NOT_JSON, b"{'event_id': 'e'}"),
    "a comment": (Reason.NOT_JSON, event() + b"// done"),
    "a control character": (Reason.NOT_JSON, ending_in(b',"zz":"a\x01"}')),
    "a line feed in a text": (Reason.NOT_JSON, ending_in(b',"agent":"a\nb"}')),
    "a NUL byte": (Reason.NOT_JSON, ending_in(b',"agent":"a\0b"}')),
    "a NUL byte after it": (Reason.NOT_JSON, event() + b"\0"),
    "NaN": (Reason.NOT_JSON, ending_in(b',"value":NaN}')),
    "infinity": (Reason.NOT_JSON, ending_in(b',"zz":-Infinity}')),
    "a leading zero": (Reason.NOT_JSON, ending_in(b',"zz":01}')),
    "an unknown escape": (Reason.NOT_JSON, ending_in(b',"zz":"\\q"}')),
    "a list": (Reason.NOT_AN_OBJECT, b"[1]"),
    "a number": (Reason.NOT_AN_OBJECT, b"17"),
    "a text": (Reason.NOT_AN_OBJECT, b'"event"'),
    "null": (Reason.NOT_AN_OBJECT, b"null"),
    "a flag": (Reason.NOT_AN_OBJECT, b" true "),
    "deep lists in a field nobody reads": (
        Reason.TOO_DEEP,
        ending_in(b',"zz":' + b"[" * 300 + b"]" * 300 + b"}"),
    ),
    "deep objects in a field kept as text": (
        Reason.TOO_DEEP,
        ending_in(b',"properties":' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}"),
    ),
    "deep and never closed": (Reason.TOO_DEEP, b"[" * 10_000),
    "half a pair": (Reason.LONE_SURROGATE, ending_in(b',"agent":"\\ud83d"}')),
    "half a pair before other text": (Reason.LONE_SURROGATE, ending_in(b',"agent":"\\ud83d and more"}')),
    "the other half": (Reason.LONE_SURROGATE, ending_in(b',"agent":"\\ude00"}')),
    "halves the wrong way round": (Reason.LONE_SURROGATE, ending_in(b',"zz":"\\ude00\\ud83d"}')),
    "half a pair, then an escape": (Reason.LONE_SURROGATE, ending_in(b',"agent":"\\ud83d\\u0041"}')),
    "half a pair in a kept object": (Reason.LONE_SURROGATE, ending_in(b',"properties":{"a":"\\ud83d"}}')),
    "half a pair in a key": (Reason.LONE_SURROGATE, ending_in(b',"\\ud83d":1}')),
    "NUL in a text": (Reason.NUL_CHARACTER, event(agent="a\0b")),
    "NUL in a kept object": (Reason.NUL_CHARACTER, event(properties={"a": ["\0"]})),
    "NUL in a kept object's key": (Reason.NUL_CHARACTER, event(properties={"\0": 1})),
    "NUL after an escaped backslash": (Reason.NUL_CHARACTER, event(properties={"a": "\\\0"})),
    "a key twice": (Reason.DUPLICATE_KEY, ending_in(b',"event_id":"f"}')),
    "a key twice, alike": (Reason.DUPLICATE_KEY, ending_in(b',"event_id":"e"}')),
    "a key twice, the second null": (Reason.DUPLICATE_KEY, ending_in(b',"event_id":null}')),
    "a key twice, both null": (Reason.DUPLICATE_KEY, ending_in(b',"agent":null,"agent":null}')),
    "a key twice, first null": (Reason.DUPLICATE_KEY, ending_in(b',"agent":null,"agent":"a"}')),
    "a key twice, the second escaped": (Reason.DUPLICATE_KEY, ending_in(b',"event\\u005Fid":"f"}')),
    "a kept object twice": (
        Reason.DUPLICATE_KEY,
        ending_in(b',"properties":{},"properties":{"properties":1}}'),
    ),
    "digits for a number": (Reason.WRONG_TYPE, event(event_time=str(NOW))),
    "a fraction for an integer": (Reason.WRONG_TYPE, event(event_time=NOW + 0.5)),
    "a whole number with a point": (Reason.WRONG_TYPE, event(event_time=float(NOW))),
    "a flag for an integer": (Reason.WRONG_TYPE, event(event_time=True)),
    "a number for a text": (Reason.WRONG_TYPE, event(event_id=12)),
    "a fraction for a text": (Reason.WRONG_TYPE, event(event_id=-1.5)),
    "a flag for a text": (Reason.WRONG_TYPE, event(event_id=False)),
    "an object for a text": (Reason.WRONG_TYPE, event(event_id={"a": 1})),
    "a list for a text": (Reason.WRONG_TYPE, event(event_id=[])),
    "a text for a number": (Reason.WRONG_TYPE, event(value="1.5")),
    "a number for a flag": (Reason.WRONG_TYPE, event(signed_in=1)),
    "a text for a flag": (Reason.WRONG_TYPE, event(signed_in="true")),
    "an integer over 64 bits": (Reason.NUMBER_OUT_OF_RANGE, event(event_time=2**63)),
    "an exponent too large": (Reason.NUMBER_OUT_OF_RANGE, ending_in(b',"value":1e400}')),
    "an exponent too large elsewhere": (Reason.NUMBER_OUT_OF_RANGE, ending_in(b',"zz":-1e400}')),
    "400 digits": (Reason.NUMBER_OUT_OF_RANGE, ending_in(b',"value":' + b"9" * 400 + b"}")),
    "400 digits elsewhere": (Reason.NUMBER_OUT_OF_RANGE, ending_in(b',"zz":[' + b"9" * 400 + b"]}")),
    "5,000 digits elsewhere": (Reason.NUMBER_OUT_OF_RANGE, ending_in(b',"zz":' + b"9" * 5_000 + b"}")),
    "no members": (Reason.MISSING_FIELD, b"{}"),
    "a required text that is null": (Reason.MISSING_FIELD, event(page_url=None)),
    "no event time": (Reason.MISSING_FIELD, event(event_time=None)),
    "a text too long": (Reason.TOO_LONG, event(page_url="é" * 65)),
    "a kept object too long": (Reason.TOO_LONG, event(properties={"a": "x" * 400})),
    "a time before 1970": (Reason.BAD_EVENT_TIME, event(event_time=-1)),
    "a time after 9999": (Reason.BAD_EVENT_TIME, event(event_time=253_402_300_800_000)),
    "microseconds for milliseconds": (Reason.BAD_EVENT_TIME, event(event_time=NOW * 1_000)),
    "11 minutes ahead": (Reason.FUTURE_EVENT, event(event_time=NOW + 660_000)),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_bad_record_is_rejected_with_its_reason(name: str) -> None:
    reason, value = REASONS[name]
    assert reason_of(value) == reason


def test_bad_records_do_not_disturb_good_ones() -> None:
    values: list[bytes | None] = []
    for _, bad in REASONS.values():
        values += [bad, event(event_id=str(len(values)))]
    decoded = decode_values(*values)
    assert decoded.rejects["reason"].to_list() == [str(reason) for reason, _ in REASONS.values()]
    assert decoded.frame["event_id"].to_list() == [str(2 * n) for n in range(len(REASONS))]


@pytest.mark.parametrize("rest", [{}, {"zz": "nobody reads this"}, {"properties": {"a": 1}, "value": 1.5}])
def test_bad_records_are_found_behind_a_thousand_good_ones(rest: dict[str, Any]) -> None:
    values: list[bytes | None] = [event(event_id=str(n), **rest) for n in range(1_000)]
    bad = [value for _, value in REASONS.values()]
    decoded = decode([batch_of([*values, *bad, *values])], FLAT)
    assert decoded.rejects["reason"].to_list() == [str(reason) for reason, _ in REASONS.values()]
    assert decoded.rejects["original"].to_list() == bad
    assert decoded.frame["event_id"].to_list() == 2 * [str(n) for n in range(1_000)]


@pytest.mark.parametrize(
    "value",
    [
        ending_in(b',"zz":"caf\xe9"}'),
        ending_in(b',"zz":[1e999]}'),
        ending_in(b',"value":' + b"9" * 45 + b"}"),
        ending_in(b',"properties":{"a":' + b"9" * 45 + b"}}"),
        ending_in(b',"properties":"caf\xe9"}'),
    ],
)
def test_what_only_the_reader_refuses_is_found_among_good_ones(value: bytes) -> None:
    alone = reason_of(value)
    assert alone in ("not_utf8", "number_out_of_range")
    decoded = decode_values(*[event()] * 500, value, *[event()] * 500)
    assert decoded.rejects.select("position", "reason").rows() == [(500, alone)]


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(event(event_id="forged")),
        zlib.compress(b"\n".join([event(event_id="forged")] * 3)),
        b"(\xb5/\xfd made by zstd",
        b"x^ is how zlib begins and plain text too",
    ],
    ids=["gzip", "zlib", "zstd", "text"],
)
def test_a_record_that_begins_like_a_packed_file_does_not_speak_for_the_others(packed: bytes) -> None:
    decoded = decode_values(packed, event(event_id="first"), event(event_id="second"))
    assert decoded.frame["event_id"].to_list() == ["first", "second"]
    assert decoded.rejects["original"].to_list() == [packed]


def test_every_reason_can_occur_and_says_what_it_means() -> None:
    web_log = {Reason.BAD_LOG_LINE, Reason.TRUNCATED_OBJECT, Reason.CORRUPT_OBJECT, Reason.OVERSIZED_OBJECT}
    assert {reason for reason, _ in REASONS.values()} == set(Reason) - web_log - {Reason.OLD_EVENT}
    assert all(reason.meaning and reason == reason.value for reason in Reason)


@pytest.mark.parametrize(
    "text", ["12", "-1", "1.5e3", "true", "false", "null", "{}", '{"a": 1}', "[", "[1]", "0x1F"]
)
def test_texts_that_look_like_other_types_stay_texts(text: str) -> None:
    assert columns_of(event(event_id=text))["event_id"] == text
    compact = json.dumps(BASE | {"event_id": text, "zz": 'a "quoted" word'}, separators=(",", ":"))
    assert columns_of(compact.encode())["event_id"] == text


@pytest.mark.parametrize(
    "value",
    [
        event(zz={"event_id": 1, "page_url": 2}),
        event(zz='"event_id":'),
        event(properties={"event_id": "x", "event_time": [{"page_url": 1}]}),
        event(agent=None, value=None, signed_in=None, properties=None),
        event(agent=None, zz={"agent": 1}),
        event(zz=[{"zz": 1, "yy": 2}, {"zz": 1}]),
        ending_in(b',"zz":1,"zz":2}'),
        json.dumps(BASE, indent=4).encode(),
        json.dumps(BASE, separators=(",", ":")).encode(),
        event() + b"\n",
        event() + b"\r\n",
        b" \t" + event() + b" ",
        event(zz="\0"),
        ending_in(b',"zz":"\\ud83d\\ude00"}'),
        ending_in(b',"zz":' + b"[" * 250 + b"]" * 250 + b"}"),
        event(zz="[" * 1_000),
        event(zz=[[]] * 1_000),
        event(zz=2**127),
        ending_in(b',"zz":1e-400}'),
        event(event_time=0),
        event(event_time=NOW + 600_000),
        event(page_url="é" * 64),
    ],
)
def test_unusual_records_that_are_fine(value: bytes) -> None:
    assert reason_of(value) is None


@pytest.mark.parametrize(
    "kept", ['"x"', '"{}"', "[]", "{}", "1.50", "true", '{"a": "x\\"y\\n\\\\", "é": [null]}']
)
def test_a_json_field_keeps_its_source_text(kept: str) -> None:
    assert columns_of(ending_in(b',"properties":' + kept.encode() + b"}"))["properties"] == kept


def test_a_long_text_is_cut_where_the_contract_says_so() -> None:
    assert columns_of(event(agent="é" * 9))["agent"] == "é" * 8


def test_nested_fields_are_found_by_their_path() -> None:
    page = {"url": "http://x/", "title": 't"', "shown": False}
    value = {
        "id": "1",
        "context": {"at": NOW, "page": page, "traits": {"url": 1}},
        "properties": {"url": "u", "n": [1]},
        "url": "another",
    }
    row = columns_of(json.dumps(value).encode(), NESTED)
    assert (row["url"], row["title"], row["shown"]) == ("http://x/", 't"', False)
    assert json.loads(row["properties"]) == value["properties"]
    assert row["property_url"] == "u"
    assert json.loads(row["traits"]) == {"url": 1}
    assert row["at"] == NOW
    assert row["event_time"] == datetime(2025, 1, 6, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"id":"1","context":{"at":%d,"page":"home"}}' % NOW, "wrong_type"),
        (b'{"id":"1","context":{"at":%d,"page":{"url":7}}}' % NOW, "wrong_type"),
        (b'{"id":"1","context":{"at":%d,"page":{"url":"a","url":"b"}}}' % NOW, "duplicate_key"),
        (b'{"id":"1","context":{"at":%d},"context":{"at":%d}}' % (NOW, NOW), "duplicate_key"),
        (b'{"id":"1","context":null}', "missing_field"),
        (b'{"id":"1","context":{"at":%d,"page":null}}' % NOW, None),
        (b'{"id":"1","context":{"at":%d,"page":{"id":"1","at":2}},"page":{"url":3}}' % NOW, None),
    ],
)
def test_nested_records_are_judged_like_flat_ones(value: bytes, reason: str | None) -> None:
    assert reason_of(value, NESTED) == reason


def test_the_first_of_duplicate_keys_counts_when_the_contract_says_so() -> None:
    contract = first_of_duplicates(FLAT)
    value = ending_in(b',"event_id":"later","event_time":"no","properties":{"n":1},"properties":[]}')
    row = columns_of(value, contract)
    assert (row["event_id"], row["properties"]) == ("e", '{"n": 1}')
    among_bad = outcomes(decode_values(b"{", value, contract=contract))
    assert among_bad[1]["event_id"] == "e"


def test_two_fields_cannot_read_different_types_from_one_key() -> None:
    contract = Contract((field("at", "integer"), field("again", path="at")), EventTime("at"))
    with pytest.raises(ValueError, match="at, again"):
        decode_values(b"{}", contract=contract)


def test_naughty_strings_survive_as_values(shared_data: Path) -> None:
    strings = [s for s in json.loads((shared_data / "bad_input/blns.json").read_text()) if "\0" not in s]
    contract = Contract((field("at", "integer"), field("text"), field("kept", "json")), EventTime("at"))
    for options in ({}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        values = [json.dumps({"at": NOW, "text": s, "kept": {s: [s]}}, **options).encode() for s in strings]
        decoded = decode_values(*values, contract=contract)
        assert decoded.rejects.is_empty()
        assert decoded.frame["text"].to_list() == strings
        assert [json.loads(text) for text in decoded.frame["kept"]] == [{s: [s]} for s in strings]


def test_naughty_strings_are_rejected_as_records(shared_data: Path) -> None:
    strings = json.loads((shared_data / "bad_input/blns.json").read_text())
    decoded = decode_values(*(s.encode() for s in strings))
    assert decoded.frame.is_empty()
    assert decoded.rejects["original"].to_list() == [s.encode() for s in strings]


def test_ten_megabytes_are_rejected_at_once() -> None:
    bombs = [b'{"zz":"' + b"x" * 10_000_000, b"[" * 10_000_000, b'{"a":' * 2_000_000, b"\xff" * 10_000_000]
    started = time.process_time()
    decoded = decode_values(event(), *bombs)
    assert time.process_time() - started < 1
    assert decoded.rejects["reason"].unique().to_list() == ["too_large"]
    assert decoded.frame.height == 1


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 900_000,
        b'{"a":' * 180_000,
        b'{"zz":' + b"[]," * 300_000,
        b'"' + b'\\"' * 450_000,
        b'{"zz":"' + b"\\ud83d" * 150_000,
        b'{"zz":' + b"9" * 900_000 + b"}",
        b'{"zz":[' + b"1e999," * 150_000 + b"1]}",
        b'{"zz":1,' + b'"zz":1,' * 120_000 + b'"zz":1}',
        b"\n" * 900_000,
    ],
)
def test_large_records_made_to_hurt_are_rejected_soon(bomb: bytes) -> None:
    contract = replace(FLAT, max_record_bytes=1_048_576)
    started = time.process_time()
    decoded = decode_values(event(), bomb, contract=contract)
    assert time.process_time() - started < 5, "no more than linear in the size"
    assert decoded.frame.height == 1
    assert decoded.rejects.height == 1


def test_deep_records_do_not_end_the_process_from_a_small_stack() -> None:
    program = f"""
import sys, threading
sys.path[:0] = {sys.path!r}
from tests.transform.decoding import decode_values
found = []
def work():
    bombs = [b"[" * n + b"]" * n for n in (255, 257, 1023, 1025, 9_000)]
    bombs += [b'{{"zz":' + bomb + b"}}" for bomb in bombs]
    bombs += [b'{{"properties":' * n + b"1" + b"}}" * n for n in (256, 300, 1000)]
    found.extend(decode_values(*bombs).rejects["reason"])
threading.stack_size(256 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(len(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "13"


def test_nobody_depends_on_the_clock_of_this_machine() -> None:
    late_broker = replace(batch_of([event()]), received_ms=RECEIVED_MS - 3_600_000)
    assert decode([late_broker], FLAT).rejects["reason"].to_list() == ["future_event"]


def test_an_event_is_too_old_by_the_broker_s_clock_and_only_where_the_contract_bounds_its_age() -> None:
    batch = batch_of([event(event_time=NOW - OLDEST_MS - age) for age in (0, 1, NOW - OLDEST_MS)])
    assert decode([batch], FLAT).rejects.is_empty()
    rejects = decode([batch], BOUNDED).rejects
    assert rejects.select("position", "reason", "field").rows() == [
        (1, "old_event", "event_time"),
        (2, "old_event", "event_time"),
    ]
    assert rejects["detail"][0] == (
        "2024-12-07 08:59:59.999000+00:00 is more than 30d behind the broker's 2025-01-06 09:00:00+00:00"
    )
    earlier = replace(batch, received_ms=RECEIVED_MS - 1)
    assert decode([earlier], BOUNDED).rejects["position"].to_list() == [2]
