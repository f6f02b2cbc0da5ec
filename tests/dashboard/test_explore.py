"""What the page *Explore* asks is what a plain loop over the rows finds."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import datasketches
import nicegui.json
import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.dashboard import charts, explore_answers, markup, page_explore
from streamproc.dashboard.catalog import ROWS, WINDOWS, error_of, explorable
from streamproc.dashboard.choice import Choice, read_choice
from streamproc.dashboard.explore import PAGE, chart, cursor, everything, rows
from streamproc.dashboard.explore_answers import about, chart_title, plain, series
from streamproc.dashboard.groups import KEPT, Whole
from streamproc.dashboard.live import Snapshot
from streamproc.dashboard.page_explore import Explorer
from streamproc.dashboard.reading import Answer, Question, Reader, Seen, read_only
from streamproc.dashboard.shell import Stream
from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.topic_pages import load_page
from streamproc.topology import Measure, Topology
from tests.dashboard.conftest import PAGE as PAGE_FILE
from tests.dashboard.conftest import Site, make_tables


@pytest.fixture
async def reader(site: Site) -> AsyncIterator[Reader]:
    reader = Reader(Database(read_only(site.url, 5.0), "test"))
    yield reader
    await reader.database.close()


def choose(site: Site, **given: str) -> Choice:
    return read_choice(given, explorable(site.topology), site.now)


def expected(site: Site, choice: Choice) -> dict[tuple[Any, ...], dict[str, int]]:
    """Groups of page_views by a loop: views added up, visitors the largest."""
    found: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: {"views": 0, "visitors": 0})
    seconds = {"minute": 60, "5 minutes": 300, "hour": 3600, "day": 86400, "": 0}[choice.grain]
    for row in site.views:
        if choice.since <= row["window_start"] < choice.until:
            stamp = int(row["window_start"].timestamp())
            time = (stamp - stamp % seconds,) if seconds else ()
            group = found[(*time, *(row[name] for name in choice.by))]
            group["views"] += row["views"]
            group["visitors"] = max(group["visitors"], row["visitors"])
    return found


async def paged(reader: Reader, choice: Choice) -> list[tuple[Any, ...]]:
    """All rows, a page after the other."""
    seen: list[tuple[Any, ...]] = []
    after = None
    while True:
        page = (await reader.ask(rows(choice, after))).rows
        seen += page[:PAGE]
        if len(page) <= PAGE:
            return seen
        after = cursor(choice, seen[-1])


def told(choice: Choice, answer: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], dict[str, int]]:
    found = {}
    for row in answer:
        keys = list(row[: len(choice.keys)])
        if choice.grain:
            keys[0] = int(keys[0].timestamp())
        found[tuple(keys)] = dict(zip(choice.measures, map(int, row[len(choice.keys) :]), strict=True))
    return found


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.sets(st.sampled_from(["host", "path"])),
    grain=st.sampled_from(["minute", "5 minutes", "hour", "day", ""]),
    span=st.sampled_from(["1 hour", "6 hours"]),
    order=st.sampled_from(["views", "visitors", "path", "window_start"]),
    direction=st.sampled_from(["up", "down"]),
)
async def test_pages_put_together_are_the_groups_of_a_loop_in_order(
    site: Site, reader: Reader, by: set[str], grain: str, span: str, order: str, direction: str
) -> None:
    choice = choose(
        site,
        table="page_views",
        measures="views,visitors",
        by=",".join(sorted(by)),
        grain=grain,
        range=span,
        order=order,
        direction=direction,
    )
    seen = await paged(reader, choice)
    assert told(choice, seen) == expected(site, choice)
    assert len(seen) == len(expected(site, choice)), "no row twice"
    place = choice.columns.index(choice.order)
    values = [row[place] for row in seen if row[place] is not None]
    if choice.order != "path":  # text is ordered by the database's locale
        assert values == sorted(values, reverse=choice.descending)
    assert all(row[place] is None for row in seen[len(values) :]), "nulls are last"


def test_texts_are_paged_by_their_code_points_whatever_the_language_of_the_database(site: Site) -> None:
    # The embedded PostgreSQL knows no language: what it is asked has to say.
    choice = choose(site, table="page_views", measures="views", by="path", grain="hour", order="views")
    asked = rows(choice, cursor(choice, (site.now, "/a", 7))).statement.as_string(None)
    order = '"views" DESC NULLS LAST, "window_start" DESC NULLS LAST, "path" COLLATE "C" ASC NULLS LAST'
    assert f" ORDER BY {order} LIMIT " in asked
    assert '("path" COLLATE "C" > ' in asked


@pytest.mark.slow
async def test_pages_of_rows_may_be_in_the_order_of_a_truth(site: Site, reader: Reader) -> None:
    page = load_page(PAGE_FILE.with_name("weblogs.toml"))
    await make_tables(site.url, page)
    start = site.now.replace(minute=0, second=0)
    with psycopg.connect(site.url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO weblogs.page_views (window_start, window_end, path, is_bot, views)"
            " SELECT %(start)s, %(start)s + interval '1 hour', '/' || n, n %% 2 = 0, n FROM generate_series(1, 60) n",
            {"start": start},
        )
    given_ = {"table": "page_views", "measures": "views", "by": "path,is_bot", "order": "is_bot"}
    choice = read_choice(given_, explorable(page), site.now)
    seen = await paged(reader, choice)
    assert [(row[2], row[3]) for row in seen] == [
        (n % 2 == 0, n) for n in sorted(range(1, 61), key=lambda n: (n % 2, f"/{n}"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_pages_of_rows_may_be_in_the_order_of_a_number_that_no_double_is(
    site: Site, reader: Reader, direction: str
) -> None:
    (views,) = (table for table in site.topology.tables if table.name == "page_views")
    share = Measure(
        "share", "max", pl.Float32(), "share"
    )  # cast(… as real), in which 0.1 is not what it is elsewhere
    table = replace(views, by=("path",), by_types=(pl.String(),), measures=(share,))
    page = replace(site.topology, name=f"singles_{direction}", tables=(table,))
    await make_tables(site.url, page)
    with psycopg.connect(site.url, autocommit=True) as conn:
        conn.execute(
            f"INSERT INTO {page.name}.page_views (window_start, window_end, path, share)"
            " SELECT %(start)s, %(start)s + interval '1 min', '/' || n, 0.1 * (n %% 3) FROM generate_series(1, 90) n",
            {"start": site.now.replace(second=0)},
        )
    given_ = {
        "table": "page_views",
        "measures": "share",
        "by": "path",
        "order": "share",
        "direction": direction,
    }
    choice = read_choice(given_, explorable(page), site.now)
    seen: list[str] = []
    after = None
    for _ in range(4):
        found = (await reader.ask(rows(choice, after))).rows
        seen += [row[1] for row in found[:PAGE]]
        after = cursor(choice, found[:PAGE][-1])
    sign = -1 if direction == "down" else 1
    assert seen == [f"/{n}" for n in sorted(range(1, 91), key=lambda n: (sign * (n % 3), f"/{n}"))]


@pytest.mark.slow
async def test_a_chart_without_time_shows_the_biggest_groups_first(site: Site, reader: Reader) -> None:
    choice = choose(site, table="page_views", measures="views", by="path", grain="", range="6 hours")
    drawn = [(row[0], int(row[1])) for row in (await reader.ask(chart(choice))).rows]
    groups = {key[0]: group["views"] for key, group in expected(site, choice).items()}
    assert dict(drawn) == groups
    assert [value for _, value in drawn] == sorted(groups.values(), reverse=True)


@pytest.mark.slow
async def test_a_chart_over_time_has_every_point_of_the_biggest_groups(site: Site, reader: Reader) -> None:
    choice = choose(site, table="page_views", measures="views", by="path", grain="hour", range="6 hours")
    drawn = told(choice, [tuple(row) for row in (await reader.ask(chart(choice))).rows])
    whole = expected(
        site, choose(site, table="page_views", measures="views", by="path", grain="", range="6 hours")
    )
    biggest = {key[0] for key in sorted(whole, key=lambda key: -whole[key]["views"])[:6]}
    points = {key: g["views"] for key, g in expected(site, choice).items() if key[1] in biggest}
    assert {key: group["views"] for key, group in drawn.items()} == points


@pytest.mark.slow
async def test_sessions_are_counted_and_funnel_steps_are_those_that_came_so_far(
    site: Site, reader: Reader
) -> None:
    choice = choose(
        site,
        table="checkout_funnel",
        measures=f"{ROWS},checkout · checkout",
        grain="",
        by="",
        range="6 hours",
    )
    ((number, came),) = (await reader.ask(everything(choice, 10))).rows
    assert number == len(site.sessions)
    assert came == sum(session["step"] >= 3 for session in site.sessions)


@pytest.mark.slow
async def test_nothing_can_be_written(site: Site, reader: Reader) -> None:
    await reader.connect()
    with pytest.raises(DependencyError, match="read-only"):
        async with reader.database.connection("try") as conn:
            await conn.execute("DELETE FROM clickstream.page_views")


@pytest.mark.slow
async def test_a_statement_that_takes_too_long_is_stopped(site: Site) -> None:
    reader = Reader(Database(read_only(site.url, 0.1), "test"))
    await reader.connect()
    with pytest.raises(DependencyError, match="timeout"):
        async with reader.database.connection("wait") as conn:
            await conn.execute("SELECT pg_sleep(30)")
    await reader.database.close()


def test_overlapping_windows_are_offered_in_steps_that_do_not_count_twice(topology: Any) -> None:
    table = explorable(topology)["site_activity"]
    choice = read_choice({"table": "site_activity", "grain": "hour"}, {"site_activity": table}, _moment())
    assert "date_bin(300000000 * interval '1 microsecond'" in rows(choice).statement.as_string(None)
    own = read_choice({"table": "site_activity", "grain": "minute"}, {"site_activity": table}, _moment())
    assert "300000000" not in rows(own).statement.as_string(None)


def test_overlapping_windows_are_not_said_to_be_of_a_minute(topology: Topology) -> None:
    tables = explorable(topology)
    own, hourly = (
        read_choice({"table": "site_activity", "grain": grain}, tables, _moment())
        for grain in ("minute", "hour")
    )
    assert "<h2>events in 5m, every 1m</h2>" in chart_title(own, 10)
    assert "do not add up over time" in about(own)
    assert "<h2>events per hour</h2>" in chart_title(hourly, 10)
    assert "only every one that follows the last" in about(hourly)


def test_a_chart_that_has_not_all_points_says_so(topology: Topology) -> None:
    choice = read_choice({"range": "7 days"}, explorable(topology), _moment())
    assert "only the newest 9,000 points" in chart_title(choice, 9_000)
    assert "points" not in chart_title(choice, 8_999)


def moments(topology: Topology) -> Topology:
    """A table that measures when something was seen last, beside one that only keeps a text."""
    (views,) = (table for table in topology.tables if table.name == "page_views")
    seen = Measure("last_seen", "max", pl.Datetime("us", "UTC"), "event_time")
    title = Measure("title", "last", pl.String(), "path")
    return replace(
        topology,
        tables=(
            replace(views, name="seen", measures=(seen, *views.measures)),
            replace(views, name="titles", measures=(title,)),
        ),
    )


def test_a_moment_is_a_measure_that_is_not_drawn_and_never_open(topology: Topology) -> None:
    tables = explorable(moments(topology))
    choice = read_choice({"table": "seen"}, tables, _moment())
    assert choice.measures[0] == "last_seen"
    assert choice.charted is not None and choice.charted.name == "views"
    found = [(_moment(), _moment(), 3)]
    assert Whole(choice, found, complete=True).drawn(choice).rows == [(_moment(), 3)]
    columns = {column.name: column for column in choice.table.measures}
    cells = explore_answers.row(choice, (_moment(), _moment(), 3), columns, _moment())
    assert [isinstance(cell, markup.Raw) and "open" in cell.html for cell in cells] == [True, False, False]
    alone = read_choice({"table": "seen", "measures": "last_seen", "order": "last_seen"}, tables, _moment())
    assert alone.charted is None


@pytest.mark.parametrize(("k", "text"), [(32, "7.9"), (200, "1.3"), (4_096, "0.071"), (65_535, "0.0048")])
def test_the_error_of_a_percentile_is_the_one_that_its_sketch_tells_of_itself(k: int, text: str) -> None:
    assert f"{100 * datasketches.kll_doubles_sketch(k).normalized_rank_error(False):.2g}" == text
    p95 = Measure("p95", "approx_percentile", pl.Float64(), "value", at=0.95, precision=k)
    assert error_of(p95) == f"rank ±{text} %"


def test_of_a_table_without_a_number_the_rows_are_counted(topology: Topology) -> None:
    tables = explorable(moments(topology))
    own = read_choice({"table": "titles", "by": "host,path"}, tables, _moment())
    hourly = read_choice({"table": "titles", "grain": "hour"}, tables, _moment())
    whole = read_choice({"table": "titles", "grain": "", "by": ""}, tables, _moment())
    assert own.measures == hourly.measures == whole.measures == (WINDOWS,)
    assert "count" not in rows(own).statement.as_string(None), "each is one row"
    assert 'count(*) AS "number of rows"' in rows(hourly).statement.as_string(None)
    assert "count(*)" in chart(own).statement.as_string(None)


@pytest.mark.parametrize(
    "given",
    [
        {"table": "pg_authid", "measures": "rolpassword", "by": "rolname"},
        {"measures": 'views"; DROP TABLE x; --', "by": "path,password", "order": "1; --", "grain": "'"},
        {"range": "1 year", "from": "yesterday", "to": "x"},
        {"from": "2026-01-02T00:00:00", "to": "2026-01-01T00:00:00"},
    ],
)
def test_an_address_can_only_choose_what_is_there(topology: Any, given: dict[str, str]) -> None:
    tables = explorable(topology)
    choice = read_choice(given, tables, _moment())
    assert choice.table.name in tables
    assert set(choice.measures) <= {column.name for column in choice.table.measures} and choice.measures
    assert set(choice.by) <= set(choice.table.dimensions)
    assert choice.order in choice.columns
    assert choice.since < choice.until
    assert choice.grain in {*choice.table.grains, ""}


def test_a_choice_survives_its_address(topology: Any) -> None:
    from urllib.parse import parse_qsl

    tables = explorable(topology)
    for table in tables.values():
        for span in (
            {"range": "6 hours"},
            {"from": "2026-01-01T00:00:00+00:00", "to": "2026-01-02T00:00:00+00:00"},
        ):
            choice = read_choice({"table": table.name, **span, "direction": "up"}, tables, _moment())
            again = read_choice(dict(parse_qsl(choice.address(), keep_blank_values=True)), tables, _moment())
            assert again == choice


@pytest.mark.parametrize("broken", ["", "x", "bnVsbA==", "WzFd", "W1tdLCBbXV0="])
def test_a_cursor_that_is_none_begins_at_the_beginning(topology: Any, broken: str) -> None:
    choice = read_choice({"by": "path"}, explorable(topology), _moment())
    assert "after_0" not in rows(choice, broken).parameters


def _moment() -> Any:
    from datetime import UTC, datetime

    return datetime(2026, 6, 1, tzinfo=UTC) + timedelta(hours=1)


def drawn(topology: Topology, measure: str, rows: list[tuple[Any, ...]], **given: str) -> list[list[Any]]:
    """Hour and value of the points of an hourly chart's lines."""
    span = {"from": "2026-06-01T00:00:00+00:00", "to": "2026-06-02T00:00:00+00:00"}
    choice = read_choice(
        {"measures": measure, "grain": "hour", **span, **given}, explorable(topology), _moment()
    )
    assert choice.charted is not None and choice.charted.name == measure
    options = explore_answers.chart_options(choice, Answer([], rows), None)
    return [[(int(time[11:13]), value) for time, value in line["data"]] for line in options["series"]]


