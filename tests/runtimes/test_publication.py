"""Two kinds of notes, of one of which there may be more than can be published: a real outbox, and a broker's double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import psycopg
import pytest

from streamproc.ledger import Ledger
from streamproc.runtimes import publication
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.publication import Publication
from streamproc.settings import read_settings
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topic_pages import load_page
from tests.e2e.harness import REPOSITORY

PAGE = load_page(REPOSITORY / "topics" / "clickstream.toml")
TABLE = next(table for table in PAGE.tables if table.window.kind != "session")
ROW = json.dumps({"window_start": "2026-01-01", **dict.fromkeys(TABLE.by, "x")})


class Broker:
    """Takes everything, and knows what was known to be noted when it was first asked for."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.publishing: Publication | None = None
        self.known: int | None = None
        self.enough = asyncio.Event()

    async def start(self) -> None:
        assert self.publishing is not None
        self.known = self.publishing.backlog.notes

    async def stop(self) -> None:
        """Nothing is under way."""

    async def publish(
        self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
    ) -> None:
        self.topics.append(topic)
        if {"enriched", "changes"} <= set(self.topics[-2:]) and len(self.topics) >= 6:
            self.enough.set()


class Lake:
    """An object an event; while each is read, another one is committed."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self.goes_on = True

    async def read(self, keys: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        if self.goes_on:
            noted(self._conninfo, "events")
        return pl.DataFrame({"visitor_id": ["a"]})


def noted(conninfo: str, kind: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as db:
        db.execute(
            "INSERT INTO streamproc.outbox (stream, epoch, kind, table_name, payload)"
            " VALUES ('clicks', gen_random_uuid(), %s, %s, %s)",
            [kind, TABLE.name if kind == "rows" else None, ROW.encode() if kind == "rows" else b"an object"],
        )


def publishing(postgres: str, monkeypatch: pytest.MonkeyPatch, broker: Broker) -> tuple[Publication, Lake]:
    """Publication by turns of one note."""
    monkeypatch.setattr(publication, "KafkaProducer", lambda connection: broker)
    monkeypatch.setattr(publication, "_TURN", 0.0)
    sinks = replace(PAGE.sinks, publish_events="enriched", publish_tables="changes")
    lake: Any = Lake(postgres)
    kafka = KafkaConnection("127.0.0.1:1")
    endpoints = Endpoints(read_settings(environ={}), ledger=postgres, broker=kafka)
    broker.publishing = Publication(replace(PAGE, name="clicks", sinks=sinks), lake, endpoints, "w1")
    return broker.publishing, lake


async def test_changed_rows_are_published_while_there_are_more_and_more_events(
    ledger: Ledger, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    published, lake = publishing(postgres, monkeypatch, broker)
    noted(postgres, "events")
    noted(postgres, "rows")
    assert await published.deliver(within=0)
    assert broker.topics == ["enriched", "changes"]
    assert published.backlog.notes == 1
    lake.goes_on = False
    await published.close()
    assert broker.topics == ["enriched", "changes", "enriched"]
    assert published.backlog.notes == 0


async def test_where_more_is_left_nothing_is_waited_for_and_how_much_is_known_from_the_beginning(
    ledger: Ledger, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    published, lake = publishing(postgres, monkeypatch, broker)
    monkeypatch.setattr(publication, "_RETRY_FIRST", 0.0)
    monkeypatch.setattr(publication, "LOOK_EVERY", 3600.0)
    noted(postgres, "events")
    for _ in range(3):
        noted(postgres, "rows")
    running = asyncio.create_task(published.run())
    try:
        async with asyncio.timeout(30):
            await broker.enough.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        lake.goes_on = False
        await published.close()
    assert broker.known == 4
    assert broker.topics[:6] == 3 * ["enriched", "changes"]
