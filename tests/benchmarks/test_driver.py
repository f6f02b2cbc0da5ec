"""The driver end to end at a tiny size: streamproc and a loop by hand on the embedded broker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.comparison.environment import ENVIRONMENTS
from benchmarks.comparison.options import read_options
from benchmarks.comparison.plot import newest_results
from benchmarks.comparison.results import read_results
from tests.house.documents import ROOT


@pytest.mark.slow
@pytest.mark.skipif(
    not (ENVIRONMENTS / "confluent").exists(), reason="make bench-peers makes its environment"
)
@pytest.mark.parametrize(("workload", "peer"), [("w1", "confluent-orjson"), ("w2", "confluent-msgspec")])
def test_both_give_the_right_answer_on_the_same_events(tmp_path: Path, workload: str, peer: str) -> None:
    command = [sys.executable, "-m", "benchmarks.comparison", "--broker", "embedded", "--rounds", "1"]
    chosen = ["--workloads", workload, "--events", "3000", "--peers", f"streamproc,{peer}"]
    done = subprocess.run(
        [*command, *chosen, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rounds = {it.contestant: it for it in read_results(newest_results(tmp_path)).rounds}
    assert set(rounds) == {"streamproc", peer}
    assert all(it.events == 3000 and it.seconds > 0 and it.peak_rss_bytes > 0 for it in rounds.values())
    assert "times as fast" in done.stdout


@pytest.mark.slow
def test_what_streamproc_does_alone_is_checked_as_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.comparison", "--broker", "embedded", "--rounds", "1"]
    chosen = ["--workloads", "w3,w5,w6,w6-page", "--events", "3000", "--lag", "3000", "--peers", "streamproc"]
    done = subprocess.run(
        [*command, *chosen, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rounds = {it.workload: it for it in read_results(newest_results(tmp_path)).rounds}
    assert list(rounds) == ["w3", "w5", "w6", "w6-page"]
    assert all(it.events == 3000 and it.seconds > 0 for it in rounds.values())
    assert rounds["w6-page"].more["seconds_to_first_claim"] > 0


@pytest.mark.parametrize("arguments", [["--workloads", "w1,w9"], ["--peers", "no-such-peer"]])
def test_an_unknown_name_is_refused_before_anything_starts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        read_options(arguments)
    assert refused.value.code == 2
    assert "there are" in capsys.readouterr().err
