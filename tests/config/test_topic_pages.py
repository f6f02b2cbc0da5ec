"""Topic pages: what is read from a right one, and what is said about a wrong one."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError, Mistake
from streamproc.topic_pages import find_pages, load_page, load_pages, names, read_page
from streamproc.topology import DAY, HOUR, MINUTE, SECOND, Duplicates, EventTime, FieldType, Window

PAGES = Path(__file__).parents[2] / "topics"

PAGE = """
[stream]
name = "shop"

[topic]
name = "shop-events"
partitions = 8
replication = 3
retention = "forever"

[contract]
key = "visitor"
max_record_bytes = "64KiB"
duplicate_keys = "first"

[contract.fields]
id      = { type = "string", required = true }
at      = { path = "meta.sent.at", type = "integer", required = true }
visitor = { path = ["who", "a.b"], type = "string", max_length = 64, truncate = true }
url     = { type = "string" }
price   = { type = "number" }
amount  = { type = "integer" }
paid    = { type = "boolean" }
extra   = { path = "meta", type = "json", max_length = 1000 }

[contract.event_time]
field = "at"
format = "s"
future_skew = "1h"
disorder = "500ms"

[contract.duplicates]
field = "id"
horizon = "2h"

[enrich.url]
field = "url"
only = ["host", "path"]

[derive]
section = "split_part(path, '/', 2)"
shouted = "upper(section)"

[[filters]]
name = "internal"
drop = "host = 'localhost'"

[privacy.pseudonym]
fields = ["visitor"]
key_env = "SHOP_KEY"

[tables.sales]
comment = "Sales per section"
window = { kind = "hopping", size = "10m", hop = "5m" }
by = ["section", "paid"]
where = "amount > 0"
lateness = "1m"
retention = "30d"
measures.orders = { kind = "count", where = "paid", comment = "Paid orders" }
measures.items = { kind = "sum", column = "amount" }
measures.turnover = { kind = "sum", column = "price" }
measures.cheapest = { kind = "min", column = "price" }
measures.newest = { kind = "max", column = "event_time" }
measures.mean = { kind = "avg", column = "amount" }
measures.visitors = { kind = "approx_distinct", column = "visitor", precision = 14 }
measures.ids = { kind = "distinct", column = "id" }
measures.median = { kind = "approx_percentile", column = "price", at = 0.5 }
measures.first_url = { kind = "first", column = "url" }
derived.bulk = { sql = "items > 100", comment = "Large" }

[tables.visits]
window = { kind = "session", key = "visitor", gap = "20m", cap = "12h" }
measures.events = { kind = "count" }
measures.buying = { kind = "funnel", steps = [["seen", "url is not null"], ["bought", "paid"]] }
derived.bought = { sql = "buying_step = 2", type = "boolean" }

