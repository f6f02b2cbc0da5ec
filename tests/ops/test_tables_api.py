"""Tables over HTTP, from a real PostgreSQL, against a loop over the rows that were put there."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import psycopg
import pyarrow as pa
import pytest

from streamproc.ops.tables import TablesApi
from streamproc.sinks.summaries import Summaries
from streamproc.topology import Measure, Table, Window
from tests.e2e.harness import until
from tests.ops.ports import port
from tests.sinks.topologies import topology

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
TABLE = Table(
    "hits",
    Window("tumbling", size=60_000_000),
    ("host", "code", "good"),
    (pl.String(), pl.Int64(), pl.Boolean()),
    (Measure("hits", "count", pl.Int64()),),
)
LONG = "x" * 3_000
HOSTS = [None, "", "a", "Ä", "=1+1", "B", LONG, LONG + "1", LONG[:-1], "a'; DROP TABLE hits; --", "a%b_c\\"]


def rows() -> list[dict[str, object]]:
    pick = random.Random(7)
    keys = {
        (minute, pick.choice(HOSTS), pick.choice([None, -1, 0, 7]), pick.choice([None, True, False]))
        for minute in range(8)
        for _ in range(25)
    }
    return [
        {
            "window_start": NOON + timedelta(minutes=minute),
            "host": host,
            "code": code,
            "good": good,
            "hits": number,
        }
        for number, (minute, host, code, good) in enumerate(sorted(keys, key=repr))
    ]


ROWS = rows()


@pytest.fixture(scope="module")
def page():
    other = replace(TABLE, name="empty", by=(), by_types=())
    return replace(topology(name="shop"), tables=(TABLE, other))


@pytest.fixture
async def api(postgres, page):
    """A session at a port that serves the tables, filled."""
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as conn:
        await conn.execute("DROP SCHEMA IF EXISTS shop CASCADE")
        await Summaries(page.tables, "shop").ensure(conn)
        async with conn.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO shop.hits (window_start, window_end, host, code, good, hits) "
                "VALUES (%(window_start)s, %(window_start)s + interval '1m', %(host)s, %(code)s, %(good)s, %(hits)s)",
                ROWS,
            )
        async with port(TablesApi([page], postgres, "test")) as session:
            yield session


async def ask(session, path="hits", status=200, **parameters):
    async with session.get(f"/api/v1/tables/{path}", params=parameters) as answer:
        body = await answer.read()
        assert answer.status == status, body
        return json.loads(body)


async def every_page(session, **parameters):
    """The rows of all pages, and how many pages there were."""
    found, pages, token = [], 0, {}
    while True:
        answer = await ask(session, **parameters, **token)
        found += answer["rows"]
        pages += 1
        if answer["next"] is None:
            return found, pages
        token = {"after": answer["next"]}


def numbers(found):
    return [row["hits"] for row in found]


pytestmark = pytest.mark.slow  # starts PostgreSQL


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_the_pages_together_are_the_table_each_row_once_in_order(api, order, limit):
    found, pages = await every_page(api, order=order, limit=limit)
    assert sorted(numbers(found)) == numbers(ROWS)
    assert pages == -(-len(ROWS) // limit)
    starts = [row["window_start"] for row in found]
    assert starts == sorted(starts, reverse=order == "desc")
    again, _ = await every_page(api, order=order, limit=1_000)
    assert numbers(found) == numbers(again), "the order does not depend on the pages"


async def test_a_row_written_while_somebody_turns_pages_moves_no_other(api, postgres):
    first = await ask(api, limit=50)
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute("DELETE FROM shop.hits WHERE hits = %s", [first["rows"][0]["hits"]])
        conn.execute(
            "INSERT INTO shop.hits (window_start, window_end, host, hits) VALUES (%s, %s, 'new', -1)",
            [NOON - timedelta(hours=1), NOON],
        )
    rest, _ = await every_page(api, limit=1_000, after=first["next"])
    assert sorted(numbers(first["rows"]) + numbers(rest)) == numbers(ROWS)


async def test_the_time_range_takes_its_beginning_and_leaves_its_end(api):
    begin, end = NOON + timedelta(minutes=2), NOON + timedelta(minutes=4)
    found, _ = await every_page(api, **{"from": begin.isoformat(), "to": "2026-07-01T12:04:00Z"})
    assert sorted(numbers(found)) == [row["hits"] for row in ROWS if begin <= row["window_start"] < end]


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ([("by.host", "a")], lambda row: row["host"] == "a"),
        ([("by.host", "")], lambda row: row["host"] == ""),
        ([("by.host", "a"), ("by.host", "B")], lambda row: row["host"] in {"a", "B"}),
        ([("by.host", LONG), ("by.code", "-1")], lambda row: (row["host"], row["code"]) == (LONG, -1)),
        ([("null", "host"), ("by.good", "true")], lambda row: row["host"] is None and row["good"] is True),
        ([("by.host", "a'; DROP TABLE hits; --")], lambda row: "DROP" in (row["host"] or "")),
        ([("by.host", "a%b_c\\")], lambda row: row["host"] == "a%b_c\\"),
        ([("by.code", str(10**30))], lambda row: False),
    ],
)
async def test_filters_keep_what_a_loop_over_the_rows_keeps(api, parameters, wanted):
    async with api.get("/api/v1/tables/shop.hits", params=parameters) as answer:
        found = (await answer.json())["rows"]
    assert sorted(numbers(found)) == [row["hits"] for row in ROWS if wanted(row)]


async def test_all_formats_hold_the_same_rows_and_name_the_next_page(api):
    async with api.get("/api/v1/tables/hits", params={"limit": 30, "format": "arrow"}) as answer:
        arrow = pa.ipc.open_stream(await answer.read()).read_all().to_pylist()
        following = answer.links["next"]["url"]
    as_json = await ask(api, limit=30)
    assert numbers(arrow) == numbers(as_json["rows"])
    assert [row["host"] for row in arrow] == [row["host"] for row in as_json["rows"]]
    async with api.get(following) as answer:
        second = pa.ipc.open_stream(await answer.read()).read_all().to_pylist()
    assert numbers(second) == numbers((await ask(api, limit=30, after=as_json["next"]))["rows"])
    async with api.get("/api/v1/tables/hits", headers={"Accept": "text/csv"}) as answer:
        text = await answer.text()
    assert "'=1+1" in text and ",=1+1" not in text


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"by.city": "x"}, "by.host, by.code, by.good"),
        ({"host": "x"}, "by.host"),
        ({"null": "hits"}, "by.host"),
        ({"by.code": "seven"}, "not a Int64"),
        ({"by.good": "yes"}, "not a Boolean"),
        ({"by.host": "\0"}, "no text of a table"),
        ({"limit": "0"}, "1 to 10000"),
        ({"limit": "1e3"}, "1 to 10000"),
        ({"limit": "10001"}, "1 to 10000"),
        ({"limit": "0000000010000000"}, "1 to 10000"),
        ({"limit": "1" * 5_000}, "1 to 10000"),
        ({"order": "up"}, "asc or desc"),
        ({"from": "yesterday"}, "is not a time"),
        ({"from": "2026-07-01T12:00:00"}, "zone"),
        ({"format": "xml"}, "json, csv, arrow"),
        ({"after": "nonsense"}, "begin without it"),
        ({"after": "W1tbW1tb" * 500}, "begin without it"),
        ({"after": "WyJoaXRzIiwgZmFsc2UsIDFd"}, "begin without it"),  # a key that is too short
    ],
)
async def test_a_question_that_makes_no_sense_is_answered_with_what_there_is(api, parameters, said):
    assert said in (await ask(api, status=400, **parameters))["error"]


async def test_a_token_is_of_one_question_s_table_and_order(api):
    token = (await ask(api, limit=1))["next"]
    assert "begin without it" in (await ask(api, status=400, after=token, order="desc"))["error"]
    assert "begin without it" in (await ask(api, "empty", status=400, after=token))["error"]


async def test_names_that_are_no_table_of_the_page_are_not_there(api):
    for name in ("hits__state", "pg_class", "shop.pg_class", "other.hits", 'hits"'):
        assert "There are: shop.hits, shop.empty" in (await ask(api, name, status=404))["error"]


async def test_the_list_has_every_table_with_its_columns(api):
    async with api.get("/api/v1/tables") as answer:
        hits, empty = (await answer.json())["tables"]
    assert (hits["name"], hits["by"]) == ("shop.hits", ["host", "code", "good"])
    assert hits["columns"]["code"] == "bigint"
    assert empty["by"] == []
    assert (await ask(api, "empty"))["rows"] == []


async def test_a_question_that_takes_too_long_is_given_up_and_those_behind_it_are_bounded(api, postgres):
    async with await psycopg.AsyncConnection.connect(postgres) as conn:
        await conn.execute("LOCK TABLE shop.hits IN ACCESS EXCLUSIVE MODE")
        asked = [asyncio.create_task(api.get("/api/v1/tables/hits")) for _ in range(14)]
        answers = [await task for task in asked]
        codes = sorted(answer.status for answer in answers)
        assert set(codes) <= {503, 504} and codes.count(503) >= 4
        refused = [answer for answer in answers if answer.headers.get("Retry-After") == "1"]
        assert len(refused) == 4
        await conn.rollback()
    assert len((await ask(api))["rows"]) == len(ROWS), "and afterwards all is as before"


async def test_only_a_question_that_the_database_stopped_has_to_be_narrower(page, monkeypatch):
    monkeypatch.setattr("streamproc.ops.tables._SECONDS", 0.2)
    tables = TablesApi([page], "postgresql://127.0.0.1:1/none", "test")

    async def hangs(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(tables, "_answer", hangs)
    async with port(tables) as session:
        answers = await asyncio.gather(*(session.get("/api/v1/tables/hits") for _ in range(5)))
        said = sorted([(answer.status, (await answer.json())["error"]) for answer in answers])
    away, waited = (503, "the database does not answer"), (503, "too many questions at once")
    assert said == [away] * 2 + [waited] * 3
    assert all("Retry-After" in answer.headers for answer in answers)


async def test_a_database_that_went_away_behind_the_connections_is_said_to_be(api, postgres, monkeypatch):
    assert (await ask(api, limit=1))["rows"]
    monkeypatch.setattr("streamproc.ops.tables._SECONDS", 0.5)
    name = postgres.rpartition("/")[2].partition("?")[0]
    with psycopg.connect(postgres.replace(f"/{name}", "/postgres"), autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            assert "does not answer" in (await ask(api, status=503))["error"]
        finally:
            conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


async def test_all_questions_together_have_two_connections_and_none_is_left(postgres, page):
    def connections() -> int:
        with psycopg.connect(postgres) as conn:
            asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'streamproc test api'"
            return conn.execute(asked).fetchone()[0]

    async with port(TablesApi([page], postgres, "test")) as session:
        assert connections() == 0, "nobody has asked yet"
        codes = await asyncio.gather(*(one_status(session) for _ in range(10)))
        assert set(codes) == {503}, "the worker has not made the tables"
        assert 1 <= connections() <= 2
    await until(lambda: connections() == 0, "they are closed")


async def one_status(session):
    async with session.get("/api/v1/tables/hits") as answer:
        return answer.status


async def test_a_page_ends_at_some_bytes(api, monkeypatch):
    monkeypatch.setattr("streamproc.ops.tables._PAGE_BYTES", 4_000)
    found, pages = await every_page(api, limit=1_000)
    assert sorted(numbers(found)) == numbers(ROWS)
    assert pages > 3
