"""What every warehouse does, whatever it is loaded through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from streamproc.errors import ConfigError, Inconsistent
from streamproc.model import CommittedObject, PlannedObject
from streamproc.sinks.loader import Loader, LoadLimits
from streamproc.sinks.warehouse import (
    Erases,
    LoadReport,
    Merges,
    Quarantines,
    Rows,
    Swaps,
    Warehouse,
    needed_by,
)
from streamproc.topology import HOUR
from tests.sinks.topologies import COLUMNS, events
from tests.sinks.warehouses import Backend, ListedObjects, made_of, opened_backend, put

NOON = int(datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture(
    params=[
        "postgresql",
        pytest.param("redshift-data", marks=pytest.mark.aws),
        pytest.param("redshift", marks=pytest.mark.aws),
    ]
)
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with opened_backend(request.param, request) as backend:
        yield backend


@pytest.fixture
async def warehouse(backend: Backend) -> Warehouse:
    return await backend.warehouse()


async def test_loaded_rows_are_the_rows_of_the_objects(backend: Backend, warehouse: Warehouse) -> None:
    rows = events(*(NOON + hour * HOUR + hour for hour in range(5)))
    objects = await put(backend.store, rows)
    assert await warehouse.load(objects, backend.store) == LoadReport(5, 5)
    columns = ", ".join(COLUMNS)
    naive = rows.with_columns(pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None))
    assert backend.query(f"SELECT {columns} FROM warehouse.clicks ORDER BY position") == naive.rows()
    status = await warehouse.status()
    assert (status.objects, status.rows) == (5, 5)
    assert status.loaded_at is not None
    assert abs((datetime.now(UTC) - status.loaded_at).total_seconds()) < 600


async def test_before_anything_is_created_the_status_is_empty(backend: Backend) -> None:
    status = await (await backend.warehouse(ready=False)).status()
    assert (status.objects, status.rows, status.loaded_at) == (0, 0, None)


async def test_what_is_loaded_is_not_loaded_again(backend: Backend, warehouse: Warehouse) -> None:
    first = await put(backend.store, events(NOON))
    second = await put(backend.store, events(NOON, first=1))
    await warehouse.load(first, backend.store)
    assert await warehouse.missing([one.plan.key for one in first + second]) == {second[0].plan.key}
    assert await warehouse.load(first + second, backend.store) == LoadReport(1, 1)
    assert await warehouse.load(first + second, backend.store) == LoadReport(0, 0)
    assert (await warehouse.status()).rows == 2


async def test_tables_can_be_created_by_many_at_once(backend: Backend) -> None:
    warehouses = [await backend.warehouse(ready=False) for _ in range(4)]
    await asyncio.gather(*(each.ensure(COLUMNS) for each in warehouses))
    wider = {**COLUMNS, "country": pl.String(), "city": pl.String()}
    await asyncio.gather(*(each.ensure(wider) for each in warehouses))
    [(columns,)] = backend.query(
        "SELECT count(*) FROM information_schema.columns WHERE (table_schema, table_name) = ('warehouse', 'clicks')"
    )
    assert columns == len(wider)


async def test_many_loaders_at_once_load_each_object_once(backend: Backend) -> None:
    count = 60 if backend.engine is None else 20
    objects = [
        one
        for first in range(0, count, 2)
        for one in await put(backend.store, events(NOON, NOON, first=first))
    ]
    warehouses = [await backend.warehouse(ready=False) for _ in range(10 if backend.engine is None else 5)]
    await warehouses[0].ensure(COLUMNS)

    async def run(warehouse: Warehouse) -> LoadReport:
        limits = LoadLimits(objects=4)
        return await Loader(ListedObjects(objects), warehouse, backend.store, limits).run_once()

    reports = await asyncio.gather(*map(run, warehouses))
    assert sum(reports, LoadReport()) == LoadReport(count // 2, count)
    counted = backend.query("SELECT count(*), count(DISTINCT position) FROM warehouse.clicks")
    assert counted == [(count, count)]


async def test_of_two_loads_of_one_object_that_begin_together_the_second_waits(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = await put(backend.store, events(NOON, NOON))
    fetched = asyncio.Barrier(2)
    read = getattr(type(backend.store), backend.reads)

    async def read_together(*arguments: Any) -> bytes:
        body: bytes = await read(*arguments)
        await fetched.wait()
        return body

    monkeypatch.setattr(type(backend.store), backend.reads, read_together)
    warehouses = [await backend.warehouse() for _ in range(2)]
    reports = await asyncio.gather(*(warehouse.load(objects, backend.store) for warehouse in warehouses))
    assert sorted(report.rows for report in reports) == [0, 2]
    assert backend.query("SELECT count(*) FROM warehouse.clicks") == [(2,)]


async def test_a_new_column_is_added_and_older_objects_still_load(
    backend: Backend, warehouse: Warehouse
) -> None:
    wider = events(NOON, first=1).with_columns(country=pl.lit("NO"))
    objects = await put(backend.store, wider) + await put(backend.store, events(NOON, first=0))
    assert await warehouse.load(objects, backend.store) == LoadReport(2, 2)
    assert backend.query("SELECT position, country FROM warehouse.clicks ORDER BY 1") == [
        (0, None),
        (1, "NO"),
    ]


async def test_an_object_of_other_rows_or_bytes_than_the_ledger_says_is_refused(
    backend: Backend, warehouse: Warehouse
) -> None:
    [good] = await put(backend.store, events(NOON, NOON))
    plan = PlannedObject(**{name: getattr(good.plan, name) for name in PlannedObject.__slots__} | {"rows": 3})
    for bad in (
        CommittedObject(plan, good.size, good.checksum, good.committed_at),
        CommittedObject(good.plan, good.size - 1, good.checksum, good.committed_at),
    ):
        with pytest.raises(Inconsistent, match=good.plan.key):
            await warehouse.load([bad], backend.store)
    assert (await warehouse.status()).objects == 0
    assert backend.query("SELECT count(*) FROM warehouse.clicks") == [(0,)]


async def test_a_column_that_changed_its_type_is_a_configuration_mistake(warehouse: Warehouse) -> None:
    with pytest.raises(ConfigError, match=r"column value: is double precision and should be (text|char)"):
        await warehouse.ensure({**COLUMNS, "value": pl.String()})


async def test_two_streams_share_a_warehouse(backend: Backend, warehouse: Warehouse) -> None:
    other = await backend.warehouse("orders")
    objects = await put(backend.store, events(NOON))
    await warehouse.load(objects, backend.store)
    assert await other.load(objects, backend.store) == LoadReport(1, 1)
    assert (await other.status()).rows == (await warehouse.status()).rows == 1


async def test_a_replays_rows_take_the_place_of_the_streams(backend: Backend, warehouse: Warehouse) -> None:
    old = await put(backend.store, events(NOON, NOON, NOON, NOON))
    apart = await put(backend.store, events(NOON, partition="1"))
    await warehouse.load(old + apart, backend.store)
    replay = await backend.warehouse("clicks_r1")
    new = await put(backend.store, events(NOON, NOON, first=1).with_columns(value=pl.Series([7.0, 8.0])))
    await replay.load(new, backend.store)
    never_loaded = "lake/clicks/of-the-range-and-never-loaded.parquet"
    assert isinstance(warehouse, Swaps)
    keys = [old[0].plan.key, never_loaded]
    assert await warehouse.adopt("clicks_r1", [Rows("0", 0, 2)], keys) is True
    query = "SELECT source_partition, position, value FROM warehouse.clicks ORDER BY 1, 2"
    promoted = [("0", 0, 0.0), ("0", 1, 7.0), ("0", 2, 8.0), ("0", 3, pytest.approx(0.3)), ("1", 0, 0.0)]
    assert backend.query(query) == promoted
    assert await warehouse.missing([each.plan.key for each in old + apart + new] + [never_loaded]) == set()
    # It is done, whether the replay's table is gone or has still to be removed: the same again changes nothing.
    assert await warehouse.adopt("clicks_r1", [Rows("0", 0, 2)], keys) is False
    assert backend.query(query) == promoted
    assert isinstance(replay, Swaps)
    await replay.remove()
    assert await warehouse.adopt("clicks_r1", [Rows("0", 0, 2)], keys) is False
    assert backend.query(query) == promoted
    assert backend.query("SELECT to_regclass('warehouse.clicks_r1') IS NULL") == [(True,)]
    assert backend.query("SELECT count(*) FROM warehouse.loads WHERE stream = 'clicks_r1'") == [(0,)]


async def test_rows_of_a_partition_of_any_name_are_replaced(backend: Backend, warehouse: Warehouse) -> None:
    odd = "it's a \\ log;--\u00e9.gz"
    await warehouse.load(await put(backend.store, events(NOON, NOON, partition=odd)), backend.store)
    replay = await backend.warehouse("clicks_r1")
    new = events(NOON, partition=odd).with_columns(value=pl.lit(9.0))
    await replay.load(await put(backend.store, new), backend.store)
    assert isinstance(warehouse, Swaps)
    assert await warehouse.adopt("clicks_r1", [Rows(odd, -1, 1)], []) is True
    found = backend.query("SELECT source_partition, position, value FROM warehouse.clicks")
    assert found == [(odd, 0, 9.0)]


async def test_a_removed_stream_is_gone_and_the_others_stay(backend: Backend, warehouse: Warehouse) -> None:
    other = await backend.warehouse("orders")
    objects = await put(backend.store, events(NOON))
    await warehouse.load(objects, backend.store)
    await other.load(objects, backend.store)
    assert isinstance(other, Swaps)
    await other.remove()
    await other.remove()
    assert (await other.status()).objects == 0
    assert (await warehouse.status()).rows == 1
    assert await other.missing([objects[0].plan.key]) == {objects[0].plan.key}
    assert backend.query("SELECT to_regclass('warehouse.orders') IS NULL") == [(True,)]


async def test_an_object_made_of_loaded_ones_counts_as_loaded_without_rows(
    backend: Backend, warehouse: Warehouse
) -> None:
    objects = await put(backend.store, events(NOON, NOON))
    await warehouse.load(objects, backend.store)
    [merged] = await put(backend.store, events(NOON, NOON))
    assert isinstance(warehouse, Merges)
    for _ in range(2):  # the first may have been killed before it heard the answer
        await warehouse.merged([merged.plan.key, "lake/clicks/never-listed.parquet"])
    assert await warehouse.load([*objects, merged], backend.store) == LoadReport(0, 0)
    status = await warehouse.status()
    assert (status.objects, status.rows) == (1, 2)
    assert backend.query("SELECT count(*) FROM warehouse.clicks") == [(2,)]
    query = "SELECT count(*), count(DISTINCT key) FROM warehouse.loads"
    assert backend.query(query) == [(3, 3)]


async def counted(backend: Backend) -> dict[tuple[str, int], int]:
    """How often the table has the row of each partition and position."""
    query = "SELECT source_partition, position, count(*) FROM warehouse.clicks GROUP BY 1, 2 ORDER BY 1, 2"
    return {(partition, position): count for partition, position, count in backend.query(query)}


async def test_what_was_merged_while_the_warehouse_was_off_takes_the_place_of_its_parts(
    backend: Backend, warehouse: Warehouse
) -> None:
    first, later = await put(backend.store, events(NOON, NOON, NOON + HOUR))  # of one commit
    [second] = await put(backend.store, events(NOON, NOON, first=3))
    [third] = await put(backend.store, events(NOON, first=5))
    [behind] = await put(backend.store, events(NOON, first=6))
    [apart] = await put(backend.store, events(NOON, NOON, partition="1"))
    await warehouse.load([first, later, second, behind, apart], backend.store)
    merged = await made_of(backend.store, first, second, third)
    whole = await made_of(backend.store, apart)  # all of it is loaded
    listed = [later, behind, merged, whole]
    loader = Loader(ListedObjects(listed), warehouse, backend.store)
    assert await loader.run_once() == LoadReport(2, 1)
    assert await counted(backend) == {**{("0", n): 1 for n in range(7)}, ("1", 0): 1, ("1", 1): 1}
    assert (await warehouse.status()).rows == 9
    assert await warehouse.missing([each.plan.key for each in listed]) == set()
    assert await loader.run_once() == LoadReport()
    # So it is when it happens again.
    again = await made_of(backend.store, merged, behind)
    loader = Loader(ListedObjects([later, again, whole]), warehouse, backend.store)
    assert await loader.run_once() == LoadReport(1, 0)
    assert set((await counted(backend)).values()) == {1}
    assert (await warehouse.status()).rows == 9


async def test_so_does_what_was_merged_of_objects_that_a_replay_had_written(
    backend: Backend, warehouse: Warehouse
) -> None:
    parts = [one for first in range(3) for one in await put(backend.store, events(NOON, first=first))]
    promoted = []
    for part in parts[:2]:
        key = part.plan.key.replace("lake/clicks/", "lake/clicks__replay_r1/")
        await backend.store.put(key, await backend.store.get(part.plan.key))
        promoted.append(replace(part, plan=replace(part.plan, key=key)))
    await warehouse.load([*promoted, parts[2]], backend.store)
    merged = await made_of(backend.store, *parts)
    assert await Loader(ListedObjects([merged]), warehouse, backend.store).run_once() == LoadReport(1, 0)
    assert await counted(backend) == {("0", 0): 1, ("0", 1): 1, ("0", 2): 1}
    assert (await warehouse.status()).rows == 3


async def test_rows_of_who_was_erased_while_the_warehouse_was_off_go_with_the_object_they_came_with(
    backend: Backend, warehouse: Warehouse
) -> None:
    [first] = await put(backend.store, events(NOON, NOON, NOON))
    [second] = await put(backend.store, events(NOON, NOON, first=3))
    await warehouse.load([first], backend.store)
    anew = [await made_of(backend.store, each, how="erased", without=[1, 3]) for each in (first, second)]
    assert await Loader(ListedObjects(anew), warehouse, backend.store).run_once() == LoadReport(2, 0)
    assert await counted(backend) == {("0", 0): 1, ("0", 2): 1, ("0", 4): 1}
    assert (await warehouse.status()).rows == 3


async def test_a_merged_object_of_which_nothing_is_loaded_is_loaded_as_any_other(
    backend: Backend, warehouse: Warehouse
) -> None:
    parts = [one for first in range(3) for one in await put(backend.store, events(NOON, first=first))]
    [other] = await put(backend.store, events(NOON, partition="00"))
    await warehouse.load([other], backend.store)
    merged = await made_of(backend.store, *parts)
    listed = ListedObjects([merged, other])
    assert await Loader(listed, warehouse, backend.store).run_once() == LoadReport(1, 3)
    assert await counted(backend) == {("0", 0): 1, ("0", 1): 1, ("0", 2): 1, ("00", 0): 1}
    if backend.engine is not None:
        assert not [each for each in backend.engine.ran if each.startswith("DELETE")]


async def test_rows_of_other_records_at_the_same_positions_stay(
    backend: Backend, warehouse: Warehouse
) -> None:
    """A position was set back, so that records stand twice: nothing tells the rows of the one from the other's."""
    [part] = await put(backend.store, events(NOON, NOON))
    [twin] = await put(backend.store, events(NOON, NOON))
    anew = await made_of(backend.store, part, how="erased", without=[0])
    # The part was never loaded, and the twin is a part to all appearances; the list has it.
    await warehouse.load([twin], backend.store)
    await Loader(ListedObjects([twin, anew]), warehouse, backend.store).run_once()
    assert await counted(backend) == {("0", 0): 1, ("0", 1): 2}


