"""The embedded broker forgets everything with its last user; what was committed before stays committed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pytest

from streamproc.embedded.broker import join_broker
from tests.e2e.harness import (
    REPOSITORY,
    Site,
    Worker,
    committed_records,
    generated,
    produce,
    settled_files,
    until,
)

EVENTS = 1_000


@pytest.fixture
def lone_site(tmp_path: Path, postgres: str) -> Site:
    """A site whose broker lives and dies with its worker."""
    return Site(
        directory=tmp_path,
        broker="",
        broker_url="embedded:",
        ledger=postgres,
        topics=REPOSITORY / "topics" / "clickstream.toml",
    )


@pytest.fixture
def start(lone_site: Site) -> Iterator:
    started: list[Worker] = []

    def start_worker(name: str) -> Worker:
        started.append(lone_site.worker(name))
        return started[-1]

    yield start_worker
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


async def live_once(site: Site, worker: Worker, seed: int, again: int = 0) -> None:
    """Feed the worker's own broker and wait until that is committed, and ``again`` records once more."""
    before = committed_records(site.ledger) + again
    await until(lambda: b'"worker_running"' in worker.log.read_bytes(), "the worker runs", 30, [worker])
    broker = join_broker(site.directory / "data" / "broker")
    assert broker is not None
    with broker:
        await produce(broker.bootstrap, site.topic, generated(EVENTS, seed, bad_ratio=0))
        await until(lambda: committed_records(site.ledger) == before + EVENTS, "all committed", 60, [worker])


def ledger_partitions(site: Site) -> dict[str, int]:
    with psycopg.connect(site.ledger) as db:
        rows = db.execute("select partition, records from streamproc.partitions where records > 0").fetchall()
        return {partition: int(records) for partition, records in rows}


async def test_a_restart_reads_its_new_empty_log_and_repeats_or_skips_nothing(lone_site, start):
    for name, seed in (("first", 21), ("second", 22)):
        worker = start(name)
        await live_once(lone_site, worker, seed)
        report = json.loads(lone_site.run("status", "--json").stdout)["streams"][0]
        assert report["lag"] == 0
        assert worker.stop() == 0, worker.tail()

    partitions = ledger_partitions(lone_site)
    lives = {partition.partition(".")[0] for partition in partitions}
    assert len(lives) == 2 and all(partition.rpartition(".")[2] in "0123" for partition in partitions)
    for life in lives:
        assert sum(n for partition, n in partitions.items() if partition.startswith(life)) == EVENTS
    with psycopg.connect(lone_site.ledger) as db:
        (accepted,) = db.execute("select sum(accepted) from streamproc.partitions").fetchone()
        files = [str(path) for path in settled_files(db, lone_site.lake)]
    rows = (
        duckdb.connect().execute("select source_partition, position from read_parquet(?)", [files]).fetchall()
    )
    assert len(rows) == accepted
    assert max(Counter(rows).values()) == 1
    assert report["totals"]["records"] == 2 * EVENTS


@pytest.mark.slow
async def test_a_broker_that_was_killed_with_its_worker_is_a_new_one_too(lone_site, start):
    first = start("first")
    await live_once(lone_site, first, 23)
    first.kill()
    second = start("second")
    await live_once(lone_site, second, 24)
    assert second.stop() == 0, second.tail()
    assert sum(ledger_partitions(lone_site).values()) == 2 * EVENTS


@pytest.mark.slow
async def test_positions_are_shown_and_set_by_the_number_of_a_living_partition(lone_site, start):
    worker = start("only")
    await live_once(lone_site, worker, 25)
    (shown,) = json.loads(lone_site.run("offsets", "show", "--json").stdout)["streams"]
    ids = [each["partition"] for each in shown["partitions"]]
    assert len(ids) == 4 and {each["lag"] for each in shown["partitions"]} == {0}
    note = ["--accept-repeat", "--note", "once more", "--force", "--yes", "--json"]
    done = json.loads(lone_site.run("offsets", "set", "clickstream", "0", "earliest", *note).stdout)
    assert done["partition"] == next(each for each in ids if each.endswith(".0"))
    await live_once(lone_site, worker, 26, again=done["repeated"])
    assert worker.stop() == 0, worker.tail()
