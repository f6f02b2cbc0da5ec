"""A replay's worker that has stood still while its replay went away: a real ledger, and no broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from streamproc.errors import LedgerError
from streamproc.ledger import Ledger, promotion
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replay, Replays
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.replay.work import ReplayWorker
from streamproc.settings import read_settings
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


@asynccontextmanager
async def worker(replay: Replay, conninfo: str, folder: Path) -> AsyncIterator[ReplayWorker]:
    settings = read_settings(environ={"STREAMPROC_DATA_DIR": str(folder)})
    page = replace(load_page(PAGES / "clickstream.toml"), name="clicks")
    endpoints = Endpoints(settings, ledger=conninfo, broker=KafkaConnection("127.0.0.1:9", embedded=False))
    worker = ReplayWorker(settings, page, replay, endpoints, pages=PAGES, worker="w2")
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
