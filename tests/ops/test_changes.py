"""Changed windows as server-sent events, read by a parser written from the standard."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from dataclasses import replace
from datetime import datetime

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.ops import changes as module
from streamproc.ops.changes import Change, Changes, Watching, changes_of
from streamproc.ops.tables import TablesApi
from streamproc.sinks.summaries import Summaries
from streamproc.tables.fold import Delta, TableFold
from streamproc.topology import Measure, Table, Window
from tests.e2e.harness import until
from tests.ops.ports import port
from tests.sinks.topologies import topology
from tests.tables.streams import event, sealed, visits

MINUTE = 60_000_000
COUNT = (Measure("hits", "count", pl.Int64()),)
WINDOWED = Table("hits", Window("hopping", size=5 * MINUTE, hop=MINUTE), ("host",), (pl.String(),), COUNT)
VISITS = Table("visits", Window("session", key="visitor"), (), (), COUNT)
PAGE = replace(topology(name="shop"), tables=(WINDOWED, VISITS))


class Stream:
    """An event stream as a browser reads it: ``take`` gives the next event's (name, id, data)."""

    def __init__(self, response):
        self.response = response
        self.id = None
        self.retry = None
        self.comments = 0

    async def line(self):
        text = (await asyncio.wait_for(self.response.content.readline(), 30)).decode()
        return text.removesuffix("\n") if text else None

    async def take(self):
        """``None`` at the end of the stream."""
        name, data = "message", []
        while (line := await self.line()) is not None:
            if not line:
                if data:
                    return name, self.id, json.loads("\n".join(data))
                name = "message"
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "":
                self.comments += 1
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                self.id = value
            elif field == "retry":
                self.retry = int(value)
        return None


def listen(session, last=None, **parameters):
    headers = {} if last is None else {"Last-Event-ID": last}
    return session.get("/api/v1/events", params=parameters, headers=headers)


async def opened(changes, response):
    """The stream, once its first number is there, so that nothing told from now on is missed."""
    assert response.status == 200 and response.content_type == "text/event-stream"
    stream = Stream(response)
    while (line := await stream.line()) != "retry: 3000":
        assert line.startswith("id: ")
        stream.id = line.removeprefix("id: ")
    assert changes.listening
    return stream


def change(number, table="hits", stream="shop"):
    return Change(stream, table, json.dumps({"number": number}).encode())


async def test_everybody_gets_every_change_once_and_in_order():
    changes = Changes()
    async with port(changes) as session, listen(session) as one, listen(session, table="visits") as two:
        first, second = await opened(changes, one), await opened(changes, two)
        changes.tell([change(1), change(2, "visits")])
        changes.tell([change(3, "visits", "other")])
        assert [(await first.take())[2]["number"] for _ in range(3)] == [1, 2, 3]
        assert [(await second.take())[2]["number"] for _ in range(2)] == [2, 3]


async def test_who_comes_back_gets_what_came_meanwhile():
    changes = Changes()
    async with port(changes) as session:
        async with listen(session) as response:
            stream = await opened(changes, response)
            changes.tell([change(1)])
            _, last, _ = await stream.take()
        changes.tell([change(2), change(3)])
        async with listen(session, last) as response:
            stream = await opened(changes, response)
            assert [(await stream.take())[2]["number"] for _ in range(2)] == [2, 3]


async def test_who_loses_the_connection_before_the_first_event_has_lost_none():
    changes = Changes()
    async with port(changes) as session:
        async with listen(session) as response:
            begun = (await opened(changes, response)).id
        changes.tell([change(1), change(2)])
        async with listen(session, begun) as response:
            again = (await opened(changes, response)).id
        async with listen(session, again) as response:
            stream = await opened(changes, response)
            assert [(await stream.take())[2]["number"] for _ in range(2)] == [1, 2]


async def test_who_loses_the_connection_before_being_told_to_read_anew_is_told_the_next_time():
    changes = Changes()
    async with port(changes) as session, listen(session, "other-1") as response:
        assert (await opened(changes, response)).id is None, "it keeps the one that it has"


