"""The whole transform: order of the steps, counts, and that a record is judged by itself."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError, EnrichmentFailed
from streamproc.model import REJECT_SCHEMA, Partition, RecordBatch
from streamproc.topic_pages import load_page, read_page
from streamproc.topology import Filter, Topology
from streamproc.transform import Resources, Transform
from streamproc.transform.pool import TransformPool
from tests.e2e.log_totals import STATIC

PAGES = Path(__file__).parents[2] / "topics"
NOW_MS = 1_700_000_000_000
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/120.0.0.0 Safari/537.36"
)


def batch(values: list[bytes | None], partition: str = "0", start: int = 0) -> RecordBatch:
    end = start + len(values)
    size = sum(len(value or b"") for value in values)
    return RecordBatch(
        Partition("clickstream", partition), start - 1, end - 1, values, range(start, end), NOW_MS, size
    )


def event(number: int, **fields: object) -> bytes:
    made = {
        "event_id": f"e{number}", "event_type": "page_view", "event_time": NOW_MS - number,
        "visitor_id": "v1", "page_url": f"https://shop.example/p/{number}?utm_source=mail",
        "user_agent": CHROME, "ip": "81.2.69.142",
    }  # fmt: skip
    return json.dumps(made | fields).encode()


@pytest.fixture(scope="module")
def clickstream() -> Topology:
    return load_page(PAGES / "clickstream.toml")


@pytest.fixture(scope="module")
def transform(clickstream: Topology) -> Transform:
    return Transform(clickstream, Resources({}, PAGES))


def test_every_record_is_counted_once_for_its_partition(transform: Transform) -> None:
    good, bot, beat = event(1), event(2, user_agent="curl/8.0"), event(3, event_type="heartbeat")
    both = event(4, event_type="heartbeat", user_agent=None)
    result = transform([batch([good, bot, None, beat], "0"), batch([b"{", both], "1"), batch([good], "0", 4)])
    counts = {
        partition: (c.records, c.accepted, c.filtered, c.rejected) for partition, c in result.counts.items()
    }
    assert counts == {"0": (5, 2, 2, 1), "1": (2, 0, 1, 1)}
    assert all(each.balanced for each in result.counts.values())
    assert result.filtered_by == {"bots": 1, "heartbeats": 2}
    assert result.events.select("source_partition", "position").rows() == [("0", 0), ("0", 4)]
    assert result.rejects.select("source_partition", "position").rows() == [("0", 2), ("1", 0)]


def test_columns_are_the_topologys_in_its_order_even_of_nothing(
    transform: Transform, clickstream: Topology
) -> None:
    for batches in ([], [batch([])], [batch([b"x"])], [batch([event(1)])]):
        result = transform(batches)
        assert dict(result.events.schema) == dict(clickstream.columns)
        assert list(result.events.columns) == list(clickstream.columns)
        assert dict(result.rejects.schema) == REJECT_SCHEMA


def test_an_event_comes_out_enriched_and_anonymised(transform: Transform) -> None:
    record = event(7, ip="8.8.8.8", referrer="https://www.google.de/search?q=shoes")
    row = transform([batch([record])]).events.to_dicts()[0]
    expected = {
        "host": "shop.example", "path": "/p/7", "utm_source": "mail", "is_bot": False, "browser": "Chrome",
        "os": "Windows", "device_class": "desktop", "referrer_medium": "search", "referrer_source": "Google",
        "referrer_term": "shoes", "country": "US", "ip": "8.8.8.0", "position": 0, "source_partition": "0",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


record = st.one_of(
    st.builds(
        event,
        st.integers(1, 50),
        user_agent=st.sampled_from([CHROME, "curl/8.0", "", None]),
        event_type=st.sampled_from(["page_view", "heartbeat"]),
        ip=st.sampled_from(["8.8.8.8", "2001:67c:2e8::1", "x", None]),
        referrer=st.sampled_from([None, "-", "https://t.co/x", "https://shop.example/"]),
        page_url=st.sampled_from(["https://shop.example/", "nonsense", "http://x/?gclid=1"]),
    ),
    st.sampled_from([None, b"", b"null", b"{", b'{"event_id": 1}', b"\xff"]),
)


@pytest.mark.slow
@given(st.lists(record, max_size=25), st.integers(0, 25))
@settings(max_examples=40, deadline=None)
def test_how_records_are_batched_changes_nothing(
    clickstream: Topology, records: list[bytes | None], cut: int
) -> None:
    whole = Transform(clickstream, Resources({}, PAGES))([batch(records)])
    split = Transform(clickstream, Resources({}, PAGES))
    parts = [split([batch(records[:cut])]), split([batch(records[cut:], start=len(records[:cut]))])]
    assert pl.concat([part.events for part in parts]).equals(whole.events)
    assert pl.concat([part.rejects for part in parts]).equals(whole.rejects)
    assert sum(part.counts["0"].filtered for part in parts) == whole.counts["0"].filtered


def page(**sections: object) -> Topology:
    """A small page of a few fields."""
    fields = {
        "event_time": {"type": "integer", "required": True},
        "n": {"type": "integer"},
        "who": {"type": "string"},
    }
    raw = {
        "stream": {"name": "small"},
        "topic": {"name": "small"},
        "contract": {"fields": fields, "event_time": {"field": "event_time", "format": "ms"}},
    }
    return read_page(raw | sections, "small.toml")


def small(*rows: dict[str, object]) -> RecordBatch:
    return batch([json.dumps({"event_time": NOW_MS} | row).encode() for row in rows])


def test_filters_that_are_null_keep_the_row_and_privacy_comes_after_derive_and_filters() -> None:
    topology = page(
        derive={"loud": "upper(who)"},
        filters=[{"name": "big", "drop": "n > 10"}, {"name": "bobs", "drop": "loud = 'BOB'"}],
        privacy={"pseudonym": {"fields": ["who"], "key_env": "KEY"}},
    )
    transform = Transform(topology, Resources({"KEY": "k" * 20}, Path()))
    result = transform([small({"n": 11, "who": "bob"}, {"who": "ann"}, {"n": 1, "who": "bob"}, {"n": 2})])
    assert result.filtered_by == {"big": 1, "bobs": 1}
    assert result.events["loud"].to_list() == ["ANN", None]
    assert result.events["who"][0] != "ann" and len(result.events["who"][0]) == 32


@pytest.mark.parametrize("first", ["internal", "bots"])
def test_a_row_counts_for_the_first_filter_of_the_page_though_a_later_one_could_run_sooner(
    first: str,
) -> None:
    drops = {"internal": "referrer_medium = 'internal'", "bots": "is_bot"}
    names = [first, *(name for name in drops if name != first)]
    fields = {
        "event_time": {"type": "integer", "required": True},
        **{name: {"type": "string"} for name in ("ua", "ref", "url")},
    }
    topology = page(
        contract={"fields": fields, "event_time": {"field": "event_time", "format": "ms"}},
        enrich={"bots": {"field": "ua"}, "referrer": {"field": "ref", "page": "url"}},
        filters=[{"name": name, "drop": drops[name]} for name in names],
    )
    own = {"ref": "https://www.shop.example/", "url": "https://shop.example/"}
    result = Transform(topology, Resources({}, Path()))(
        [small({"ua": "curl/8"} | own, {"ua": CHROME} | own, {"ua": "curl/8"}, {"ua": CHROME})]
    )
    assert result.filtered_by == {first: 2, names[1]: 1}
    assert result.events["position"].to_list() == [3]


def test_what_a_filter_can_drop_by_a_decoded_value_no_users_function_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seen_by_own.py").write_text(
        "heights = []\n"
        "def own(frame):\n"
        "    heights.append(frame.height)\n"
        "    return frame.with_columns(twice=frame['n'] * 2)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    topology = page(
        enrich={
            "bots": {"field": "who"},
            "python": {"function": "seen_by_own:own", "adds": {"twice": "integer"}},
        },
        filters=[
            {"name": "small", "drop": "n < 2"},
            {"name": "bots", "drop": "is_bot"},
            {"name": "ten", "drop": "twice = 10"},
        ],
    )
    transform = Transform(topology, Resources({}, tmp_path))
    result = transform(
        [
            small(
                {"n": 1, "who": CHROME},
                {"n": 3, "who": "curl/8"},
                {"n": 4, "who": CHROME},
                {"n": 5, "who": CHROME},
            )
        ]
    )
    assert result.filtered_by == {"small": 1, "bots": 1, "ten": 1}
    assert result.events.select("n", "twice", "is_bot").rows() == [(4, 8, False)]
    assert sys.modules.pop("seen_by_own").heights == [2]


def test_threads_that_share_a_transform_get_what_one_alone_gets(clickstream: Topology) -> None:
    batches = [
        batch(
            [
                event(
                    number,
                    ip=f"8.8.{number % 7}.{number % 200}",
                    referrer=f"https://t.co/{number % 90}",
                    user_agent=[CHROME, "curl/8.0", f"Probe {number % 50}"][number % 3],
                    page_url=f"https://shop.example/{number % 120}?gclid={number % 250}",
                )
                for number in range(start, start + 100)
            ],
            start=start,
        )
        for start in range(0, 2_000, 100)
    ]
    alone = Transform(clickstream, Resources({}, PAGES))
    pool = TransformPool(Transform(clickstream, Resources({}, PAGES)), threads=4)
    answers = [future.result() for future in [pool.submit([each]) for each in batches]]
    pool.close()
    for each, answer in zip(batches, answers, strict=True):
        expected = alone([each])
        assert answer.events.equals(expected.events)
        assert (answer.counts, answer.filtered_by) == (expected.counts, expected.filtered_by)


def test_everything_that_cannot_be_built_is_reported_at_once(tmp_path: Path) -> None:
    topology = page(
        enrich={"lookup": {"plans": {"file": "absent.csv", "keys": {"n": "id"}, "add": {"plan": "string"}}}},
        privacy={"pseudonym": {"fields": ["who"], "key_env": "NOT_SET"}},
    )
    with pytest.raises(ConfigError) as caught:
        Transform(topology, Resources({}, tmp_path))
    assert len(caught.value.mistakes) == 2


def test_a_filter_that_is_no_condition_is_a_mistake() -> None:
    topology = replace(page(), filters=(Filter("odd", "n + 1"),))
    with pytest.raises(ConfigError, match=r"filters\.odd"):
        Transform(topology, Resources({}, Path()))


def test_an_enrichment_that_breaks_its_promise_stops_the_transform() -> None:
    topology = page()
    lying = replace(topology, columns={**topology.columns, "n": pl.String()})
    with pytest.raises(EnrichmentFailed, match="n: the column came out as Int64"):
        Transform(lying, Resources({}, Path()))([small({"n": 1})])


@pytest.mark.parametrize("where", ["derive.year", "filters"])
def test_an_expression_that_fails_all_the_same_is_named_with_its_page(where: str) -> None:
    """It cannot write the year of a day that it makes of one number only: the page was loaded without a doubt."""
    sql = "strftime(try_cast(case when n = 77777777 then 2000000000 end as date), '%Y')"
    sections = {"derive": {"year": sql}} if where != "filters" else {}
    filters = [{"name": "odd", "drop": f"{sql} = '1970'"}] if where == "filters" else []
    transform = Transform(page(**sections, filters=filters), Resources({}, Path()))
    assert transform([small({"n": 7})]).events.height == 1
    with pytest.raises(
        EnrichmentFailed, match=f"small: {where}: it fails on these events: out-of-range date"
    ):
        transform([small({"n": 77_777_777})])


def test_real_log_lines_run_through_their_page(shared_data: Path) -> None:
    import gzip

    topology = load_page(PAGES / "weblogs.toml")
    transform = Transform(topology, Resources({}, PAGES))
    lines = gzip.decompress(
        (shared_data / "access_logs" / "apache_combined_10k.log.gz").read_bytes()
    ).splitlines()
    result = transform([batch(list(lines))])
    counts = result.counts["0"]
    assert (counts.accepted + counts.filtered, counts.rejected) == (9_999, 1)
    kept = []
    for pieces in (line.split(b'"') for line in lines if line.count(b'"') == 6):
        path = pieces[1].split()[1].split(b"?")[0].split(b"#")[0].decode()
        static = "." in path and path.rpartition(".")[2].lower() in STATIC
        if pieces[2].split()[0] >= b"400" or not static:
            kept.append(path)
    assert counts.accepted == len(kept)
    expected = Counter(path for path in kept if path.startswith("/"))
    assert Counter(result.events["path"].drop_nulls().to_list()) == expected
    assert (result.events["event_id"] == "0-" + result.events["position"].cast(pl.String)).all()
    assert result.events["ip"].str.ends_with(".0").all()
