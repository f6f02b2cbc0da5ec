"""A bounded part of the crash bench: one crash of each phase of a commit, of a claim, of a load; two zombies;
connections cut during COMMIT and a store that refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import REPOSITORY
from tests.faults.bench import Bench
from tests.faults.bounded import assert_all_clean
from tests.faults.crashes import CRASHES
from tests.faults.network import NETWORK
from tests.faults.records import records
from tests.faults.report import into, kept
from tests.faults.runner import Fault
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


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_whatever_happens_nothing_is_lost_doubled_or_wrong():
    chosen = [fault for fault in FAULTS if fault.name in CHOSEN]
    assert len(chosen) == len(CHOSEN)
    await assert_all_clean(Bench, chosen, parallel=PARALLEL, patience=2.0)


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
