"""w2's peers: the reference follows the page's words, and files and tables are compared with it row for row."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.comparison import page
from benchmarks.comparison.answers import Answer, WrongAnswer, compare_on_time
from benchmarks.comparison.manifest import PEERS, read_peers
from benchmarks.comparison.page_reference import PageAnswer, PageEvent, whole_page

MINUTE = 60_000
HOUR = 60 * MINUTE
ALL = ("duplicates", "late", "page_views", "site_activity", "traffic_sources", "sessions")


def event(number: int, visitor: str, time: int, **fields: object) -> bytes:
    plain = {
        "event_id": f"e{number}", "event_type": "page_view", "event_time": time, "visitor_id": visitor,
        "user_agent": "Firefox", "page_url": "https://a.example/p?utm_source=s&utm_campaign=spring",
    }  # fmt: skip
    return json.dumps(plain | fields).encode()


#: A visit of v1, and one of v2 with a purchase, an event of a bot, a heartbeat, a retry and a late event.
VALUES = [
    event(1, "v1", 10 * HOUR),
    event(2, "v2", 10 * HOUR + 1, page_url="https://b.example/"),
    event(3, "v2", 10 * HOUR + MINUTE, event_type="purchase", value=12.34),
    event(4, "bot", 10 * HOUR, user_agent="python-requests/2"),
    event(5, "v1", 10 * HOUR + 2, event_type="heartbeat"),
    event(1, "v1", 10 * HOUR),
    event(6, "v1", 8 * HOUR),
]
ANSWER = whole_page(VALUES)


def test_bots_and_heartbeats_are_not_accepted_and_a_retry_once() -> None:
    assert [row[0] for row in ANSWER.lake(repeats=False)] == ["e1", "e2", "e3", "e6"]
    assert ANSWER.lake(repeats=True)["e1", 10 * HOUR, "v1", "a.example", "/p", "spring"] == 2


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("page_views", {
            (10 * HOUR, "a.example", "/p"): (1, 1),
            (10 * HOUR, "b.example", "/"): (1, 1),
            (8 * HOUR, "a.example", "/p"): (1, 1),
        }),
        ("traffic_sources", {
            (10 * HOUR, "a.example", "s", "", "spring"): (1, 1),
            (10 * HOUR, "b.example", "", "", ""): (1, 1),
            (8 * HOUR, "a.example", "s", "", "spring"): (1, 1),
        }),
        ("sessions", {
            ("v1", 10 * HOUR): (10 * HOUR, 1, 1, "/p", "/p", 0),
            ("v1", 8 * HOUR): (8 * HOUR, 1, 1, "/p", "/p", 0),
            ("v2", 10 * HOUR + 1): (10 * HOUR + MINUTE, 2, 1, "/", "/", 1234),
        }),
    ],
)  # fmt: skip
def test_a_table_of_the_reference(table: str, rows: dict[Any, Any]) -> None:
    assert ANSWER.table(table, repeats=False, late=True) == rows


def test_an_event_is_in_five_windows_of_five_minutes() -> None:
    rows = ANSWER.table("site_activity", repeats=False, late=False)
    windows = [10 * HOUR - 4 * MINUTE + hop * MINUTE for hop in range(6)]
    assert {key[0] for key in rows if key[1] == "a.example"} == set(windows)
    assert rows[10 * HOUR, "a.example"] == (2, 1, 2)  # v2's purchase is of this page too
    assert rows[10 * HOUR - 4 * MINUTE, "a.example"] == (1, 1, 1)


def test_a_late_event_may_be_counted_or_not_and_nothing_else() -> None:
    on_time: Answer = {(1, "/a"): (2, 2)}
    with_late: Answer = {(1, "/a"): (4, 3), (0, "/b"): (1, 1)}
    right: list[Answer] = [on_time, {(1, "/a"): (3, 3), (0, "/b"): (1, 1)}]
    for found in right:
        compare_on_time(found, on_time, with_late)
    wrong: list[tuple[Answer, str]] = [
        ({}, "1 of 1 rows are missing"),
        ({(1, "/a"): (5, 3)}, "1 different"),
        ({(1, "/a"): (2, 1)}, "1 different"),
        ({(1, "/a"): (2, 2), (0, "/b"): (2, 1)}, "1 too many"),
        ({(1, "/a"): (2, 2), (7, "/c"): (1, 1)}, "1 too many"),
    ]
    for found, message in wrong:
        with pytest.raises(WrongAnswer, match=message):
            compare_on_time(found, on_time, with_late)


def test_sessions_of_a_visitor_with_a_late_event_are_not_compared() -> None:
    on_time: Answer = {("v1", 1): (2, 2), ("v2", 1): (3, 3)}
    compare_on_time({("v1", 0): (9, 9), ("v2", 1): (3, 3)}, on_time, {}, {"v1"})
    with pytest.raises(WrongAnswer, match="1 different"):
        compare_on_time({("v2", 1): (3, 4)}, on_time, {}, {"v1"})


def written(folder: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = ["event_id", "event_time", "visitor_id", "host", "path", "utm_campaign"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "part.parquet")


def test_the_lake_is_compared_row_for_row(tmp_path: Path) -> None:
    with pytest.raises(WrongAnswer, match="no Parquet file"):
        page.check_lake(tmp_path, ANSWER, ALL)
    rows = [(*row[:5], row[5] or None) for row in ANSWER.lake(repeats=False)]
    written(tmp_path, rows)
    page.check_lake(tmp_path, ANSWER, ALL)
    with pytest.raises(WrongAnswer, match="4 of 5 rows, 1 are missing and 0 too many"):
        page.check_lake(tmp_path, ANSWER, ())
    written(tmp_path, [*rows[:-1], ("e6", 1, *rows[-1][2:])])
    with pytest.raises(WrongAnswer, match="1 are missing and 1 too many"):
        page.check_lake(tmp_path, ANSWER, ALL)
    (tmp_path / "part.parquet").write_bytes(b"no Parquet")
    with pytest.raises(WrongAnswer, match="cannot be read"):
        page.check_lake(tmp_path, ANSWER, ALL)


def test_tables_that_a_peer_does_are_compared_and_no_others(postgres: str) -> None:
    does = ("duplicates", "late", "sessions")
    with psycopg.connect(postgres, autocommit=True) as database:
        page.create_tables(database, does)
        with pytest.raises(WrongAnswer, match="sessions: 3 of 3 rows are missing"):
            page.check_tables(database, ANSWER, does)
        for key, (end, events, pages, landing, leaving, cents) in ANSWER.table(
            "sessions", repeats=False, late=True
        ).items():
            row = [*key, end, events, pages, landing, leaving, int(cents) / 100]
            database.execute("INSERT INTO sessions VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", row)
        page.check_tables(database, ANSWER, does)
        database.execute("UPDATE sessions SET revenue = revenue + 0.01 WHERE visitor_id = 'v2'")
        with pytest.raises(WrongAnswer, match="1 different"):
            page.check_tables(database, ANSWER, does)


def test_every_peer_says_which_parts_of_the_page_it_does_and_no_other_workload_has_parts() -> None:
    parts = {(peer.name, name): it.does for peer in read_peers() for name, it in peer.workloads.items()}
    assert {name for (_, name), does in parts.items() if does} == {"w2"}
    assert [peer for (peer, name), does in parts.items() if name == "w2" and not does] == []


@pytest.fixture(scope="module")
def by_hand() -> ModuleType:
    """The tables of the loop by hand, which import nothing of their environment."""
    spec = importlib.util.spec_from_file_location("page_tables", PEERS / "confluent" / "page_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_events() -> st.SearchStrategy[list[PageEvent]]:
    def made(visitor: str, time: int, kind: str, path: str, cents: int) -> PageEvent:
        campaign = ("s", "", path)
        spent = cents if kind == "purchase" else 0
        return PageEvent("", time, kind, visitor, "a.example", path, campaign, spent, False, False)

    kinds = st.sampled_from(["page_view", "click", "purchase"])
    times = st.integers(0, 16).map(lambda quarter: quarter * 15 * MINUTE)
    return st.lists(
        st.builds(
            made, st.sampled_from("vw"), times, kinds, st.sampled_from(["/a", "/b"]), st.integers(0, 9)
        ),
        max_size=30,
    )


@given(page_events(), st.data())
def test_tables_by_hand_are_right_however_events_come_and_are_cut_into_seconds(
    by_hand: ModuleType, events: list[PageEvent], data: st.DataObject
) -> None:
    sessions, activity = by_hand.Sessions(), by_hand.SiteActivity()
    views = by_hand.Views(MINUTE)
    rows: dict[str, dict[Any, Any]] = {"sessions": {}, "site_activity": {}, "page_views": {}}

    def flush() -> None:
        for key in sessions.moved():
            rows["sessions"].pop(key, None)
        for visitor, start, end, count, pages, landing, leaving, revenue in sessions.rows():
            rest = end, count, pages, landing or "", leaving or "", round(revenue * 100)
            rows["sessions"][visitor, start] = rest
        rows["site_activity"] |= {row[:2]: row[2:] for row in activity.rows()}
        rows["page_views"] |= {row[:3]: row[3:] for row in views.rows()}

    for it in events:
        is_page = it.kind == "page_view"
        sessions.add(it.time, it.visitor, it.path if is_page else None, it.cents / 100)
        activity.add(it.time, it.host, it.visitor, is_page)
        if is_page:
            views.add(it.time, (it.host, it.path), it.visitor, True)
        if data.draw(st.booleans()):
            flush()
    flush()
    answer = PageAnswer(events)
    assert rows == {name: answer.table(name, repeats=True, late=True) for name in rows}
