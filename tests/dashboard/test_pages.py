"""The pages in headless Chromium: what they show is what the rows say.

The browser can reach this machine only, so a page that needed anything from elsewhere would not come up.
"""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen
from zoneinfo import ZoneInfo

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect

from streamproc.dashboard.explore import PAGE
from streamproc.embedded.postgres import EmbeddedPostgres
from streamproc.ledger import Ledger
from streamproc.model import Partition
from streamproc.topology import Topology
from tests.dashboard.conftest import Site, make_tables
from tests.dashboard.screenshots import browser as started_browser
from tests.dashboard.screenshots import chromium, settle, shoot
from tests.dashboard.serving import serving
from tests.ledger.epochs import advance, nothing, record

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: apt install chromium)"),
]

#: A busy machine needs long to start a browser; nothing waits longer than it has to.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def address(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dashboard(site.url, tmp_path_factory.mktemp("dashboard")) as address:
        yield address


@contextmanager
def dashboard(url: str, folder: Path, *, port: int = 0, **settings: str) -> Iterator[str]:
    """The address of a dashboard over that database."""
    settings |= {
        "STREAMPROC_LEDGER": url,
        "STREAMPROC_BROKER": "kafka://127.0.0.1:1",
        "STREAMPROC_TOPICS": str(Path(__file__).parents[2] / "topics"),
    }
    with serving(folder, settings, port) as (address, _):
        yield address


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with started_browser() as started:
        yield started


@pytest.fixture
def page(chrome: Browser) -> Iterator[Page]:
    context = chrome.new_context(viewport={"width": 1440, "height": 900}, timezone_id="Asia/Tokyo")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    context.close()


def card(page: Page, title: str) -> dict[str, str]:
    """The rows of the ranking with this title."""
    section = page.locator("section.card", has=page.get_by_role("heading", name=title, exact=True))
    labels = section.locator("tbody .label").all_inner_texts()
    return dict(zip(labels, section.locator("tbody td.num").all_inner_texts(), strict=True))


