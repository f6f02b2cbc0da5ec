"""A site for each test: a topic page of its own, a fresh database and folder, the session's broker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import REPOSITORY, Site, Worker


@pytest.fixture
def site(tmp_path: Path, broker: str, topic: str, postgres: str) -> Site:
    """The shipped clickstream page, reading the test's own topic."""
    pages = tmp_path / "topics"
    pages.mkdir()
    page = (REPOSITORY / "topics" / "clickstream.toml").read_text()
    page, replaced = re.subn(r'(?m)(?<=^\[topic\]\n)name = "clickstream"', f'name = "{topic}"', page)
    assert replaced == 1
    (pages / "clickstream.toml").write_text(page)
    return Site(
        directory=tmp_path,
        broker=broker,
        ledger=postgres,
        topics=pages,
        topic=topic,
        extra={"STREAMPROC_GROUP": topic, "STREAMPROC_KAFKA_SESSION_TIMEOUT": "6s"},
    )


@pytest.fixture
def start(site: Site) -> Iterator:
    """Starts workers of the site; those still running at the end are killed."""
    started: list[Worker] = []

    def start_worker(name: str) -> Worker:
        started.append(site.worker(name))
        return started[-1]

    yield start_worker
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()