[sinks]
publish_events = "shop-enriched"
publish_tables = "shop-tables"
"""


def raw() -> dict[str, Any]:
    return tomllib.loads(PAGE)


def put(page: dict[str, Any], path: str, value: object) -> None:
    """Set a dotted path; ``...`` removes the key."""
    *parents, last = path.split("/")
    for key in parents:
        page = page[int(key)] if isinstance(page, list) else page.setdefault(key, {})
    if value is ...:
        del page[last]
    else:
        page[last] = value


def mistakes_of(page: dict[str, Any]) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigError) as caught:
        read_page(page, "shop.toml")
    return caught.value.mistakes


def test_a_page_is_read_into_a_topology() -> None:
    page = read_page(raw(), "shop.toml")
    assert page.name == "shop"
    assert (page.topic.name, page.topic.partitions, page.topic.replication) == ("shop-events", 8, 3)
    assert page.topic.retention is None
    contract = page.contract
    assert contract.event_time == EventTime("at", "s", HOUR, SECOND // 2)
    assert contract.duplicates == Duplicates("id", 2 * HOUR)
    assert (contract.key, contract.max_record_bytes, contract.duplicate_keys) == ("visitor", 65_536, "first")
    fields = {field.name: field for field in contract.fields}
    assert fields["at"].path == ("meta", "sent", "at")
    assert fields["visitor"].path == ("who", "a.b")
    assert fields["url"].path == ("url",)
    assert (fields["visitor"].max_length, fields["visitor"].truncate) == (64, True)
    assert fields["extra"].type is FieldType.JSON
    assert [e.kind for e in page.enrichments] == ["url", "pseudonym"]
    assert page.sinks.publish_events == "shop-enriched"
    assert page.derive == (
        ("section", "split_part(path, '/', 2)", pl.String()),
        ("shouted", "upper(section)", pl.String()),
    )


@pytest.mark.parametrize(("written", "age"), [("90d", 90 * DAY), ("forever", None)])
def test_events_may_be_of_any_age_unless_the_page_bounds_it(written: str, age: int | None) -> None:
    page = raw()
    assert read_page(page, "shop.toml").contract.event_time.max_age is None
    put(page, "contract/event_time/max_age", written)
    assert read_page(page, "shop.toml").contract.event_time.max_age == age


def test_columns_are_fields_then_event_time_then_system_then_added_ones() -> None:
    page = read_page(raw(), "shop.toml")
    assert list(page.columns) == [
        *("id", "at", "visitor", "url", "price", "amount", "paid", "extra"),
        "event_time",
        *("source_partition", "position", "received_at", "redriven_from"),
        *("host", "path"),
        *("section", "shouted"),
    ]
    assert page.columns["event_time"] == pl.Datetime("us", "UTC")
    assert page.columns["amount"] == pl.Int64()
    assert page.columns["price"] == pl.Float64()


def test_an_event_time_field_of_that_name_becomes_a_moment_in_its_own_place() -> None:
    page = raw()
    page["contract"]["fields"]["event_time"] = page["contract"]["fields"].pop("at")
    page["contract"]["event_time"]["field"] = "event_time"
    columns = read_page(page, "shop.toml").columns
    assert columns["event_time"] == pl.Datetime("us", "UTC")
    assert list(columns).count("event_time") == 1


def test_tables_know_the_types_of_their_keys_and_measures() -> None:
    sales, visits = read_page(raw(), "shop.toml").tables
    assert sales.window == Window("hopping", size=10 * MINUTE, hop=5 * MINUTE)
    assert (sales.by, sales.by_types) == (("section", "paid"), (pl.String(), pl.Boolean()))
    assert (sales.lateness, sales.retention) == (MINUTE, 30 * DAY)
    assert {measure.name: measure.type for measure in sales.measures} == {
        "orders": pl.Int64(),
        "items": pl.Int64(),
        "turnover": pl.Float64(),
        "cheapest": pl.Float64(),
        "newest": pl.Datetime("us", "UTC"),
        "mean": pl.Float64(),
        "visitors": pl.Int64(),
        "ids": pl.Int64(),
        "median": pl.Float64(),
        "first_url": pl.String(),
    }
    assert {m.name: m.precision for m in sales.measures if "approx" in m.kind} == {
        "visitors": 14,
        "median": 200,
    }
    assert [(d.name, d.type) for d in sales.derived] == [("bulk", pl.Boolean())]
    assert visits.window == Window("session", key="visitor", gap=20 * MINUTE, cap=12 * HOUR)
    assert visits.by == ()
    assert visits.measures[1].steps == (("seen", "url is not null"), ("bought", "paid"))


def test_a_session_table_knows_the_type_of_its_key() -> None:
    page = raw()
    put(page, "tables/visits/window/key", "amount")
    visits = read_page(page, "shop.toml").tables[1]
    assert (visits.by, visits.by_types) == ((), (pl.Int64(),))


def test_the_fingerprint_is_of_what_the_page_says_and_not_of_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"

    def fingerprint(text: str) -> str:
        path.write_text(text)
        return load_page(path).fingerprint

    assert len(fingerprint(PAGE)) == 64
    assert fingerprint("# a comment\n" + PAGE.replace("\n\n", "\n\n# more\n\n")) == fingerprint(PAGE)
    assert fingerprint(PAGE.replace('"30d"', '"31d"')) != fingerprint(PAGE)


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_pages_load(page: Path) -> None:
    topology = load_page(page)
    assert topology.name == page.stem
    assert topology.tables


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.toml")), ids=lambda path: path.stem)
def test_redshift_takes_every_text_that_a_shipped_page_accepts(page: Path) -> None:
    """One that is longer than its column would keep the whole object out, other visitors' events and all."""
    contract = load_page(page).contract
    for field in contract.fields:
        if field.type in (FieldType.STRING, FieldType.JSON):
            longest = contract.max_record_bytes - 1  # a text is not all of its record
            if field.max_length is not None:
                longest = min(longest, 4 * field.max_length)
            assert longest <= 65_535, field.name


