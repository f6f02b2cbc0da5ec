"""Event time in every format, against Python's own calendar."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.topology import DAY, Contract, EventTime
from tests.transform.decoding import decode_values, field

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FOREVER = 10_000 * 366 * DAY


def contract(kind: str, unit: str) -> Contract:
    return Contract((field("ts", kind, required=True),), EventTime("ts", unit, future_skew=FOREVER))


def read(value: Any, kind: str, unit: str) -> datetime | str:
    """The event time, or the reason there is none."""
    decoded = decode_values(json.dumps({"ts": value}).encode(), contract=contract(kind, unit))
    found: list[Any] = [*decoded.frame["event_time"], *decoded.rejects["reason"]]
    return found[0]


@pytest.mark.parametrize(
    ("value", "kind", "unit", "microseconds"),
    [
        (1_736_154_000, "integer", "s", 1_736_154_000_000_000),
        (1_736_154_000_123, "integer", "ms", 1_736_154_000_123_000),
        (1_736_154_000_123_456, "integer", "us", 1_736_154_000_123_456),
        (1_736_154_000.25, "number", "s", 1_736_154_000_250_000),
        (1_736_154_000_123.5, "number", "ms", 1_736_154_000_123_500),
        (0, "number", "s", 0),
        (253_402_300_799, "integer", "s", 253_402_300_799_000_000),
    ],
)
def test_numbers_count_from_the_unix_epoch(value: Any, kind: str, unit: str, microseconds: int) -> None:
    assert read(value, kind, unit) == EPOCH + timedelta(microseconds=microseconds)


@pytest.mark.parametrize(
    ("value", "kind", "unit"),
    [
        (-1, "integer", "s"),
        (253_402_300_800, "integer", "s"),
        (2**63 - 1, "integer", "s"),
        (2**63 - 1, "integer", "us"),
        (-(2**63), "integer", "ms"),
        (-0.001, "number", "s"),
        (1e300, "number", "s"),
        (253_402_300_800.0, "number", "s"),
    ],
)
def test_numbers_outside_of_the_years_1970_to_9999_are_no_times(value: Any, kind: str, unit: str) -> None:
    assert read(value, kind, unit) == "bad_event_time"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-01-06T09:00:00Z", datetime(2025, 1, 6, 9, tzinfo=UTC)),
        ("2025-01-06t09:00:00z", datetime(2025, 1, 6, 9, tzinfo=UTC)),
        ("2025-01-06 09:00:00", datetime(2025, 1, 6, 9, tzinfo=UTC)),
        ("2025-01-06T09:00:00.5", datetime(2025, 1, 6, 9, 0, 0, 500_000, UTC)),
        ("2025-01-06T09:00:00,123456789Z", datetime(2025, 1, 6, 9, 0, 0, 123_456, UTC)),
        ("2025-01-06T09:00:00.000001+00:00", datetime(2025, 1, 6, 9, 0, 0, 1, UTC)),
        ("2025-01-06T09:00:00+0530", datetime(2025, 1, 6, 3, 30, tzinfo=UTC)),
        ("2025-01-06T00:30:00-08:00", datetime(2025, 1, 6, 8, 30, tzinfo=UTC)),
        ("2024-02-29T23:59:59Z", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_iso_8601_texts_are_read(text: str, expected: datetime) -> None:
    assert read(text, "string", "iso8601") == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "2025-01-06", "2025-02-30T00:00:00Z", "2025-13-01T00:00:00Z", "2025-01-06T24:00:00Z",
        "2025-01-06T09:00:60Z", "2025-01-06T09:00:00+25:00", "2025-01-06T09:00:00Z ", "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+01:00", "2025-1-6T09:00:00Z", "\uff12025-01-06T09:00:00Z", "1736154000",
        "0000-00-00T00:00:00Z", "2025-01-06T09:00:00.Z", "2025-01-06T09:00:00 Europe/Paris",
    ],
)  # fmt: skip
def test_other_texts_are_no_times(text: str) -> None:
    assert read(text, "string", "iso8601") == "bad_event_time"


@settings(max_examples=60, deadline=None)
@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),
    st.integers(-1439, 1439),
    st.sampled_from(["T", " "]),
)
def test_what_python_writes_is_read_back(naive: datetime, offset: int, separator: str) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert read(moment.isoformat(separator), "string", "iso8601") == moment


def test_the_field_keeps_its_own_column_under_another_name() -> None:
    decoded = decode_values(b'{"ts":"2025-01-06T09:00:00Z"}', contract=contract("string", "iso8601"))
    assert decoded.frame.columns[:2] == ["ts", "event_time"]
    assert decoded.frame["ts"].to_list() == ["2025-01-06T09:00:00Z"]


def test_what_is_said_of_a_text_that_is_no_time_is_a_sentence_however_long_the_text_is() -> None:
    decoded = decode_values(
        json.dumps({"ts": "x" * 500_000}).encode(), contract=contract("string", "iso8601")
    )
    told = f"'{'x' * 100}'… is no time in iso8601 within the years 1970 to 9999"
    assert decoded.rejects["detail"].to_list() == [told]