async def test_who_missed_more_than_can_wait_reads_anew_and_then_goes_on(monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 5)
    changes = Changes()
    async with port(changes) as session, listen(session, table="quiet") as first:
        begun = (await opened(changes, first)).id
        changes.tell([change(number, table) for number in range(6) for table in ("hits", "visits")])
        async with listen(session, begun, table="hits") as response:
            stream = await opened(changes, response)
            name, last, _ = await stream.take()
            assert name == "missed"
        changes.tell([change(7)])
        async with listen(session, last, table="hits") as response:
            stream = await opened(changes, response)
            assert (await stream.take())[2]["number"] == 7
    assert not changes.dropped


@pytest.mark.parametrize(
    "last", ["other-1", "nonsense", "-", "{life}-99", "{life}--1", "{life}-" + "9" * 500]
)
async def test_who_names_an_event_that_nobody_knows_is_told_to_read_anew(last):
    changes = Changes()
    async with port(changes) as session, listen(session) as response:
        stream = await opened(changes, response)
        changes.tell([change(1)])
        _, number, _ = await stream.take()
        async with listen(session, last.replace("{life}", number.split("-")[0])) as again:
            stream = await opened(changes, again)
            name, told, _ = await stream.take()
            assert (name, told) == ("missed", number)
            changes.tell([change(2)])
            assert (await stream.take())[2]["number"] == 2


async def test_what_was_not_counted_while_nobody_listened_is_missed_and_not_passed_over():
    now = [0.0]
    changes = Changes(clock=lambda: now[0])
    assert not changes.wanted
    async with port(changes) as session:
        async with listen(session) as response:
            stream = await opened(changes, response)
            assert changes.wanted
            changes.tell([change(1)])
            _, last, _ = await stream.take()
            response.close()
        await until(lambda: not changes.listening, "the worker notices that nobody listens")
        assert changes.wanted, "for a minute"
        now[0] += 61
        assert not changes.wanted
        async with listen(session) as other:
            await opened(changes, other)
            async with listen(session, last) as back:
                stream = await opened(changes, back)
                assert (await stream.take())[0] == "missed"


async def test_a_client_that_does_not_read_is_dropped_and_told_so_and_the_others_are_not():
    changes = Changes()
    async with port(changes) as session, listen(session) as slow, listen(session) as quick:
        lazy, reader = await opened(changes, slow), await opened(changes, quick)
        big = Change("shop", "hits", json.dumps({"fill": "x" * 100_000}).encode())
        told = 0
        while not changes.dropped:
            changes.tell([big])
            told += 1
            assert (await reader.take())[0] == "windows"
        assert told > 256
        got = []
        while (event := await lazy.take()) is not None:
            got.append(event[0])
        assert got[-1] == "dropped" and set(got[:-1]) == {"windows"}
        changes.tell([change(1)])
        assert (await reader.take())[2] == {"number": 1}


async def test_a_silent_stream_gives_signs_of_life_and_the_end_is_told():
    changes = Changes(heartbeat=0.01)
    async with port(changes) as session, listen(session) as response:
        stream = await opened(changes, response)
        while stream.comments < 3:
            if (line := await stream.line()) and line.startswith(":"):
                stream.comments += 1
        await changes.close()
        assert (await stream.take())[0] == "end"
        assert await stream.take() is None
        async with listen(session) as late:
            assert late.status == 503


async def test_more_than_some_clients_are_sent_away(monkeypatch):
    monkeypatch.setattr(module, "_CLIENTS", 1)
    changes = Changes()
    async with port(changes) as session, listen(session) as one:
        await opened(changes, one)
        async with listen(session) as two:
            assert two.status == 503
        async with session.get("/api/v1/events?tables=x") as wrong:
            assert wrong.status == 400


async def test_a_table_that_no_stream_has_is_refused_with_those_that_there_are():
    changes = Changes()
    Watching(PAGE, changes)
    async with port(changes) as session:
        for query in ("table=hist", "stream=store", "stream=store&table=hits"):
            async with session.get(f"/api/v1/events?{query}") as wrong:
                assert wrong.status == 404
                assert "There are: shop.hits, shop.visits" in (await wrong.json())["error"]
        async with session.get("/api/v1/events?table=hits") as response:
            assert response.status == 200
            await changes.close()


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc")), min_size=1, max_size=60, unique=True))
def test_a_change_counts_the_rows_of_each_window(keys):
    rows = pl.DataFrame(
        {"window_start": [minute * MINUTE for minute, _ in keys], "host": [host for _, host in keys]},
        schema={"window_start": pl.Int64, "host": pl.String},
    )
    (told,) = changes_of(PAGE, uuid.uuid4(), {"hits": Delta(rows)})
    data = json.loads(told.data)
    counted = Counter(minute for minute, _ in keys)
    assert (told.table, data["rows"]) == ("hits", len(keys))
    assert [each["rows"] for each in data["windows"]] == [counted[minute] for minute in sorted(counted)]
    begin, end = min(counted), max(counted) + 5
    assert (data["from"], data["to"]) == (f"1970-01-01T00:{begin:02}:00Z", f"1970-01-01T00:{end:02}:00Z")


