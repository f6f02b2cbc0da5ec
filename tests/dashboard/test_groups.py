"""Groups that are kept whole are sorted, paged and drawn as PostgreSQL would, and asked for no more than they must."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.dashboard.catalog import explorable
from streamproc.dashboard.choice import Choice, read_choice
from streamproc.dashboard.explore import PAGE, chart, cursor, rows
from streamproc.dashboard.explore_answers import label
from streamproc.dashboard.groups import ANSWERS, GROUPS, KEPT, Groups, Whole
from streamproc.dashboard.reading import Answer, Question, Reader, read_only
from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.topology import Topology
from tests.dashboard.conftest import Site

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
async def reader(site: Site) -> AsyncIterator[Reader]:
    reader = Reader(Database(read_only(site.url, 5.0), "test"))
    yield reader
    await reader.database.close()


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.sets(st.sampled_from(["host", "path"])),
    grain=st.sampled_from(["5 minutes", "hour", "day", ""]),
    order=st.sampled_from(["views", "visitors", "path", "host", "window_start"]),
    direction=st.sampled_from(["up", "down"]),
    measures=st.sampled_from(["views", "views,visitors"]),
)
async def test_pages_and_charts_of_kept_groups_are_those_of_the_database(
    site: Site, reader: Reader, by: set[str], grain: str, order: str, direction: str, measures: str
) -> None:
    given_ = {"table": "page_views", "measures": measures, "by": ",".join(sorted(by)), "grain": grain}
    other = read_choice({**given_, "range": "6 hours"}, explorable(site.topology), site.now)
    whole = await Groups(reader).of(other, None)
    assert whole.complete
    wanted = {**given_, "range": "6 hours", "order": order, "direction": direction}
    choice = read_choice(wanted, explorable(site.topology), site.now)
    first, after = 0, None
    while True:
        page = list((await reader.ask(rows(choice, after))).rows)
        assert whole.page(choice, first, PAGE + 1) == page
        if len(page) <= PAGE:
            break
        first, after = first + PAGE, cursor(choice, page[PAGE - 1])
    drawn, asked = whole.drawn(choice).rows, (await reader.ask(chart(choice))).rows
    assert [row[-1] for row in drawn if not choice.grain] == [row[-1] for row in asked if not choice.grain]
    assert choice.charted is not None
    if (
        choice.charted.name == "views" or "path" not in by
    ):  # else which of several groups with one maximum is chance
        assert sorted(map(str, drawn)) == sorted(map(str, asked))


class Counting:
    """A reader that answers with ``rows`` and counts; fails while it is told to."""

    def __init__(self, answer: list[tuple[Any, ...]]) -> None:
        self.answer = answer
        self.asked = 0
        self.failing = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, question: Question) -> Answer:
        self.asked += 1
        await self.gate.wait()
        if self.failing:
            raise DependencyError("database", "is away")
        return Answer(("path", "views"), self.answer)


def by_path(topology: Topology, **given: str) -> Choice:
    given = {"table": "page_views", "measures": "views", "by": "path", "grain": "", **given}
    return read_choice(given, explorable(topology), NOW)


def keeping(counting: Counting, clock: list[float]) -> Groups:
    reader: Any = counting
    return Groups(reader, lambda: clock[0])


async def test_what_is_known_is_not_asked_for_until_there_is_news_or_it_is_old(topology: Topology) -> None:
    counting, clock = Counting([("/", 3), ("/a", 7)]), [0.0]
    groups = keeping(counting, clock)
    choice = by_path(topology)
    for order in ("views", "path", "views"):
        await groups.of(replace(choice, order=order, descending=order == "path"), NOW)
    assert counting.asked == 1
    await groups.of(choice, NOW + timedelta(seconds=5))
    assert counting.asked == 2
    clock[0] = KEPT + 1
    await groups.of(choice, NOW + timedelta(seconds=5))
    assert counting.asked == 3
    await groups.of(by_path(topology, range="7 days"), NOW)
    assert counting.asked == 4


async def test_many_viewers_at_once_ask_once_and_a_viewer_who_leaves_takes_it_from_nobody(
    topology: Topology,
) -> None:
    counting = Counting([("/", 3)])
    counting.gate.clear()
    groups = keeping(counting, [0.0])
    viewers = [asyncio.create_task(groups.of(by_path(topology), NOW)) for _ in range(5)]
    await asyncio.sleep(0)
    viewers[0].cancel()
    counting.gate.set()
    found = await asyncio.gather(*viewers, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(each, Whole) for each in found[1:])
    assert counting.asked == 1


async def test_a_failure_is_not_kept(topology: Topology) -> None:
    counting = Counting([("/", 3)])
    groups, counting.failing = keeping(counting, [0.0]), True
    with pytest.raises(DependencyError):
        await groups.of(by_path(topology), NOW)
    counting.failing = False
    assert (await groups.of(by_path(topology), NOW)).rows == [("/", 3)]


async def test_only_so_many_answers_are_kept_and_those_that_are_used_stay(topology: Topology) -> None:
    counting = Counting([("/", 3)])
    groups = keeping(counting, [0.0])
    choice = by_path(topology)
    await groups.of(choice, NOW)
    for number in range(2 * ANSWERS):
        await groups.of(choice, NOW + timedelta(seconds=1 + number))
        await groups.of(choice, NOW)
    assert counting.asked == 1 + 2 * ANSWERS


async def test_more_groups_than_are_kept_are_only_the_first_of_their_order(topology: Topology) -> None:
    counting = Counting([(f"/{number}", number) for number in range(GROUPS + 1)])
    choice = by_path(topology)
    whole = await keeping(counting, [0.0]).of(choice, NOW)
    assert not whole.complete
    assert whole.in_order_of(choice)
    assert not whole.in_order_of(replace(choice, descending=not choice.descending))


@pytest.mark.parametrize("down", [True, False])
def test_nulls_are_last_and_nan_is_the_largest(topology: Topology, down: bool) -> None:
    choice = replace(by_path(topology), order="views", descending=down)
    found = Whole(
        choice, [("a", 1.0), ("b", None), ("c", math.nan), ("d", 2), (None, 2), ("e", -1)], complete=True
    )
    names = [row[0] for row in found.page(choice, 0, 10)]
    assert names == (["c", "d", None, "a", "e", "b"] if down else ["e", "a", "d", None, "c", "b"])


@pytest.mark.parametrize(
    ("dimensions", "text"),
    [
        ([], "all"),
        ([""], "(empty)"),
        ([None, "a"], "(none) · a"),
        (["", 1], "(empty) · 1"),
        (["\x1b"], "\\x1b"),
        (["(none)", None], '"(none)" · (none)'),
        (["(empty)", ""], '"(empty)" · (empty)'),
        ([True, False], "yes · no"),
    ],
)
def test_a_group_is_named_in_the_legend_whatever_its_values(dimensions: list[Any], text: str) -> None:
    assert label(dimensions) == text
