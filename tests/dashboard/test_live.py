"""What the page *Live* asks before there is anything to ask for."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import polars as pl
import psycopg
import pytest
from psycopg import sql

from streamproc.dashboard import charts, page_live
from streamproc.dashboard.live import Hour, Live, Snapshot, Visitors
from streamproc.dashboard.live_panels import panels
from streamproc.dashboard.reading import Answer, Question, Reader, Seen, explain, read_only
from streamproc.dashboard.shell import Stream, notices, pulse
from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.topology import Measure, Topology
from tests.dashboard.conftest import MINUTE, Site, make_tables
from tests.ledger.epochs import P0


@pytest.mark.slow
@pytest.mark.parametrize("claimed", [False, True])
async def test_a_stream_without_events_has_no_now_and_that_is_no_failure(
    site: Site, topology: Topology, claimed: bool
) -> None:
    page = replace(topology, name=f"waiting_{claimed}".lower())
    async with Ledger(site.url, page.name, "w1") as ledger:
        if claimed:
            await ledger.claim([P0])
    reader = Reader(Database(read_only(site.url, 5.0), "test"))
    try:
        snapshot = await Live(page, reader).look()
    finally:
        await reader.database.close()
    assert (snapshot.now, snapshot.committed_at, snapshot.minutes) == (None, None, ())


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [5, 90])
async def test_a_count_that_is_newer_than_the_rows_is_counted_from_its_first_row(
    site: Site, topology: Topology, minutes: int
) -> None:
    page = replace(topology, name=f"newer_{minutes}")
    await make_tables(site.url, page)
    last = site.now.replace(second=0)
    with psycopg.connect(site.url, autocommit=True) as conn:
        conn.execute(
            sql.SQL(
                "INSERT INTO {} (window_start, window_end, host, path, views)"
                " SELECT %(last)s - n * interval '1 minute', %(last)s - (n - 1) * interval '1 minute',"
                " 'a.example', '/', CASE WHEN n < %(known)s THEN 7 END FROM generate_series(0, 200) AS n"
            ).format(sql.Identifier(page.name, "page_views")),
            {"last": last, "known": minutes},
        )
        conn.execute(
            "INSERT INTO streamproc.partitions (stream, source, partition, position, fence, token, owner, clock_us,"
            " records, accepted, claimed_at, updated_at) VALUES (%s, 'clickstream', '0', 1, 1, gen_random_uuid(), 'w',"
            " %s, 2, 2, now(), now())",
            [page.name, int(site.now.timestamp() * 1_000_000)],
        )
    reader = Reader(Database(read_only(site.url, 5.0), "test"))
    try:
        found = await Live(page, reader).look()
    finally:
        await reader.database.close()
    assert found.hour == (7 * min(minutes, 60), 7 * min(minutes - 1, 60), None)
    by_start = {row.start: row for row in found.minutes}
    for n in range(60):
        row = by_start[last - n * MINUTE]
        assert row.views == (7 if n < minutes else None)
        assert row.earlier == (7 if n + 60 < minutes else None, None, None)


class Rows:
    """A reader of a table that has one view a second, since ever, in windows of so many seconds."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    async def ask(self, question: Question) -> Answer:
        since, until = (question.parameters[name] for name in ("since", "until"))
        assert isinstance(since, datetime) and isinstance(until, datetime)
        seconds = range(int(since.timestamp()), int(until.timestamp()))
        starts = [datetime.fromtimestamp(second, UTC) for second in seconds if second % self.seconds == 0]
        return Answer(["window_start", "sum"], [(start, self.seconds) for start in starts])


@pytest.mark.parametrize(
    ("seconds", "per", "hour", "compared"),
    [
        (60, "minute", 60, True),
        (300, "5 minutes", 60, True),
        (10, "10 seconds", 60, True),
        (210, "210 seconds", 60, False),  # 17 of them are 59.5 minutes
        (240, "4 minutes", 60, True),
    ],
)
async def test_views_are_told_by_the_windows_that_they_are_counted_in(
    topology: Topology, seconds: int, per: str, hour: int, compared: bool
) -> None:
    size = timedelta(seconds=seconds)
    (table,) = (table for table in topology.tables if table.name == "page_views")
    table = replace(table, window=replace(table.window, size=seconds * 1_000_000))
    live = Live(replace(topology, tables=(table,)), cast(Reader, Rows(seconds)))
    now = datetime(2026, 6, 1, 12, 34, 56, tzinfo=UTC)
    minutes, ours = await live._minutes(now, now - timedelta(seconds=30)), await live._hour(now)
    found = Snapshot(now, now, minutes=minutes, hour=ours)
    stream = cast(Stream, SimpleNamespace(live=live))
    whole = timedelta(hours=1) // size * seconds
    assert ours == (whole, whole, whole)
    assert {row.views for row in minutes} == {seconds}
    assert {row.earlier for row in minutes} == {(seconds,) * 3 if compared else (None,) * 3}
    head, tiles = page_live._minutes_head(stream, found), page_live._tiles(stream, found)
    assert f"<h2>Page views per {per}</h2>" in head
    assert f">Page views per {per}<" in tiles and f">{seconds}<" in tiles and f"in the {per} from" in tiles
    assert f">Page views in {hour} min<" in tiles and f">{whole:,}<" in tiles
    drawn = {each["name"]: each for each in charts.minutes(minutes, size)["series"]}
    assert ("1 h before" in drawn) == compared
    ((_, until),) = drawn["still open"]["markArea"]["data"]
    assert datetime.fromisoformat(until["xAxis"]) == minutes[-1].start + size > now