def test_the_rankings_of_live_are_those_of_a_loop(site: Site, address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    minute = site.now.replace(second=0) + timedelta(minutes=1)
    sums: dict[str, int] = defaultdict(int)
    for row in site.views:
        if minute - timedelta(hours=1) <= row["window_start"] < minute and row["path"] is not None:
            sums[row["path"] or "(empty)"] += row["views"]
    expect(page.get_by_text("<script>alert(1)</script>", exact=True)).to_be_visible()
    assert card(page, "Top pages") == {path: f"{views:,}" for path, views in sums.items()}
    first = sum(session["step"] >= 1 for session in site.sessions)
    funnel = card(page, "Funnel: checkout")
    for number, (step, text) in enumerate(funnel.items(), start=1):
        count = sum(session["step"] >= number for session in site.sessions)
        assert text == f"{count:,} · {100 * count / first:.0f} %", step


def test_visitors_now_are_those_of_all_hosts_each_once(site: Site, address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    everybody = set().union(*site.visitors.values())
    assert len(everybody) < sum(map(len, site.visitors.values()))
    tile = page.locator(".tile", has_text="Visitors now")
    assert re.sub(r"\s", "", tile.locator(".tile-value").inner_text()) == f"≈{len(everybody)}"
    expect(tile).to_contain_text("last 5 min")


#: Series of the chart by name, points as [time, value].
DRAWN = """
    () => Object.fromEntries(getElement(document.querySelector('.chart').id.slice(1)).chart.getOption().series
        .map(each => [each.name, each.data.map(point => point.value ?? point)]))
"""

PER_MINUTE = """
    SELECT minute, coalesce(sum(v.views), 0)::bigint
    FROM generate_series(%(last)s - interval '59 minutes', %(last)s, interval '1 minute') AS minute
    LEFT JOIN clickstream.page_views AS v ON v.window_start = minute - %(back)s * interval '1 hour'
    GROUP BY 1
"""


def test_the_line_per_minute_and_those_of_the_hours_before_are_sums_of_the_table(
    site: Site, address: str, page: Page
) -> None:
    page.goto(address)
    settle(page)
    drawn = {
        name: {datetime.fromisoformat(time): value for time, value in points}
        for name, points in page.evaluate(DRAWN).items()
    }
    with psycopg.connect(site.url) as conn:
        last = site.now.replace(second=0)
        expected: list[dict[datetime, int]] = [
            dict(conn.execute(PER_MINUTE, {"last": last, "back": back}).fetchall()) for back in range(4)
        ]
    assert {**drawn["this hour"], **drawn["still open"]} == expected[0]
    for back in (1, 2, 3):
        assert drawn[f"{back} h before"] == expected[back]
    # Late events come for ten minutes, the watermark is 30 seconds behind.
    settled = site.now - timedelta(minutes=10, seconds=30)
    assert (
        max(drawn["this hour"]) + timedelta(minutes=1)
        <= settled
        < max(drawn["this hour"]) + timedelta(minutes=2)
    )


NEWEST = """
    SELECT session_start, session_end, coalesce(country, U&'\\2013'), pages, events,
           CASE WHEN session_end + interval '40 minutes' > %(now)s - interval '30 seconds' THEN 'open' ELSE 'done' END
    FROM clickstream.sessions ORDER BY session_start DESC
"""


def test_the_newest_sessions_are_those_that_began_last(site: Site, address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    section = page.locator("section.card", has=page.get_by_role("heading", name="Newest sessions"))
    heads = section.locator("thead th").all_inner_texts()
    places = [heads.index(name) for name in ("country", "pages", "events", "state")]
    shown = []
    for row in section.locator("tbody tr").all():
        times = [time.get_attribute("datetime") or "" for time in row.locator("time").all()]
        cells = row.locator("td").all_inner_texts()
        country, pages, events, state = (cells[place] for place in places)
        shown.append((*map(datetime.fromisoformat, times), country, int(pages), int(events), state))
    with psycopg.connect(site.url) as conn:
        expected = conn.execute(NEWEST, {"now": site.now}).fetchall()
    assert [row[0] for row in shown] == [row[0] for row in expected[: len(shown)]]
    assert len(shown) == 8
    assert set(shown) <= set(expected)  # of those that began in one second any may be shown


def test_page_views_of_the_hour_and_open_sessions_are_those_of_a_loop(
    site: Site, address: str, page: Page
) -> None:
    page.goto(address)
    settle(page)
    end = site.now.replace(second=0) + timedelta(minutes=1)
    hour = sum(row["views"] for row in site.views if end - timedelta(hours=1) <= row["window_start"] < end)
    tile = page.locator(".tile", has_text="Page views in 60 min").locator(".tile-value")
    expect(tile).to_have_text(f"{hour:,}")
    still = sum(session["session_end"] >= site.now - timedelta(minutes=30) for session in site.sessions)
    expect(page.locator(".tile", has_text="Open sessions").locator(".tile-value")).to_have_text(f"{still:,}")


def test_times_are_in_the_viewers_zone(site: Site, address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    newest = max(session["session_start"] for session in site.sessions).astimezone(ZoneInfo("Asia/Tokyo"))
    shown = page.locator("section.card", has_text="Newest sessions").locator("tbody time").first
    expect(shown).to_have_attribute("title", re.compile(newest.strftime(r"%-I:%M:%S")))


def test_news_come_without_loading_the_page_again(site: Site, address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    page.evaluate("window.marked = true")
    start = site.now.replace(second=0)
    with psycopg.connect(site.url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO clickstream.page_views (window_start, window_end, host, path, views, visitors)"
            " VALUES (%s, %s, 'c.example', '/news', 777777, 5)",
            [start, start + timedelta(minutes=1)],
        )
        try:
            expect(page.get_by_role("rowheader", name="/news")).to_be_visible()
            assert page.evaluate("window.marked") is True
        finally:
            conn.execute("DELETE FROM clickstream.page_views WHERE path = '/news'")


def test_explore_shows_sorts_and_turns_pages(site: Site, address: str, page: Page) -> None:
    page.goto(f"{address}explore?table=page_views&measures=views&by=path,host&grain=minute&range=1+hour")
    settle(page)
    first = site.now - timedelta(hours=1)
    rows = sorted((row["views"] for row in site.views if row["window_start"] > first), reverse=True)
    page.get_by_role("button", name="views").click()
    header = page.locator("th", has=page.get_by_role("button", name="views"))
    expect(header).to_have_attribute("aria-sort", "descending")
    cells = page.locator("#main tbody td.num")
    expect(cells.first).to_have_text(f"{rows[0]:,}")
    assert cells.all_inner_texts() == [f"{value:,}" for value in rows[:PAGE]]
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text(f"rows {PAGE + 1}")).to_be_visible()
    assert cells.all_inner_texts() == [f"{value:,}" for value in rows[PAGE : 2 * PAGE]]


def test_a_download_holds_the_rows_and_no_formula(site: Site, address: str, page: Page) -> None:
    page.goto(f"{address}explore?table=page_views&measures=views&by=path&grain=&range=6+hours")
    settle(page)
    link = page.get_by_role("link", name="CSV").get_attribute("href")
    assert link is not None
    with urlopen(address.rstrip("/") + link) as answer:
        head, *rows = csv.reader(io.StringIO(answer.read().decode(), newline=""))
    sums: dict[str, int] = defaultdict(int)
    for row in site.views:
        sums[{None: "", "=1+1": "'=1+1"}.get(row["path"], row["path"])] += row["views"]
    found: dict[str, int] = defaultdict(int)  # null and empty are one field in CSV
    for path, views in rows:
        found[path] += int(views)
    assert head == ["path", "views"]
    assert found == sums


def test_pipeline_shows_the_ledger(address: str, page: Page) -> None:
    page.goto(address + "pipeline")
    settle(page)
    row = page.locator("section.card", has_text="Partitions").locator("tbody tr").first
    expect(row).to_contain_text("worker-1")
    expect(row).to_contain_text("unknown")  # no broker answers, and the page does not invent a lag
    assert row.locator("td.num").all_inner_texts()[-3:] == ["42", "2", "0"]


def test_nothing_is_asked_of_another_host(address: str, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    for path in ("", "explore", "pipeline"):
        page.goto(address + path)
        settle(page)
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {
        "localhost"
    }
    assert not [url for url in failed if "socket.io" not in url], "leaving a page ends its connection"


def test_a_stream_that_stands_still_says_so(site: Site, address: str, page: Page) -> None:
    with psycopg.connect(site.url, autocommit=True) as conn:
        conn.execute("UPDATE streamproc.partitions SET updated_at = now() - interval '3 hours'")
        try:
            page.goto(address)
            expect(page.get_by_text("Nothing new.")).to_be_visible()
        finally:
            conn.execute("UPDATE streamproc.partitions SET updated_at = now()")


def test_the_password_is_asked_for_once_and_again_when_the_dashboard_has_started_anew(
    site: Site, tmp_path: Path, page: Page
) -> None:
    password = {"STREAMPROC_DASHBOARD_PASSWORD": "correct horse battery"}

    def log_in() -> None:
        page.get_by_label("Password").fill(password["STREAMPROC_DASHBOARD_PASSWORD"])
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Partitions")).to_be_visible()

    with dashboard(site.url, tmp_path, **password) as address:
        page.goto(f"{address}pipeline")
        log_in()
    with dashboard(site.url, tmp_path, port=int(address.rpartition(":")[2].strip("/")), **password):
        log_in()  # the page has come to the login by itself
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible()


def test_a_page_can_be_used_by_keyboard(address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Explore"
    page.keyboard.press("Enter")
    page.wait_for_url("**/explore**")
    settle(page)
    page.locator("button.sort").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("th").first).to_have_attribute("aria-sort", "ascending")


def test_the_theme_can_be_chosen_and_stays(address: str, page: Page) -> None:
    page.goto(address)
    settle(page)
    page.get_by_role("button", name="Theme").click()
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))
    page.goto(address + "pipeline")
    settle(page)
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))


@pytest.mark.parametrize("path", ["", "explore", "pipeline"])
def test_a_phone_does_not_scroll_sideways(address: str, chrome: Browser, path: str) -> None:
    context = chrome.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(address + path)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.mark.parametrize("width", [1300, 390])
def test_the_ends_of_a_range_stay_inside_their_card(address: str, chrome: Browser, width: int) -> None:
    context = chrome.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(address + "explore?range=&from=2026-11-01T08:54:30&to=2026-11-01T09:00:30")
    expect(page.locator(".controls .field:visible")).to_have_count(2)
    inside = page.locator(".controls").evaluate(
        """controls => [...controls.querySelectorAll("input[type=datetime-local]")].map(entry => {
            const [all, one] = [controls.getBoundingClientRect(), entry.getBoundingClientRect()];
            return one.width > 0 && all.left <= one.left && one.right <= all.right; })"""
    )
    assert inside == [True, True]
    context.close()


def test_screenshots_are_left_to_look_at(address: str, chrome: Browser) -> None:
    into = Path(os.environ.get("STREAMPROC_SCREENSHOTS", "build/screenshots"))
    taken = shoot(address, into, chrome)
    assert len(taken) == 12
    assert all(path.stat().st_size > 10_000 for path in taken)


def test_a_pipeline_that_committed_nothing_says_why_and_draws_the_first_commit(
    postgres: EmbeddedPostgres, topology: Topology, page: Page, tmp_path: Path
) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE nothing_yet")
    url = postgres.database_url("nothing_yet")
    run_beside(make_tables(url, topology))
    with dashboard(url, tmp_path) as address, psycopg.connect(url, autocommit=True) as conn:
        page.goto(address + "pipeline")
        settle(page)
        charts = [
            page.locator("section.card", has=page.get_by_role("heading", name=name, exact=True))
            for name in ("Throughput", "Freshness")
        ]

        def say(headline: str, text: str) -> None:
            for chart in charts:
                expect(chart.locator(".empty strong")).to_have_text(headline)
                expect(chart.locator(".empty span")).to_contain_text(text)
                expect(chart.locator("canvas")).not_to_be_visible()

        say("No epoch committed yet", "is streamproc run running?")
        conn.execute(
            "INSERT INTO streamproc.partitions (stream, source, partition, fence, token, owner, records, accepted,"
            " rejected, claimed_at, updated_at) VALUES ('clickstream', 'clickstream', '0', 1, gen_random_uuid(),"
            " 'worker-1', 0, 0, 0, now(), now())"
        )
        say("No epoch committed yet", "The workers wait for the first records.")
        expect(page.get_by_text("no commits yet")).to_be_visible()  # that it was claimed is no commit
        conn.execute(
            "UPDATE streamproc.partitions SET position = 41, records = 42, accepted = 42,"
            " updated_at = now() - interval '20 minutes'"
        )
        say("Nothing committed in the last 15 minutes", "The last commit was 20 min ago.")
        run_beside(commit(url, topology))
        for chart in charts:
            expect(chart.locator(".empty")).to_have_count(0)
            expect(chart.locator("canvas")).to_be_visible()
            box = chart.locator("canvas").bounding_box()
            assert box is not None and box["width"] > 400 and box["height"] > 100


def run_beside(work: Coroutine[Any, Any, None]) -> None:
    """In a thread: Playwright's loop runs in this one."""
    with ThreadPoolExecutor() as beside:
        beside.submit(asyncio.run, work).result()


async def commit(url: str, topology: Topology) -> None:
    """An epoch of ten records behind what is committed."""
    async with Ledger(url, topology.name, "w1") as ledger:
        held = await ledger.claim([Partition("clickstream", "0")])
        (claim,) = held.values()
        assert claim.position is not None
        epoch = record(advance(claim, claim.position + 10))
        await ledger.commit(epoch, nothing)
