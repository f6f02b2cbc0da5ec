"""A peer's program is measured from outside, its answer is compared, and whatever it does, the driver goes on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.comparison.datasets import WORKLOADS, Dataset
from benchmarks.comparison.environment import Environment
from benchmarks.comparison.manifest import Participation, Peer
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.rounds import Failed
from benchmarks.comparison.sampling import Sample, Sampler, cpu_at

DATASET = Dataset(WORKLOADS["w1"], "events", 1000, 4, {(0, "/a"): (2, 1)})
RIGHT = '[[0, "/a", 2, 1]]'

Program = Callable[..., PeerProgram]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """A peer whose code is given; it may use ``chosen``, ``clock``, ``hand_in``, ``time`` and ``os``."""

    def made(code: str, timeout: float = 60.0) -> PeerProgram:
        script = tmp_path / "peer.py"
        script.write_text(
            f"import os, subprocess, sys, time\nfrom contestant import *\nchosen, clock = arguments(), Clock()\n{code}"
        )
        peer = Peer(
            name="one",
            folder=tmp_path,
            title="One",
            docs="",
            command=(sys.executable, "{peer}/peer.py"),
            workloads={"w1": Participation(1000, left_out="much")},
        )
        return PeerProgram(peer, Environment(tmp_path), "nowhere:1", timeout)

    return made


def finish(rows: str) -> str:
    return f"clock.start()\nclock.stop()\nhand_in(clock, chosen.answer, {rows})\n"


def test_a_right_answer_gives_a_round(program: Program) -> None:
    it = program(f"assert (chosen.topic, chosen.events) == ('events', 1000)\n{finish(RIGHT)}").run(DATASET)
    assert (it.workload, it.contestant, it.title, it.events, it.left_out) == (
        "w1",
        "one",
        "One",
        1000,
        "much",
    )
    assert it.seconds > 0
    assert it.peak_rss_bytes > 0  # perhaps of its first moment: it ends at once


def test_cpu_is_that_of_the_span_and_of_children_too(program: Program) -> None:
    spin = "while sum(os.times()[:2]) < {0}: pass\n"
    child = f"subprocess.run([sys.executable, '-c', 'import os\\n{spin.format(0.5).strip()}'])\n"
    code = (
        f"{spin.format(0.6)}clock.start()\n{child}{spin.format(1.0)}clock.stop()\n"
        f"hand_in(clock, chosen.answer, {RIGHT})\n"
    )
    it = program(code).run(DATASET)
    # 0.4 of its own and 0.5 of its child, by samples: on a busy machine few and late.
    assert 0.3 < it.cpu_seconds < it.cpu_seconds_in_all
    assert it.cpu_seconds_in_all > 1.4


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (finish('[[0, "/a", 3, 1]]'), r"wrong answer: .*\(0, '/a'\) is \(3, 1\), not \(2, 1\)"),
        ("raise SystemExit('out of memory')", "out of memory"),
        ("pass", "0 results"),
        ('print(\'RESULT {"begin": 2, "end": 1}\')', "no span"),
        ("print('RESULT {\"end\": 1}')", "cannot be read"),
        ("print('RESULT []')", "cannot be read"),
        (finish(RIGHT) + finish(RIGHT), "2 results"),
    ],
)
def test_a_peer_that_does_not_do_it_has_failed(program: Program, code: str, message: str) -> None:
    with pytest.raises(Failed, match=message):
        program(code).run(DATASET)


def test_a_program_that_is_not_there_has_failed(program: Program, tmp_path: Path) -> None:
    one = program("")
    (tmp_path / "venv").mkdir()
    missing = PeerProgram(
        Peer(name="n", folder=tmp_path, title="", docs="", command=("{python}",), workloads={}),
        one.environment,
        "nowhere:1",
        1.0,
    )
    with pytest.raises(Failed, match="cannot be started"):
        missing.run(DATASET)


def test_a_peer_that_hangs_is_ended_with_what_it_started(program: Program, tmp_path: Path) -> None:
    told = tmp_path / "child"
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"open({str(told)!r}, 'w').write(str(child.pid))\ntime.sleep(600)\n"
    )
    with pytest.raises(Failed, match="did not end within"):
        program(code, timeout=2.0).run(DATASET)
    child = int(told.read_text())
    deadline = time.monotonic() + 30
    while _runs(child):
        assert time.monotonic() < deadline, "its child still runs"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cpu_at_a_moment_lies_between_the_samples_around_it() -> None:
    samples = [Sample(10.0, 1.0), Sample(20.0, 3.0), Sample(30.0, 3.5)]
    assert [cpu_at(samples, at) for at in (5.0, 10.0, 15.0, 20.0, 26.0, 40.0)] == [
        1.0,
        1.0,
        2.0,
        3.0,
        3.3,
        3.5,
    ]
    assert cpu_at([], 1.0) == 0.0


def test_a_sampler_of_a_process_that_has_ended_has_nothing_to_tell() -> None:
    with Sampler(os.getpid()) as sampler:
        pass
    assert sampler.peak_rss_bytes > 0
    with Sampler(2**22 + 1) as sampler:  # above the largest pid_max that there is
        pass
    assert (sampler.cpu_seconds, sampler.peak_rss_bytes) == (0.0, 0)