async def test_where_the_table_has_more_rows_than_came_with_the_parts_all_of_them_stay(
    backend: Backend, warehouse: Warehouse
) -> None:
    [part] = await put(backend.store, events(NOON, NOON))
    [longer] = await put(backend.store, events(NOON, NOON, NOON))  # no list has it any more
    await warehouse.load([part, longer], backend.store)
    merged = await made_of(backend.store, part)
    assert await warehouse.load([merged], backend.store, {merged.plan.key}) == LoadReport(1, 2)
    assert await counted(backend) == {("0", 0): 3, ("0", 1): 3, ("0", 2): 1}


async def test_of_several_objects_that_a_commit_wrote_for_an_hour_none_is_taken_for_the_other(
    backend: Backend, warehouse: Warehouse
) -> None:
    [both] = await put(backend.store, events(NOON, NOON, NOON, NOON))
    one, other = [await made_of(backend.store, both, how="1", without=gone) for gone in ([2, 3], [0, 1])]
    await warehouse.load([one, other], backend.store)
    anew = await made_of(backend.store, one, how="erased", without=[0])  # the lake has let go of the other
    await Loader(ListedObjects([anew]), warehouse, backend.store).run_once()
    assert await counted(backend) == {("0", 0): 1, ("0", 1): 2, ("0", 2): 1, ("0", 3): 1}


