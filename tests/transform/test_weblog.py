"""Log lines as events: the 10,000 real lines against plain splitting, and odd lines one by one."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.topology import DAY, Contract, EventTime
from streamproc.transform.decode import decode
from streamproc.transform.decode_batch import Batch
from streamproc.transform.weblog import _LINE, FIELDS, LineParser, _taken_apart
from tests.e2e.log_totals import kind_of
from tests.transform.decoding import batch_of

CONTRACT = Contract(FIELDS, EventTime("event_time"), decoder="combined", site="http://semicomplete.com/")
GOOD = (
    '1.2.3.4 - - [17/May/2015:10:05:03 +0200] "GET /a?b=c HTTP/1.1" 200 123 "http://x.example/" "Agent/1.0"'
)


def parse(*lines: bytes | str) -> tuple[list[dict[str, object]], dict[int, str]]:
    values = [line.encode() if isinstance(line, str) else line for line in lines]
    batch = Batch(values, pl.Series(values, dtype=pl.Binary))
    frame = LineParser(CONTRACT).parse(batch)
    assert dict(frame.schema) == {field.name: field.type.polars for field in FIELDS}
    assert frame.height == len(batch.rows)
    return frame.to_dicts(), {row: str(problem.reason) for row, problem in batch.problems.items()}


def test_ten_thousand_real_lines_add_up_to_what_plain_splitting_counts(shared_data: Path) -> None:
    text = gzip.decompress((shared_data / "access_logs" / "apache_combined_10k.log.gz").read_bytes())
    lines = text.splitlines()
    # A whole line has six quotation marks; this log escapes none.
    whole = [line for line in lines if line.count(b'"') == 6]
    split = [line.decode().split('"') for line in whole]
    events, problems = parse(*lines)
    assert (len(lines), len(whole), len(events)) == (10_000, 9_999, 9_999)
    assert list(problems.values()) == ["bad_log_line"]

    heads, requests = [part[0].split() for part in split], [part[1].split() for part in split]
    tails = [part[2].split() for part in split]
    assert Counter(event["ip"] for event in events) == Counter(head[0] for head in heads)
    assert Counter(event["status"] for event in events) == Counter(int(tail[0]) for tail in tails)
    assert Counter(event["method"] for event in events) == Counter(request[0] for request in requests)
    assert Counter(event["page_url"] for event in events) == Counter(
        "http://semicomplete.com" + request[1] if request[1].startswith("/") else None for request in requests
    )
    assert sum(event["bytes"] or 0 for event in events) == sum(
        int(tail[1]) for tail in tails if tail[1] != "-"
    )
    assert [event["event_time"] for event in events] == [
        int(datetime.strptime(f"{head[3]} {head[4]}", "[%d/%b/%Y:%H:%M:%S %z]").timestamp()) * 1000
        for head in heads
    ]
    assert sum(event["referrer"] is None for event in events) == sum(part[3] == "-" for part in split)
    assert [event["user_agent"] for event in events] == [
        part[5] if part[5] != "-" else None for part in split
    ]
    assert len({event["visitor_id"] for event in events}) == len(
        {(head[0], part[5]) for head, part in zip(heads, split, strict=True)}
    )

    assert Counter(event["event_type"] for event in events) == Counter(
        kind_of(request[0], re.split("[?#]", request[1])[0], int(tail[0]))
        for request, tail in zip(requests, tails, strict=True)
    )


def test_a_line_is_too_old_by_when_its_log_was_changed() -> None:
    contract = replace(CONTRACT, event_time=EventTime("event_time", max_age=DAY))
    a_day_later = int(datetime(2015, 5, 18, 8, 5, 3, tzinfo=UTC).timestamp() * 1000)
    for changed, reasons in ((a_day_later, []), (a_day_later + 1, ["old_event"])):
        log = replace(batch_of([GOOD.encode()]), received_ms=changed)
        assert decode([log], contract).rejects["reason"].to_list() == reasons


def test_a_line_says_what_it_says() -> None:
    [event], problems = parse(GOOD)
    assert not problems
    visitor = event.pop("visitor_id")
    assert isinstance(visitor, str) and re.fullmatch("[0-9a-f]{32}", visitor)
    assert event == {
        "event_type": "page_view", "event_time": 1431849903000, "page_url": "http://semicomplete.com/a?b=c",
        "referrer": "http://x.example/", "user_agent": "Agent/1.0", "ip": "1.2.3.4", "remote_user": None,
        "method": "GET", "protocol": "HTTP/1.1", "status": 200, "bytes": 123,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x", "bad_log_line"),
        (GOOD.rstrip('"'), "bad_log_line"),
        (GOOD + '"', "bad_log_line"),
        (GOOD + '""', "bad_log_line"),
        (GOOD + '"x" 1', "bad_log_line"),
        (GOOD.replace("200 123", "2000 123"), "bad_log_line"),
        (GOOD.replace("200 123", "200 " + "9" * 400), "bad_log_line"),
        (GOOD.replace("17/May", "32/May"), "bad_event_time"),
        (GOOD.replace("17/May/2015:10:05:03 +0200", "2015-05-17"), "bad_event_time"),
        (GOOD.replace("/a?b", "/a\0b"), "nul_character"),
        (b"\xff" + GOOD.encode(), "not_utf8"),
        ("", "empty"),
        (" \r\n", "empty"),
        ('{"json": true}', "bad_log_line"),
        ("[" * 100_000, "bad_log_line"),
    ],
)
def test_a_malformed_line_is_a_problem_and_its_neighbours_are_not(line: str | bytes, reason: str) -> None:
    events, problems = parse(GOOD, line, GOOD.replace("/a?b", "/other"))
    assert problems == {1: reason}
    assert [event["page_url"] for event in events] == [
        "http://semicomplete.com/a?b=c",
        "http://semicomplete.com/other=c",
    ]


def test_what_is_said_of_a_time_is_a_sentence_however_long_the_line_is() -> None:
    line = GOOD.replace("17/May/2015:10:05:03 +0200", "x" * 50_000).encode()
    batch = Batch([line], pl.Series([line], dtype=pl.Binary))
    LineParser(CONTRACT).parse(batch)
    assert batch.problems[0].detail == f"'{'x' * 100}'… is no time of the form 17/May/2015:10:05:03 +0000"


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (r"a \"quoted\" agent", 'a "quoted" agent'),
        (r"back\\slash", "back\\slash"),
        (r"tab\tend\n", "tab\tend\n"),
        (r"caf\xc3\xa9", "café"),
        (r"nginx \x22quote\x22", 'nginx "quote"'),
        (r"cp1251 \xe4\xe5", r"cp1251 \xe4\xe5"),
        (r"nul \x00", r"nul \x00"),
    ],
)
def test_escapes_are_undone_when_that_loses_nothing(written: str, means: str) -> None:
    [event], problems = parse(GOOD.replace("Agent/1.0", written))
    assert (event["user_agent"], problems) == (means, {})


@pytest.mark.parametrize("request_line", ["-", "", r"\x16\x03\x01", "quit", "GET"])
def test_a_request_that_is_no_http_is_an_error_event_without_a_page(request_line: str) -> None:
    [event], problems = parse(GOOD.replace("GET /a?b=c HTTP/1.1", request_line))
    assert not problems
    assert (event["event_type"], event["page_url"], event["method"]) == ("error", None, None)


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("", "http://semicomplete.com"),
        ("a.example:443 ", "https://a.example"),
        ("a.example:80 ", "http://a.example"),
        ("a.example:8080 ", "http://a.example:8080"),
    ],
)
def test_the_virtual_host_of_a_line_goes_before_the_contracts_site(prefix: str, url: str) -> None:
    [event], _ = parse(prefix + GOOD)
    assert (event["page_url"], event["ip"]) == (f"{url}/a?b=c", "1.2.3.4")


def test_appended_fields_users_with_spaces_and_ipv6_are_taken() -> None:
    line = GOOD.replace("1.2.3.4 - -", "2001:db8::7 - ann lee") + ' "10.0.0.1" rt=0.012\r\n'
    [event], problems = parse(line)
    assert (event["ip"], event["remote_user"], problems) == ("2001:db8::7", "ann lee", {})


@pytest.mark.parametrize("key", [b"", b"k" * 32])
def test_a_visitor_is_the_hash_of_address_and_agent_under_the_key(key: bytes) -> None:
    lines = [GOOD, GOOD.replace("1.2.3.4", "::1"), GOOD.replace("Agent/1.0", "-"), GOOD.replace("/a?b", "/c")]
    values = [line.encode() for line in lines]
    parser = LineParser(CONTRACT, key)
    for _ in range(2):  # the second time visitors are remembered
        found = parser.parse(Batch(values, pl.Series(values, dtype=pl.Binary)))["visitor_id"].to_list()
        seen = [b"1.2.3.4\0Agent/1.0", b"::1\0Agent/1.0", b"1.2.3.4\0", b"1.2.3.4\0Agent/1.0"]
        assert found == [hashlib.blake2b(text, digest_size=16, key=key).hexdigest() for text in seen]


@given(
    st.lists(
        st.one_of(st.just(GOOD.encode()), st.binary(max_size=80), st.text(max_size=80).map(str.encode)),
        max_size=12,
    )
)
@settings(max_examples=80, deadline=None)
def test_every_line_is_an_event_or_a_problem_whatever_it_holds(lines: list[bytes]) -> None:
    events, problems = parse(*lines)
    assert len(events) + len(problems) == len(lines)
    assert not problems.keys() & {row for row, line in enumerate(lines) if line == GOOD.encode()}


@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD)), st.text('" []-\\\\\n\r1a', max_size=3), st.integers(0, 3)),
        max_size=12,
    ),
    st.sampled_from(["", "a.example:80 ", "::1 ", "a:80 b:81 "]),
)
@settings(max_examples=300, deadline=None)
def test_lines_cut_at_quotes_have_the_parts_that_the_expression_finds(
    changes: list[tuple[int, str, int]], prefix: str
) -> None:
    lines = [prefix + GOOD[:at] + text + GOOD[at + skipped :] for at, text, skipped in changes]
    series = pl.Series([GOOD, *lines, None], dtype=pl.String)
    expected = series.str.extract_groups(_LINE).struct.unnest()
    assert _taken_apart(series).select(expected.columns).to_dicts() == expected.to_dicts()
