"""What an open dashboard costs, measured at a tiny size: with real parts, and a page that shows numbers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.dashboard.screenshots import chromium
from tests.house.documents import ROOT

ROUND = re.compile(r"^round 1, (with|without) the dashboard: ([\d,]+) events/s$", re.MULTILINE)
MEDIANS = re.compile(
    r"^  (with|without) +([\d,]+) events/s; worker ([\d.]+), PostgreSQL ([\d.]+), dashboard ([\d.]+)$",
    re.MULTILINE,
)
RATIO = re.compile(r"^  with / without: ([\d.]+) \(([\d.]+) to ([\d.]+), by round\)$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(600)  # two workers, a dashboard and a browser, on a machine that may be busy
@pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: apt install chromium)")
def test_the_same_events_are_processed_with_and_without_a_page_that_is_open() -> None:
    command = [sys.executable, "-m", "benchmarks.dashboard_cost", "--events", "3000", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rates = dict(ROUND.findall(done.stdout))
    assert list(rates) == ["without", "with"]
    figures = {name: [rate, *map(float, spent)] for name, rate, *spent in MEDIANS.findall(done.stdout)}
    assert {name: rate for name, (rate, *_) in figures.items()} == rates, (
        "the median of one round is that round"
    )
    for worker, server, dashboard in ([*spent] for _, (_, *spent) in sorted(figures.items())):
        assert worker > 0 and server > 0 and dashboard >= 0
    assert figures["without"][3] == 0
    (found,) = RATIO.findall(done.stdout)
    seen, alone = (float(rates[name].replace(",", "")) for name in ("with", "without"))
    assert len(set(found)) == 1
    assert float(found[0]) == pytest.approx(seen / alone, rel=0.02)


_POLICIES = """
import os, subprocess
from benchmarks.dashboard_cost import out_of_the_way
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
with out_of_the_way():
    child = subprocess.run(["chrt", "--pid", "0"], capture_output=True, text=True).stdout
print("SCHED_IDLE" in child, os.sched_getscheduler(0) == os.SCHED_BATCH)
"""


@pytest.mark.slow  # it imports a browser's driver
@pytest.mark.skipif(shutil.which("chrt") is None, reason="needs chrt (Debian: util-linux)")
def test_who_starts_a_browser_out_of_the_way_goes_on_as_before() -> None:
    command = [sys.executable, "-c", _POLICIES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr
