"""What is noted for publication, and what of it the broker gets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import psycopg
import pytest
from structlog.testing import capture_logs

from streamproc.ledger import Ledger
from streamproc.sinks import outbox
from streamproc.sinks.outbox import KINDS, Outbox
from streamproc.topic_pages import load_page
from tests.e2e.harness import REPOSITORY


class Broker:
    """Takes everything."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    async def publish(
        self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
    ) -> None:
        self.values += values


class Lake:
    """An object is an event."""

    async def read(self, keys: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        return pl.DataFrame({"visitor_id": keys})


async def test_the_changed_rows_of_an_epoch_are_noted_in_parts_that_fit_a_column(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_SLICE", 50)
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    sinks = replace(page.sinks, publish_events=None, publish_tables="changes")
    table = next(each for each in page.tables if each.window.kind != "session")
    broker = Broker()
    publication = Outbox(replace(page, sinks=sinks), ledger.database, None, broker)
    rows = pl.DataFrame({"window_start": range(120), **dict.fromkeys(table.by, "x")})
    async with ledger.database.transaction("commit") as conn:
        await publication.enlist(conn, uuid.uuid4(), [], {table.name: rows, "empty": rows.clear()})
    assert (await publication.backlog()).notes == 3
    for _ in range(2):
        assert await publication.deliver("rows", within=0)
    assert not await publication.deliver("rows")
    published = [json.loads(value or b"") for value in broker.values]
    assert [each["row"]["window_start"] for each in published] == list(range(120))
    assert {each["table"] for each in published} == {table.name}
    assert (await publication.backlog()).notes == 0


async def test_a_row_that_is_too_large_only_with_its_key_does_not_keep_the_others_back(
    ledger: Ledger,
) -> None:
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    sinks = replace(page.sinks, publish_events=None, publish_tables="changes")
    table = next(each for each in page.tables if each.by and each.window.kind != "session")
    broker = Broker()
    publication = Outbox(replace(page, sinks=sinks), ledger.database, None, broker)
    texts = ["x", "y" * 600_000, "z" * 400_000]  # a key has the text too
    rows = pl.DataFrame({"window_start": range(3), **dict.fromkeys(table.by, "x"), table.by[0]: texts})
    async with ledger.database.transaction("commit") as conn:
        await publication.enlist(conn, uuid.uuid4(), [], {table.name: rows})
    assert not await publication.deliver("rows")
    published = [json.loads(value or b"")["row"][table.by[0]] for value in broker.values]
    assert published == [texts[0], texts[2]]
    assert (await publication.backlog()).notes == 0


async def test_rows_of_a_table_that_has_another_key_by_now_hold_up_nothing(ledger: Ledger) -> None:
    """It was dropped to be made anew: nobody could tell which of its rows those are."""
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    sinks = replace(page.sinks, publish_events=None, publish_tables="changes")
    table = next(each for each in page.tables if each.window.kind != "session")
    broker = Broker()
    publication = Outbox(replace(page, sinks=sinks), ledger.database, None, broker)
    before = pl.DataFrame({"window_start": [1], "another": ["x"]})
    today = pl.DataFrame({"window_start": [2], **dict.fromkeys(table.by, "x")})
    for rows in (before, today):
        async with ledger.database.transaction("commit") as conn:
            await publication.enlist(conn, uuid.uuid4(), [], {table.name: rows})
    with capture_logs() as logs:
        assert not await publication.deliver("rows")
    assert [json.loads(value or b"")["row"]["window_start"] for value in broker.values] == [2]
    assert (await publication.backlog()).notes == 0
    said = [(entry["what"], entry["why"]) for entry in logs if entry["event"] == "not_published"]
    assert said == [(table.name, f"its rows had no {table.by[0]} when they changed")]


async def test_while_the_events_of_an_object_are_published_its_transaction_does_not_fall_silent(
    ledger: Ledger, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends one that is silent for a minute, and there may be half a million events in an object."""
    heard: list[Any] = []

    class Listening(Broker):
        async def publish(
            self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
        ) -> None:
            await super().publish(topic, values, keys)
            with psycopg.connect(postgres) as db:
                heard.extend(
                    db.execute(
                        "SELECT state_change FROM pg_stat_activity"
                        " WHERE application_name = 'streamproc w1' AND state = 'idle in transaction'"
                    )
                )

    class Large:
        async def read(self, keys: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
            return pl.DataFrame({"visitor_id": ["a", "b", "c", "d", "e"]})

    monkeypatch.setattr(outbox, "_SLICE", 2)
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    lake: Any = Large()
    broker = Listening()
    sinks = replace(page.sinks, publish_events="enriched", publish_tables=None)
    publication = Outbox(replace(page, sinks=sinks), ledger.database, lake, broker)
    async with ledger.database.connection("note") as conn:
        await conn.execute(
            "INSERT INTO streamproc.outbox (stream, epoch, kind, payload)"
            " VALUES (%s, gen_random_uuid(), 'events', 'an object')",
            [page.name],
        )
    assert not await publication.deliver("events")
    assert len(broker.values) == 5
    assert len(set(heard)) == 3, "something was said between any two parts"


async def test_what_only_another_page_publishes_is_left_to_the_workers_that_have_it(ledger: Ledger) -> None:
    """While they are replaced one by one: the newer page has a table more, and publishes events too."""
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    table, added = [each for each in page.tables if each.window.kind != "session"][:2]
    sinks = replace(page.sinks, publish_events=None, publish_tables="changes")
    older_page = replace(page, tables=(table,), sinks=sinks)
    newer_page = replace(page, tables=(table, added), sinks=replace(sinks, publish_events="enriched"))
    lake: Any = Lake()
    older_broker, newer_broker = Broker(), Broker()
    older = Outbox(older_page, ledger.database, None, older_broker)
    newer = Outbox(newer_page, ledger.database, lake, newer_broker)
    rows = {
        each.name: pl.DataFrame({"window_start": [1], **dict.fromkeys(each.by, "x")})
        for each in (added, table)
    }
    async with ledger.database.transaction("commit") as conn:
        await newer.enlist(conn, uuid.uuid4(), [], rows)
        await conn.execute(
            "INSERT INTO streamproc.outbox (stream, epoch, kind, payload)"
            " VALUES (%s, gen_random_uuid(), 'events', 'an object')",
            [page.name],
        )
    assert ((await older.backlog()).notes, (await newer.backlog()).notes) == (1, 3)
    for kind in KINDS:
        assert not await older.deliver(kind)
    assert [json.loads(value or b"")["table"] for value in older_broker.values] == [table.name]
    assert ((await older.backlog()).notes, (await newer.backlog()).notes) == (0, 2)
    for kind in KINDS:
        assert not await newer.deliver(kind)
    event, row = (json.loads(value or b"") for value in newer_broker.values)
    assert (event, row["table"]) == ({"visitor_id": "an object"}, added.name)
    assert (await newer.backlog()).notes == 0