# path of the change, new value (... removes it) → where it is reported, words of problem and fix
WRONG: list[tuple[str, object, str, str, str]] = [
    # shape
    ("stram", {"name": "x"}, "stram", "not a known key", "Did you mean stream?"),
    ("contract/feilds", {}, "contract.feilds", "not a known key", "fields"),
    ("contract/fields/url/requird", True, "contract.fields.url.requird", "not a known key", "required"),
    ("contract/fields/url", "string", "contract.fields.url", "not a table", "{ in"),
    (
        "contract/fields/url/required",
        "yes",
        "contract.fields.url.required",
        "not true or false",
        "without quotes",
    ),
    ("tables/sales/by", "section", "tables.sales.by", "not an array", "square brackets"),
    ("tables/sales/by", [1], "tables.sales.by", "not text", "quotes"),
    ("filters", {"name": "x"}, "filters", "not an array", "square brackets"),
    ("filters", ["is_bot"], "filters[0]", "not a table", "[[filters]]"),
    # required parts
    ("stream/name", ..., "stream.name", "missing", 'name = "…"'),
    ("contract", ..., "contract", "missing", "docs/topic-files.md"),
    ("contract/fields", ..., "contract.fields", "missing", "event's time"),
    ("contract/event_time", ..., "contract.event_time", "missing", "[contract.event_time]"),
    ("contract/fields/url/type", ..., "contract.fields.url.type", "missing", "string, integer"),
    ("tables/sales/window", ..., "tables.sales.window", "missing", "tumbling"),
    ("tables/sales/window/kind", ..., "tables.sales.window.kind", "missing", "tumbling, hopping, session"),
    ("tables/sales/measures", ..., "tables.sales.measures", "missing", "measures.events"),
    (
        "tables/visits/measures/buying/steps",
        ...,
        "tables.visits.measures.buying.steps",
        "missing",
        "steps = [[",
    ),
    ("tables/sales/measures/median/at", ..., "tables.sales.measures.median.at", "missing", "0.95"),
    ("tables/sales/measures/items/column", ..., "tables.sales.measures.items.column", "missing", "a number"),
    ("filters/0/drop", ..., "filters[0].drop", "missing", "SQL"),
    ("filters/0/name", ..., "filters[0].name", "missing", "count"),
    # names
    ("stream/name", "Shop Events", "stream.name", "without quotes", '"shop_events"'),
    ("stream/name", "public", "stream.name", "system", "another name"),
    ("stream/name", "pg_shop", "stream.name", "system", "another name"),
    ("stream/name", "s" * 64, "stream.name", "longer than 63", "Shorten"),
    (
        f"tables/{'t' * 53}",
        {"window": {"kind": "tumbling", "size": "1m"}, "measures": {"n": {"kind": "count"}}},
        f"tables.{'t' * 53}",
        "longer than 52",
        "Shorten",
    ),
    (
        "contract/fields/userAgent",
        {"type": "string"},
        "contract.fields.userAgent",
        "without quotes",
        '"user_agent"',
    ),
    ("contract/fields/user", {"type": "string"}, "contract.fields.user", "reserved word", 'path = "user"'),
    ("contract/fields/position", {"type": "string"}, "contract.fields.position", "system", "another name"),
    ("contract/fields/a b", {"type": "string"}, 'contract.fields."a b"', "without quotes", '"a_b"'),
    ("contract/fields/ctid", {"type": "string"}, "contract.fields.ctid", "system", "another name"),
    (
        "tables/group",
        {"window": {"kind": "tumbling", "size": "1m"}},
        "tables.group",
        "reserved word",
        '"group_"',
    ),
    (
        "tables/sales/measures/window_start",
        {"kind": "count"},
        "tables.sales.measures.window_start",
        "system",
        "name",
    ),
    (
        "tables/sales/measures/section",
        {"kind": "count"},
        "tables.sales.measures.section",
        "already",
        "another",
    ),
    (
        "tables/sales/measures/a__b",
        {"kind": "count"},
        "tables.sales.measures.a__b",
        "double underscore",
        "single",
    ),
    (
        "tables/sales/measures/" + "m" * 60,
        {"kind": "first", "column": "url"},
        "tables.sales.measures." + "m" * 60,
        "longer than 63",
        "Shorten the name by 7",
    ),
    (
        "tables/visits/measures/buying_step",
        {"kind": "count"},
        "tables.visits.measures.buying_step",
        "already",
        "name",
    ),
    ("tables/sales/derived/items", {"sql": "1 = 1"}, "tables.sales.derived.items", "already", "another name"),
    ("derive/url", "upper(id)", "derive.url", "already", "another name"),
    ("filters", [{"name": "a", "drop": "paid"}] * 2, "filters[1].name", "already", "another name"),
    ("topic/name", "shop events", "topic.name", "not a topic's name", "letters, digits"),
    # values
    ("topic/partitions", 0, "topic.partitions", "out of range", "1 to 10,000"),
    ("topic/partitions", "4", "topic.partitions", "not a whole number", "1 to 10,000"),
    ("topic/partitions", True, "topic.partitions", "not a whole number", "1 to 10,000"),
    ("topic/retention", "7 days", "topic.retention", "not a duration", '"7d"'),
    ("topic/retention", 7, "topic.retention", "no unit", '"7d"'),
    ("topic/retention", "1s", "topic.retention", "out of range", "1m to 3650d"),
    ("contract/decoder", "jsn", "contract.decoder", "not a decoder", "json"),
    ("contract/decoder", "combined", "contract.fields", "own fields", "Remove"),
    ("contract/key", "visitr", "contract.key", "no field 'visitr'", "visitor"),
    ("contract/max_record_bytes", "1 megabyte", "contract.max_record_bytes", "not a size", "512KiB"),
    ("contract/max_record_bytes", 1, "contract.max_record_bytes", "out of range", "1,024"),
    ("contract/fields/url/type", "text", "contract.fields.url.type", "not a type", "string"),
    ("contract/fields/url/path", "a..b", "contract.fields.url.path", "not a path", "context.page.url"),
    ("contract/fields/url/path", "id", "contract.fields.url", "same JSON key as 'id'", "Remove one"),
    ("contract/fields/url/path", "id.x", "contract.fields.url", "lies inside 'id'", 'type = "json"'),
    ("contract/fields/paid/max_length", 3, "contract.fields.paid.max_length", "no meaning", "Remove"),
    ("contract/fields/extra/truncate", True, "contract.fields.extra.truncate", "cuts strings", "max_length"),
    (
        "contract/fields/at/required",
        False,
        "contract.fields.at.required",
        "needs its time",
        "required = true",
    ),
    ("contract/event_time/field", "att", "contract.event_time.field", "no field 'att'", "at"),
    ("contract/event_time/format", "iso8601", "contract.fields.at.type", "cannot be a integer", "string"),
    (
        "contract/event_time/format",
        "unix",
        "contract.event_time.format",
        "not a format",
        "s, ms, us, iso8601",
    ),
    ("contract/event_time/disorder", "8d", "contract.event_time.disorder", "out of range", "0s to 7d"),
    ("contract/event_time/max_age", "1m", "contract.event_time.max_age", "out of range", "1h to 36500d"),
    (
        "contract/fields/event_time",
        {"type": "string"},
        "contract.fields.event_time",
        "name of the event time",
        "path",
    ),
    ("contract/duplicates/field", "price", "contract.duplicates.field", "is a number", "identifies"),
    (
        "privacy/pseudonym/fields",
        ["id"],
        "contract.duplicates.field",
        "changed by privacy.pseudonym",
        "as it comes",
    ),
    # enrichments and expressions
    ("enrich/urll", {}, "enrich.urll", "not a known key", "Did you mean url"),
    ("enrich/url/field", "urll", "enrich.url.field", "no column 'urll'", "url"),
    ("enrich/ip", {"field": "url"}, "enrich.ip", "belongs below [privacy]", "[privacy.ip]"),
    ("privacy/url", {"field": "url"}, "privacy.url", "belongs below [enrich]", "[enrich.url]"),
    (
        "enrich/lookup",
        {"p": {"file": "p.csv", "add": {"x": "string"}}},
        "enrich.lookup.p.keys",
        "missing",
        "column",
    ),
    ("derive/section", "split_part(pth, '/', 2)", "derive.section", "no column 'pth'", "SQL"),
    ("derive/section", "count(path)", "derive.section", "not a function of one event", "SQL"),
    ("derive/section", "string_to_array(path, '/')", "derive.section", "cannot be stored", "as text"),
    ("derive/section", "char_length(path)", "derive.section", "unsigned", "bigint"),
    ("derive/section", "upper(", "derive.section", "not parse", "SQL"),
    ("filters/0/drop", "hots = 'x'", "filters[0].drop", "no column 'hots'", "SQL"),
    ("filters/0/drop", "amount", "filters[0].drop", "whole number, not true or false", "comparison"),
    # tables
    ("tables/sales/window/kind", "tumblin", "tables.sales.window.kind", "not a kind of window", "tumbling"),
    ("tables/sales/window/hop", "3m", "tables.sales.window.hop", "does not divide", 'hop = "1m"'),
    ("tables/sales/window/hop", "10m", "tables.sales.window.hop", "does not divide", 'hop = "1m"'),
    (
        "tables/sales/window",
        {"kind": "hopping", "size": "30d", "hop": "1m"},
        "tables.sales.window.hop",
        "43,200",
        "1,440",
    ),
    (
        "tables/sales/window",
        {"kind": "tumbling", "size": "1m", "hop": "1m"},
        "tables.sales.window.hop",
        "tumbling",
        "size",
    ),
    ("tables/sales/window/size", "0s", "tables.sales.window.size", "out of range", "1s"),
    ("tables/visits/window/key", "visitorr", "tables.visits.window.key", "no column", "visitor"),
    ("tables/visits/window/key", "price", "tables.visits.window.key", "rounding", "Group by"),
    ("tables/visits/window/key", "n", "tables.visits.window.key", "every session table has", "another name"),
    ("tables/visits/window/gap", "13h", "tables.visits.window.gap", "longer than cap", "raise cap"),
    ("tables/visits/by", ["url"], "tables.visits.by", "no meaning for sessions", "first"),
    ("tables/sales/by", ["sectoin"], "tables.sales.by", "no column 'sectoin'", "section"),
    ("tables/sales/by", ["paid", "paid"], "tables.sales.by", "twice", "Remove"),
    ("tables/sales/by", ["price"], "tables.sales.by", "rounding", "Group by"),
    ("tables/sales/by", ["url"] * 32, "tables.sales.by", "32 columns", "two tables"),
    ("tables/sales/where", "amout > 0", "tables.sales.where", "no column 'amout'", "SQL"),
    ("tables/sales/retention", "10m", "tables.sales.retention", "shorter than the window", "Keep rows"),
    ("tables/sales/lateness", "31d", "tables.sales.lateness", "out of range", "30d"),
    (
        "retention",
        {"events": "1h"},
        "contract.duplicates.horizon",
        "longer than retention.events",
        "at least as long",
    ),
    (
        "tables/sales/measures/items/kind",
        "summ",
        "tables.sales.measures.items.kind",
        "kind of measure",
        "sum",
    ),
    (
        "tables/sales/measures/items/column",
        "amout",
        "tables.sales.measures.items.column",
        "no column",
        "amount",
    ),
    (
        "tables/sales/measures/items/column",
        "url",
        "tables.sales.measures.items.column",
        "is text",
        "distinct",
    ),
    (
        "tables/sales/measures/items/column",
        "paid",
        "tables.sales.measures.items.column",
        "true or false",
        "Count",
    ),
    (
        "tables/sales/measures/orders/column",
        "url",
        "tables.sales.measures.orders.column",
        "no meaning",
        "is not null",
    ),
    ("tables/sales/measures/median/at", 95, "tables.sales.measures.median.at", "out of range", "0.95"),
    ("tables/sales/measures/items/at", 0.5, "tables.sales.measures.items.at", "no meaning", "Remove"),
    (
        "tables/sales/measures/visitors/precision",
        40,
        "tables.sales.measures.visitors.precision",
        "out of",
        "4 to 21",
    ),
    (
        "tables/sales/measures/items/precision",
        12,
        "tables.sales.measures.items.precision",
        "no meaning",
        "Remove",
    ),
    (
        "tables/sales/measures/orders/where",
        "pai",
        "tables.sales.measures.orders.where",
        "no column 'pai'",
        "SQL",
    ),
    (
        "tables/sales/measures/f",
        {"kind": "funnel", "steps": [["a", "paid"], ["b", "paid"]]},
        "tables.sales.measures.f.kind",
        "needs a session window",
        'kind = "session"',
    ),
    (
        "tables/visits/measures/n",
        {"kind": "count"},
        "tables.visits.measures.n",
        "has a column 'n' already",
        "another name",
    ),
    (
        "tables/visits/measures/buying/steps",
        [["a", "paid"]],
        "tables.visits.measures.buying.steps",
        "2 to 32",
        "seen",
    ),
    (
        "tables/visits/measures/buying/steps",
        [["a", "paid"], ["a", "paid"]],
        "tables.visits.measures.buying.steps",
        "same name",
        "its own",
    ),
    (
        "tables/visits/measures/buying/steps",
        [["a", "paid"], ["b", "pad"]],
        "tables.visits.measures.buying.steps[1].1",
        "no column 'pad'",
        "SQL",
    ),
    ("tables/sales/derived/bulk/sql", "itms > 1", "tables.sales.derived.bulk.sql", "no column 'itms'", "SQL"),
    (
        "tables/sales/derived/bulk/sql",
        "turnover / orders > 2",
        "tables.sales.derived.bulk.sql",
        "divides by orders, which may be zero",
        "Divide by nullif(orders, 0)",
    ),
    (
        "tables/sales/derived/bulk/type",
        "string",
        "tables.sales.derived.bulk.type",
        "true or false",
        "leave it out",
    ),
    # sinks
    ("sinks/lake", False, "contract.duplicates", "needs the lake", "sinks.lake = true"),
    ("sinks/lake", False, "sinks.warehouse", "loaded from the lake", "warehouse = false"),
    ("sinks/lake", False, "sinks.publish_events", "needs the lake", "lake = true"),
    ("contract/fields/hour", {"type": "integer"}, "sinks.lake", "as the column 'hour'", "another name"),
    ("sinks/publish_events", "shop-events", "sinks.publish_events", "for ever", "another topic"),
    ("sinks/publish_tables", "shop-enriched", "sinks.publish_tables", "publish_events", "another topic"),
    ("sinks/sort_key", ["event_tine"], "sinks.sort_key", "no column 'event_tine'", "event_time"),
    ("sinks/sort_key", ["url", "url"], "sinks.sort_key", "twice", "once"),
    ("sinks/dist_key", "nobody", "sinks.dist_key", "no column 'nobody'", "column of the events"),
    ("tables", ..., "sinks.publish_tables", "no table to publish", "Declare one"),
]


