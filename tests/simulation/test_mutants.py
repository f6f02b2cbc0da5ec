"""The simulation is tested: each defect put into the protocol is found within the seeds named beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutants import SIMULATED, Simulated, kill, prepare


@pytest.mark.parametrize("simulated", SIMULATED, ids=lambda simulated: simulated.mutant.name)
def test_the_mutant_applies_to_the_code_of_today(simulated: Simulated, tmp_path: Path) -> None:
    prepare(simulated.mutant, tmp_path)


@pytest.mark.mutants
@pytest.mark.timeout(700)
@pytest.mark.parametrize("simulated", SIMULATED, ids=lambda simulated: simulated.mutant.name)
def test_the_simulation_finds_the_mutant(simulated: Simulated, tmp_path: Path) -> None:
    prepare(simulated.mutant, tmp_path)
    done = kill(simulated.seeds, tmp_path)
    assert done.returncode == 1, (
        f"it lives: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
    )
    assert "again: python -m tests.simulation --trace" in done.stdout, "it broke in another way"
