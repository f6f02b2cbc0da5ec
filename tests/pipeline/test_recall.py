"""What is known of event ids after a partition's claim has changed hands: a real ledger and a real lake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psycopg
import pytest
import structlog

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.pipeline.limits import Stats
from streamproc.pipeline.patience import Patience
from streamproc.pipeline.recall import Recall
from streamproc.progress import NEVER, hash_ids
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.topology import MINUTE, Duplicates
from tests.ledger.epochs import P0, advance, nothing, record
from tests.sinks.topologies import events, topology

NOON = int(datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
IDS = ["e0-0", "e0-1", "e0-2", "e0-3"]


class Store(LocalStore):
    """Calls ``meanwhile`` once, with the first key that is read, before it is."""

    meanwhile: Callable[[str], None] | None = None

    async def get(self, key: str) -> bytes:
        if self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act(key)
        return await super().get(key)


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    store = Store(tmp_path.as_uri(), durable=False)
    await store.open()
    return store


async def commit(ledger: Ledger, store: Store, first: int, *, named: bool = True) -> str:
    """Two events at the positions ``first`` and on, a minute apart; the key of their object."""
    rows = events(NOON + first * MINUTE, NOON + (first + 1) * MINUTE, first=first)
    rows = rows if named else rows.with_columns(event_id=pl.lit(None, pl.String))
    claims = await ledger.claim([P0])
    part = replace(advance(claims[P0], first + 1), clock_us=NOON + (first + 1) * MINUTE)
    lake = Lake(store, topology())
    [file] = lake.plan(lake.encode_events(rows), part)
    done = record(part, objects=tuple(await lake.write([file])))
    await ledger.intend(done.id, [file.plan], claims)
    await ledger.commit(done, nothing)
    return file.plan.key


async def known(ledger: Ledger, store: Store) -> list[str]:
    """Those of the ids that whoever claims the partition knows, without waiting for what is lost."""
    recall = Recall(ledger, Lake(store, topology()), Duplicates("event_id"), Patience(Stats()))
    async with asyncio.timeout(20):
        recent = await recall.recent_ids(P0, NOON + 3 * MINUTE)
    assert recent is not None
    seen = recent.last_seen(hash_ids(pl.Series(IDS))) != NEVER
    return [id_ for id_, there in zip(IDS, seen.tolist(), strict=True) if there]


async def test_what_was_accepted_lately_is_known(ledger: Ledger, store: Store) -> None:
    for first in (0, 2):
        await commit(ledger, store, first)
    with structlog.testing.capture_logs() as logs:
        assert await known(ledger, store) == IDS
    assert logs == []


async def test_events_without_an_id_are_passed_over(ledger: Ledger, store: Store) -> None:
    await commit(ledger, store, 0)
    await commit(ledger, store, 2, named=False)
    recall = Recall(ledger, Lake(store, topology()), Duplicates("event_id"), Patience(Stats()))
    recent = await recall.recent_ids(P0, NOON + 3 * MINUTE)
    assert recent is not None and len(recent) == 2
    assert await known(ledger, store) == IDS[:2]


async def test_a_lake_that_does_not_answer_is_waited_for_as_what_it_is(ledger: Ledger, store: Store) -> None:
    """And not as the database of claims and tables, which is well."""
    await commit(ledger, store, 0)

    def away(key: str) -> None:
        raise DependencyError(key, "no answer")

    store.meanwhile = away
    with structlog.testing.capture_logs() as logs:
        assert await known(ledger, store) == IDS[:2]
    assert [said["step"] for said in logs if said["event"] == "waiting"] == ["recall"]


async def test_a_worker_does_not_wait_for_an_object_that_somebody_has_deleted(
    ledger: Ledger, store: Store
) -> None:
    gone = await commit(ledger, store, 0)
    await commit(ledger, store, 2)
    await store.delete(gone)
    with structlog.testing.capture_logs() as logs:
        assert await known(ledger, store) == IDS[2:]
    [said] = logs
    assert (said["event"], said["log_level"]) == ("recent_ids_lost", "error")
    assert (said["partition"], said["objects"], said["first"]) == ("clicks/0", 1, gone)


async def test_a_partition_that_was_idle_until_its_last_object_was_deleted_goes_on(
    ledger: Ledger, store: Store
) -> None:
    await store.delete(await commit(ledger, store, 0))
    assert await known(ledger, store) == []


async def test_an_object_that_was_merged_while_it_was_asked_for_is_read_in_its_new_place(
    postgres: str, ledger: Ledger, store: Store
) -> None:
    for first in (0, 2):
        await commit(ledger, store, first)

    def merge(old: str) -> None:
        new = old.replace(".parquet", "-merged.parquet")
        (store.root / old).rename(store.root / new)
        with psycopg.connect(postgres) as db:
            db.execute("UPDATE streamproc.objects SET key = %s WHERE key = %s", [new, old])

    store.meanwhile = merge
    with structlog.testing.capture_logs() as logs:
        assert await known(ledger, store) == IDS
    assert logs == []