def at(*hours: int) -> list[datetime]:
    return [datetime(2026, 6, 1, hour, tzinfo=UTC) for hour in hours]


@pytest.mark.parametrize(
    ("table", "measure"),
    [
        ("page_views", "views"),
        ("page_views", "visitors"),
        ("sessions", ROWS),
        ("checkout_funnel", "checkout · purchase"),
    ],
)
def test_where_nothing_was_counted_a_line_is_at_nought_and_not_between_its_neighbours(
    topology: Topology, table: str, measure: str
) -> None:
    rows = [(hour, 7) for hour in reversed(at(1, 2, 4, 9, 10))]
    assert drawn(topology, measure, rows, table=table) == [
        [(1, 7), (2, 7), (3, 0), (4, 7), (5, 0), (8, 0), (9, 7), (10, 7)]
    ]


def test_each_line_is_at_nought_where_it_has_no_row(topology: Topology) -> None:
    (one, two, three), rest = at(1, 2, 3), {"table": "page_views", "by": "path"}
    rows = [(three, "a", 7), (three, "b", 5), (two, "b", None), (one, "a", 7), (one, "b", 5)]
    a, b = drawn(topology, "views", rows, **rest)
    assert a == [(1, 7), (2, 0), (3, 7)]
    assert b == [(1, 5), (2, None), (3, 5)], "there is a row, of before the measure was"