async def test_of_loaders_at_once_only_one_puts_a_merged_object_in_the_place_of_its_parts(
    backend: Backend, warehouse: Warehouse
) -> None:
    parts = [one for first in range(4) for one in await put(backend.store, events(NOON, first=first))]
    await warehouse.load(parts[:2], backend.store)
    merged = await made_of(backend.store, *parts)
    warehouses = [warehouse, *[await backend.warehouse() for _ in range(3)]]
    loads = (each.load([merged], backend.store, {merged.plan.key}) for each in warehouses)
    assert sorted([report.rows for report in await asyncio.gather(*loads)]) == [0, 0, 0, 2]
    assert await counted(backend) == {("0", n): 1 for n in range(4)}


async def test_visitors_rows_are_erased_and_nobody_elses(backend: Backend, warehouse: Warehouse) -> None:
    await warehouse.ensure({**COLUMNS, "visitor": pl.String(), "friend": pl.String()})
    odd = ["it's", "b\\'; DROP TABLE x --", "%", "\u00e9\u2603"]
    rows = events(*[NOON] * 8).with_columns(
        visitor=pl.Series(["ann", "bob", None, "ann-marie", *odd]),
        friend=pl.Series([None, "ann", "ann", None, *["bob"] * 4]),
    )
    await warehouse.load(await put(backend.store, rows), backend.store)
    assert isinstance(warehouse, Erases)
    columns = ["visitor", "friend"]
    assert await warehouse.erase(columns, ["ann", "nobody"], dry=True) == 3
    assert backend.query("SELECT count(*) FROM warehouse.clicks") == [(8,)]
    assert await warehouse.erase(columns, ["ann", "nobody"]) == 3
    assert await warehouse.erase(columns, odd) == 4
    assert backend.query("SELECT visitor FROM warehouse.clicks") == [("ann-marie",)]
    assert await warehouse.erase(columns, ["ann"]) == 0


async def test_what_is_not_loaded_or_was_put_aside_is_needed(backend: Backend, warehouse: Warehouse) -> None:
    loaded, missing, aside = [
        one for first in range(3) for one in await put(backend.store, events(NOON, first=first))
    ]
    await warehouse.load([loaded], backend.store)
    if isinstance(warehouse, Quarantines):
        await warehouse.quarantine(aside, "a text too long")
        assert aside.plan.key not in await warehouse.missing([aside.plan.key])
    needed = needed_by(warehouse)
    keys = [each.plan.key for each in (loaded, missing, aside)]
    assert await needed(keys) == {missing.plan.key, aside.plan.key}
    assert await needed([loaded.plan.key]) == set()
