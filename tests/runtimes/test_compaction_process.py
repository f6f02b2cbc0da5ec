"""A turn of compaction in a process of its own: what it does, and what is left of it."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.runtimes import compaction_process, upkeep
from streamproc.runtimes.compaction import Compactor
from streamproc.runtimes.compaction_process import PROGRAM, Answer, NotCompacted, Order, compact_apart
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.upkeep import Upkeep
from streamproc.settings import read_settings
from streamproc.sources.log_store import LogConnection
from streamproc.topology import Sinks
from tests.runtimes.test_compaction import CHANGED, Store, lived, ranges
from tests.runtimes.test_replay_carry import PAGE

#: Minutes of the first hour, and one that shows that it is over.
HOUR, OVER = (0, 10, 20, 30), 180


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "lake")
    await store.open()
    yield store
    await store.close()


def order(database: str, lake: Path) -> Order:
    page = replace(PAGE, sinks=Sinks(warehouse=False))
    settings = read_settings(None, {"STREAMPROC_LAKE": lake.as_uri()})
    return Order(page, settings, database, None, {})


def upkeep_of(ledger: Ledger, database: str, store: Store) -> Upkeep:
    asked = order(database, store.folder)
    endpoints = Endpoints(asked.settings, ledger=database, broker=LogConnection("file:///logs"))
    nobody: Any = None
    return Upkeep(asked.page, ledger, store, nobody, endpoints)


def children() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [each for each in found if "compaction_process" in str(each.cmdline())]


async def test_it_merges_what_is_due_and_hands_on_what_cannot_be_merged(
    ledger: Ledger, postgres: str, store: Store
) -> None:
    await lived(ledger, store, *HOUR, OVER, numbers=2)
    asked = order(postgres, store.folder)
    answer = await compact_apart(asked)
    assert answer.failed is None and answer.report is not None
    assert (answer.report.runs, answer.report.objects_before, answer.report.objects_after) == (2, 4, 2)
    assert set(answer.unmergeable.values()) == {CHANGED}
    again = await compact_apart(replace(asked, unmergeable=answer.unmergeable))
    assert again.report is not None and again.report.waiting == {CHANGED: 1}
    assert again.unmergeable == answer.unmergeable
    assert children() == []


async def test_what_does_not_answer_is_told_in_its_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"postgresql://nobody@127.0.0.1:{closed.getsockname()[1]}/nowhere"
    answer = await compact_apart(order(nobody, tmp_path))
    assert answer.report is None and answer.failed is not None
    assert "refused" in answer.failed


async def test_one_that_is_killed_is_a_dependency_and_the_next_does_the_rest(
    ledger: Ledger, postgres: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lived(ledger, store, *HOUR, OVER)
    with monkeypatch.context() as armed:
        armed.setenv("STREAMPROC_FAILPOINTS", "compact.put=kill")
        with pytest.raises(DependencyError, match="ended with -9"):
            await compact_apart(order(postgres, store.folder))
    answer = await compact_apart(order(postgres, store.folder))
    assert answer.report is not None and answer.report.runs == 1
    assert children() == []


async def test_one_that_cannot_be_started_is_a_dependency_and_ends_no_worker(
    ledger: Ledger, postgres: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where there are as many processes as may be, or no memory for another."""
    await lived(ledger, store, *HOUR, OVER)
    worker = upkeep_of(ledger, postgres, store)
    monkeypatch.setattr(compaction_process, "PROGRAM", (str(tmp_path / "nothing"),))
    with pytest.raises(
        DependencyError, match=r"the process that compacts: cannot be started: .*No such file"
    ):
        await worker.compact()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = order(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nowhere", tmp_path)
        with subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            body = pickle.dumps(asked)
            process.stdin.write(b"%d\n" % len(body) + body)
            process.stdin.flush()
            connection, _ = silent.accept()  # it is at work
            if sys.platform == "linux":
                score = Path(f"/proc/{process.pid}/oom_score_adj").read_text()
                assert score.strip() == "1000", "it is ended before the worker where memory runs out"
            process.stdin.close()
            assert process.wait(5) == 1, "sooner than it gives up the database"
            assert process.stdout.read() == b""
            connection.close()


async def test_a_worker_starts_it_where_something_is_due_and_fetches_nothing_itself(
    ledger: Ledger, postgres: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = upkeep_of(ledger, postgres, store)
    started: list[Order] = []

    async def noted(order: Order) -> Answer:
        started.append(order)
        return await compact_apart(order)

    monkeypatch.setattr(upkeep, "compact_apart", noted)
    await worker.compact()
    assert started == []
    await lived(ledger, store, *HOUR, OVER)
    await worker.compact()
    assert len(started) == 1
    assert await ranges(ledger) == [(-1, 3, 4), (3, 4, 1)]
    assert store.got == []
    await worker.compact()
    assert len(started) == 1


async def test_what_stops_a_turn_is_a_failure_of_the_worker_s_and_what_it_found_is_kept(
    ledger: Ledger, postgres: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lived(ledger, store, *HOUR, OVER)
    worker = upkeep_of(ledger, postgres, store)

    async def failed(order: Order) -> Answer:
        [run] = await Compactor(order.page, ledger, store, None).plan()
        known = {(run.partition, run.after, run.through, run.commits): CHANGED}
        return Answer(None, pickle.loads(pickle.dumps(known)), "the lake is away")

    monkeypatch.setattr(upkeep, "compact_apart", failed)
    with pytest.raises(NotCompacted, match="the lake is away"):
        await worker.compact()
    await worker.compact()  # nothing is due that is not known to wait