@pytest.mark.parametrize("measure", ["revenue", "value_p95", "largest"])
def test_where_there_is_nothing_to_measure_a_line_is_broken(topology: Topology, measure: str) -> None:
    (audience,) = (table for table in topology.tables if table.name == "audience")
    largest = Measure("largest", "max", pl.Float64(), "value")
    page = replace(topology, tables=(replace(audience, measures=(*audience.measures, largest)),))
    rows = [(hour, 7) for hour in reversed(at(1, 2, 4))]
    line = [(1, 7), (2, 7), (3, None), (4, 7)]
    assert drawn(page, measure, rows, table="audience") == [line], "as in a row of which nothing was measured"


def test_a_point_between_two_breaks_of_a_long_line_is_seen() -> None:
    hours = [datetime(2026, 6, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(100)]
    for values, seen in ([7.0] * 100, False), ([*[7.0] * 97, None, 7.0, None], True):
        ((line,)) = charts.lines({"all": list(zip(hours, values, strict=True))}, None, hours[-1])["series"]
        assert line["showSymbol"] is seen


@pytest.mark.parametrize("kind", [float, Decimal])
@pytest.mark.parametrize(
    ("value", "text"), [("inf", "∞"), ("-inf", "\N{MINUS SIGN}∞"), ("nan", "not a number")]
)
def test_what_is_no_finite_number_is_told_and_not_drawn(kind: Any, value: str, text: str) -> None:
    assert markup.cell(kind(value)) == text
    assert text in markup.approximate(kind(value), "±2 %").html
    assert markup.approximate(kind(value), "").html == text
    assert plain(kind(value)) is None
    found = Answer(["time", "path", "value"], [(1, "a", kind(value)), (1, "b", 2.5), (2, "b", None)])
    assert series(found) == {"b": [(2, None), (1, 2.5)], "a": [(1, None)]}


def test_each_group_has_a_line_of_its_own_whatever_its_texts() -> None:
    found = [(None, "c", 1), ("(none)", "c", 2), ("", "c", 3), ("(empty)", "c", 4), ("a · b", "c", 5)]
    answer = Answer(["time", "x", "y", "value"], [(1, *row) for row in [*found, ("a", "b · c", 6)]])
    drawn = series(answer)
    assert [[value for _, value in points] for points in drawn.values()] == [[6], [5], [4], [3], [2], [1]]
    assert list(drawn)[2:] == ['"(empty)" · c', "(empty) · c", '"(none)" · c', "(none) · c"]


#: From half past one to a minute before five; hours begin at 1, 2, 3 and 4.
SPAN = {"from": "2026-06-01T01:30:00+00:00", "to": "2026-06-01T04:59:00+00:00"}
HOURS = [datetime(2026, 6, 1, hour, tzinfo=UTC) for hour in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("table", "grain", "cut"),
    [
        ("page_views", "hour", [1, 4]),
        ("page_views", "minute", []),
        ("site_activity", "hour", [1]),  # windows of five minutes, of which the last begins at 4:55
        ("site_activity", "minute", []),
        ("sessions", "hour", [1, 4]),
        ("sessions", "minute", []),
    ],
)
def test_a_row_is_a_part_where_the_range_leaves_some_of_it_out(
    topology: Topology, table: str, grain: str, cut: list[int]
) -> None:
    choice = read_choice({"table": table, "grain": grain, **SPAN}, explorable(topology), _moment())
    rows = HOURS if grain == "hour" else [choice.since, HOURS[2], choice.until - timedelta(minutes=1)]
    assert [row.hour for row in rows if explore_answers.is_cut(choice, row)] == cut
    values = [0] * len(choice.measures)
    cells = [explore_answers.row(choice, (row, *values), {}, None)[0].html for row in rows]
    assert [row.hour for row, cell in zip(rows, cells, strict=True) if ">part<" in cell] == cut


def test_what_the_range_cuts_is_drawn_apart_from_what_is_whole(topology: Topology) -> None:
    choice = read_choice({"table": "page_views", "grain": "hour", **SPAN}, explorable(topology), _moment())
    answer = Answer(["time", "views"], [(hour, 7) for hour in reversed(HOURS)])
    whole, *ends = explore_answers.chart_options(choice, answer, None)["series"]
    assert [point[0][11:13] for point in whole["data"]] == ["02", "03"]
    assert [[(p["value"][0][11:13], p["symbol"]) for p in end["data"]] for end in ends] == [
        [("01", "emptyCircle"), ("02", "none")],
        [("03", "none"), ("04", "emptyCircle")],
    ]
    assert [end["lineStyle"]["type"] for end in ends] == [[4, 4]] * 2


def test_the_newest_row_of_a_range_that_ends_now_is_open_and_all_there_is(topology: Topology) -> None:
    now = HOURS[3] + timedelta(minutes=20)
    choice = read_choice(
        {"table": "page_views", "grain": "hour", "range": "1 hour"}, explorable(topology), now
    )
    rows = HOURS[2:]
    assert [explore_answers.is_cut(choice, row) for row in rows] == [True, False]
    for open_from in (HOURS[3], HOURS[2]):
        drawn = explore_answers.chart_options(
            choice, Answer([], [(row, 7) for row in reversed(rows)]), open_from
        )
        assert [len(each["data"]) for each in drawn["series"]] == [0, 2]
        assert {point["symbol"] for point in drawn["series"][1]["data"]} == {"emptyCircle"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0042, "0.0042"), (-0.000123456, "-0.000123"), (Decimal("0.0300"), "0.03"), (0.5, "0.50"), (0.0, "0")],
)
def test_a_small_fraction_is_more_than_nothing(value: float | Decimal, text: str) -> None:
    assert markup.number(value) == text


