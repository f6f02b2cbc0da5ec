"""A replay's worker while its replay, its database or its records go away: a real ledger, and no broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamproc.errors import DependencyError, LedgerError, SourceError
from streamproc.ledger import Ledger, promotion
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replay, Replays
from streamproc.model import Partition, RecordBatch
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.replay import work as module
from streamproc.runtimes.replay.work import ReplayWorker, Unfinishable
from streamproc.settings import read_settings
from streamproc.sources.kafka_claims import _misplaced as misplaced
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topic_pages import load_page
from tests.ledger.epochs import P0, advance, nothing, record

PAGES = Path(__file__).parents[2] / "topics"


@pytest.fixture
async def replay(ledger: Ledger) -> Replay:
    """Of the first ten of twenty records."""
    for through in (9, 19):
        claims = await ledger.claim([P0])
        await ledger.commit(record(advance(claims[P0], through)), nothing)
    return await Replays(ledger.database, "clicks").create("fix", "f", "asked", "me", {P0: Span(-1, 9)})


def made(replay: Replay, conninfo: str, folder: Path, **changed: Any) -> ReplayWorker:
    settings = replace(read_settings(environ={"STREAMPROC_DATA_DIR": str(folder)}), **changed)
    page = replace(load_page(PAGES / "clickstream.toml"), name="clicks")
    endpoints = Endpoints(settings, ledger=conninfo, broker=KafkaConnection("127.0.0.1:9", embedded=False))
    return ReplayWorker(settings, page, replay, endpoints, pages=PAGES, worker="w2")


@asynccontextmanager
async def worker(replay: Replay, conninfo: str, folder: Path) -> AsyncIterator[ReplayWorker]:
    worker = made(replay, conninfo, folder)
    await worker._ledger.open()
    try:
        yield worker
    finally:
        await worker.pipeline.close()
        await worker._ledger.close()


async def test_a_worker_claims_what_its_replay_has(replay: Replay, postgres: str, tmp_path: Path) -> None:
    async with worker(replay, postgres, tmp_path) as mine:
        assert await mine.pipeline.assigned([P0]) == {P0: -1}


async def test_a_worker_of_a_discarded_replay_does_nothing_for_the_next_of_that_name(
    ledger: Ledger, replay: Replay, postgres: str, tmp_path: Path
) -> None:
    replays = Replays(ledger.database, "clicks")
    async with worker(replay, postgres, tmp_path) as mine:
        async with ledger.database.transaction("discard") as conn:
            await promotion.discard(conn, replay)
        await replays.create("fix", "f", "asked", "me", {P0: Span(-1, 19)})
        with pytest.raises(LedgerError, match="replay fix was discarded meanwhile"):
            await mine.pipeline.assigned([P0])
        assert mine.pipeline.partitions == []
    anew = await replays.get("fix")
    assert anew is not None
    assert anew.left == 20


async def test_a_worker_of_a_promoted_replay_does_not_begin_with_the_topics_first_record(
    ledger: Ledger, replay: Replay, postgres: str, tmp_path: Path
) -> None:
    async with worker(replay, postgres, tmp_path) as mine:
        async with ledger.database.connection("promote") as conn:
            await conn.execute("DELETE FROM streamproc.partitions WHERE stream = %s", [replay.namespace])
            await conn.execute(
                "UPDATE streamproc.replays SET state = 'promoted', completed_at = now(), promoted_at = now()"
            )
        with pytest.raises(LedgerError, match="replay fix was promoted meanwhile"):
            await mine.pipeline.assigned([P0])
        assert mine.pipeline.partitions == []


class Source:
    """The first member of the group, which is given a partition, and so many records of it, one by one."""

    records = 0
    stopped: Mapping[Partition, SourceError] = {}

    def __init__(self, broker: object, topic: str, options: object, listener: Any) -> None:
        self._listener = listener
        self._given = 0

    async def start(self) -> None:
        await self._listener.assigned([P0])

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        await asyncio.sleep(0)
        if self._given == self.records:
            return []
        self._given += 1
        position = self._given - 1
        return [RecordBatch(P0, position - 1, position, [b"{}"], [position], 0, 2)]

    def pause(self, partitions: Sequence[Partition]) -> None:
        pass

    async def close(self) -> None:
        pass


async def owner_of(conninfo: str, replay: Replay) -> str | None:
    async with Ledger(conninfo, replay.namespace, "me") as own:
        (status,) = await own.status()
    return status.owner


async def test_a_worker_that_is_told_to_end_does_so_while_its_commit_waits_for_the_database(
    replay: Replay, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken all that it may meanwhile, and waits for the commit too."""
    waits, ending = asyncio.Event(), asyncio.Event()

    async def intend(*_: object) -> None:
        waits.set()
        raise DependencyError("PostgreSQL", "is away")

    monkeypatch.setattr(module, "KafkaSource", Source)
    monkeypatch.setattr(Source, "records", 2)
    mine = made(replay, postgres, tmp_path, drain_deadline=0.01, max_epoch_records=1)
    monkeypatch.setattr(mine._ledger, "intend", intend)
    async with asyncio.timeout(60):
        running = asyncio.create_task(mine.run(ending))
        await waits.wait()
        assert await owner_of(postgres, replay) == "w2"
        ending.set()
        assert await running is False
    assert await owner_of(postgres, replay) is None


async def test_a_database_that_is_away_for_a_while_does_not_end_a_worker(
    replay: Replay, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commits wait for it too."""
    answers: list[Any] = [replay, DependencyError("PostgreSQL", "is away"), SimpleNamespace(processed=True)]

    async def still_open(*_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, DependencyError):
            raise answer
        return answer

    monkeypatch.setattr(module, "KafkaSource", Source)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(module, "still_open", still_open)
    async with asyncio.timeout(60):
        assert await made(replay, postgres, tmp_path).run(asyncio.Event()) is True
    assert answers == []


async def test_records_that_are_gone_end_a_replay_that_still_needs_them_and_it_says_what_to_do(
    replay: Replay, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the live service says then: that would move live's position."""
    monkeypatch.setattr(module, "KafkaSource", Source)
    monkeypatch.setattr(Source, "stopped", {P0: misplaced(-1, 5, 20, P0)})
    with pytest.raises(Unfinishable, match="5 offsets are gone: replay fix cannot be finished") as told:
        async with asyncio.timeout(60):
            await made(replay, postgres, tmp_path).run(asyncio.Event())
    assert "offsets set" not in str(told.value)


async def test_records_that_are_gone_behind_the_end_of_a_range_are_not_missed(
    replay: Replay, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range ends with 9, and all of it is committed when the replay goes on."""
    async with Ledger(postgres, replay.namespace, "w1") as own:
        claims = await own.claim([P0])
        await own.commit(record(advance(claims[P0], 9)), nothing)
    monkeypatch.setattr(module, "KafkaSource", Source)
    monkeypatch.setattr(Source, "stopped", {P0: misplaced(9, 15, 20, P0)})
    async with asyncio.timeout(60):
        assert await made(replay, postgres, tmp_path).run(asyncio.Event()) is True
