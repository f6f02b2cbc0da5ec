"""What the pipeline publishes, seen by a consumer that knows nothing of it."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

import duckdb
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import Topic
from tests.e2e.harness import Site, Worker, committed_records, generated, produce, settled_files, until

pytestmark = pytest.mark.broker


@pytest.fixture
async def publishing(site: Site) -> Site:
    """A site whose page publishes events and tables, to topics that are there."""
    page = site.topics / "clickstream.toml"
    text, replaced = re.subn(
        r"(?m)(?<=^\[sinks\]\n)",
        f'publish_events = "{site.topic}-enriched"\npublish_tables = "{site.topic}-tables"\n',
        page.read_text(),
    )
    assert replaced == 1
    page.write_text(text)
    await create_topics(site)
    return site


async def create_topics(site: Site) -> None:
    async with admin(KafkaConnection(site.broker, embedded=site.broker_url == "embedded:")) as broker:
        for name in published_topics(site):
            await broker.apply(Topic(name, partitions=4))


def published_topics(site: Site) -> tuple[str, str]:
    return f"{site.topic}-enriched", f"{site.topic}-tables"


async def read_until(site: Site, topic: str, enough: Callable[[list], bool]) -> list[tuple[bytes, dict]]:
    """(key, value) of everything in the topic, until there is enough; after 30 s whatever there is."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=site.broker, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    found: list[tuple[bytes, dict]] = []
    deadline = time.monotonic() + 30
    try:
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        while not enough(found) and time.monotonic() < deadline:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [(record.key, json.loads(record.value)) for record in records]
    finally:
        await consumer.stop()
    return found


def notes(site: Site) -> int:
    with psycopg.connect(site.ledger) as db:
        return db.execute("select count(*) from streamproc.outbox").fetchone()[0]


def lake_rows(site: Site) -> dict[tuple[str, int], dict]:
    with psycopg.connect(site.ledger) as db:
        files = [str(path) for path in settled_files(db, site.lake)]
    with duckdb.connect() as lake:
        lake.execute("set timezone = 'UTC'")
        cursor = lake.execute("select * from read_parquet(?, hive_partitioning = false)", [files])
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return {(row["source_partition"], row["position"]): row for row in rows}


def same(published: object, stored: object) -> bool:
    if isinstance(stored, datetime):
        return published is not None and datetime.fromisoformat(published) == stored
    return published == stored


def check_events(site: Site, published: list[tuple[bytes, dict]]) -> None:
    """Each row of the lake is published, with its values and under its visitor; and nothing else is."""
    lake = lake_rows(site)
    assert {(value["source_partition"], value["position"]) for _, value in published} == lake.keys()
    for key, value in published:
        row = lake[value["source_partition"], value["position"]]
        assert key == row["visitor_id"].encode()
        assert value.keys() == row.keys()
        for name, stored in row.items():
            assert same(value[name], stored), (name, value[name], stored)


KEYS = {
    "page_views": ("window_start", "host", "path"),
    "site_activity": ("window_start", "host"),
    "traffic_sources": (
        "window_start",
        "host",
        "referrer_medium",
        "referrer_source",
        "utm_source",
        "utm_medium",
        "utm_campaign",
    ),
    "audience": ("window_start", "country", "device_class"),
    "sessions": ("visitor_id", "session_start"),
    "checkout_funnel": ("visitor_id", "session_start"),
}


def newest(published: list[tuple[bytes, dict]]) -> dict[str, dict[tuple, dict]]:
    """By table and key, the published row of the highest version."""
    found: dict[str, dict[tuple, tuple[int, dict]]] = defaultdict(dict)
    for key, value in published:
        table, *at = json.loads(key)
        row, version = value["row"], value["version"]
        assert table == value["table"]
        assert at == [row[name] for name in KEYS[table]]
        held = found[table].get(tuple(at))
        if held is None or held[0] <= version:
            assert held is None or held[0] < version or held[1] == row, "one version, two rows"
            found[table][tuple(at)] = version, row
    return {table: {at: row for at, (_, row) in rows.items()} for table, rows in found.items()}


