"""The queries of the data sets, run on the tables that the service makes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import AsyncConnection, sql

from streamproc.quicksight.data_sets import data_sets
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from streamproc.topic_pages import load_page
from tests.quicksight.pages import SHIPPED, shipped

pytestmark = pytest.mark.aws

#: PostgreSQL's types that QuickSight reads, and what it makes of them. ``timestamp with time zone`` and ``boolean``
#: are not among those that its documentation promises as they are.
TYPES = {
    "text": "STRING",
    "smallint": "INTEGER",
    "integer": "INTEGER",
    "bigint": "INTEGER",
    "real": "DECIMAL",
    "double precision": "DECIMAL",
    "date": "DATETIME",
    "timestamp without time zone": "DATETIME",
}


@pytest.fixture
async def conn(postgres):
    async with await AsyncConnection.connect(postgres, autocommit=True) as connection:
        yield connection


async def rows(conn, query):
    return await (await conn.execute(query.encode())).fetchall()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
async def test_each_query_has_the_declared_columns_in_types_that_quicksight_reads(postgres, conn, path):
    page = load_page(path)
    await Summaries(page.tables, page.name).ensure(conn)
    warehouse = PostgresWarehouse(postgres, page.name)
    await warehouse.open()
    await warehouse.ensure(page.columns)
    await warehouse.close()
    for number, data in enumerate(data_sets(page, warehouse="postgresql")):
        view = f"v{number}"
        await conn.execute(f"CREATE VIEW {view} AS {data.query}".encode())
        found = await rows(
            conn,
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            f" WHERE attrelid = '{view}'::regclass AND attnum > 0",
        )
        declared = {column.name: column.type for column in data.columns}
        assert {name: TYPES[type_] for name, type_ in found} == declared, data.key
        assert declared[data.time] == "DATETIME"


async def test_times_are_those_of_utc_whatever_the_session_s_zone(conn):
    page = shipped()
    await Summaries(page.tables, page.name).ensure(conn)
    await conn.execute("SET TIME ZONE 'Asia/Tokyo'")
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    await insert(conn, "page_views", window_start=start, window_end=start + timedelta(minutes=1), views=1)
    (views,) = (each for each in data_sets(page, warehouse="none") if each.identifier == "page_views")
    ((found,),) = await rows(conn, f"SELECT window_start FROM ({views.query}) AS q")
    assert found == start.replace(tzinfo=None)


async def test_times_in_redshift_are_in_utc_already():
    (events,) = (each for each in data_sets(shipped(), warehouse="redshift") if each.kind == "events")
    assert "TIME ZONE" not in events.query
    assert '"event_time"' in events.query and '"received_at"' in events.query


async def insert(conn, table, **values):
    await conn.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier("clickstream", table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(sql.Placeholder() * len(values)),
        ),
        list(values.values()),
    )


async def test_a_funnel_counts_the_sessions_that_reached_each_step(conn):
    page = shipped()
    await Summaries(page.tables, page.name).ensure(conn)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    steps = ["product_view", "add_to_cart", "checkout", "purchase"]
    reached = [4, 4, 3, 1, 0, 2, 1]
    for number, far in enumerate(reached):
        moments = {f"checkout_{step}_at": start + timedelta(minutes=n) for n, step in enumerate(steps[:far])}
        await insert(
            conn,
            "checkout_funnel",
            visitor_id=f"v{number}",
            session_start=start,
            session_end=start,
            events=1,
            checkout_step=far,
            **moments,
        )
    (funnel,) = (each for each in data_sets(page, warehouse="none") if each.kind == "funnel")
    found = await rows(
        conn, f"SELECT step, step_name, count(*) FROM ({funnel.query}) AS q GROUP BY 1, 2 ORDER BY 1"
    )
    names = ["1 product view", "2 add to cart", "3 checkout", "4 purchase"]
    assert found == [(n, names[n - 1], sum(1 for far in reached if far >= n)) for n in range(1, 5)]


async def test_realtime_shows_ended_windows_of_the_last_hour_only(conn):
    page = shipped()
    await Summaries(page.tables, page.name).ensure(conn)
    ((now,),) = await rows(conn, "SELECT now()")
    for minutes in (120, 30, 10, 2):
        start = now - timedelta(minutes=minutes)
        # The last has not ended, however long this test takes.
        end = start + (timedelta(minutes=5) if minutes > 5 else timedelta(days=1))
        await insert(conn, "site_activity", window_start=start, window_end=end, host="a", events=minutes)
    (activity,) = (each for each in data_sets(page, warehouse="none") if each.kind == "hops")
    assert sorted(await rows(conn, f"SELECT events FROM ({activity.query}) AS q")) == [(10,), (30,)]


async def test_sessions_tell_their_duration_and_bounces_as_numbers(conn):
    page = shipped()
    await Summaries(page.tables, page.name).ensure(conn)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    for name, pages, seconds in (("a", 1, 0), ("b", 3, 90)):
        end = start + timedelta(seconds=seconds)
        await insert(
            conn, "sessions", visitor_id=name, session_start=start, session_end=end, pages=pages, events=pages
        )
    (sessions,) = (each for each in data_sets(page, warehouse="none") if each.identifier == "sessions")
    found = await rows(
        conn, f"SELECT avg(bounce), avg(duration), count(DISTINCT visitor_id) FROM ({sessions.query}) q"
    )
    assert [tuple(map(float, row)) for row in found] == [(0.5, 45.0, 2.0)]


async def plan(conn, query):
    await conn.execute("SET enable_seqscan = off")  # of a table without rows no plan is cheaper than another
    return "\n".join(line for (line,) in await rows(conn, f"EXPLAIN {query}"))


async def test_an_incremental_refresh_reads_by_the_documented_index_and_not_by_that_of_the_raw_column(conn):
    page = shipped()
    await Summaries(page.tables, page.name).ensure(conn)
    (views,) = (each for each in data_sets(page, warehouse="none") if each.identifier == "page_views")
    refresh = f"SELECT * FROM ({views.query}) AS q WHERE window_start >= TIMESTAMP '2026-03-01'"
    assert "Index Cond" not in await plan(conn, refresh)
    await conn.execute("CREATE INDEX ON clickstream.page_views ((window_start AT TIME ZONE 'UTC'))")
    assert "Index Cond" in await plan(conn, refresh)


async def test_realtime_reads_by_the_index_that_is_there(conn):
    page = shipped()
    await Summaries(page.tables, page.name).ensure(conn)
    (activity,) = (each for each in data_sets(page, warehouse="none") if each.kind == "hops")
    assert "Index Cond" in await plan(
        conn, f"SELECT host, sum(events) FROM ({activity.query}) AS q GROUP BY 1"
    )