def test_sessions_and_very_many_windows_are_told_by_what_they_span():
    pieces = pl.DataFrame({"visitor": ["a", "b"], "session_start": [0, 5], "session_end": [7, MINUTE]})
    many = pl.DataFrame({"window_start": [MINUTE * minute for minute in range(501)], "host": ["a"] * 501})
    both = changes_of(PAGE, uuid.uuid4(), {"visits": Delta(pieces), "hits": Delta(many)})
    hits, visits = (json.loads(each.data) for each in both)
    assert (visits["rows"], visits["windows"]) == (2, None)
    assert visits["from"] == "1969-12-31T00:00:00Z", "a session of at most a day may have begun then"
    assert visits["to"] == "1970-01-01T00:31:00.000001Z", "one may begin half an hour behind the last event"
    assert (hits["rows"], hits["windows"]) == (501, None)
    assert changes_of(PAGE, uuid.uuid4(), {"hits": Delta(many.clear())}) == []


def test_the_end_of_all_time_can_be_told():
    end = 253_402_300_799_999_999
    pieces = pl.DataFrame({"visitor": ["a"], "session_start": [end], "session_end": [end]})
    windows = pl.DataFrame({"window_start": [end // MINUTE * MINUTE], "host": ["a"]})
    for each in changes_of(PAGE, uuid.uuid4(), {"visits": Delta(pieces), "hits": Delta(windows)}):
        assert json.loads(each.data)["to"] == "9999-12-31T23:59:59.999999Z"


@pytest.mark.slow  # starts PostgreSQL
async def test_who_asks_a_table_for_what_an_event_spans_gets_the_sessions_that_changed(postgres):
    table = visits([Measure("events", "count", pl.Int64())], gap=20 * MINUTE, cap=45 * MINUTE)
    page = replace(topology(name="shop"), tables=(table,))
    summaries, fold = Summaries(page.tables, "shop"), TableFold(table)
    # Sessions go on, take in one that begins later, are cut at their cap and take in one at the very gap.
    epochs = [[0, 41, 120], [40], [19, 50], [61, 30], [100]]
    async with (
        await psycopg.AsyncConnection.connect(postgres, autocommit=True) as conn,
        port(TablesApi([page], postgres, "test")) as session,
    ):
        await summaries.ensure(conn)
        before: set[tuple[datetime, datetime, int]] = set()
        for minutes in epochs:
            delta = sealed(fold, [[event(minute * MINUTE) for minute in minutes]])[0]
            async with conn.transaction():
                await summaries.apply(conn, {table.name: delta})
            rows = await conn.execute("SELECT session_start, session_end, events FROM shop.visits")
            now = set(await rows.fetchall())
            [told] = changes_of(page, uuid.uuid4(), {table.name: delta})
            span = {name: json.loads(told.data)[name] for name in ("from", "to")}
            async with session.get("/api/v1/tables/visits", params=span) as answer:
                found = json.loads(await answer.read())["rows"]
            begin, end = map(datetime.fromisoformat, span.values())
            assert now - before <= {
                (
                    *(datetime.fromisoformat(row[name]) for name in ("session_start", "session_end")),
                    row["events"],
                )
                for row in found
            }
            assert all(begin <= start < end for start, _, _ in before - now), "what is gone is looked for too"
            before = now


async def test_a_pipeline_asks_first_whether_anybody_wants_to_know():
    changes = Changes()
    watching = Watching(PAGE, changes)
    assert not watching.wanted
    async with port(changes) as session, listen(session) as response:
        stream = await opened(changes, response)
        assert watching.wanted
        rows = pl.DataFrame({"window_start": [0], "host": ["a"]})
        await watching.committed(uuid.uuid4(), {"hits": Delta(rows)})
        assert (await stream.take())[2]["windows"][0]["start"] == "1970-01-01T00:00:00Z"
