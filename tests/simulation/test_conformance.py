"""The simulated PostgreSQL passes the state machine that the real one passes: see ``tests/ledger``."""

from __future__ import annotations

from tests.ledger.test_any_order import run
from tests.simulation.stand import SimulatedStand


def test_the_simulated_database_agrees_with_the_model() -> None:
    stand = SimulatedStand(1)
    with stand.on():
        run(stand, 10)
