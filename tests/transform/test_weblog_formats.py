"""Every log format: the samples that vendors document, and random logs against plain Python.

The oracle splits lines with ``shlex``, ``str.split`` and ``json``; it shares nothing with what it checks.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError
from streamproc.quantities import Invalid
from streamproc.topic_pages import read_page
from streamproc.topology import Contract, EventTime
from streamproc.transform.decode_batch import Batch
from streamproc.transform.weblog_cloudfront import REALTIME_FIELDS, STANDARD_FIELDS
from streamproc.transform.weblog_formats import LOG_FIELDS, PARSERS, fields_of
from streamproc.transform.weblog_pattern import compile_format

Event = dict[str, object]


def parse(
    decoder: str, *lines: str | bytes, log_format: str | None = None, unit: str = "us"
) -> tuple[list[Event], dict[int, str]]:
    contract = Contract(
        fields_of(decoder),
        EventTime("event_time", unit),
        decoder=decoder,
        site="https://shop.example",
        log_format=log_format,
    )
    values = [line.encode() if isinstance(line, str) else line for line in lines]
    batch = Batch(values, pl.Series(values, dtype=pl.Binary))
    frame = PARSERS[decoder](contract, b"").parse(batch)
    assert dict(frame.schema) == {field.name: field.type.polars for field in fields_of(decoder)}
    assert frame.height == len(batch.rows)
    return frame.to_dicts(), {row: str(problem.reason) for row, problem in batch.problems.items()}


def one(decoder: str, line: str, **options: str) -> Event:
    [event], problems = parse(decoder, line, **options)
    assert problems == {}
    assert re.fullmatch("[0-9a-f]{32}", str(event["visitor_id"]))
    return event


def us(text: str) -> int:
    """Microseconds of Unix time, exactly."""
    found = datetime.fromisoformat(text)
    return int(found.replace(microsecond=0).timestamp()) * 1_000_000 + found.microsecond


# -- common and written-out formats ------------------------------------------------------------------

APACHE_DOC = '127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326'


def test_apaches_own_example_of_the_common_format() -> None:
    event = one("common", APACHE_DOC)
    del event["visitor_id"]
    assert event == {
        "event_type": "asset", "event_time": us("2000-10-10T13:55:36-07:00"),
        "page_url": "https://shop.example/apache_pb.gif", "referrer": None, "user_agent": None, "ip": "127.0.0.1",
        "remote_user": "frank", "method": "GET", "protocol": "HTTP/1.0", "status": 200, "bytes": 2326, "host": None,
        "request_id": None, "seconds": None,
    }  # fmt: skip


def test_a_common_line_may_have_its_virtual_host_in_front() -> None:
    event = one("common", f"www.example.org:443 {APACHE_DOC}")
    assert (event["page_url"], event["host"]) == ("https://www.example.org/apache_pb.gif", "www.example.org")


def test_the_combined_format_written_out_gives_what_the_decoder_combined_gives(shared_data: Path) -> None:
    text = gzip.decompress((shared_data / "access_logs" / "apache_combined_10k.log.gz").read_bytes())
    lines = text.splitlines()
    for written in (
        r"%h %l %u %t \"%r\" %>s %b \"%{Referer}i\" \"%{User-Agent}i\"",
        '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" '
        '"$http_user_agent"',
    ):
        named, problems = parse("combined", *lines)
        out, other = parse("log_format", *lines, log_format=written)
        assert len(named) == 9_999 and problems == other
        names = [field.name for field in fields_of("combined")]
        assert [{name: event[name] for name in names} for event in out] == named


@pytest.mark.parametrize(
    ("log_format", "line", "expected"),
    [
        (
            '%a %t "%m %U%q %H" %>s %O %D',
            '10.1.2.3 [17/May/2015:10:05:03 +0000] "GET /a?b=1 HTTP/1.1" 200 17 2500',
            {"ip": "10.1.2.3", "page_url": "https://shop.example/a?b=1", "bytes": 17, "seconds": 0.0025},
        ),
        (
            "%{%Y-%m-%d %H:%M:%S}t|%v|%h|%m|%U|%>s|%{ms}T|%{UNIQUE_ID}e",
            "2015-05-17 10:05:03|www.a.example|1.2.3.4|POST|/cart|302|12|abc@x",
            {
                "event_time": us("2015-05-17T10:05:03+00:00"), "host": "www.a.example", "method": "POST",
                "page_url": "http://www.a.example/cart", "event_type": "redirect", "seconds": 0.012,
                "request_id": "abc@x",
            },
        ),
        (
            '%{usec}t %h "%{X-Forwarded-For}i" "%r" %s %{cookie}n',
            '1431857103123456 10.0.0.1 "9.9.9.9, 10.0.0.7" "GET / HTTP/1.1" 404 visitor-7',
            {"event_time": 1431857103123456, "ip": "10.0.0.1", "event_type": "error", "visitor_id": "visitor-7"},
        ),
        (
            '"$http_x_forwarded_for" $msec $scheme://$http_host "$request_method $request_uri" $status $request_time',
            '"9.9.9.9, 10.0.0.7" 1431857103.123 https://a.example:8443 "GET /x.pdf" 200 0.250',
            {
                "event_time": us("2015-05-17T10:05:03.123+00:00"), "ip": "9.9.9.9", "host": "a.example",
                "page_url": "https://a.example:8443/x.pdf", "event_type": "download", "seconds": 0.25,
            },
        ),
        (
            "$time_iso8601 $remote_addr ${request_method} $uri $args $status",
            "2015-05-17T10:05:03+02:00 ::1 GET /a - 200",
            {"event_time": us("2015-05-17T10:05:03+02:00"), "ip": "::1", "page_url": "https://shop.example/a"},
        ),
    ],
)  # fmt: skip
def test_a_format_of_ones_own_is_read_as_the_server_writes_it(
    log_format: str, line: str, expected: Event
) -> None:
    [event], problems = parse("log_format", line, log_format=log_format)
    assert problems == {}
    assert {name: event[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("log_format", "problem"),
    [
        ('%h "%r" %>s', "no time"),
        ("%t %m%H", "without anything between"),
        ("no directive", "no time"),
        ("", "no time"),
    ],
)
def test_a_format_that_leaves_something_open_is_refused(log_format: str, problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        compile_format(log_format)


WORD = st.text(
    st.characters(codec="ascii", exclude_characters=' "\\-', categories=["L", "N", "P"]),
    min_size=1,
    max_size=12,
)
SERVER_ESCAPED = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda t: t != "-"
)


@given(
    st.lists(
        st.tuples(WORD, SERVER_ESCAPED, st.integers(0, 2**31 - 1), st.integers(100, 599)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_server_writes_by_a_format_is_read_back(rows: list[tuple[str, str, int, int]]) -> None:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"')

    lines = [
        f'{ip} {second} "GET /{status} HTTP/1.1" {status} "{quoted(agent)}"'
        for ip, agent, second, status in rows
    ]
    events, problems = parse(
        "log_format", *lines, log_format='%h %{sec}t "%r" %>s "%{User-Agent}i"', unit="s"
    )
    assert problems == {}
    # An address ends before a comma, as in X-Forwarded-For.
    assert [(event["ip"], event["user_agent"], event["event_time"], event["status"]) for event in events] == [
        (ip.split(",")[0] or None, agent, second, status) for ip, agent, second, status in rows
    ]


# -- Amazon's ----------------------------------------------------------------------------------------

#: From the vendor's documentation of access log entries, one of each kind.
ALB_DOC = [
    'http 2018-07-02T22:23:00.186641Z app/my-loadbalancer/50dc6c495c0c9188 192.168.131.39:2817 10.0.0.1:80 0.000 0.001 '
    '0.000 200 200 34 366 "GET http://www.example.com:80/ HTTP/1.1" "curl/7.46.0" - - '
    'arn:aws:elasticloadbalancing:us-east-2:123456789012:targetgroup/my-targets/73e2d6bc24d8a067 '
    '"Root=1-58337262-36d228ad5d99923122bbe354" "-" "-" 0 2018-07-02T22:22:48.364000Z "forward" "-" "-" "10.0.0.1:80" '
    '"200" "-" "-"',
    'https 2018-07-02T22:23:00.186641Z app/my-loadbalancer/50dc6c495c0c9188 192.168.131.39:2817 10.0.0.1:80 0.086 '
    '0.048 0.037 200 200 0 57 "GET https://www.example.com:443/ HTTP/1.1" "curl/7.46.0" ECDHE-RSA-AES128-GCM-SHA256 '
    'TLSv1.2 arn:aws:elasticloadbalancing:us-east-2:123456789012:targetgroup/my-targets/73e2d6bc24d8a067 '
    '"Root=1-58337281-1d84f3d73c47ec4e58577259" "www.example.com" '
    '"arn:aws:acm:us-east-2:123456789012:certificate/12345678-1234-1234-1234-123456789012" 1 '
    '2018-07-02T22:22:48.364000Z "authenticate,forward" "-" "-" "10.0.0.1:80" "200" "-" "-" TID_123456',
    'http 2018-11-30T22:23:00.186641Z app/my-loadbalancer/50dc6c495c0c9188 192.168.131.39:2817 - 0.000 0.001 0.000 502 '
    '- 34 366 "GET http://www.example.com:80/ HTTP/1.1" "curl/7.46.0" - - '
    'arn:aws:elasticloadbalancing:us-east-2:123456789012:targetgroup/my-targets/73e2d6bc24d8a067 '
    '"Root=1-58337364-23a8c76965a2ef7629b185e3" "-" "-" 0 2018-11-30T22:22:48.364000Z "forward" "-" '
    '"LambdaInvalidResponse" "-" "-" "-" "-"',
]  # fmt: skip


def test_the_load_balancers_documented_lines() -> None:
    events, problems = parse("alb", *ALB_DOC)
    assert problems == {}
    for line, event in zip(ALB_DOC, events, strict=True):
        words = shlex.split(line)
        assert event["event_time"] == us(words[1].replace("Z", "+00:00"))
        assert event["ip"] == words[3].rpartition(":")[0]
        assert event["seconds"] == pytest.approx(sum(map(float, words[5:8])))
        assert (event["status"], event["bytes"]) == (int(words[8]), int(words[11]))
        method, url, protocol = words[12].split()
        assert (event["method"], event["protocol"]) == (method, protocol)
        assert event["page_url"] == re.sub(r":(80|443)/", "/", url)
        assert (event["user_agent"], event["request_id"]) == (words[13], words[17])
        assert event["host"] == (None if words[18] == "-" else words[18])
    assert [event["event_type"] for event in events] == ["page_view", "page_view", "error"]


def test_a_request_that_the_load_balancer_could_not_read_is_an_error_event() -> None:
    line = ALB_DOC[0].replace("GET http://www.example.com:80/ HTTP/1.1", "- http://www.example.com:80- ")
    line = line.replace("0.000 0.001 0.000 200 200", "-1 -1 -1 400 -")
    event = one("alb", line)
    assert (event["event_type"], event["page_url"], event["method"], event["seconds"]) == (
        "error",
        None,
        None,
        None,
    )


#: From the vendor's documentation of server access log records.
S3_DOC = [
    "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be amzn-s3-demo-bucket1 "
    "[06/Feb/2019:00:00:38 +0000] 192.0.2.3 79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be "
    '3E57427F3EXAMPLE REST.GET.VERSIONING - "GET /amzn-s3-demo-bucket1?versioning HTTP/1.1" 200 - 113 - 7 - "-" '
    '"S3Console/0.4" - s9lzHYrFp76ZVxRcpX9+5cjAnEH2ROuNkd2BHfIa6UkFVdtjf5mKR3/eTPFvsiP/XV/VLi31234= SigV4 '
    "ECDHE-RSA-AES128-GCM-SHA256 AuthHeader amzn-s3-demo-bucket1.s3.us-west-1.amazonaws.com TLSV1.2 "
    "arn:aws:s3:us-west-1:123456789012:accesspoint/example-AP Yes us-east-1",
    "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be amzn-s3-demo-bucket1 "
    "[06/Feb/2019:00:01:57 +0000] 192.0.2.3 79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be "
    'DD6CC733AEXAMPLE REST.PUT.OBJECT s3-dg.pdf "PUT /amzn-s3-demo-bucket1/s3-dg.pdf HTTP/1.1" 200 - - 4406583 41754 '
    '28 "-" "S3Console/0.4" - 10S62Zv81kBW7BB6SX4XJ48o6kpcl6LPwEoizZQQxJd5qDSCTLX0TgS37kYUBKQW3+bPdrg1234= SigV4 '
    "ECDHE-RSA-AES128-SHA AuthHeader amzn-s3-demo-bucket1.s3.us-west-1.amazonaws.com TLSV1.2 - - us-east-1",
]


def test_the_documented_lines_of_s3() -> None:
    events, problems = parse("s3_access", *S3_DOC)
    assert problems == {}
    assert [event["event_type"] for event in events] == ["page_view", "request"]
    for line, event in zip(S3_DOC, events, strict=True):
        words = shlex.split(line.replace("[", '"').replace("]", '"'))
        assert event["event_time"] == us(
            datetime.strptime(words[2], "%d/%b/%Y:%H:%M:%S %z").astimezone(UTC).isoformat()
        )
        assert (event["ip"], event["remote_user"], event["request_id"]) == (words[3], words[4], words[5])
        assert event["page_url"] == "https://shop.example" + words[8].split()[1]
        assert (event["status"], event["user_agent"]) == (int(words[9]), words[16])
        assert event["bytes"] == (None if words[11] == "-" else int(words[11]))
        assert event["seconds"] == int(words[13]) / 1000


def test_what_s3_did_by_itself_is_no_error() -> None:
    line = "o b [06/Feb/2019:00:01:57 +0000] - AmazonS3 7F33 S3.EXPIRE.OBJECT k - - - - 1024 - - - - - id - - - - - -"
    event = one("s3_access", line)
    assert (event["event_type"], event["ip"], event["status"]) == ("request", None, None)


CLOUDFRONT_DOC = (
    "2019-12-04\t21:02:31\tLAX1\t392\t192.0.2.100\tGET\td111111abcdef8.cloudfront.net\t/index.html\t200\t-\t"
    "Mozilla/5.0%20(Windows%20NT%2010.0;%20Win64;%20x64)%20AppleWebKit/537.36%20(KHTML,%20like%20Gecko)%20"
    "Chrome/78.0.3904.108%20Safari/537.36\t-\t-\tHit\tSOX4xwn4XV6Q4rgb7XiVGOHms_BGlTAC4KyHmureZmBNrjGdRLiNIQ==\t"
    "d111111abcdef8.cloudfront.net\thttps\t23\t0.001\t-\tTLSv1.2\tECDHE-RSA-AES128-GCM-SHA256\tHit\tHTTP/2.0\t-\t-\t"
    "11040\t0.001\tHit\ttext/html\t78\t-\t-"
)


def test_the_documented_line_of_cloudfront() -> None:
    event = one("cloudfront", CLOUDFRONT_DOC)
    del event["visitor_id"]
    fields = CLOUDFRONT_DOC.split("\t")
    assert event == {
        "event_type": "page_view", "event_time": us("2019-12-04T21:02:31+00:00"),
        "page_url": "https://d111111abcdef8.cloudfront.net/index.html", "referrer": None,
        "user_agent": urllib.parse.unquote(fields[10]), "ip": "192.0.2.100", "remote_user": None, "method": "GET",
        "protocol": "HTTP/2.0", "status": 200, "bytes": 392, "host": "d111111abcdef8.cloudfront.net",
        "request_id": "SOX4xwn4XV6Q4rgb7XiVGOHms_BGlTAC4KyHmureZmBNrjGdRLiNIQ==", "seconds": 0.001,
    }  # fmt: skip


URL_TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12).filter(
    lambda t: t != "-"
)


@given(st.lists(st.tuples(URL_TEXT, URL_TEXT, URL_TEXT), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_cloudfronts_own_encoding_is_undone_and_the_browsers_is_not(rows: list[tuple[str, str, str]]) -> None:
    """A browser percent-encodes path and query, then CloudFront does; agents are encoded twice, by CloudFront."""
    quote = urllib.parse.quote
    browser = [(quote(path, safe=""), quote(query, safe="="), agent) for path, query, agent in rows]
    lines = []
    for path, query, agent in browser:
        fields = CLOUDFRONT_DOC.split("\t")
        fields[7], fields[11] = quote(f"/{path}", safe="/"), quote(query, safe="=")
        fields[10] = quote(quote(agent, safe=""), safe="")
        lines.append("\t".join(fields))
    events, problems = parse("cloudfront", *lines)
    assert problems == {}
    assert [(event["page_url"], event["user_agent"]) for event in events] == [
        (f"https://d111111abcdef8.cloudfront.net/{path}?{query}" if query != "-" else None, agent)
        for path, query, agent in browser
    ]


def test_real_time_lines_have_the_fields_of_the_page_or_all_of_them() -> None:
    values = {
        "timestamp": "1591723487.893", "c-ip": "9.9.9.9", "sc-status": "404", "sc-bytes": "12", "cs-method": "GET",
        "cs-protocol": "http", "cs-uri-stem": "/a%2520b", "x-host-header": "a.example", "time-taken": "0.003",
        "cs-user-agent": "curl/8%20x", "cs-protocol-version": "HTTP/1.1",
    }  # fmt: skip
    whole = "\t".join(values.get(name, "-") for name in REALTIME_FIELDS.split())
    few = "\t".join(values.values())
    events = [
        one("cloudfront_realtime", whole),
        one("cloudfront_realtime", few, log_format=" ".join(values)),
        one("cloudfront_realtime", few + "\tadded later\n", log_format=" ".join(values)),
    ]
    assert events[0] == events[1] == events[2]
    assert events[0]["event_time"] == us("2020-06-09T17:24:47.893+00:00")
    assert (events[0]["page_url"], events[0]["user_agent"]) == ("http://a.example/a%20b", "curl/8 x")


@pytest.mark.parametrize(
    ("last", "value", "column", "expected"),
    [
        ("sc-status", "404", "status", 404),
        ("cs-uri-stem", "/a", "page_url", "https://shop.example/a"),
        ("cs-user-agent", "curl/8%20x", "user_agent", "curl/8 x"),
        ("cs-referer", "-", "referrer", None),
    ],
)
def test_the_line_feed_of_a_real_time_record_is_not_of_its_last_field(
    last: str, value: str, column: str, expected: object
) -> None:
    """In a file the line feed is what cuts lines; CloudFront ends each record that it puts into Kinesis with one."""
    line, fields = f"1591723487.893\t9.9.9.9\t{value}", f"timestamp c-ip {last}"
    event = one("cloudfront_realtime", line + "\n", log_format=fields)
    assert event == one("cloudfront_realtime", line, log_format=fields)
    assert event[column] == expected


def test_header_lines_and_short_lines_are_problems_of_their_own() -> None:
    header = "#Fields: " + STANDARD_FIELDS
    events, problems = parse("cloudfront", "#Version: 1.0", header, CLOUDFRONT_DOC, CLOUDFRONT_DOC[:60], "")
    assert len(events) == 1
    assert problems == {0: "bad_log_line", 1: "bad_log_line", 3: "bad_log_line", 4: "empty"}


# -- JSON --------------------------------------------------------------------------------------------

NGINX = {
    "time_iso8601": "2015-05-17T10:05:03+00:00", "remote_addr": "1.2.3.4", "remote_user": "",
    "request": "GET /a?b=c HTTP/1.1", "status": "200", "body_bytes_sent": "123", "request_time": "0.005",
    "http_referrer": "http://x.example/", "http_user_agent": 'Agent "7"', "http_host": "a.example:8080",
}  # fmt: skip


def test_nginx_json_is_read_whether_numbers_are_quoted_or_not() -> None:
    bare = {**NGINX, "status": 200, "body_bytes_sent": 123, "request_time": 0.005, "unknown": [1, {"x": 2}]}
    (quoted, plain), problems = parse("nginx_json", json.dumps(NGINX), json.dumps(bare))
    assert problems == {} and quoted == plain
    assert (quoted["page_url"], quoted["host"]) == ("http://a.example:8080/a?b=c", "a.example")
    assert (quoted["status"], quoted["bytes"], quoted["seconds"]) == (200, 123, 0.005)
    assert (quoted["user_agent"], quoted["remote_user"]) == ('Agent "7"', None)


#: The JSON example of the vendor's documentation on access logging, with its context variables filled in.
GATEWAY = {
    "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef", "extendedRequestId": "x", "ip": "192.0.2.7", "caller": "-",
    "user": "-", "requestTime": "10/Oct/2000:13:55:36 +0000", "httpMethod": "GET", "resourcePath": "/pets/{id}",
    "path": "/prod/pets/7", "status": "200", "protocol": "HTTP/1.1", "responseLength": "1045", "responseLatency": "17",
    "userAgent": "curl/8", "domainName": "api.example",
}  # fmt: skip


def test_api_gateway_json() -> None:
    event = one("api_gateway", json.dumps(GATEWAY))
    assert event["event_time"] == us("2000-10-10T13:55:36+00:00")
    assert (event["page_url"], event["bytes"], event["seconds"]) == (
        "http://api.example/prod/pets/7",
        1045,
        0.017,
    )
    assert (
        one("api_gateway", json.dumps({**GATEWAY, "requestTimeEpoch": 971186136123}))["event_time"]
        == 971186136123000
    )


def test_a_wild_number_of_milliseconds_is_no_time_of_its_line_alone() -> None:
    without = {key: value for key, value in GATEWAY.items() if key != "requestTime"}
    wild = (2**64 + 971186136123000) // 1_000
    lines = [
        json.dumps({**without, "requestTimeEpoch": epoch}) for epoch in (971186136123, wild, 971186136123)
    ]
    events, problems = parse("api_gateway", *lines)
    assert [event["event_time"] for event in events] == [971186136123000] * 2
    assert problems == {1: "bad_event_time"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not_json"),
        ("[1]", "not_an_object"),
        ("7", "not_an_object"),
        ("null", "not_an_object"),
        ("", "empty"),
        (b"\xff", "not_utf8"),
        ("[" * 100_000, "not_json"),
        ('{"a":' * 100_000, "not_json"),
        ("{}", "missing_field"),
        (json.dumps({**NGINX, "time_iso8601": "yesterday"}), "bad_event_time"),
        (json.dumps({**NGINX, "remote_addr": {"x": 1}}), "wrong_type"),
        (json.dumps({**NGINX, "http_user_agent": "a\0b"}), "nul_character"),
        (json.dumps({**NGINX, "http_user_agent": "cut \ud83d"}), "not_json"),
        (json.dumps({**NGINX, "http_user_agent": "\ude00 cut"}).replace("\\ud", "\\uD"), "not_json"),
        (f"{json.dumps(NGINX)},{json.dumps(NGINX)}", "not_json"),
        (f"{json.dumps(NGINX)}\n{json.dumps(NGINX)}", "not_json"),
        (f"{json.dumps(NGINX)} {json.dumps(NGINX)}", "not_json"),
    ],
)
def test_a_malformed_object_is_a_problem_and_its_neighbours_are_not(line: str | bytes, reason: str) -> None:
    good = json.dumps(NGINX)
    alone, _ = parse("nginx_json", good)
    events, problems = parse("nginx_json", good, line, good)
    assert problems == {1: reason}
    assert events == alone * 2


@pytest.mark.parametrize(
    "lines",
    [
        ('{"x":[1', '{"y":2}]}'),
        ('{"x":[1', '{"y":2}]}', "GOOD,GOOD"),
        ('{"x":[1,', '{"y":2}]}', "GOOD\nGOOD"),
        ('{"x":"', '"}', "GOOD,GOOD"),
    ],
)
def test_lines_that_are_objects_only_together_are_none(lines: tuple[str, ...]) -> None:
    good = json.dumps(NGINX)
    alone, _ = parse("nginx_json", good)
    events, problems = parse("nginx_json", *(line.replace("GOOD", good) for line in lines), good)
    assert problems == dict.fromkeys(range(len(lines)), "not_json")
    assert events == alone


def test_of_a_key_that_stands_twice_the_first_counts_whatever_is_beside_it() -> None:
    line = json.dumps(NGINX).replace('"status"', '"status": 404.0, "status"').encode()
    for others in ([], ["{oops"], [line.replace(b"Agent", rb"\ud83d\ude00")]):
        events, problems = parse("nginx_json", line, *others)
        assert [event["status"] for event in events] == [404] * (1 + len(others) - len(problems))


def test_a_known_key_that_is_an_object_first_and_a_number_then_is_a_problem() -> None:
    line = json.dumps(NGINX).replace('"status"', '"status": {}, "status"')
    assert parse("nginx_json", line) == ([], {0: "wrong_type"})


SAID = [
    "200", "200.0", "2e2", "0.5", "-0.0", "1e-7", "1e400", "1" * 30, "1" * 45, "true", "null", "{}", "[1]", "NaN",
    r'"\ud83d\ude00"', r'"\ud83d"', r'"\u0000"', r'"\\u0000"', r'"\x"', '"\x01"', '"é"', '"-"', '"',
    *map(json.dumps, NGINX.values()),
]  # fmt: skip
MEMBERS = st.lists(
    st.tuples(st.sampled_from([*NGINX, "msec", "x"]), st.sampled_from(SAID)), min_size=1, max_size=4
).map(lambda members: ", ".join(f'"{key}": {value}' for key, value in members))
OBJECTS = st.one_of(
    st.just(json.dumps(NGINX)),
    MEMBERS.map(lambda members: f"{{{members}}}"),
    MEMBERS.map(lambda members: f"{{{members}, {json.dumps(NGINX)[1:]}"),
    st.sampled_from(["", " ", "{oops", "[1]", "{},{}", '{"x":[1', '{"y":2}]}', "{}\n{}"]),
)


@given(st.lists(OBJECTS, max_size=5))
@settings(max_examples=30, deadline=None)
def test_what_an_object_says_does_not_depend_on_the_lines_beside_it(lines: list[str]) -> None:
    alone = [parse("nginx_json", line) for line in lines]
    events, problems = parse("nginx_json", *lines)
    assert events == [event for found, _ in alone for event in found]
    assert problems == {row: found[0] for row, (_, found) in enumerate(alone) if found}


def test_a_whole_surrogate_pair_is_one_character() -> None:
    event = one("nginx_json", json.dumps({**NGINX, "http_user_agent": "\U0001f600"}))
    assert event["user_agent"] == "\U0001f600"


# -- all of them -------------------------------------------------------------------------------------

GOOD = {
    "combined": APACHE_DOC + ' "-" "-"', "common": APACHE_DOC, "alb": ALB_DOC[0], "s3_access": S3_DOC[0],
    "cloudfront": CLOUDFRONT_DOC, "nginx_json": json.dumps(NGINX), "api_gateway": json.dumps(GATEWAY),
    "cloudfront_realtime": "\t".join(["1591723487.893", *["-"] * 39]), "log_format": "1591723487 1.2.3.4",
}  # fmt: skip


@pytest.mark.parametrize("decoder", PARSERS)
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_every_line_is_an_event_or_a_problem_whatever_it_holds(decoder: str, data: st.DataObject) -> None:
    good = GOOD[decoder].encode()
    broken = st.integers(0, len(good)).flatmap(
        lambda at: st.binary(max_size=4).map(lambda some: good[:at] + some + good[at + 1 :])
    )
    lines = data.draw(st.lists(st.one_of(st.just(good), broken, st.binary(max_size=60)), max_size=10))
    options = {"log_format": "%{sec}t %h"} if decoder == "log_format" else {}
    events, problems = parse(decoder, *lines, **options)
    assert len(events) + len(problems) == len(lines)
    assert not problems.keys() & {row for row, line in enumerate(lines) if line == good}


def page(**contract: object) -> dict[str, object]:
    return {
        "stream": {"name": "logs"},
        "contract": {"event_time": {"field": "event_time", "format": "ms"}, **contract},
    }


def test_a_page_names_a_format_and_gets_its_columns() -> None:
    read = read_page(page(decoder="log_format", log_format="%h %t", site="https://a.example/"), "logs.toml")
    assert read.contract.fields == LOG_FIELDS
    assert read.contract.log_format == "%h %t"


@pytest.mark.parametrize(
    ("contract", "problem"),
    [
        ({"decoder": "log_format"}, "log_format: is missing"),
        ({"decoder": "log_format", "log_format": "%h"}, "has no time"),
        ({"decoder": "alb", "log_format": "%h %t"}, "of no use"),
        ({"decoder": "cloudfront", "log_format": "date c-ip"}, "has no field time"),
        ({"decoder": "cloudfront_realtime", "log_format": "timestamp timestamp"}, "twice"),
        ({"decoder": "alb", "site": "example.com"}, "is not a site"),
        ({"decoder": "w3c"}, "decoder"),
    ],
)
def test_a_page_with_a_wrong_format_is_refused(contract: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_page(page(**contract), "logs.toml")
