"""The function as Firehose's transformation: every record once, and as ``streamproc transform`` has it."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.cli import main
from streamproc.errors import ConfigError
from streamproc.generator import Generator
from streamproc.runtimes.aws_lambda import firehose
from streamproc.runtimes.aws_lambda.firehose import Firehose, Output
from streamproc.topic_pages import load_page
from streamproc.topology import DAY
from streamproc.transform import Resources, Transform
from tests.runtimes.lambda_events import Context, click, firehose_event, function, page

ROOT = Path(__file__).parents[2]


def small(output: Output | None = None) -> Firehose:
    return Firehose(Transform(page(), Resources({}, ROOT)), output or Output())


def events(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        json.loads(base64.b64decode(record["data"]))
        for record in answer["records"]
        if record["result"] == "Ok"
    ]


def test_every_record_is_answered_once_and_in_order() -> None:
    values = [click(0), click(1, "robot"), b"{", click(3), b"", b"[1]", click(0)]
    answer = small()(firehose_event(values))
    assert [(record["recordId"], record["result"]) for record in answer["records"]] == [
        ("r0", "Ok"),
        ("r1", "Dropped"),
        ("r2", "ProcessingFailed"),
        ("r3", "Ok"),
        ("r4", "ProcessingFailed"),
        ("r5", "ProcessingFailed"),
        ("r6", "Ok"),  # a duplicate: how Firehose cuts its batches decides nothing
    ]
    lines = [base64.b64decode(record["data"]) for record in answer["records"] if "data" in record]
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
    assert [event["id"] for event in events(answer)] == ["e0", "e3", "e0"]


def test_records_that_end_with_a_line_feed_are_the_same_records() -> None:
    plain, ended = small()(firehose_event([click(1)])), small()(firehose_event([click(1) + b"\n"]))
    assert plain == ended


def test_data_that_is_no_base64_fails_alone() -> None:
    event = firehose_event([click(0), click(1)])
    event["records"][0]["data"] = "%%%"
    assert [record["result"] for record in small()(event)["records"]] == ["ProcessingFailed", "Ok"]


def test_a_stream_from_msk_has_its_records_under_its_own_name() -> None:
    event = firehose_event([click(0)])
    event["records"][0]["kafkaRecordValue"] = event["records"][0].pop("data")
    (answer,) = small()(event)["records"]
    assert json.loads(base64.b64decode(answer["kafkaRecordValue"]))["id"] == "e0"


def test_the_future_is_what_comes_after_the_arrival() -> None:
    at = 1_700_000_000_000
    late = small()(firehose_event([click(0, at=at)], arrived_ms=at - 3_600_000))
    assert late["records"][0]["result"] == "ProcessingFailed"


def test_what_is_too_old_is_told_by_the_arrival_too() -> None:
    topology = page()
    event_time = replace(topology.contract.event_time, max_age=DAY)
    bounded = replace(topology, contract=replace(topology.contract, event_time=event_time))
    answer = Firehose(Transform(bounded, Resources({}, ROOT)), Output())
    at = 1_700_000_000_000
    results = [
        answer(firehose_event([click(0, at=at)], arrived_ms=at + age))["records"][0]["result"]
        for age in (86_400_000, 86_400_001)
    ]
    assert results == ["Ok", "ProcessingFailed"]


def test_the_parquet_conversion_gets_times_that_its_readers_know() -> None:
    (event,) = events(small(Output("parquet"))(firehose_event([click(250)])))
    assert event["event_time"] == "2023-11-14 22:13:20.250000"
    assert event["received_at"] == "2023-11-14 22:15:00.000000"


def test_partition_keys_are_the_hour_of_the_event_and_quoted_columns() -> None:
    transformed = small(Output("json", ("date", "hour", "kind")))
    answer = transformed(firehose_event([click(0), click(1, "a/../b c"), click(2, "é" * 150), b"{"]))
    keys = [record.get("metadata", {}).get("partitionKeys") for record in answer["records"]]
    assert keys[0] == {"date": "2023-11-14", "hour": "22", "kind": "view"}
    assert keys[1]["kind"] == "a%2F..%2Fb%20c"
    assert keys[2]["kind"] == "%C3%A9" * 16
    assert keys[3] is None


def test_a_partition_key_that_is_no_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing"):
        small(Output("json", ("date", "nothing")))


def test_what_does_not_fit_into_the_answer_is_delivered_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firehose, "ANSWER_LIMIT", 3_000)
    answer = small()(firehose_event([click(n) for n in range(25)]))
    results = [record["result"] for record in answer["records"]]
    assert len(json.dumps(answer)) <= 3_000
    assert set(results) == {"Ok", "ProcessingFailed"}
    assert len({record["recordId"] for record in answer["records"]}) == 25


@given(st.lists(st.binary(max_size=80) | st.integers(0, 9).map(click), max_size=30), st.integers(300, 4_000))
@settings(max_examples=15)
def test_no_answer_is_longer_than_the_limit_that_its_records_leave(values: list[bytes], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(firehose, "ANSWER_LIMIT", limit)
        answer = SMALL(firehose_event(values))
    assert [record["recordId"] for record in answer["records"]] == [f"r{n}" for n in range(len(values))]
    shortest = len(
        json.dumps(
            {"records": [{"recordId": f"r{n}", "result": "ProcessingFailed"} for n in range(len(values))]},
        )
    )
    assert len(json.dumps(answer)) <= max(limit, shortest)


SMALL = small()


def test_events_are_those_of_the_command_transform() -> None:
    """Of generated visitors, a part of them broken: the same lines, but for where and when a record arrived."""
    generator = Generator(5, 400, bad_ratio=0.2, one_line=True)
    lines = [value for batch in generator.batches(1_000) for _, value in batch if value is not None]
    stdin = b"\n".join(lines)
    done = CliRunner().invoke(main, ["transform", "clickstream"], input=stdin, catch_exceptions=False)
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    transform = Transform(load_page(ROOT / "topics" / "clickstream.toml"), Resources({}, ROOT / "topics"))
    answer = Firehose(transform, Output())(firehose_event(lines, arrived_ms=time.time_ns() // 1_000_000))
    apart = ("source_partition", "position", "redriven_from", "received_at")
    assert [{k: v for k, v in event.items() if k not in apart} for event in events(answer)] == [
        {k: v for k, v in event.items() if k not in apart} for event in expected
    ]
    assert len(expected) > 100


def test_the_sample_event_has_no_events_and_is_answered(shared_data: Path, tmp_path: Path) -> None:
    event = json.loads((shared_data / "lambda_events" / "kinesis-firehose-event.json").read_text())
    instance = function(page(), {}, tmp_path)
    answer = instance(event, Context())
    instance.close()
    assert answer == {
        "records": [
            {"recordId": "record1", "result": "ProcessingFailed"},
            {"recordId": "record2", "result": "ProcessingFailed"},
        ]
    }
