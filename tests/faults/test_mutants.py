"""The tests are tested: each mutant of the protocol still applies, and what is named beside it kills it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults.mutants import MUTANTS, Mutant, kill, prepare

KILLERS = sorted({mutant.killer for mutant in MUTANTS})


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_applies_to_the_code_of_today(mutant: Mutant, tmp_path: Path) -> None:
    prepare(mutant, tmp_path)


@pytest.mark.mutants
@pytest.mark.timeout(500)
@pytest.mark.parametrize("killer", KILLERS, ids=" ".join)
def test_without_a_mutant_there_is_nothing_to_find(killer: tuple[str, ...], tmp_path: Path) -> None:
    prepare(None, tmp_path)
    done = kill(Mutant("none", (), killer), tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.mutants
@pytest.mark.timeout(500)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    prepare(mutant, tmp_path)
    try:
        done = kill(mutant, tmp_path)
    except subprocess.TimeoutExpired:
        return  # loaders that do not lock can wait for each other: tests that hang are noticed as well
    assert done.returncode == 1, (
        f"it lives: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
    )