def table_rows(site: Site) -> dict[str, dict[tuple, dict]]:
    found = {}
    with psycopg.connect(site.ledger) as db:
        db.execute("set timezone = 'UTC'")
        for table, key in KEYS.items():
            cursor = db.execute(f"select * from clickstream.{table}")
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
            found[table] = {tuple(text(row[name]) for name in key): row for row in rows}
    return found


def text(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def differences(site: Site, published: list[tuple[bytes, dict]]) -> list[tuple]:
    """Rows of the tables whose highest published version is not there or not what they are now."""
    latest = newest(published)
    wrong: list[tuple] = []
    for table, rows in table_rows(site).items():
        assert rows, table
        at_hand = {spelled(table, at): row for at, row in latest.get(table, {}).items()}
        for at, row in rows.items():
            found = at_hand.get(at, {})
            wrong += [
                (table, at, name, found.get(name), stored)
                for name, stored in row.items()
                if not same(found.get(name), stored)
            ]
    return wrong


def spelled(table: str, at: tuple) -> tuple:
    """A key with its time in Python's spelling."""
    return tuple(
        datetime.fromisoformat(part).isoformat() if name.endswith("_start") else part
        for name, part in zip(KEYS[table], at, strict=True)
    )


def complete(site: Site) -> Callable[[list], bool]:
    """Whether every row of the lake was read."""
    lake = lake_rows(site).keys()
    return lambda found: {(v["source_partition"], v["position"]) for _, v in found} >= lake


async def check_published(site: Site, workers: list[Worker]) -> None:
    await until(lambda: notes(site) == 0, "every note is published", 60, workers)
    events, tables = published_topics(site)
    check_events(site, await read_until(site, events, complete(site)))
    changes = await read_until(site, tables, lambda found: not differences(site, found))
    assert not differences(site, changes)


async def test_every_event_and_the_newest_state_of_every_row_is_published(publishing, start):
    workers = [start("one"), start("two")]
    sent = await produce(publishing.broker, publishing.topic, generated(12_000, seed=31))
    await until(lambda: committed_records(publishing.ledger) == sent, "all committed", 90, workers)
    await check_published(publishing, workers)
    assert [worker.stop() for worker in workers] == [0, 0], workers[0].tail() + workers[1].tail()


@pytest.mark.slow
async def test_what_a_killed_worker_had_committed_and_not_published_the_next_one_publishes(publishing, start):
    """Publishing fails because its topics are gone; commits go on, and what they note stays noted."""
    first = start("first")
    await until(lambda: b'"claimed"' in first.log.read_bytes(), "it runs", 40, [first])
    await delete_topics(publishing)
    sent = await produce(publishing.broker, publishing.topic, generated(4_000, seed=32))
    await until(lambda: committed_records(publishing.ledger) == sent, "all committed", 60, [first])
    await until(lambda: b'"not_published_yet"' in first.log.read_bytes(), "the log says so", 60, [first])
    sent += await produce(publishing.broker, publishing.topic, generated(4_000, seed=33))
    await until(lambda: committed_records(publishing.ledger) == sent, "commits go on", 60, [first])
    await until(lambda: health(first)["notes"] > 0, "health says so", 30, [first])
    assert "has no topic" in health(first)["problem"]
    first.kill()
    assert notes(publishing) > 0
    await create_topics(publishing)
    second = start("second")
    await check_published(publishing, [second])
    assert second.stop() == 0, second.tail()


async def delete_topics(site: Site) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=site.broker)
    await client.start()
    try:
        await client.delete_topics(list(published_topics(site)))
    finally:
        await client.close()


def health(worker: Worker) -> dict:
    address = re.search(r"http://127\.0\.0\.1:\d+", worker.log.read_text()).group()
    with urllib.request.urlopen(f"{address}/readyz", timeout=5) as answer:
        return json.load(answer)["workers"][0]["publication"]
