"""A bounded part of the crash bench: one crash of each phase of a commit, of a claim, of a load; two zombies;
connections cut during COMMIT and a store that refuses."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import REPOSITORY
from tests.faults.bench import Bench
from tests.faults.crashes import CRASHES
from tests.faults.network import NETWORK
from tests.faults.records import records
from tests.faults.report import Run, into, kept, table
from tests.faults.runner import Fault, run
from tests.faults.topics import TOPICS
from tests.faults.world import WORLD

#: Killed where it hurts most, frozen twice, and one of each other kind.
CHOSEN = (
    "kill at put.middle",
    "kill at commit.merged",
    "kill at commit.sent",
    "kill at commit.acknowledged",
    "kill at seek.done",
    "kill at load.copied",
    "stop at put.last",
    "stop at commit.fenced",
    "raise at intend.after",
    "cancel at put.first",
    "connection cut during COMMIT, 12 times",
    "S3 answers 30% with 503",
    "the topic is made anew and filled",
    "one of two workers is killed",
)

FAULTS: list[Fault] = [*WORLD, *TOPICS, *NETWORK, *CRASHES]  # the long ones first

#: At a time: they mostly wait for session timeouts.
PARALLEL = 3


async def run_all(faults: Sequence[Fault], directory: Path) -> list[Run]:
    waiting = list(enumerate(faults, start=random.randrange(10**6)))
    done: list[Run] = []

    async def work(bench: Bench) -> None:
        while waiting:
            seed, fault = waiting.pop(0)
            done.append(await run(bench, fault, seed))

    # What is checked is what becomes of the data: a busy machine may take its time.
    async with Bench.open(directory, patience=2.0) as bench, asyncio.TaskGroup() as group:
        for _ in range(PARALLEL):
            group.create_task(work(bench))
    return done


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_whatever_happens_nothing_is_lost_doubled_or_wrong():
    with tempfile.TemporaryDirectory(prefix="streamproc-", ignore_cleanup_errors=True) as directory:
        runs = await run_all([fault for fault in FAULTS if fault.name in CHOSEN], Path(directory))
    print(table(runs))
    assert len(runs) == len(CHOSEN)
    assert [run.line() for run in runs if not run.clean] == []
    assert [run.fault for run in runs if not run.fired] == [], "nothing was in flight: these do not count"


def test_records_are_the_same_for_the_same_seed_and_hold_what_is_to_be_told_apart():
    first = records(3000, 5)
    assert first == records(3000, 5) != records(3000, 6)
    values = [value for _, value in first if value is not None]
    assert len(values) > len(set(values)), "some come again"


def test_every_failpoint_is_crashed_in_every_way_it_can_be():
    assert len(CRASHES) == len({crash.name for crash in CRASHES}) >= 17 * 3
    assert set(CHOSEN) <= {fault.name for fault in FAULTS}


def test_the_table_in_the_docs_is_that_of_the_runs_that_are_kept(tmp_path: Path):
    for name, runs in (("faults.md", kept()), ("kinesis.md", kept(kinesis=True))):
        written = (REPOSITORY / "docs" / name).read_text()
        page = tmp_path / name
        page.write_text(written)
        into(page, runs)
        assert page.read_text() == written
