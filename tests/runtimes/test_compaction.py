"""Runs that cannot be merged, as they are or at all: a real ledger and lake, and a store that says what was fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import psycopg
import pytest

from streamproc.errors import DependencyError, Inconsistent
from streamproc.ledger import Ledger
from streamproc.runtimes.compaction import Compactor
from streamproc.runtimes.merging_process import CannotMerge, MergingProcess
from streamproc.sinks.lake import Lake
from streamproc.sinks.loader import Loader
from streamproc.sinks.local import LocalStore
from streamproc.sinks.warehouse import LoadReport
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from streamproc.topology import MINUTE, Sinks
from tests.runtimes.test_replay_carry import COLUMNS, PAGE, commit
from tests.tables.streams import event, frame

CHANGED, GONE = "its columns have changed their types", "an object of it is not in the lake any more"


class Store(LocalStore):
    """Notes what is got, and is away when it is told so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.as_uri(), durable=False)
        self.folder = folder
        self.got: list[str] = []
        self.away = False

    async def get(self, key: str) -> bytes:
        self.got.append(key)
        if self.away:
            raise DependencyError("lake", "is away")
        return await super().get(key)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    await store.open()
    yield store
    await store.close()


async def lived(ledger: Ledger, store: Store, *minutes: int, numbers: int = 0) -> None:
    """A commit of one event at each minute; in the first ``numbers`` of them a visitor's id was a number."""
    for position, minute in enumerate(minutes):
        type_ = pl.Int64() if position < numbers else pl.String()
        one = frame([event(minute * MINUTE, position=position, visitor="7")])
        one = one.with_columns(pl.col("visitor").cast(type_), source_partition=pl.lit("0"))
        await commit(ledger, Lake(store, replace(PAGE, columns=COLUMNS | {"visitor": type_})), one)


def compactor(ledger: Ledger, store: Store) -> Compactor:
    return Compactor(replace(PAGE, sinks=Sinks(warehouse=False)), ledger, store, None)


async def ranges(ledger: Ledger) -> Sequence[tuple[int, int, int]]:
    """Of each object, by position: its range, and its rows."""
    plans = [each.plan async for each in ledger.manifest()]
    return sorted((-1 if plan.after is None else plan.after, plan.through, plan.rows) for plan in plans)


@pytest.mark.parametrize(
    ("numbers", "left"),
    [(1, [(-1, 0, 1), (0, 4, 4)]), (2, [(-1, 1, 2), (1, 4, 3)]), (4, [(-1, 3, 4), (3, 4, 1)])],
)
async def test_commits_before_and_behind_a_change_of_types_become_one_each_and_are_not_fetched_again(
    ledger: Ledger, store: Store, numbers: int, left: list[tuple[int, int, int]]
) -> None:
    await lived(ledger, store, 0, 1, 2, 3, 4, 150, numbers=numbers)
    again = compactor(ledger, store)
    await again.compact()
    assert await ranges(ledger) == [*left, (4, 5, 1)]
    store.got.clear()
    report = await again.compact()
    assert (store.got, report.runs, report.waiting) == ([], 0, {CHANGED: 1})
    assert (await compactor(ledger, store).compact()).waiting == {CHANGED: 1}
    assert await ranges(ledger) == [*left, (4, 5, 1)]


async def test_a_run_that_lacks_an_object_is_not_fetched_again_until_a_day_later(
    ledger: Ledger, store: Store
) -> None:
    await lived(ledger, store, 0, 1, 2, 150)
    [file] = store.folder.rglob(
        f"*{[each.plan.key async for each in ledger.manifest()][1].rpartition('/')[2]}"
    )
    body = file.read_bytes()
    file.unlink()
    again = compactor(ledger, store)
    assert (await again.compact()).waiting == {GONE: 1}
    store.got.clear()
    file.write_bytes(body)
    assert ((await again.compact()).waiting, store.got) == ({GONE: 1}, [])
    again._forget_at = 0
    assert (await again.compact()).runs == 1
    assert await ranges(ledger) == [(-1, 2, 3), (2, 3, 1)]


