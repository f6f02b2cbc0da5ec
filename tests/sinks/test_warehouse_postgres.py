"""What only the warehouse in PostgreSQL has; what all of them share is in :mod:`tests.sinks.test_warehouse`."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from streamproc.errors import ConfigError, DependencyError, Inconsistent, MissingObject
from streamproc.model import CommittedObject, PlannedObject
from streamproc.sinks.loader import Loader, LoadLimits
from streamproc.sinks.local import LocalStore
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import LoadReport, open_warehouse
from streamproc.sinks.warehouse_postgres import PostgresWarehouse, to_csv
from tests.sinks.topologies import COLUMNS, events
from tests.sinks.warehouses import ListedObjects, put

NOON = int(datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture
async def store(tmp_path: Path) -> ObjectStore:
    store = LocalStore(f"file://{tmp_path}", durable=False)
    await store.open()
    return store


@pytest.fixture
async def warehouse(postgres: str) -> AsyncIterator[PostgresWarehouse]:
    warehouse = PostgresWarehouse(postgres, "clicks")
    await warehouse.open()
    await warehouse.ensure(COLUMNS)
    yield warehouse
    await warehouse.close()


def query(conninfo: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(conninfo) as connection:
        connection.execute("SET timezone TO 'UTC'")
        return connection.execute(text.encode()).fetchall()


async def test_a_loader_killed_in_the_middle_leaves_nothing_and_the_next_pass_loads_all(
    postgres: str, warehouse: PostgresWarehouse, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [one for first in range(6) for one in await put(store, events(NOON, first=first))]
    copies = 0
    copy = PostgresWarehouse._copy

    async def copy_then_die(self: PostgresWarehouse, conn: Any, frame: pl.DataFrame) -> int:
        nonlocal copies
        copies += 1
        if copies == 4:
            with psycopg.connect(postgres, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        return await copy(self, conn, frame)

    loader = Loader(ListedObjects(objects), warehouse, store)
    with monkeypatch.context() as patch:
        patch.setattr(PostgresWarehouse, "_copy", copy_then_die)
        with pytest.raises(DependencyError, match="load the warehouse"):
            await loader.run_once()
    assert query(postgres, "SELECT count(*) FROM warehouse.clicks") == [(0,)]
    assert await loader.run_once() == LoadReport(6, 6)
    assert await loader.run_once() == LoadReport(0, 0)


async def test_cancelling_in_the_middle_of_a_load_keeps_nothing(
    postgres: str, warehouse: PostgresWarehouse, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [one for first in range(3) for one in await put(store, events(NOON, first=first))]
    copying = asyncio.Event()

    async def hang(self: PostgresWarehouse, conn: Any, frame: pl.DataFrame) -> int:
        copying.set()
        await conn.execute("SELECT pg_sleep(60)")
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(PostgresWarehouse, "_copy", hang)
        running = asyncio.create_task(Loader(ListedObjects(objects), warehouse, store).run(interval=60))
        await copying.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (await warehouse.status()).objects == 0
    assert await warehouse.load(objects, store) == LoadReport(3, 3)


async def test_a_table_that_is_read_for_long_is_removed_another_time(
    postgres: str, warehouse: PostgresWarehouse, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.sinks.warehouse_postgres._PATIENCE", "50ms")
    await warehouse.load(await put(store, events(NOON)), store)
    with psycopg.connect(postgres) as analyst:  # in a transaction from here on
        analyst.execute("SELECT count(*) FROM warehouse.clicks")
        with pytest.raises(DependencyError, match=r"warehouse\.clicks: .*50ms.*pg_stat_activity"):
            await warehouse.remove()
    assert (await warehouse.status()).rows == 1
    await warehouse.remove()
    assert (await warehouse.status()).rows == 0
    assert query(postgres, "SELECT to_regclass('warehouse.clicks') IS NULL") == [(True,)]


async def test_who_reads_the_table_for_long_holds_up_new_columns_and_nobody_else(
    postgres: str, warehouse: PostgresWarehouse, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamproc.sinks.warehouse_postgres._PATIENCE", "50ms")
    wider = await put(store, events(NOON).with_columns(more=pl.lit("a")))
    in_use = r"warehouse\.clicks: is to be extended, .*50ms.*pg_stat_activity"
    with psycopg.connect(postgres, options="-c idle_in_transaction_session_timeout=10s") as analyst:
        analyst.execute("SELECT count(*) FROM warehouse.clicks")
        with pytest.raises(DependencyError, match=in_use):
            await warehouse.ensure({**COLUMNS, "more": pl.String()})
        with pytest.raises(DependencyError, match=in_use):
            await warehouse.load(wider, store)
        assert analyst.execute("SELECT count(*) FROM warehouse.clicks").fetchone() == (0,)
    assert await warehouse.load(wider, store) == LoadReport(1, 1)
    assert query(postgres, "SELECT more FROM warehouse.clicks") == [("a",)]


async def test_a_database_that_cannot_hold_every_text_is_refused(postgres: str) -> None:
    name = f"other_{uuid.uuid4().hex[:12]}"
    create = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(create.encode())
        other = PostgresWarehouse(make_conninfo(postgres, dbname=name), "clicks")
        try:
            await other.open()
            with pytest.raises(ConfigError, match=f"warehouse: {name} is encoded in LATIN1"):
                await other.ensure(COLUMNS)
        finally:
            await other.close()
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_an_object_with_other_rows_than_the_ledger_says_is_refused(
    warehouse: PostgresWarehouse, store: ObjectStore
) -> None:
    [good] = await put(store, events(NOON, NOON))
    plan = PlannedObject(**{name: getattr(good.plan, name) for name in PlannedObject.__slots__} | {"rows": 3})
    with pytest.raises(Inconsistent, match="2 rows copied, 3 in the ledger"):
        await warehouse.load([CommittedObject(plan, good.size, good.checksum, good.committed_at)], store)
    with pytest.raises(Inconsistent, match="bytes in the store"):
        await warehouse.load([CommittedObject(good.plan, 1, good.checksum, good.committed_at)], store)
    assert (await warehouse.status()).objects == 0


async def test_a_column_that_changed_its_type_is_a_configuration_mistake(
    warehouse: PostgresWarehouse,
) -> None:
    with pytest.raises(ConfigError, match=r"column value: is double precision and should be text"):
        await warehouse.ensure({**COLUMNS, "value": pl.String()})


async def test_an_object_whose_column_had_another_type_is_loaded_where_its_values_can_have_that_of_the_table(
    postgres: str, warehouse: PostgresWarehouse, store: ObjectStore
) -> None:
    """They were committed where no warehouse was known that would have refused the page."""
    whole = await put(store, events(NOON).with_columns(value=pl.lit(7, pl.Int64)))
    texts = await put(store, events(NOON, first=1).with_columns(value=pl.lit("2.5")))
    assert await warehouse.load(whole + texts, store) == LoadReport(2, 2)
    values = "SELECT value FROM warehouse.clicks ORDER BY position"
    assert query(postgres, values) == [(7.0,), (2.5,)]
    [words] = await put(store, events(NOON, first=2).with_columns(value=pl.lit("many")))
    with pytest.raises(Inconsistent, match=r"\.parquet: column value is String, .* double precision"):
        await warehouse.load([words], store)
    with psycopg.connect(postgres, autocommit=True) as owner:
        owner.execute("ALTER TABLE warehouse.clicks ALTER value TYPE text")
    assert await warehouse.load([words], store) == LoadReport(1, 1)
    assert query(postgres, values) == [("7",), ("2.5",), ("many",)]


async def test_batches_keep_to_the_limits(warehouse: PostgresWarehouse, store: ObjectStore) -> None:
    sizes = [3, 3, 3, 9, 1, 1, 1, 1]
    objects, first = [], 0
    for size in sizes:
        objects += await put(store, events(*[NOON] * size, first=first))
        first += size
    loaded: list[list[int]] = []

    class Counting(PostgresWarehouse):
        async def load(
            self, objects: Sequence[CommittedObject], store: ObjectStore, instead: Collection[str] = ()
        ) -> LoadReport:
            loaded.append([one.plan.rows for one in objects])
            return LoadReport()

    counting = Counting("postgresql://unused", "clicks")
    counting._database = warehouse._database
    await Loader(ListedObjects(objects[:7]), counting, store, LoadLimits(objects=3, rows=7)).run_once()
    assert loaded == [[3, 3], [3], [9], [1, 1, 1]]


async def test_a_running_loader_survives_an_absent_warehouse_and_looks_at_everything_first(
    warehouse: PostgresWarehouse, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = ListedObjects(await put(store, events(NOON)))
    passes = asyncio.Queue[None]()
    missing = PostgresWarehouse.missing

    async def absent_once(self: PostgresWarehouse, keys: Sequence[str]) -> set[str]:
        passes.put_nowait(None)
        if len(listed.asked) == 1:
            raise DependencyError("warehouse", "away")
        return await missing(self, keys)

    monkeypatch.setattr(PostgresWarehouse, "missing", absent_once)
    running = asyncio.create_task(Loader(listed, warehouse, store).run(interval=0))
    for _ in range(4):
        await passes.get()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert listed.asked[:2] == [None, None]
    assert None not in listed.asked[2:4]
    assert (await warehouse.status()).rows == 1


async def test_objects_that_somebody_has_deleted_keep_no_others_from_being_loaded(
    postgres: str, warehouse: PostgresWarehouse, store: ObjectStore
) -> None:
    objects = [one for first in range(8) for one in await put(store, events(NOON, first=first))]
    gone = [objects[place].plan.key for place in (0, 1, 5)]
    bodies = [await store.get(key) for key in gone]
    for key in gone:
        await store.delete(key)
    listed = ListedObjects(objects)
    loader = Loader(listed, warehouse, store)
    with pytest.raises(MissingObject, match=r"get: no such object, nor are 2 others there \(everything else"):
        await loader.load_new()
    assert query(postgres, "SELECT position FROM warehouse.clicks ORDER BY 1") == [
        (position,) for position in (2, 3, 4, 6, 7)
    ]
    with pytest.raises(MissingObject, match="nor are 2 others there"):
        await loader.load_new()
    assert listed.asked[0] is None
    assert listed.asked[1] is not None, "it looks at the whole list again"
    for key, body in zip(gone, bodies, strict=True):
        await store.put(key, body)
    assert await loader.run_once() == LoadReport(3, 3)
    assert query(postgres, "SELECT count(*), count(DISTINCT position) FROM warehouse.clicks") == [(8, 8)]


@pytest.mark.parametrize(("look_at", "overlooked"), [(0, 1), (4, 1), (5, 0)])
async def test_who_remembers_no_pass_before_looks_back_from_the_newest_object(
    postgres: str,
    warehouse: PostgresWarehouse,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    look_at: int,
    overlooked: int,
) -> None:
    """A day behind the oldest one that it misses, and at so many objects at least."""
    now = datetime.now(UTC)
    hours = [90, 80, 50, 23, 2, 1, 0]  # since each was committed
    listed = []
    for place, ago in enumerate(hours):
        [one] = await put(store, events(NOON, first=place))
        listed.append(replace(one, committed_at=now - timedelta(hours=ago)))
    await warehouse.load([listed[place] for place in (0, 2, 4)], store)
    asked: set[str] = set()
    missing = PostgresWarehouse.missing

    async def noted(self: PostgresWarehouse, keys: Sequence[str]) -> set[str]:
        asked.update(keys)
        return await missing(self, keys)

    monkeypatch.setattr(PostgresWarehouse, "missing", noted)
    loader = Loader(ListedObjects(listed), warehouse, store, LoadLimits(look_at=look_at))
    assert await loader.load_rest() == LoadReport(4 - overlooked, 4 - overlooked)
    assert (listed[0].plan.key in asked) == (not overlooked)
    assert await loader.load_rest() == LoadReport(0, 0)
    assert await loader.run_once() == LoadReport(overlooked, overlooked)
    assert query(postgres, "SELECT count(*), count(DISTINCT position) FROM warehouse.clicks") == [(7, 7)]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | texts, st.none() | st.floats(), st.none() | st.binary(max_size=5)), min_size=1
    )
)
def test_any_text_number_and_bytes_survive_the_copy(postgres: str, rows: list[tuple[Any, Any, Any]]) -> None:
    frame = pl.DataFrame(rows, {"t": pl.String(), "f": pl.Float64(), "b": pl.Binary()}, orient="row")
    with psycopg.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE x (t text, f double precision, b bytea, n serial)")
        with cursor.copy("COPY x (t, f, b) FROM STDIN (FORMAT csv)") as copy:
            copy.write(to_csv(frame))
        found = cursor.execute("SELECT t, f, b FROM x ORDER BY n").fetchall()
        connection.rollback()
    assert len(found) == len(rows)
    for (text, number, data), (text_found, number_found, data_found) in zip(rows, found, strict=True):
        assert text_found == (None if text is None else text.replace("\0", "\ufffd"))
        assert data_found == data
        assert number_found == number or (
            number is not None and math.isnan(number) and math.isnan(number_found)
        )


def test_every_type_of_column_is_written_as_postgresql_reads_it(postgres: str) -> None:
    frame = pl.DataFrame(
        {
            "flag": [True, None],
            "small": pl.Series([7, None], dtype=pl.Int8),
            "day": [date(2026, 7, 1), None],
            "time": pl.Series([datetime(1969, 1, 1, 0, 0, 0, 1, UTC), None], dtype=pl.Datetime("us", "UTC")),
            "many": [["a", 'b"'], None],
            "nested": pl.Series([{"x": 1}, None], dtype=pl.Struct({"x": pl.Int64()})),
        }
    )
    with psycopg.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("SET timezone TO 'UTC'")
        cursor.execute(
            "CREATE TEMPORARY TABLE x"
            " (flag boolean, small smallint, day date, time timestamptz, many json, nested json)"
        )
        with cursor.copy("COPY x FROM STDIN (FORMAT csv)") as copy:
            copy.write(to_csv(frame))
        assert cursor.execute("SELECT * FROM x").fetchall() == [
            (True, 7, date(2026, 7, 1), datetime(1969, 1, 1, 0, 0, 0, 1, UTC), ["a", 'b"'], {"x": 1}),
            (None,) * 6,
        ]


def test_a_url_that_is_no_warehouse_is_a_configuration_mistake_without_its_password() -> None:
    assert open_warehouse("none", "clicks") is None
    for url in ("mysql://me:hunter2@host/db", "postgresql//me:hunter2@host/db"):
        with pytest.raises(ConfigError, match="warehouse: is not one we know") as caught:
            open_warehouse(url, "clicks")
        assert "hunter2" not in str(caught.value)
