"""Whatever the order of what workers do and of what breaks, the ledger does what its model says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger.machine import LedgerMachine, Stand
from tests.ledger.stands import PostgresStand


@pytest.fixture
def postgres_stand(postgres: str) -> Iterator[Stand]:
    with asyncio.Runner() as runner:
        stand = PostgresStand(runner)
        server = stand.on(postgres)
        runner.run(server.__aenter__())
        try:
            yield stand
        finally:
            runner.run(server.__aexit__(None, None, None))


def run(stand: Stand, examples: int) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: LedgerMachine(stand, f"stream_{next(numbers)}"),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_postgresql_agrees_with_the_model(postgres_stand: Stand) -> None:
    run(postgres_stand, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_postgresql_agrees_with_the_model_for_long(postgres_stand: Stand) -> None:
    run(postgres_stand, 100)
