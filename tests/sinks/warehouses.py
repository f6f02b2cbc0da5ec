"""The backends of the warehouse, each on real parts, for the tests that they share."""

from __future__ import annotations

import io
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import polars as pl
import psycopg
import pytest
from psycopg import conninfo

from streamproc.model import CommittedObject, PlannedObject
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.sinks.object_store import ObjectStore, open_store
from streamproc.sinks.warehouse import TableLayout, Warehouse, open_warehouse
from tests.sinks.topologies import COLUMNS, advance, topology
from tests.support.redshift_data_api import FakeDataApi
from tests.support.redshift_dialect import ROLE, Engine
from tests.support.redshift_wire import FakeWire


@dataclass
class Backend:
    """A warehouse of a kind, on the database ``conninfo``. ``reads``: the store's method by which it reads objects."""

    url: str
    conninfo: str
    store: ObjectStore
    reads: str
    engine: Engine | None = None
    data_api: FakeDataApi | None = None
    wire: FakeWire | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def warehouse(
        self, stream: str = "clicks", layout: TableLayout | None = None, *, ready: bool = True
    ) -> Warehouse:
        """An open one; ``ready``: with its table."""
        warehouse = open_warehouse(self.url, stream, layout)
        assert warehouse is not None
        self._stack.push_async_callback(warehouse.close)
        await warehouse.open()
        if ready:
            await warehouse.ensure(COLUMNS)
        return warehouse

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Ask the database itself. Times are given in UTC, and without saying so."""
        with psycopg.connect(self.conninfo) as connection:
            connection.execute("SET timezone TO 'UTC'")
            rows = connection.execute(text.encode()).fetchall()
        return [tuple(v.replace(tzinfo=None) if isinstance(v, datetime) else v for v in row) for row in rows]

    async def close(self) -> None:
        await self._stack.aclose()
        for server in (self.data_api, self.wire):
            if server is not None:
                server.close()


@asynccontextmanager
async def opened_backend(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """``postgresql`` with a folder, ``redshift-data`` or ``redshift`` with the S3 server; on a fresh database."""
    postgres: str = request.getfixturevalue("postgres")
    if kind == "postgresql":
        folder = request.getfixturevalue("tmp_path")
        backend = Backend(postgres, postgres, LocalStore(f"file://{folder}", durable=False), reads="get")
    else:
        store = open_store(f"s3://{request.getfixturevalue('bucket')}/lake")
        engine = Engine(postgres, request.getfixturevalue("s3_server").endpoint_url)
        if kind == "redshift-data":
            api = FakeDataApi(engine)
            request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL_REDSHIFT_DATA", api.url)
            backend = Backend(data_api_url(), postgres, store, "tail", engine, data_api=api)
        else:
            wire = FakeWire(engine)
            backend = Backend(wire_url(wire, postgres), postgres, store, "tail", engine, wire=wire)
    await backend.store.open()
    try:
        yield backend
    finally:
        await backend.close()
        await backend.store.close()


def data_api_url(**options: str) -> str:
    """A workgroup's URL, with the role that the stand-in knows."""
    parameters = "&".join(f"{name}={quote(value)}" for name, value in {"iam_role": ROLE, **options}.items())
    return f"redshift-data://workgroup/analytics/dev?{parameters}"


def wire_url(wire: FakeWire, database_url: str) -> str:
    """The proxy's URL, for the database's user."""
    given = conninfo.conninfo_to_dict(database_url)
    user = f"{given['user']}:{quote(str(given.get('password') or 'none'))}"
    place = f"127.0.0.1:{wire.port}/{given['dbname']}"
    return f"redshift://{user}@{place}?iam_role={quote(ROLE)}&sslmode=disable"


async def put(store: ObjectStore, rows: pl.DataFrame) -> list[CommittedObject]:
    """The rows as committed objects, one per hour."""
    lake = Lake(store, topology(dict(rows.schema)))
    after = None if rows["position"][0] == 0 else rows["position"][0] - 1
    part = advance(rows.height, partition=rows["source_partition"][0], after=after)
    done = await lake.write(lake.plan(lake.encode_events(rows), part))
    return [CommittedObject(one.plan, one.size, one.checksum, datetime.now(UTC)) for one in done]


async def made_of(
    store: ObjectStore, *parts: CommittedObject, how: str = "merged", without: Sequence[int] = ()
) -> CommittedObject:
    """What a compaction makes of objects of one partition and hour; an erasure (``erased``), or a commit of several
    objects (``1``), without the rows at some positions.
    """
    frames = [pl.read_parquet(io.BytesIO(await store.get(part.plan.key))) for part in parts]
    rows = pl.concat(frames)
    rows = rows.filter(pl.Series([position not in without for position in rows["position"]]))
    first, through = parts[0].plan, parts[-1].plan.through
    folder, _, name = first.key.rpartition("/")
    partition, after, *_ = name.split("-")
    plan = replace(
        first,
        key=f"{folder}/{partition}-{after}-{through}-{how}-{secrets.token_hex(6)}.parquet",
        through=through,
        rows=rows.height,
    )
    body = io.BytesIO()
    rows.write_parquet(body)
    stored = await store.put(plan.key, body.getvalue())
    return CommittedObject(plan, stored.size, stored.checksum, datetime.now(UTC))


class ListedObjects:
    """A ledger's list of committed objects, in memory."""

    def __init__(self, objects: Sequence[CommittedObject]) -> None:
        self.objects = list(objects)
        self.asked: list[datetime | None] = []

    async def now(self) -> datetime:
        return datetime.now(UTC)

    async def committed(self, kind: str = "events", since: datetime | None = None) -> Any:
        self.asked.append(since)
        objects = [one for one in self.objects if since is None or one.committed_at >= since]
        for start in range(0, len(objects), 7):
            yield objects[start : start + 7]

    async def newest_first(self, kind: str = "events") -> Any:
        for one in sorted(self.objects, key=lambda one: one.committed_at, reverse=True):
            yield [one]

    async def unshared(self, plans: Sequence[PlannedObject]) -> set[str]:
        def place(plan: PlannedObject) -> tuple[str, str, set[int]]:
            positions = range(0 if plan.after is None else plan.after + 1, plan.through + 1)
            return plan.partition.id, plan.key.rpartition("/")[0], set(positions)

        def share(one: PlannedObject, other: PlannedObject) -> bool:
            (*mine, positions), (*theirs, others) = place(one), place(other)
            return one.key != other.key and mine == theirs and not positions.isdisjoint(others)

        listed = [each.plan for each in self.objects]
        return {plan.key for plan in plans if not any(share(plan, other) for other in listed)}
