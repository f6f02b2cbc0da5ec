"""The generated stream: believable, repeatable, and bad where it is meant to be."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections import Counter, defaultdict
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from streamproc.generator import DEFAULT_START, Generator, Record
from streamproc.model import Partition, RecordBatch
from streamproc.topic_pages import load_page
from streamproc.transform.decode import Decoded, decode
from streamproc.transform.decode_rejects import Reason

EVENTS = 60_000
START_MS = int(DEFAULT_START.timestamp() * 1000)
CONTRACT = load_page(Path(__file__).parents[2] / "topics" / "clickstream.toml").contract

#: No record can have these: they are of the object that it comes from.
OF_OBJECTS = {Reason.TRUNCATED_OBJECT, Reason.CORRUPT_OBJECT, Reason.OVERSIZED_OBJECT}


@lru_cache(maxsize=1)
def events() -> list[dict[str, Any]]:
    """The stream of seed 1, in the order of sending."""
    return [json.loads(record.value or b"") for record in Generator(1, EVENTS).records()]


@lru_cache(maxsize=1)
def sessions() -> list[list[dict[str, Any]]]:
    """Its sessions, each in the order of sending, without retries."""
    found: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for event in events():
        found[event["session_id"]].setdefault(event["event_id"], event)
    return [list(session.values()) for session in found.values()]


def all_values(generator: Generator) -> list[bytes | None]:
    return [value for _, value in chain.from_iterable(generator.batches(5_000))]


def decoded(values: list[bytes | None]) -> Decoded:
    size = sum(len(value or b"") for value in values)
    positions = range(len(values))
    batch = RecordBatch(
        Partition("test", "0"), -1, len(values) - 1, values, positions, START_MS + 86_400_000, size
    )
    return decode([batch], CONTRACT)


def test_the_same_seed_gives_the_same_bytes_on_any_machine() -> None:
    digest = hashlib.sha256()
    for record in Generator(7, 5_000, bad_ratio=0.1).records():
        digest.update(record.key + b"\t" + (record.value or b"tombstone") + b"\n")
    assert digest.hexdigest() == "4f05e9858a055cf220f627ebcce4508ed2702d158fb2e75858974ecdf543a98c"


def test_another_seed_gives_another_stream() -> None:
    assert all_values(Generator(1, 100)) != all_values(Generator(2, 100))


def test_fewer_events_are_the_beginning_of_more() -> None:
    assert all_values(Generator(1, 5_000))[:700] == all_values(Generator(1, 700))


@pytest.mark.parametrize("size", [1, 7, 1_000, 10_000])
def test_batches_and_records_are_the_same_stream(size: int) -> None:
    generator = Generator(1, 2_500, bad_ratio=0.05)
    batches = list(generator.batches(size))
    assert [Record(*record) for record in chain.from_iterable(batches)] == list(generator.records())
    assert all(len(batch) == size for batch in batches[:-1])


def test_records_are_keyed_by_visitor() -> None:
    for record in Generator(1, 1_000).records():
        assert json.loads(record.value or b"")["visitor_id"].encode() == record.key


def test_good_events_keep_the_contract() -> None:
    result = decoded(all_values(Generator(1, 20_000)))
    assert result.rejects.is_empty()
    assert result.frame.height == 20_000


def test_most_events_are_page_views_and_the_funnel_narrows() -> None:
    kinds = Counter(event["event_type"] for event in events())
    assert kinds["page_view"] > 0.6 * EVENTS
    assert set(kinds) == {
        "page_view", "product_view", "add_to_cart", "checkout", "purchase", "heartbeat", "search", "click",
    }  # fmt: skip
    assert kinds["product_view"] > kinds["add_to_cart"] > kinds["checkout"] > kinds["purchase"] > 100


def test_a_session_has_about_eight_events() -> None:
    whole = chain.from_iterable(Generator(1, 250_000).batches(5_000))
    found = {(value or b"").split(b'"session_id":"', 1)[1][:16] for _, value in whole}
    assert 7 < 250_000 / len(found) < 10


def test_the_funnel_is_walked_in_order_and_purchases_have_a_value() -> None:
    for session in sessions():
        kinds = [event["event_type"] for event in session]
        if "purchase" in kinds:
            bought = kinds.index("purchase")
            assert {"product_view", "add_to_cart", "checkout"} <= set(kinds[:bought])
            purchase = session[bought]
            properties = purchase["properties"]
            assert purchase["value"] == pytest.approx(properties["price"] * properties["quantity"])
        assert all("value" not in event for event in session if event["event_type"] != "purchase")


def test_pages_follow_from_one_another() -> None:
    for session in sessions():
        seen = {session[0]["page_url"]}
        for event in session[1:]:
            if event["event_type"] == "page_view" and "referrer" in event:
                assert event["referrer"] in seen | {session[0].get("referrer")}
            seen.add(event["page_url"])


def test_visitors_come_back_from_the_same_browser_and_address() -> None:
    visits: defaultdict[str, set[str]] = defaultdict(set)
    devices: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for event in events():
        visits[event["visitor_id"]].add(event["session_id"])
        devices[event["visitor_id"]].add((event["user_agent"], event["ip"]))
    assert sum(len(found) > 1 for found in visits.values()) > 0.1 * len(visits)
    assert all(len(found) == 1 for found in devices.values())


def test_visits_have_many_origins() -> None:
    landings = [session[0] for session in sessions()]
    referrers = Counter(urlsplit(event.get("referrer", "")).netloc for event in landings)
    for host in (
        "",
        "www.google.com",
        "duckduckgo.com",
        "www.facebook.com",
        "chatgpt.com",
        "mail.google.com",
    ):
        assert referrers[host] > 0, host
    pages = [event["page_url"] for event in landings]
    for mark in ("utm_campaign=spring-sale", "gclid=", "fbclid=", "utm_medium=email"):
        assert any(mark in page for page in pages), mark
    assert any("q=%E7%85%A7%E6%98%8E" in event.get("referrer", "") for event in landings)
    hosts = Counter(urlsplit(event["page_url"]).netloc for event in events())
    assert len(hosts) == 3
    assert len({urlsplit(event["page_url"]).path for event in events()}) > 1_000


def test_agents_are_thousands_and_some_are_crawlers() -> None:
    agents = Counter(event["user_agent"] for event in events())
    assert len(agents) > 2_000
    crawled = sum(count for agent, count in agents.items() if "bot" in agent.lower())
    assert 0.03 < crawled / EVENTS < 0.2


def test_addresses_are_of_both_versions_and_many_countries() -> None:
    import iptocc

    addresses = {event["ip"] for event in events()}
    assert 0.05 < sum(":" in address for address in addresses) / len(addresses) < 0.25
    countries = {iptocc.country_code(address) for address in list(addresses)[:2_000]}
    assert len(countries) > 20


def test_timestamps_are_in_order_within_five_seconds_but_for_the_late() -> None:
    newest, late, known, retried = 0, 0, set(), 0
    for event in events():
        retried += event["event_id"] in known
        known.add(event["event_id"])
        behind = newest - event["event_time"]
        if behind > 30_000:
            late += 1
            assert 100_000 < behind < 6 * 3_600_000 + 5_000
        else:
            assert behind < 5_000 + 17_000  # a retry comes up to 16 s after its event
        newest = max(newest, event["event_time"])
    assert late / EVENTS == pytest.approx(0.002, rel=0.3)
    assert retried / EVENTS == pytest.approx(0.003, rel=0.3)


def test_retries_are_the_same_bytes_soon_after() -> None:
    first: dict[str, tuple[int, bytes]] = {}
    for number, record in enumerate(Generator(1, EVENTS).records()):
        identifier = json.loads(record.value or b"")["event_id"]
        if identifier in first:
            before, value = first[identifier]
            assert value == record.value
            assert number - before < 20_000
        first[identifier] = (number, record.value or b"")


def test_the_rate_is_kept_and_follows_the_day() -> None:
    seconds = Counter((event["event_time"] - START_MS) // 1_000 for event in events())
    nine_to_ten = [count for second, count in seconds.items() if 5 < second < 90]
    assert sum(nine_to_ten) / len(nine_to_ten) == pytest.approx(500 * 1.08, rel=0.05)
    assert at_night(steady=False) == pytest.approx(500 * 0.30, rel=0.1)
    assert at_night(steady=True) == pytest.approx(500, rel=0.1)


def at_night(*, steady: bool) -> float:
    """Events a second, for most of a minute."""
    night = Generator(1, 40_000, start=datetime(2025, 1, 6, 3, tzinfo=UTC), rate=500, steady=steady)
    times = [json.loads(record.value or b"")["event_time"] // 1_000 for record in night.records()]
    per_second = [count for second, count in Counter(times).items() if second > times[0] + 5 and count > 10]
    return sum(per_second[:50]) / 50


def test_heartbeats_stand_between_pages_that_are_read_for_long() -> None:
    for session in sessions():
        for before, event in pairwise(session):
            if event["event_type"] == "heartbeat":
                assert event["page_url"] == before["page_url"]


@pytest.mark.parametrize("one_line", [True, False])
def test_bad_records_are_rejected_and_good_ones_are_not(one_line: bool) -> None:
    values = all_values(Generator(5, 6_000, bad_ratio=0.4, one_line=one_line))
    good = set(all_values(Generator(5, 6_000)))
    result = decoded(values)
    bad = [value for value in values if value not in good]
    assert result.rejects["original"].to_list() == bad
    assert len(bad) == pytest.approx(2_400, rel=0.1)
    reasons = set(result.rejects["reason"])
    # The contract sets no bound on how old an event may be.
    for reason in set(Reason) - {Reason.TOMBSTONE, Reason.BAD_LOG_LINE, Reason.OLD_EVENT, *OF_OBJECTS}:
        assert reason in reasons, reason
    assert ("tombstone" in reasons) != one_line
    assert any(value is not None and b"\n" in value for value in values) != one_line


def test_good_events_are_the_same_whatever_is_put_between_them() -> None:
    good = all_values(Generator(5, 4_000))
    mixed = all_values(Generator(5, 4_000, bad_ratio=0.3))
    kept = [value for value in mixed if value in set(good)]
    assert kept == good[: len(kept)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream() -> None:
    peaks = []
    for count in (15_000, 45_000):
        tracemalloc.start()
        for _ in Generator(1, count).batches(1_000):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.6 * peaks[0]
    assert peaks[1] < 60_000_000


@pytest.mark.parametrize(
    "wrong", [{"events": -1}, {"rate": 0}, {"bad_ratio": 1.5}, {"start": datetime(2025, 1, 1)}]
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Generator(**{"seed": 1, "events": 1, **wrong})