@pytest.mark.parametrize("kind", [int, float, Decimal])
@pytest.mark.parametrize("value", [2**53, 2**64, -(2**70), 10**290])
def test_a_chart_of_any_number_can_be_sent(kind: Any, value: int) -> None:
    options = charts.bars([("a", plain(kind(value))), ("b", plain(kind(7)))])
    [bars] = json.loads(nicegui.json.dumps(options))["series"]
    assert bars["data"] == [float(value), 7]
    assert isinstance(bars["data"][1], int)


async def test_a_double_click_on_next_turns_one_page(topology: Topology) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def ask(*_: object) -> Answer:
        asked.set()
        await go.wait()
        raise DependencyError("the database", "is away")

    reader = SimpleNamespace(ask=ask, of=ask)
    stream = SimpleNamespace(topology=topology, reader=reader, groups=reader)
    choice = read_choice({"by": "path"}, explorable(topology), datetime.now(UTC))
    explorer = Explorer(cast(Stream, stream), choice)
    explorer._banner = cast(Any, SimpleNamespace(content=""))
    explorer._answers = (MagicMock(), MagicMock())
    explorer._next = "behind the last row"
    clicks = [asyncio.create_task(explorer._following()) for _ in range(2)]
    await asyncio.wait_for(asked.wait(), 10)
    assert explorer._pages == [None, "behind the last row"]
    go.set()
    await asyncio.gather(*clicks)
    assert explorer._pages == [None, "behind the last row"]