@pytest.mark.parametrize(
    ("kind", "size", "note"),
    [
        ("hopping", 300, "last 5 minutes, ±1.6 % standard error"),
        ("hopping", 60, "last minute, ±1.6 % standard error"),
        ("hopping", 20, "last 20 seconds, ±1.6 % standard error"),
        ("tumbling", 3_600, "since 2026-06-01 12:00 UTC, ±1.6 % standard error"),
    ],
)
def test_visitors_now_are_of_a_window_and_of_one_that_has_begun_only_since_then(
    topology: Topology, kind: str, size: int, note: str
) -> None:
    (table,) = (table for table in topology.tables if table.name == "site_activity")
    hop = 10_000_000 if kind == "hopping" else 0
    table = replace(table, window=replace(table.window, kind=kind, size=size * 1_000_000, hop=hop))
    live = Live(replace(topology, tables=(table,)), cast(Reader, None))
    now = datetime(2026, 6, 1, 12, 2, tzinfo=UTC)
    since = datetime(2026, 6, 1, 12, tzinfo=UTC)
    visitors = Visitors(7, since, since + timedelta(seconds=size), "±1.6 % standard error")
    tiles = page_live._tiles(cast(Stream, SimpleNamespace(live=live)), Snapshot(now, now, visitors=visitors))
    told = re.sub("<[^>]*>", " ", tiles)
    assert " ".join(note.split()) in " ".join(told.replace(" ,", ",").split())


@pytest.mark.parametrize(
    ("gap", "last", "within"),
    [(1_800, "30 minutes", "30 minutes"), (90, "90 seconds", "90 seconds"), (60, "minute", "1 minute")],
)
def test_a_session_is_open_for_as_long_as_its_gap(
    topology: Topology, gap: int, last: str, within: str
) -> None:
    (table,) = (table for table in topology.tables if table.name == "sessions")
    table = replace(table, window=replace(table.window, gap=gap * 1_000_000))
    stream = SimpleNamespace(live=Live(replace(topology, tables=(table,)), cast(Reader, None)))
    found = Snapshot(datetime(2026, 6, 1, tzinfo=UTC), active=3)
    assert f"an event in the last {last}<" in page_live._tiles(cast(Stream, stream), found)
    assert f"an event within {within} of" in page_live._sessions(cast(Stream, stream), found)


def test_an_hour_is_compared_with_one_that_was_counted_and_by_windows_that_are_over() -> None:
    assert page_live._change(Hour(5_950, 6_000, 6_000)) == "= 0 % against the hour before"
    assert page_live._change(Hour(5_950, 6_000, 4_000)) == "▲ 50 % against the hour before"
    assert page_live._change(Hour(5_950, 6_000, 0)) == "none in the hour before"
    assert page_live._change(Hour(5_950, 6_000, None)) == "no hour before to compare with"


def test_what_is_called_page_views_and_visitors_is_that(topology: Topology) -> None:
    activity, views = (
        next(t for t in topology.tables if t.name == n) for n in ("site_activity", "page_views")
    )
    everybody = Measure("people", "approx_distinct", pl.Int64(), "visitor_id")
    goods = Measure("products", "approx_distinct", pl.Int64(), "product_id")
    mobile = Measure("mobile", "count", pl.Int64(), where="device_class = 'mobile'")
    errors = Measure("errors", "count", pl.Int64(), where="status >= 500")
    shorter = replace(activity.window, size=activity.window.hop)
    buyers = replace(activity, name="buyers", by=(), where="event_type = 'purchase'", measures=(everybody,))
    products = replace(activity, name="products", window=shorter, measures=(goods,))
    some = replace(views, name="some", by=(), measures=(mobile, *views.measures))

    found = panels(replace(topology, tables=(buyers, products, some, *topology.tables)))
    assert found.visitors is not None and found.visitors.table is activity
    assert found.views is not None and found.views.measure.name == "views"
    assert found.counted == "Page views"
    found = panels(replace(topology, tables=(replace(views, where=None, measures=(errors,)),)))
    assert found.views is not None and found.counted == "Errors"


@pytest.mark.parametrize(("seconds", "still"), [(59, False), (61, True)])
@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
def test_whether_a_stream_stands_still_is_told_by_the_database_s_clock(
    seconds: int, still: bool, ahead: timedelta
) -> None:
    asked_at = datetime.now(UTC) - ahead  # this machine is ahead of it, or behind
    committed_at = asked_at - timedelta(seconds=seconds)
    seen = Seen(Snapshot(asked_at, committed_at=committed_at), datetime.now(UTC).timestamp(), None)
    assert ("Nothing new." in notices(seen, committed_at)) is still
    assert ("pulse off" in pulse(seen, committed_at)) is still


def test_a_failure_is_told_in_whole_sentences() -> None:
    for said in ("connection refused", "Is the server running?"):
        _, text = explain(DependencyError("PostgreSQL", said))
        assert "?." not in text
        assert text.endswith(
            (
                f"{said}. The page goes on by itself when it does.",
                f"{said} The page goes on by itself when it does.",
            )
        )
