"""A database with tables as the service makes them, filled row by row with values that the tests know."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import datasketches
import psycopg
import pytest
from psycopg import sql

from streamproc.embedded.postgres import EmbeddedPostgres, start_postgres
from streamproc.ledger import Ledger
from streamproc.sinks.summaries_layout import Layout
from streamproc.sinks.summaries_schema import ensure
from streamproc.topic_pages import load_page
from streamproc.topology import Topology

PAGE = Path(__file__).parents[2] / "topics" / "clickstream.toml"
MINUTE = timedelta(minutes=1)

#: Paths that have to be told apart, among them what is no text, what is a formula and what is a script.
PATHS = ("/", "/cart", None, "", "=1+1", "<script>alert(1)</script>", "/a,b")


class Site:
    """``views``: rows of page_views; ``sessions``: of sessions and their funnel step. Times end at ``now``.

    ``visitors``: those of the newest window of site_activity, by host.
    """

    def __init__(self, url: str, topology: Topology, now: datetime) -> None:
        self.url = url
        self.topology = topology
        self.now = now
        self.views: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []
        self.visitors: dict[str, set[str]] = {}


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="dash", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with start_postgres(Path(folder) / "postgres", durable=False) as server:
            yield server


@pytest.fixture(scope="session")
def topology() -> Topology:
    return load_page(PAGE)


@pytest.fixture(scope="session")
def site(postgres: EmbeddedPostgres, topology: Topology) -> Site:
    """Four hours of page views and some sessions, drawn from one seed."""
    now = datetime.now(UTC).replace(microsecond=0)
    made = Site(postgres.url, topology, now)
    asyncio.run(make_tables(postgres.url, topology))
    draw = random.Random(7)
    last = now.replace(second=0)
    for minute in range(245):
        for path in PATHS:
            if draw.random() < 0.6:
                start = last - minute * MINUTE
                row = {
                    "window_start": start,
                    "window_end": start + MINUTE,
                    "host": draw.choice(["a.example", "b.example"]),
                }
                made.views.append(
                    {**row, "path": path, "views": draw.randrange(1, 50), "visitors": draw.randrange(1, 40)}
                )
    for number in range(120):
        start = now - timedelta(seconds=draw.randrange(10, 9_000))
        row = {
            "visitor_id": f"v{number}",
            "session_start": start,
            "session_end": start + timedelta(seconds=5),
        }
        step = draw.randrange(0, 5)
        made.sessions.append({**row, "events": 3, "country": draw.choice(["DE", "US", None]), "step": step})
    # Few enough for a sketch to be exact, some of them on both hosts.
    made.visitors = {
        host: {f"v{draw.randrange(90)}" for _ in range(60)} for host in ("a.example", "b.example")
    }
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        _activity(conn, last + MINUTE - 5 * MINUTE, made.visitors)
        _activity(conn, last - 30 * MINUTE, {"a.example": {"gone"}})
        _insert(conn, "page_views", made.views)
        _insert(
            conn,
            "sessions",
            [{k: v for k, v in s.items() if k != "step"} | {"pages": 1} for s in made.sessions],
        )
        funnel = [
            {"checkout_step" if k == "step" else k: v for k, v in s.items() if k != "country"}
            for s in made.sessions
        ]
        _insert(conn, "checkout_funnel", funnel)
        conn.execute(
            "INSERT INTO streamproc.partitions (stream, source, partition, position, fence, token, owner, clock_us,"
            " records, accepted, rejected, claimed_at, updated_at) VALUES ('clickstream', 'clickstream', '0', 41, 1,"
            " gen_random_uuid(), 'worker-1', %s, 42, 40, 2, now(), now())",
            [int(now.timestamp() * 1_000_000)],
        )
    return made


async def make_tables(url: str, topology: Topology) -> None:
    """What the service makes before its first commit."""
    async with Ledger(url, topology.name, "test") as ledger:
        await ledger.migrate()
        async with ledger.database.connection("make tables") as conn:
            await ensure(conn, [Layout(table, topology.name) for table in topology.tables], topology.name)


def _activity(conn: psycopg.Connection[Any], window_start: datetime, visitors: dict[str, set[str]]) -> None:
    """The state of a window of five minutes: a HyperLogLog of 2^12 registers for each host."""
    for host, names in visitors.items():
        sketch = datasketches.hll_sketch(12, datasketches.tgt_hll_type.HLL_8)
        for name in names:
            sketch.update(name)
        conn.execute(
            "INSERT INTO clickstream.site_activity__state (window_start, host, visitors__sketch) VALUES (%s, %s, %s)",
            [int(window_start.timestamp()) * 1_000_000, host, sketch.serialize_compact()],
        )


def _insert(conn: psycopg.Connection[Any], table: str, rows: list[dict[str, Any]]) -> None:
    """Rows, those of one key put together as the service would."""
    names = list(rows[0])
    statement = sql.SQL("INSERT INTO clickstream.{} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(sql.Placeholder() * len(names)),
    )
    with conn.cursor() as cursor:
        cursor.executemany(statement, [[row[name] for name in names] for row in rows])
