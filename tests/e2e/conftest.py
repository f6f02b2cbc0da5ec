"""A site for each test: a broker, a topic page, a fresh database and folder."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from streamproc.embedded.broker import start_broker
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import Topic
from tests.e2e.harness import REPOSITORY, Site, Worker


@pytest.fixture
def broker_of_site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    """``host:port``, the setting, and what partition ids begin with: Apache Kafka when that is switched on,
    else an embedded broker that the test and its workers share as local processes do."""
    if os.environ.get("STREAMPROC_TEST_BROKER") == "kafka":
        bootstrap = request.getfixturevalue("broker")
        yield bootstrap, f"kafka://{bootstrap}", ""
        return
    with start_broker(tmp_path / "data" / "broker") as embedded:
        yield embedded.bootstrap, "embedded:", f"{embedded.incarnation[:8]}."


@pytest.fixture
async def site(tmp_path: Path, broker_of_site: tuple[str, str, str], postgres: str) -> AsyncIterator[Site]:
    """The shipped clickstream page, reading a topic of the test's own."""
    bootstrap, url, partition_prefix = broker_of_site
    topic = f"clicks-{tmp_path.name}"
    pages = tmp_path / "topics"
    pages.mkdir()
    page = (REPOSITORY / "topics" / "clickstream.toml").read_text()
    page, replaced = re.subn(r'(?m)(?<=^\[topic\]\n)name = "clickstream"', f'name = "{topic}"', page)
    assert replaced == 1
    (pages / "clickstream.toml").write_text(page)
    async with admin(KafkaConnection(bootstrap, embedded=url == "embedded:")) as broker:
        await broker.apply(Topic(topic, partitions=4))
    yield Site(
        directory=tmp_path,
        broker=bootstrap,
        broker_url=url,
        ledger=postgres,
        topics=pages,
        topic=topic,
        partition_prefix=partition_prefix,
        extra={"STREAMPROC_GROUP": topic, "STREAMPROC_KAFKA_SESSION_TIMEOUT": "6s"},
    )


@pytest.fixture
def start(site: Site) -> Iterator:
    """Starts workers of the site; those still running at the end are killed."""
    started: list[Worker] = []

    def start_worker(name: str, *arguments: str) -> Worker:
        started.append(site.worker(name, *arguments))
        return started[-1]

    yield start_worker
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()