class Cards:
    """An explorer's page, of which only the banner and whether the two cards are seen matter."""

    def __init__(self, topology: Topology, choice: Choice) -> None:
        self.failing, self.complete, self.asked = False, True, 0
        self.cause: Exception | None = None
        reader = SimpleNamespace(ask=self.ask, of=self.of)
        seen = Seen(Snapshot(choice.until, choice.until, choice.until, choice.until), 0.0, None)
        stream = SimpleNamespace(topology=topology, reader=reader, groups=reader, clock=self)
        self.get = AsyncMock(return_value=seen)
        self.explorer = Explorer(cast(Stream, stream), choice)
        self.explorer._banner = self.banner = cast(Any, SimpleNamespace(content=""))
        for name in ("head", "body", "none", "back", "on", "where", "files", "about", "title", "chart"):
            setattr(self.explorer, f"_{name}", MagicMock())
        self.seen = [False, False]
        self.explorer._answers = cast(Any, [SimpleNamespace(set_visibility=self.card(n)) for n in range(2)])

    def card(self, number: int) -> Any:
        return lambda seen: self.seen.__setitem__(number, seen)

    async def ask(self, question: Question) -> Answer:
        self.asked += 1
        if self.failing:
            raise DependencyError("the database", "is away") from self.cause
        return Answer([], [(self.explorer.choice.since, "a", 7)])

    async def of(self, choice: Choice, _: object) -> Whole:
        found = [(choice.since, "a", 7)] if not self.complete else (await self.ask(cast(Any, None))).rows
        return Whole(choice, found, complete=self.complete)

    async def show(self, **parts: Any) -> None:
        self.explorer._controls.choice = replace(self.explorer.choice, **parts)
        await self.explorer.show()


