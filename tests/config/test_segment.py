"""Another team's events need another page and nothing else: Segment's calls, through the transform."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from streamproc.model import Partition, RecordBatch, Transformed
from streamproc.topic_pages import load_page
from streamproc.transform import Resources, Transform

PAGE = Path(__file__).parents[2] / "topics" / "segment.toml"
RECEIVED = datetime(2026, 3, 1, 9, 30, 5, tzinfo=UTC)
CHROME = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/141.0.0.0 Safari/537.36"
)


def call(kind: str, number: int, **changes: Any) -> dict[str, Any]:
    """A call as analytics.js sends it (https://segment.com/docs/connections/spec/common/)."""
    event: dict[str, Any] = {
        "anonymousId": "507f191e-810c-1972-9de8-60ea000000aa",
        "channel": "browser",
        "context": {
            "active": True,
            "ip": "81.2.69.142",
            "library": {"name": "analytics.js", "version": "2.11.1"},
            "locale": "en-GB",
            "page": {
                "path": "/pricing/teams",
                "referrer": "https://www.google.com/",
                "search": "?utm_source=newsletter&utm_campaign=spring",
                "title": "Pricing",
                "url": "https://Shop.example/pricing/teams?utm_source=newsletter&utm_campaign=spring",
            },
            "userAgent": CHROME,
        },
        "integrations": {"All": True, "Mixpanel": False},
        "messageId": f"ajs-{number:032x}",
        "receivedAt": "2026-03-01T09:30:04.900Z",
        "sentAt": "2026-03-01T09:30:04.500Z",
        "timestamp": "2026-03-01T09:30:04.123Z",
        "type": kind,
        "userId": None,
        "version": 2,
    }
    return event | changes


def page(number: int, **changes: Any) -> dict[str, Any]:
    return call(
        "page", number, name="Pricing", properties={"title": "Pricing", "path": "/pricing/teams"}, **changes
    )


def order(number: int, **changes: Any) -> dict[str, Any]:
    properties = {
        "order_id": "50314b8e9bcf",
        "revenue": 25.5,
        "currency": "EUR",
        "products": [{"product_id": "p-1", "price": 19, "quantity": 1}, {"product_id": "p-2", "price": 6.5}],
    }
    return call("track", number, event="Order Completed", properties=properties, **changes)


def transform(*events: dict[str, Any]) -> Transformed:
    values = [orjson.dumps(event) for event in events]
    batch = RecordBatch(
        partition=Partition("segment", "0"),
        after=-1,
        through=len(values) - 1,
        values=values,
        positions=range(len(values)),
        received_ms=int(RECEIVED.timestamp() * 1000),
        size=sum(map(len, values)),
    )
    return Transform(load_page(PAGE), Resources({}, PAGE.parent))([batch])


def test_nested_fields_become_columns() -> None:
    row = transform(order(1)).events.row(0, named=True)
    assert row["message_id"] == "ajs-00000000000000000000000000000001"
    assert row["anonymous_id"] == "507f191e-810c-1972-9de8-60ea000000aa"
    assert row["user_id"] is None
    assert row["event_name"] == "Order Completed"
    assert row["page_title"] == "Pricing"
    assert row["locale"] == "en-GB"
    assert (row["revenue"], row["order_id"]) == (25.5, "50314b8e9bcf")
    assert row["event_time"] == datetime(2026, 3, 1, 9, 30, 4, 123_000, tzinfo=UTC)
    assert row["sent_time"] == "2026-03-01T09:30:04.123Z"


def test_properties_are_kept_whole_beside_the_fields_read_from_them() -> None:
    row = transform(order(1)).events.row(0, named=True)
    assert orjson.loads(row["properties"]) == order(1)["properties"]


def test_the_same_enrichments_work_on_other_field_names() -> None:
    row = transform(page(1)).events.row(0, named=True)
    assert (row["host"], row["path"]) == ("shop.example", "/pricing/teams")
    assert (row["utm_source"], row["utm_campaign"]) == ("newsletter", "spring")
    assert (row["browser"], row["device_class"]) == ("Chrome", "desktop")
    assert (row["referrer_medium"], row["referrer_source"]) == ("search", "Google")
    assert row["country"] == "GB"
    assert row["ip"] == "81.2.69.0", "anonymised after the country was looked up"


def test_derived_columns_are_computed_from_enriched_ones() -> None:
    events = transform(page(1), order(2)).events
    assert events["section"].to_list() == ["pricing", "pricing"]
    assert events["action"].to_list() == ["Page Viewed", "Order Completed"]


def test_other_calls_and_bots_are_filtered_and_counted() -> None:
    bot = page(3)
    bot["context"] = bot["context"] | {"userAgent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}
    result = transform(page(1), call("identify", 2, traits={"plan": "pro"}), bot, call("group", 4))
    counts = result.counts["0"]
    assert (counts.records, counts.accepted, counts.filtered, counts.rejected) == (4, 1, 3, 0)
    assert counts.balanced


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messageId": None}, "message_id"),
        ({"anonymousId": 7}, "anonymous_id"),
        ({"timestamp": "yesterday"}, "sent_time"),
        ({"context": {"page": {"url": 1}}}, "page_url"),
        ({"type": "page" * 10}, "event_type"),
    ],
    ids=["missing", "type", "time", "nested type", "length"],
)
def test_a_call_that_breaks_the_contract_is_rejected_with_its_field(
    change: dict[str, Any], field: str
) -> None:
    result = transform(page(1), page(2, **change))
    assert result.events.height == 1
    assert result.rejects["field"].to_list() == [field]
    assert orjson.loads(result.rejects["original"][0]) == page(2, **change)


def test_events_have_exactly_the_declared_columns() -> None:
    topology = load_page(PAGE)
    assert dict(transform(page(1), order(2)).events.schema) == dict(topology.columns)
    assert topology.columns["event_time"] == pl.Datetime("us", "UTC")
