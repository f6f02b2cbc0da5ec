"""How often the dashboard asks its database."""

from __future__ import annotations

import time

import pytest
from psycopg import errors
from structlog.testing import capture_logs

from streamproc.dashboard.reading import Shared, Unforeseen, explain
from streamproc.errors import DependencyError


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Takes ``seconds`` for an answer, or is away."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.away = False
        self.asked = 0

    async def find(self) -> int:
        self.asked += 1
        self.clock.now += self.seconds
        if self.away:
            raise DependencyError("the database", "is away")
        return self.asked


@pytest.mark.parametrize(("takes", "rests"), [(0.01, 2.0), (0.1, 2.0), (0.2, 4.0), (0.4, 8.0), (3.0, 10.0)])
async def test_a_database_that_takes_long_is_asked_less_often(takes: float, rests: float) -> None:
    clock = Clock()
    database = Database(clock, takes)
    shared = Shared(database.find, 2.0, clock)
    await shared.get()
    clock.now += rests - 0.05
    assert (await shared.get()).value == 1
    clock.now += 0.1
    assert (await shared.get()).value == 2


async def test_a_database_that_was_away_is_asked_as_often_as_ever() -> None:
    clock = Clock()
    database = Database(clock, 3.0)
    shared = Shared(database.find, 2.0, clock)
    await shared.get()
    clock.now += 10.05
    database.away = True
    failed = await shared.get()
    assert failed.value == 1
    assert failed.problem is not None
    clock.now += 2.05
    database.away = False
    assert (await shared.get()).value == 3


async def test_a_look_up_with_a_fault_is_not_made_at_once_again_and_logged_once() -> None:
    clock = Clock()
    asked = 0

    async def find() -> int:
        nonlocal asked
        asked += 1
        return int("none")

    shared = Shared(find, 2.0, clock)
    with capture_logs() as logs:
        for _ in range(3):
            seen = await shared.get()
        assert asked == 1
        clock.now += 2.05
        await shared.get()
    assert asked == 2
    assert [each["event"] for each in logs] == ["look_up_failed"]
    assert seen.value is None
    assert isinstance(seen.problem, Unforeseen)
    assert "does not answer" not in " ".join(explain(seen.problem))


@pytest.mark.parametrize("cause", [errors.UndefinedTable(), errors.UndefinedColumn()])
def test_what_is_not_there_may_be_gone_by_a_page_that_the_dashboard_has_not_read(cause: errors.Error) -> None:
    """A derived column that was taken out of the page, or a table that was dropped: it does not come back by itself."""
    problem = DependencyError("the database", "does not exist")
    problem.__cause__ = cause
    _, text = explain(problem)
    assert "when `streamproc run` has started" in text
    assert "Start the dashboard again" in text


async def test_an_answer_is_as_old_as_the_clock_on_the_wall_says() -> None:
    before = time.time()
    seen = await Shared(Database(Clock(), 0.0).find, 2.0).get()
    assert seen.at is not None
    assert before <= seen.at <= time.time()