@pytest.mark.parametrize(
    ("other", "stay"),
    [
        ({}, True),
        ({"descending": False}, True),
        ({"since": _moment() - timedelta(hours=23), "until": _moment() + timedelta(hours=1)}, True),
        ({"range": "7 days", "since": _moment() - timedelta(days=7)}, False),
        ({"range": "", "since": _moment() - timedelta(hours=2)}, False),
        ({"measures": ("visitors",)}, False),
        ({"grain": "day"}, False),
    ],
)
async def test_what_could_not_be_asked_leaves_no_numbers_of_another_choice(
    topology: Topology, other: dict[str, Any], stay: bool
) -> None:
    given = {"table": "page_views", "measures": "views", "by": "path", "grain": "hour"}
    page = Cards(topology, read_choice(given, explorable(topology), _moment()))
    await page.show()
    assert page.seen == [True, True]
    page.failing = True
    await page.show(**other)
    assert "does not answer" in page.banner.content
    assert page.seen == [stay, stay]
    assert ("The numbers below are those of <time" in page.banner.content) is stay
    page.failing = False
    await page.show()
    assert page.seen == [True, True] and "does not answer" not in page.banner.content


async def test_rows_whose_chart_could_not_be_asked_are_shown_without_that_of_another_choice(
    topology: Topology,
) -> None:
    given = {"table": "page_views", "measures": "views", "by": "path", "grain": "hour"}
    page = Cards(topology, read_choice(given, explorable(topology), _moment()))
    await page.show()
    page.failing, page.complete = True, False
    await page.show(grain="day")
    assert page.seen == [False, True]
    assert "The numbers below" in page.banner.content


@pytest.mark.parametrize(("cause", "again"), [(None, 3), (psycopg.errors.QueryCanceled(), 1)])
async def test_what_took_too_long_is_not_asked_at_every_look_of_every_open_page(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, cause: Exception | None, again: int
) -> None:
    monkeypatch.setattr(page_explore.ui, "run_javascript", MagicMock())
    given = {"table": "page_views", "measures": "views", "by": "path", "grain": "hour"}
    page = Cards(topology, read_choice(given, explorable(topology), _moment()))
    page.failing, page.cause = True, cause
    for _ in range(3):
        await page.explorer.tick()
        page.explorer._as_of = None  # as if something had been committed
    assert page.asked == again
    page.explorer._looked -= KEPT + 1
    await page.explorer.tick()
    assert page.asked == again + 1, "it may be that the database had much to do"
    page.failing = False
    await page.show(range="6 hours")
    assert page.asked == again + 2, "whoever chooses something else does not wait"
