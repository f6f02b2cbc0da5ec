"""How often the dashboard asks its database."""

from __future__ import annotations

import pytest

from streamproc.dashboard.reading import Shared
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
