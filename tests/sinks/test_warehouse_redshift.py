"""What only Redshift has: lost answers, transactions in each other's way, bad objects, SUPER, keys."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import polars as pl
import psycopg
import pytest

from streamproc.errors import DependencyError, Inconsistent
from streamproc.model import CommittedObject
from streamproc.settings.redshift import Direct, parse_redshift
from streamproc.sinks import redshift_data_api, redshift_direct, redshift_session, warehouse_redshift
from streamproc.sinks import redshift_statements as sql
from streamproc.sinks.loader import Loader
from streamproc.sinks.redshift_data_api import DataApiSession
from streamproc.sinks.redshift_direct import DirectSession
from streamproc.sinks.warehouse import LoadReport, Rows, TableLayout
from streamproc.sinks.warehouse_redshift import RedshiftWarehouse
from tests.sinks.topologies import COLUMNS, events
from tests.sinks.warehouses import Backend, ListedObjects, opened_backend, put

pytestmark = pytest.mark.aws

NOON = int(datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture(params=["redshift-data", "redshift"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with opened_backend(request.param, request) as backend:
        yield backend


@pytest.fixture
async def data_api(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with opened_backend("redshift-data", request) as backend:
        yield backend


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warehouse_redshift, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(redshift_data_api, "_FIRST_LOOK", 0.02)


async def opened(backend: Backend, stream: str = "clicks", layout: TableLayout | None = None) -> Any:
    warehouse = await backend.warehouse(stream, layout)
    assert isinstance(warehouse, RedshiftWarehouse)
    return warehouse


async def until(true: Callable[[], Any]) -> None:
    for _ in range(6000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def ran(backend: Backend, word: str) -> list[str]:
    assert backend.engine is not None
    return [statement for statement in backend.engine.ran if statement.startswith(word)]


def count(backend: Backend) -> int:
    return int(backend.query("SELECT count(*) FROM warehouse.clicks")[0][0])


async def manifests(backend: Backend) -> list[str]:
    return [found.key async for found in backend.store.list("manifests/")]


async def rewritten(
    backend: Backend, committed: CommittedObject, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> CommittedObject:
    """The object with other rows, put in its place; the ledger's size is the new one's."""
    frame = change(pl.read_parquet(io.BytesIO(await backend.store.get(committed.plan.key))))
    body = io.BytesIO()
    frame.write_parquet(body)
    stored = await backend.store.put(committed.plan.key, body.getvalue())
    return replace(committed, size=stored.size, checksum=stored.checksum)


async def test_an_answer_that_is_lost_is_asked_for_again_and_the_batch_runs_once(data_api: Backend) -> None:
    warehouse = await opened(data_api)
    objects = await put(data_api.store, events(NOON, NOON))
    api = data_api.data_api
    assert api is not None
    before = len(api.batches)
    api.lose["BatchExecuteStatement"] = 2
    api.lose["DescribeStatement"] = 1
    assert await warehouse.load(objects, data_api.store) == LoadReport(1, 2)
    assert api.lose.total() == 0
    assert count(data_api) == 2
    assert len(ran(data_api, "COPY")) == 1
    assert len(api.batches) - before == 2  # what columns there are, and the load
    assert api.problems == []


@pytest.mark.parametrize("operation", ["BatchExecuteStatement", "DescribeStatement"])
async def test_a_load_whose_outcome_was_never_heard_is_found_out_by_the_next(
    data_api: Backend, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redshift_data_api, "_ATTEMPTS", 1)
    warehouse = await opened(data_api)
    objects = await put(data_api.store, events(NOON, NOON))
    api = data_api.data_api
    assert api is not None
    answer = DataApiSession._submit

    async def lose_the_load(self: DataApiSession, statements: list[str]) -> str:
        if any(statement.startswith("COPY") for statement in statements):
            api.lose[operation] = 3 if operation == "DescribeStatement" else 1
        return await answer(self, statements)

    with monkeypatch.context() as patch:
        patch.setattr(DataApiSession, "_submit", lose_the_load)
        with pytest.raises(DependencyError, match="redshift-data analytics/dev"):
            await warehouse.load(objects, data_api.store)
    assert await warehouse.load(objects, data_api.store) == LoadReport()
    assert count(data_api) == 2


async def test_a_commit_whose_answer_was_lost_is_not_made_again(request: pytest.FixtureRequest) -> None:
    async with opened_backend("redshift", request) as backend:
        warehouse = await opened(backend)
        objects = await put(backend.store, events(NOON, NOON))
        await warehouse.missing(["x"])
        assert backend.wire is not None
        refused = warehouse._change

        async def lose(statements: list[str]) -> Any:
            if any(statement.startswith("COPY") for statement in statements):
                backend.wire.lose_commits = 1
            return await refused(statements)

        warehouse._change = lose
        with pytest.raises(DependencyError, match=r"redshift 127\.0\.0\.1"):
            await warehouse.load(objects, backend.store)
        warehouse._change = refused
        assert await warehouse.missing([objects[0].plan.key]) == set()
        assert await warehouse.load(objects, backend.store) == LoadReport()
        assert count(backend) == 2
        assert backend.wire.connections == 2


async def test_a_loader_killed_after_it_asked_leaves_a_batch_that_the_others_respect(
    data_api: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    async def die(self: DataApiSession, batch: str) -> Any:
        raise Killed

    first, second = await opened(data_api), await opened(data_api)
    objects = await put(data_api.store, events(NOON, NOON)) + await put(data_api.store, events(NOON, first=2))
    locks = len(ran(data_api, "LOCK"))
    with psycopg.connect(data_api.conninfo) as holder:
        holder.execute("LOCK TABLE warehouse.loads IN ACCESS EXCLUSIVE MODE")
        waits = first._session._wait
        with monkeypatch.context() as patch:

            async def wait_or_die(self: DataApiSession, batch: str) -> Any:
                sqls = data_api.data_api.batches[batch].request["Sqls"]  # type: ignore[union-attr] - it is one
                return await (die(self, batch) if len(sqls) > 1 else waits(batch))

            patch.setattr(DataApiSession, "_wait", wait_or_die)
            with pytest.raises(Killed):
                await first.load(objects[:1], data_api.store)
        loading = asyncio.create_task(second.load(objects, data_api.store))
        await until(lambda: len(ran(data_api, "LOCK")) == locks + 2)
        holder.rollback()
        report = await loading
    # Which of the two was first is the server's business; that nothing is there twice is ours.
    await until(lambda: all(each.ended.is_set() for each in data_api.data_api.batches.values()))  # type: ignore[union-attr] - it is one
    assert report.objects in {1, 2}
    assert count(data_api) == 3
    assert (await second.status()).objects == 2


async def test_cancelling_a_load_ends_it_there_too(backend: Backend) -> None:
    warehouse = await opened(backend)
    objects = await put(backend.store, events(NOON, NOON))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(backend.conninfo) as holder:
        holder.execute("LOCK TABLE warehouse.loads IN ACCESS EXCLUSIVE MODE")
        loading = asyncio.create_task(warehouse.load(objects, backend.store))
        await until(lambda: backend.query(waiting) == [(1,)])
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        if backend.data_api is not None:
            await until(lambda: backend.query(waiting) == [(0,)])
            assert backend.data_api.calls["CancelStatement"] == 1
    await until(lambda: backend.query(waiting) == [(0,)])
    assert await warehouse.load(objects, backend.store) == LoadReport(1, 2)
    assert count(backend) == 2


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_under_either_isolation_of_redshift_loaders_at_once_load_each_object_once(
    backend: Backend, isolation: str
) -> None:
    assert backend.engine is not None
    backend.engine.isolation = isolation
    await opened(backend)
    objects = [one for n in range(3) for one in await put(backend.store, events(NOON, first=n))]
    warehouses = [await opened(backend) for _ in range(4)]
    reports = await asyncio.gather(*(each.load(objects, backend.store) for each in warehouses))
    assert sum(reports, LoadReport()) == LoadReport(3, 3)
    assert count(backend) == 3


@pytest.mark.parametrize("where", ["LOCK", "COPY", "INSERT"])
async def test_a_transaction_that_others_were_in_the_way_of_is_run_again(
    backend: Backend, where: str
) -> None:
    warehouse = await opened(backend)
    objects = await put(backend.store, events(NOON, NOON))
    assert backend.engine is not None
    abort = "1023 DETAIL: Serializable isolation violation on table - 108379, transactions forming the cycle are: 1, 2"
    backend.engine.fail += [(where, abort), (where, abort)]
    assert await warehouse.load(objects, backend.store) == LoadReport(1, 2)
    assert backend.engine.fail == []
    assert count(backend) == 2


async def test_each_schema_is_copied_once_with_its_columns(backend: Backend) -> None:
    warehouse = await opened(backend)
    plain = [one for first in range(3) for one in await put(backend.store, events(NOON, first=first))]
    wider = events(NOON, first=3).select(pl.lit("NO").alias("country"), *COLUMNS)
    other = await put(backend.store, wider)
    assert await warehouse.load([*plain[:2], *other, plain[2]], backend.store) == LoadReport(4, 4)
    copies = [statement.split(" FROM")[0] for statement in ran(backend, "COPY")]
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    assert copies == [f'COPY warehouse."clicks" ({each})' for each in (names, f'"country", {names}')]
    assert backend.query("SELECT position, country FROM warehouse.clicks ORDER BY 1") == [
        (0, None),
        (1, None),
        (2, None),
        (3, "NO"),
    ]
    assert await manifests(backend) == []


async def test_more_schemas_than_a_transaction_takes_are_loaded_in_several(data_api: Backend) -> None:
    warehouse = await opened(data_api, layout=TableLayout(json=frozenset({"properties"})))
    objects = []
    for number in range(8):
        rows = events(NOON, first=number).with_columns(properties=pl.lit("{}"), **{f"c{number}": pl.lit(1)})
        objects += await put(data_api.store, rows)
    assert await warehouse.load(objects, data_api.store) == LoadReport(8, 8)
    assert count(data_api) == 8
    assert data_api.data_api is not None
    assert data_api.data_api.problems == []


async def test_json_becomes_super_and_nested_columns_too(backend: Backend) -> None:
    layout = TableLayout(json=frozenset({"properties"}))
    warehouse = await opened(backend, layout=layout)
    texts = ['{"a": {"b": [1, null, "\\u00e9"]}}', None, "[]", '"text"', "0.5"]
    rows = events(*[NOON] * 5).with_columns(
        properties=pl.Series(texts, dtype=pl.String), tags=pl.Series([["x", "y"], [], None, ["z"], []])
    )
    assert await warehouse.load(await put(backend.store, rows), backend.store) == LoadReport(1, 5)
    found = backend.query("SELECT properties, tags FROM warehouse.clicks ORDER BY position")
    assert found == [
        (None if text is None else json.loads(text), tags)
        for text, tags in zip(texts, rows["tags"].to_list(), strict=True)
    ]
    [(kind,)] = backend.query(
        "SELECT domain_name FROM information_schema.columns"
        " WHERE (table_schema, table_name, column_name) = ('warehouse', 'clicks', 'properties')"
    )
    assert kind == "super"


async def test_json_can_be_kept_as_text_where_the_table_has_it_so(backend: Backend) -> None:
    await backend.warehouse("clicks")
    with psycopg.connect(backend.conninfo, autocommit=True) as connection:
        connection.execute("ALTER TABLE warehouse.clicks ADD COLUMN properties character varying(100)")
    warehouse = await opened(backend, layout=TableLayout(json=frozenset({"properties"})))
    rows = events(NOON).with_columns(properties=pl.lit('{"a": 1}'))
    await warehouse.ensure(rows.schema)
    await warehouse.load(await put(backend.store, rows), backend.store)
    assert backend.query("SELECT properties FROM warehouse.clicks") == [('{"a": 1}',)]


async def _break(backend: Backend, objects: list[CommittedObject], kind: str, at: int) -> None:
    good = objects[at]
    key = good.plan.key
    if kind == "gone":
        await backend.store.delete(key)
    elif kind == "garbage":
        await backend.store.put(key, b"PAR1" + b"\0" * (good.size - 12) + b"\0\0\0\0PAR1")
    elif kind == "other size":
        objects[at] = replace(good, size=good.size + 1)
    elif kind == "other rows":
        objects[at] = replace(good, plan=replace(good.plan, rows=7))
    elif kind == "other type":
        objects[at] = await rewritten(
            backend, good, lambda f: f.with_columns(pl.col("value").cast(pl.String))
        )
    elif kind == "other name":
        objects[at] = await rewritten(backend, good, lambda f: f.rename({"host": 'Ho"st'}))
    elif kind == "too long":
        objects[at] = await rewritten(backend, good, lambda f: f.with_columns(host=pl.lit("x" * 65_536)))
    else:
        objects[at] = await rewritten(backend, good, lambda f: f.with_columns(properties=pl.lit("{no json")))


BROKEN = ["other name", "gone", "garbage", "other size", "other rows", "other type", "too long", "no json"]


async def test_bad_objects_are_put_aside_and_the_rest_loads(backend: Backend) -> None:
    warehouse = await opened(backend, layout=TableLayout(json=frozenset({"properties"})))
    rows = [events(NOON, first=n).with_columns(properties=pl.lit("{}")) for n in range(12)]
    objects = [one for each in rows for one in await put(backend.store, each)]
    for place, kind in enumerate(BROKEN):
        await _break(backend, objects, kind, place + 2)
    listed = ListedObjects(objects)
    loader = Loader(listed, warehouse, backend.store)
    assert await loader.run_once() == LoadReport(4, 4)
    good = [0, 1, 10, 11]
    assert backend.query("SELECT position FROM warehouse.clicks ORDER BY 1") == [(n,) for n in good]
    aside = {each.key: each.problem for each in await warehouse.quarantined()}
    assert set(aside) == {objects[place + 2].plan.key for place in range(len(BROKEN))}
    problems = [aside[objects[place + 2].plan.key] for place in range(len(BROKEN))]
    for problem, said in zip(
        problems,
        [
            "not a name",
            "not in the store",
            "Parquet",
            "bytes in the store",
            "rows of the ledger",
            "value",
            "length",
            "json",
        ],
        strict=True,
    ):
        assert said in problem
    status = await warehouse.status()
    assert (status.objects, status.rows, status.quarantined) == (4, 4, len(BROKEN))
    # They are not tried again, until somebody says so.
    assert await loader.run_once() == LoadReport()
    for place in range(2, 10):
        [objects[place]] = await put(backend.store, rows[place])
    await warehouse.release()
    assert await Loader(ListedObjects(objects), warehouse, backend.store).run_once() == LoadReport(8, 8)
    assert (await warehouse.status()).quarantined == 0
    assert await manifests(backend) == []


async def test_when_nothing_of_a_batch_can_be_loaded_nothing_is_put_aside(backend: Backend) -> None:
    warehouse = await opened(backend)
    objects = [one for n in range(3) for one in await put(backend.store, events(NOON, first=n))]
    for committed in objects:
        await backend.store.delete(committed.plan.key)
    with pytest.raises(Inconsistent, match="not in the store"):
        await Loader(ListedObjects(objects), warehouse, backend.store).run_once()
    assert await warehouse.quarantined() == []


@pytest.mark.parametrize("trouble", ["the role", "the cluster"])
async def test_trouble_on_the_way_puts_nothing_aside(backend: Backend, trouble: str) -> None:
    warehouse = await opened(backend)
    objects = [one for n in range(3) for one in await put(backend.store, events(NOON, first=n))]
    assert backend.engine is not None
    if trouble == "the role":
        backend.engine.roles.clear()
    else:
        backend.engine.fail += [("COPY", "Disk Full Detail: error 1016")] * 1
    with pytest.raises(DependencyError, match=r"COPY warehouse.*(assume IAM Role|Disk Full)"):
        await Loader(ListedObjects(objects), warehouse, backend.store).run_once()
    assert (await warehouse.quarantined(), count(backend)) == ([], 0)


async def test_an_object_that_is_loaded_cannot_be_put_aside(backend: Backend) -> None:
    warehouse = await opened(backend)
    [loaded, other] = await put(backend.store, events(NOON)) + await put(backend.store, events(NOON, first=1))
    await warehouse.load([loaded], backend.store)
    await warehouse.quarantine(loaded, "late opinion")
    await warehouse.quarantine(other, "it's \\ bad\n\x00 'truly' \u00e9")
    await warehouse.quarantine(other, "once more")
    assert [(each.key, each.problem) for each in await warehouse.quarantined()] == [
        (other.plan.key, "it?s ? bad?? ?truly? ?")
    ]
    assert (await warehouse.status()).objects == 1
    assert await warehouse.missing([loaded.plan.key, other.plan.key]) == set()


async def test_a_table_has_the_keys_that_were_asked_for(backend: Backend) -> None:
    await opened(backend, "plain")
    await opened(backend, "keyed", TableLayout(sort_key=("host", "event_time", "nowhere"), dist_key="host"))
    [plain, keyed] = [each for each in ran(backend, "CREATE TABLE") if '"event_id"' in each]
    assert plain.endswith('DISTSTYLE AUTO COMPOUND SORTKEY ("event_time")')
    assert keyed.endswith('DISTKEY ("host") COMPOUND SORTKEY ("host", "event_time")')


async def test_a_promotion_takes_more_keys_than_a_transaction_takes_statements(
    data_api: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redshift_session, "MOST_BATCH_BYTES", 100_000)
    warehouse, replay = await opened(data_api), await opened(data_api, "clicks_r1")
    await replay.load(await put(data_api.store, events(NOON)), data_api.store)
    keys = [f"lake/clicks/{'x' * 900}-{number}.parquet" for number in range(400)]
    assert await warehouse.adopt("clicks_r1", [Rows("0", -1, 5)], keys) is True
    assert await warehouse.missing(keys) == set()
    assert count(data_api) == 1
    assert data_api.data_api is not None
    assert data_api.data_api.problems == []


async def test_neither_a_promotion_nor_loaders_wait_for_who_reads_the_replays_own_table(
    backend: Backend,
) -> None:
    warehouse, replay = await opened(backend), await opened(backend, "clicks_r1")
    await replay.load(await put(backend.store, events(NOON)), backend.store)
    later = await put(backend.store, events(NOON, first=1))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with asyncio.timeout(30):
        with psycopg.connect(backend.conninfo) as analyst:  # in a transaction from here on
            analyst.execute("SELECT count(*) FROM warehouse.clicks_r1")
            assert await warehouse.adopt("clicks_r1", [Rows("0", -1, 0)], []) is True
            removing = asyncio.create_task(replay.remove())
            await until(lambda: backend.query(waiting) == [(1,)])
            assert await warehouse.load(later, backend.store) == LoadReport(1, 1)
        await removing
    assert await warehouse.adopt("clicks_r1", [Rows("0", -1, 0)], []) is False
    assert count(backend) == 2
    assert backend.query("SELECT to_regclass('warehouse.clicks_r1') IS NULL") == [(True,)]
    assert backend.query("SELECT DISTINCT stream FROM warehouse.loads") == [("clicks",)]


async def test_a_promotion_that_has_happened_since_it_was_looked_for_is_not_made_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse, replay = await opened(backend), await opened(backend, "clicks_r1")
    await replay.load(await put(backend.store, events(NOON)), backend.store)
    assert await warehouse.adopt("clicks_r1", [Rows("0", -1, 0)], []) is True
    monkeypatch.setattr(sql, "keys_among", lambda *_: ["SELECT 1 FROM warehouse.loads WHERE 1 = 0"])
    assert await warehouse.adopt("clicks_r1", [], []) is False
    assert count(backend) == 1


@pytest.mark.filterwarnings("ignore:ssl:DeprecationWarning")  # the driver's own
async def test_an_address_that_does_not_answer_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redshift_direct, "_CONNECT_WITHIN", 0.1)
    with ThreadPoolExecutor(1) as threads, socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.get_running_loop().set_default_executor(threads)
        target = parse_redshift(f"redshift://me:secret@127.0.0.1:{silent.getsockname()[1]}/dev")
        assert isinstance(target, Direct)
        with pytest.raises(DependencyError, match="time out"):
            await DirectSession(target).open()
        assert await asyncio.wait_for(asyncio.to_thread(int), 10) == 0


async def test_a_statement_may_take_longer_than_a_connection_as_long_as_the_server_is_there(
    request: pytest.FixtureRequest,
) -> None:
    async with opened_backend("redshift", request) as backend:
        warehouse = await opened(backend)
        connection = warehouse._session._connection._usock
        assert connection.gettimeout() is None
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
        assert [connection.getsockopt(socket.IPPROTO_TCP, each) for each in options] == [30, 10, 3, 60_000]


async def test_a_connection_does_not_wait_without_end_for_a_lock(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_backend("redshift", request) as backend:
        warehouse = await opened(backend)
        objects = await put(backend.store, events(NOON))
        with psycopg.connect(backend.conninfo) as other:
            other.execute("LOCK TABLE warehouse.loads")
            monkeypatch.setattr(redshift_direct, "FIRST_WITHIN", 1.0)
            with pytest.raises(DependencyError, match=r"LOCK warehouse\.loads has not ended in 1 seconds"):
                await warehouse.load(objects, backend.store)
        monkeypatch.undo()
        assert await warehouse.load(objects, backend.store) == LoadReport(1, 1)


async def test_a_lock_that_is_never_given_back_ends_the_wait_and_what_waits_there(
    data_api: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = await opened(data_api)
    objects = await put(data_api.store, events(NOON))
    api = data_api.data_api
    assert api is not None
    monkeypatch.setattr(redshift_data_api, "FIRST_WITHIN", 0.1)
    with psycopg.connect(data_api.conninfo) as other:
        other.execute("LOCK TABLE warehouse.loads")
        with pytest.raises(DependencyError, match=r"LOCK warehouse\.loads has not ended in 0\.1 seconds"):
            await warehouse.load(objects, data_api.store)
        waiting = [*api.batches.values()][-1]
        await until(waiting.ended.is_set)
        assert waiting.status == "ABORTED"
    monkeypatch.undo()
    assert await warehouse.load(objects, data_api.store) == LoadReport(1, 1)


async def test_more_visitors_are_erased_at_once_than_a_statement_takes(data_api: Backend) -> None:
    warehouse = await opened(data_api)
    await warehouse.ensure({**COLUMNS, "visitor": pl.String(), "friend": pl.String()})
    ids = [str(uuid.UUID(int=number)) for number in range(1501)]
    rows = events(NOON, NOON, NOON).with_columns(
        visitor=pl.Series([ids[0], "bob", "bob"]), friend=pl.Series([None, ids[1499], ids[1500]])
    )
    await warehouse.load(await put(data_api.store, rows), data_api.store)
    assert await warehouse.erase(["visitor", "friend"], ids[:1500]) == 2
    assert data_api.query("SELECT friend FROM warehouse.clicks") == [(ids[1500],)]
    assert data_api.data_api is not None
    assert data_api.data_api.problems == []