@pytest.mark.parametrize(
    ("path", "value", "where", "problem", "fix"), WRONG, ids=[f"{c[0][:50]}={str(c[1])[:20]}" for c in WRONG]
)
def test_a_mistake_is_named_with_its_path_and_its_fix(
    path: str, value: object, where: str, problem: str, fix: str
) -> None:
    page = raw()
    put(page, path, value)
    found = mistakes_of(page)
    matching = [m for m in found if m.where == f"shop.toml: {where}"]
    assert matching, [str(m) for m in found]
    assert any(problem in m.problem and fix in m.fix for m in matching), [str(m) for m in matching]


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("turnover / nullif(orders, 0)", pl.Float64()),
        ("cast(items as double precision) / nullif(orders, 0)", pl.Float64()),
        ("case when orders > 0 then turnover / orders else 0.0 end", pl.Float64()),
        ("100 * turnover / greatest(orders, 1)", pl.Float64()),
    ],
)
def test_a_derived_column_may_divide_by_what_is_not_zero(sql: str, kind: pl.DataType) -> None:
    page = raw()
    put(page, "tables/sales/derived/bulk/sql", sql)
    (derived,) = read_page(page, "shop.toml").tables[0].derived
    assert (derived.sql, derived.type) == (sql, kind)


def test_all_mistakes_are_reported_at_once() -> None:
    page = raw()
    wrong = [
        ("topic/partitions", 0),
        ("contract/event_time/disorder", 30),
        ("contract/fields/url/requird", True),
        ("filters/0/drop", "hots = 'x'"),
        ("tables/sales/window/hop", "3m"),
        ("tables/sales/measures/items/column", "amout"),
        ("tables/visits/window/key", "visitorr"),
        ("sinks/warehose", True),
    ]
    for path, value in wrong:
        put(page, path, value)
    assert len(mistakes_of(page)) == len(wrong)


