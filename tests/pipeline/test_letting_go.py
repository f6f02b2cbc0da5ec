"""What the ledger says of a worker that has let its partitions go, and of one that begins."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.model import Claim, EpochRecord, Partition
from streamproc.pipeline import Limits, Pipeline
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.sinks.object_store import Stored
from streamproc.sinks.summaries import Summaries
from tests.ledger.proxy import Break, BreakingProxy
from tests.simulation import stream
from tests.simulation.worker import Transforms
from tests.transform.decoding import batch_of

MINE, OTHER = Partition("clicks", "0"), Partition("clicks", "1")


def pipeline(ledger: Ledger, lake: Lake | None = None) -> Pipeline:
    return Pipeline(
        stream.TOPOLOGY,
        Transforms(stream.PlainTransform()),  # type: ignore[arg-type]  # a pool without threads
        ledger=ledger,
        lake=lake,
        summaries=Summaries((), "clicks"),
        limits=Limits(flush_interval=1.0, fold_records=1, max_records=1, max_bytes=1, drain_deadline=1.0),
    )


async def owners(ledger: Ledger) -> dict[Partition, str | None]:
    return {status.partition: status.owner for status in await ledger.status()}


async def test_a_worker_that_ends_between_two_assignments_owns_nothing(postgres: str):
    async with Ledger(postgres, "clicks", "w1") as ledger:
        await ledger.migrate()
        worker = pipeline(ledger)
        await worker.assigned([MINE, OTHER])
        await worker.revoked([MINE, OTHER])  # and it is told to end before anybody has claimed them
        await worker.close()
        assert await owners(ledger) == {MINE: None, OTHER: None}


async def test_a_worker_that_ends_leaves_alone_what_another_has_claimed_since(postgres: str):
    async with Ledger(postgres, "clicks", "w1") as ledger, Ledger(postgres, "clicks", "w2") as other:
        await ledger.migrate()
        worker = pipeline(ledger)
        await worker.assigned([MINE, OTHER])
        await worker.revoked([MINE, OTHER])
        await worker.assigned([MINE])
        claims = await other.claim([OTHER])
        await worker.close()
        assert await owners(ledger) == {MINE: None, OTHER: "w2"}
        assert await other.release(list(claims.values())) == 1


async def test_a_worker_that_learns_at_a_rebalance_of_another_claim_was_fenced(postgres: str):
    """As one that was frozen for longer than its session: the group tells it before its next commit does."""
    async with Ledger(postgres, "clicks", "w1") as ledger, Ledger(postgres, "clicks", "w2") as other:
        await ledger.migrate()
        worker = pipeline(ledger)
        await worker.assigned([MINE])
        await other.claim([MINE])
        await worker.take([replace(batch_of([b"{}"]), partition=MINE)], worker.generation)
        with structlog.testing.capture_logs() as logs:
            await worker.revoked([MINE])
        assert (worker.stats.fences, [line["event"] for line in logs]) == (1, ["fenced"])
        await worker.close()


async def test_a_claim_that_is_cancelled_after_it_was_made_is_released(
    postgres: str, monkeypatch: pytest.MonkeyPatch
):
    async with Ledger(postgres, "clicks", "w1") as ledger:
        await ledger.migrate()
        worker, reached = pipeline(ledger), asyncio.Event()

        async def never(*_: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(worker._recall, "recent_ids", never)
        claiming = asyncio.create_task(worker.assigned([MINE, OTHER]))
        await reached.wait()
        claiming.cancel()
        await asyncio.wait({claiming})
        assert set((await owners(ledger)).values()) == {"w1"}
        await worker.close()
        assert await owners(ledger) == {MINE: None, OTHER: None}


async def test_a_shard_that_is_finished_is_forgotten_and_owned_until_its_worker_ends(postgres: str):
    async with Ledger(postgres, "clicks", "w1") as ledger:
        await ledger.migrate()
        worker = pipeline(ledger)
        await worker.assigned([MINE, OTHER])
        await worker.finished([MINE])
        assert (worker.partitions, worker.uncommitted) == ([OTHER], 0)
        assert await owners(ledger) == {MINE: "w1", OTHER: "w1"}
        await worker.close()
        assert await owners(ledger) == {MINE: None, OTHER: None}


@pytest.mark.parametrize("known", [True, False])
async def test_a_claim_made_before_it_was_decided_where_the_topic_begins_goes_on_from_there(
    postgres: str, known: bool
):
    async with Ledger(postgres, "clicks", "w1") as ledger, Ledger(postgres, "clicks", "w2") as other:
        await ledger.migrate()
        first, second = pipeline(ledger), pipeline(other)
        assert await first.assigned([MINE]) == {MINE: None}
        assert await second.assigned([OTHER]) == {OTHER: None}
        assert await first.begun([MINE]) is None
        assert await first.begin_behind({MINE: 4, OTHER: 9}, None) == {MINE: 4, OTHER: 9}
        assert await (second.begun([OTHER]) if known else second.begin_behind({MINE: 6, OTHER: 12}, None))
        assert (first.committed, second.committed) == ({MINE: (4, None)}, {OTHER: (9, None)})
        assert first.uncommitted == second.uncommitted == 0
        await first.close()
        await second.close()


async def test_who_lets_go_of_everything_waits_for_nothing_any_more(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    """Or a worker that a rebalance has left without partitions would call itself waiting for ever."""
    worker, tried = pipeline(ledger), asyncio.Event()
    await worker.assigned([MINE])

    async def away(*_: object, **__: object) -> None:
        tried.set()
        raise DependencyError("PostgreSQL", "is away")

    monkeypatch.setattr(ledger, "commit", away)
    await worker.take([replace(batch_of([b"{}"]), partition=MINE)], worker.generation)
    await tried.wait()
    await asyncio.sleep(0)
    assert (worker.stats.waiting_for, worker.stats.waiting_steps) == ("PostgreSQL", {"commit"})
    await worker.finished([MINE])
    assert worker.partitions == [MINE], "what was taken is not committed"
    await worker.revoked([MINE])
    await asyncio.sleep(0)
    assert (worker.stats.waiting_for, worker.stats.waiting_steps) == (None, set())
    await worker.close()


async def test_a_worker_names_the_database_that_goes_away_during_its_commit_and_goes_on_when_it_is_back(
    ledger: Ledger, postgres: str, monkeypatch: pytest.MonkeyPatch
):
    async with (
        BreakingProxy.between(postgres) as (proxy, conninfo),
        Ledger(conninfo, "clicks", "w1") as fragile,
    ):
        worker, back, tried = pipeline(fragile), asyncio.Event(), asyncio.Event()
        claim_again = fragile._claim_again

        async def away_until_back(epoch: EpochRecord) -> dict[Partition, Claim]:
            if back.is_set():
                return await claim_again(epoch)
            tried.set()
            raise DependencyError("PostgreSQL", "is away")

        monkeypatch.setattr(fragile, "_claim_again", away_until_back)
        await worker.assigned([MINE])
        proxy.arm(Break.ANSWER_LOST)
        batch = replace(batch_of([b"{}"]), partition=MINE)
        await worker.take([batch], worker.generation)
        await tried.wait()
        await asyncio.sleep(0)
        assert (worker.stats.waiting_for, worker.stats.waiting_steps) == ("PostgreSQL", {"commit"})
        back.set()
        await worker.drain()
        assert (worker.stats.waiting_for, worker.stats.epochs) == (None, 1)
        assert [status.position for status in await ledger.status()] == [batch.through]
        await worker.close()


async def test_of_an_epoch_s_objects_only_the_one_that_the_store_has_refused_is_put_again(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, put, first = LocalStore(f"file://{tmp_path}", durable=False), LocalStore.put, asyncio.Event()
    begun: list[str] = []
    there: list[str] = []

    async def refuse_the_second(self: LocalStore, key: str, body: bytes) -> Stored:
        begun.append(key)
        if len(begun) == 2:
            await first.wait()
            raise DependencyError("S3", "slow down")
        stored = await put(self, key, body)
        there.append(key)
        first.set()
        return stored

    monkeypatch.setattr(LocalStore, "put", refuse_the_second)
    await store.open()
    worker = pipeline(ledger, Lake(store, stream.TOPOLOGY))
    await worker.assigned([MINE, OTHER])
    batches = [replace(batch_of([b"{}"]), partition=partition) for partition in (MINE, OTHER)]
    await worker.take(batches, worker.generation)
    await worker.drain()
    assert len(there) == 2 and begun == [*there, there[1]]
    assert sorted([each.plan.key async for each in ledger.manifest("rejects")]) == sorted(there)
    await worker.close()
    await store.close()