async def test_an_object_with_other_bytes_keeps_no_other_run_from_being_merged(
    ledger: Ledger, store: Store
) -> None:
    await lived(ledger, store, 0, 1, 62, 63, 250)
    first = min([each async for each in ledger.manifest()], key=lambda each: each.plan.through)
    (store.folder / first.plan.key).write_bytes(b"other")
    with pytest.raises(Inconsistent, match="other bytes"):
        await compactor(ledger, store).compact()
    assert await ranges(ledger) == [(-1, 0, 1), (0, 1, 1), (1, 3, 2), (3, 4, 1)]


async def test_a_run_too_large_for_this_machine_keeps_no_other_from_being_merged(
    ledger: Ledger, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lived(ledger, store, 0, 1, 62, 63, 250)
    merge, merges = MergingProcess.merge, 0

    async def killed_once(self: MergingProcess, *arguments: object) -> None:
        nonlocal merges
        merges += 1
        if merges == 1:
            raise CannotMerge("the process", "was killed")
        await merge(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MergingProcess, "merge", killed_once)
    with pytest.raises(DependencyError, match="was killed"):
        await compactor(ledger, store).compact()
    assert await ranges(ledger) == [(-1, 0, 1), (0, 1, 1), (1, 3, 2), (3, 4, 1)]


async def test_a_lake_that_is_away_is_not_asked_for_every_run(ledger: Ledger, store: Store) -> None:
    await lived(ledger, store, 0, 1, 62, 63, 124, 125, 250)
    store.away = True
    with pytest.raises(DependencyError, match="is away"):
        await compactor(ledger, store).compact()
    assert len(store.got) <= 2, "the objects of the first"


async def test_what_has_still_to_be_published_is_merged_when_it_is(
    ledger: Ledger, store: Store, postgres: str
) -> None:
    await lived(ledger, store, 0, 1, 2, 3, 4, 150)
    keys = [each.plan.key async for each in ledger.manifest()]
    notes = [("clicks", "events", keys[2]), ("clicks", "events", keys[2])]
    notes += [("others", "events", keys[3]), ("clicks", "rows", keys[3])]
    with psycopg.connect(postgres, autocommit=True) as db:
        for stream, kind, key in notes:
            db.execute(
                "INSERT INTO streamproc.outbox (stream, epoch, kind, payload)"
                " VALUES (%s, gen_random_uuid(), %s, %s)",
                [stream, kind, key.encode()],
            )
        await compactor(ledger, store).compact()
        assert await ranges(ledger) == [(-1, 1, 2), (1, 2, 1), (2, 4, 2), (4, 5, 1)]
        db.execute("DELETE FROM streamproc.outbox WHERE kind = 'events'")
    await compactor(ledger, store).compact()
    assert await ranges(ledger) == [(-1, 4, 5), (4, 5, 1)]


async def test_a_warehouse_that_was_switched_off_meanwhile_has_each_row_once(
    ledger: Ledger, store: Store, postgres: str
) -> None:
    warehouse = PostgresWarehouse(postgres, "clicks")
    await warehouse.open()
    await warehouse.ensure(COLUMNS)
    loader = Loader(ledger, warehouse, store)
    for position, minute in enumerate((0, 1, 2, 3, 150)):
        one = frame([event(minute * MINUTE, position=position)]).with_columns(source_partition=pl.lit("0"))
        await commit(ledger, Lake(store, PAGE), one)
        if position == 1:
            assert await loader.run_once() == LoadReport(2, 2)
    assert (await compactor(ledger, store).compact()).runs == 1
    assert await loader.run_once() == LoadReport(2, 3)
    assert (await warehouse.status()).rows == 5
    await warehouse.close()
    with psycopg.connect(postgres) as connection:
        positions = connection.execute("SELECT position FROM warehouse.clicks ORDER BY 1").fetchall()
    assert positions == [(0,), (1,), (2,), (3,), (4,)]