def test_a_mistake_that_takes_columns_away_is_not_buried_under_its_consequences() -> None:
    page = raw()
    put(page, "enrich/url/field", "urll")  # no host, no path, and so no section
    assert [m.where for m in mistakes_of(page)] == ["shop.toml: enrich.url.field"]
    page = raw()
    put(page, "contract/fields/Amount", page["contract"]["fields"].pop("amount"))
    assert [m.where for m in mistakes_of(page)] == ["shop.toml: contract.fields.Amount"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[stream\nname = 1", "not TOML"),
        (b"[stream]\nname = 'a'\nname = 'b'", "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "not TOML"),
        (b"a = " + b"9" * 5_000, "not usable"),
        (b"#" * 2_000_000, "larger than"),
    ],
    ids=["syntax", "key twice", "encoding", "nested", "digits", "large"],
)
def test_a_file_that_is_no_toml_is_a_mistake_with_its_name(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_page(path)
    assert [m.where for m in caught.value.mistakes] == ["broken.toml"]
    assert problem in caught.value.mistakes[0].problem


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        load_page(tmp_path / "missing.toml")


def test_pages_of_a_folder_are_loaded_by_stream_name(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(PAGE)
    other = PAGE.replace('"shop"', '"other"').replace('"shop-', '"other-')
    (tmp_path / "a.toml").write_text(other)
    assert list(load_pages(tmp_path)) == ["other", "shop"]
    assert list(load_pages(tmp_path / "b.toml")) == ["shop"]


def test_two_pages_must_not_share_stream_or_topics(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(PAGE)
    (tmp_path / "b.toml").write_text(PAGE)
    with pytest.raises(ConfigError) as caught:
        load_pages(tmp_path)
    assert [m.where for m in caught.value.mistakes] == [
        "b.toml: stream.name",
        "b.toml: topic.name",
        "b.toml: sinks.publish_events",
        "b.toml: sinks.publish_tables",
    ]
    assert all("a.toml has" in m.problem for m in caught.value.mistakes)


def test_mistakes_of_all_pages_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(PAGE.replace("partitions = 8", "partitions = 0"))
    (tmp_path / "b.toml").write_text("x")
    with pytest.raises(ConfigError) as caught:
        load_pages(tmp_path)
    assert [m.where for m in caught.value.mistakes] == ["a.toml: topic.partitions", "b.toml"]


def test_a_folder_without_pages_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no topic page"):
        load_pages(tmp_path)


def test_pages_are_looked_for_where_told_then_here_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {p.name for p in find_pages(None).glob("*.toml")} == {p.name for p in PAGES.glob("*.toml")}
    (tmp_path / "topics").mkdir()
    assert find_pages(None) != Path("topics"), "an empty folder holds no pages"
    (tmp_path / "topics" / "shop.toml").write_text(PAGE)
    assert find_pages(None) == Path("topics")
    assert find_pages(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="does not exist"):
        find_pages(tmp_path / "nowhere")


def test_reserved_words_are_those_of_postgresql(postgres: str) -> None:
    with psycopg.connect(postgres) as connection:
        words = connection.execute(
            "SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')"
        ).fetchall()
        columns = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_class'::regclass AND attnum < 0"
        ).fetchall()
    assert {word for (word,) in words} == names.RESERVED
    assert {column for (column,) in columns} == names.POSTGRES_COLUMNS


def paths_of(value: object, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return (
        [prefix, *(path for key, item in items for path in paths_of(item, (*prefix, key)))]
        if prefix
        else [path for key, item in items for path in paths_of(item, (key,))]
    )


words = st.sampled_from(
    [
        "",
        "url",
        "path",
        "id",
        "visitor",
        "count",
        "session",
        "1m",
        "30d",
        "paid",
        "amount > 1",
        "a.b",
        "\x00",
        "é",
        "(",
    ]
)
scalars = st.one_of(
    words,
    st.text(max_size=12),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.datetimes(),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_page_with_anything_anywhere_is_right_or_a_configuration_mistake(data: st.DataObject) -> None:
    page = raw()
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(paths_of(page)))
        table: Any = page
        for key in parents:
            table = table[key]
        match data.draw(st.sampled_from(["change", "remove", "rename", "copy"])):
            case "change":
                table[last] = data.draw(values)
            case "remove":
                del table[last]
            case "rename" if isinstance(table, dict):
                table[data.draw(st.text(max_size=70))] = table.pop(last)
            case "copy" if isinstance(table, dict):
                table[data.draw(words)] = copy.deepcopy(table[last])
    try:
        topology = read_page(page, "shop.toml")
    except ConfigError as error:
        for mistake in error.mistakes:
            assert mistake.where.startswith("shop.toml")
            assert mistake.problem and mistake.fix
    else:
        assert topology.columns
