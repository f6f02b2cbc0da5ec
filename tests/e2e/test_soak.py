"""A worker under steady load for hours of event time: memory, descriptors and the ledger stay as they are.

``make soak`` takes two hours at twelve times event time, on the embedded servers. What CI runs takes half a minute and
is faster in event time, so that hours end in it; it cannot tell a slow leak, only that nothing grows outright.

The ledger's housekeeping goes by the clock: a day until merged objects are deleted, weeks of history. A soak has hours,
so beside what the worker does, the test sweeps and forgets with the same functions and shorter times.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psutil
import psycopg
import pytest

from streamproc.generator import Generator
from streamproc.ledger import Ledger, SweepTimes
from streamproc.ledger.retention import forget_swept
from streamproc.sinks.object_store import open_store
from tests.e2e.harness import Site, Worker, committed_records, produce, until

SECONDS = float(os.environ.get("STREAMPROC_SOAK_SECONDS", "30"))
#: How much faster than the clock event time goes; two hours at twelve times are a day.
SPEED = 12 if "STREAMPROC_SOAK_SECONDS" in os.environ else 600
#: Records a second: the embedded broker keeps all of them in memory. In hours what enrichments remember has to be full
#: before the warm-up is over: 100,000 addresses, of which these records bring one in twenty.
RATE = 1_000 if SECONDS >= 3600 else 200
#: The first part of the time is warm-up: caches fill, sessions open.
WARM = 1 / 4
#: Samples.
FEWEST = 16

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(SECONDS * 1.5 + 200)]


@dataclass(frozen=True)
class Sample:
    """``at``: seconds since the beginning; ``rss`` in bytes, of which ``anon`` is no file's, which only says how much
    code was used so far; ``cpu`` in seconds; ``ledger`` and ``objects``: rows, all and committed.
    """

    at: float
    rss: int
    anon: int
    fds: int
    threads: int
    records: int
    ledger: int
    objects: int
    cpu: float


def ledger_rows(db: psycopg.Connection[Any]) -> tuple[int, int]:
    tables = ["epochs", "epoch_ranges", "objects", "partitions", "outbox", "redrives", "replays", "erasures"]
    total = sum(db.execute(f"SELECT count(*) FROM streamproc.{name}").fetchone()[0] for name in tables)
    query = "SELECT count(*) FROM streamproc.objects WHERE state = 'committed'"
    return total, db.execute(query).fetchone()[0]


def sample(site: Site, worker: Worker, began: float) -> Sample:
    process = psutil.Process(worker.process.pid)
    memory = process.memory_info()
    with psycopg.connect(site.ledger, autocommit=True) as db:
        total, committed = ledger_rows(db)
    taken = committed_records(site.ledger)
    return Sample(
        time.monotonic() - began,
        memory.rss,
        memory.rss - memory.shared,
        process.num_fds(),
        process.num_threads(),
        taken,
        total,
        committed,
        sum(process.cpu_times()[:2]),
    )


def slope_per_hour(samples: list[Sample]) -> float:
    """Of the memory, by least squares of each minute's median, as a share of the median of all. What a compaction takes
    for some seconds is no growth; how much that may be is looked at apart.
    """
    minutes: dict[int, list[int]] = defaultdict(list)
    for each in samples:
        minutes[int(each.at // 60)].append(each.rss)
    medians = [statistics.median(taken) for taken in minutes.values()]
    fit = statistics.linear_regression([minute / 60 for minute in minutes], medians)
    return fit.slope / statistics.median(medians)


def cost(samples: list[Sample]) -> float:
    """CPU seconds of a record."""
    first, last = samples[0], samples[-1]
    return (last.cpu - first.cpu) / (last.records - first.records)


def note(samples: list[Sample]) -> None:
    if path := os.environ.get("STREAMPROC_SOAK_LOG"):
        Path(path).write_text("".join(json.dumps(asdict(each)) + "\n" for each in samples), "utf-8")


class Traffic:
    """Records at a steady rate, event time running at ``SPEED`` and ending before now."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = False
        self.sent = 0
        begin = datetime.now(UTC) - timedelta(seconds=SECONDS * SPEED * 1.5 + 86_400)
        generator = Generator(
            seed=11, events=10**9, bad_ratio=0.01, start=begin, rate=max(1, round(RATE / SPEED)), steady=True
        )
        records = ((r.key, r.value) for r in generator.records() if len(r.value or b"") < 100_000)
        # Fewer than one a second of event time cannot be asked for: leave some out.
        keep = max(1, round(SPEED / RATE))
        self._records = itertools.islice(records, 0, None, keep)

    async def flow(self) -> None:
        began = time.monotonic()
        while not self._over:
            due = int((time.monotonic() - began) * RATE) - self.sent
            if due >= RATE // 4:
                self.sent += await produce(
                    self._site.broker, self._site.topic, itertools.islice(self._records, due)
                )
            await asyncio.sleep(0.2)

    def end(self) -> None:
        """After what is being sent: :attr:`sent` would not count it otherwise."""
        self._over = True


@asynccontextmanager
async def flowing(site: Site) -> AsyncIterator[Traffic]:
    traffic = Traffic(site)
    task = asyncio.create_task(traffic.flow())
    try:
        yield traffic
    finally:
        traffic.end()
        await task


async def keep_house(site: Site, grace: timedelta) -> None:
    """Merge, sweep and forget, with ``grace`` in the place of a day and of weeks."""
    await asyncio.to_thread(lambda: site.run("lake", "compact", "clickstream", patience=900))
    store = open_store(site.lake.as_uri())
    await store.open()
    async with Ledger(site.ledger, site.stream, "soak") as ledger:
        await ledger.sweep(store, SweepTimes(first=grace, again=2 * grace, superseded=grace))
        await forget_swept(ledger.database, site.stream, grace)
        await ledger.forget(2 * grace)


async def test_nothing_grows_while_events_flow_and_everything_is_there_in_the_end(site, start):
    grace = timedelta(seconds=max(SECONDS / 12, 2))
    worker = start("soak")
    samples: list[Sample] = []
    async with flowing(site) as traffic:
        await until(lambda: committed_records(site.ledger) > 0, "the first commit", 90, [worker])
        began = time.monotonic()
        kept_house = began
        # On a busy machine a look takes long: there have to be some, however long it takes.
        while time.monotonic() - began < SECONDS or len(samples) < FEWEST:
            worker.assert_running()
            samples.append(sample(site, worker, began))
            note(samples)
            if time.monotonic() - kept_house > grace.total_seconds():
                await keep_house(site, grace)
                kept_house = time.monotonic()
            await asyncio.sleep(min(10.0, SECONDS / 60))
    sent = traffic.sent
    await until(lambda: committed_records(site.ledger) == sent, "everything committed", 120, [worker])
    assert worker.stop() == 0, worker.tail()
    warm = samples[int(len(samples) * WARM) :]
    half = len(warm) // 2
    assert max(each.fds for each in warm[half:]) <= max(each.fds for each in warm[:half]) + 8
    assert max(each.threads for each in warm[half:]) <= max(each.threads for each in warm[:half]) + 8
    assert max(each.rss for each in warm[half:]) <= 1.5 * max(each.rss for each in warm[:half])
    if SECONDS >= 3600:
        assert max(each.ledger for each in warm[half:]) <= 1.5 * max(each.ledger for each in warm[:half])
        assert cost(warm[half:]) <= 1.5 * cost(warm[:half]), "an event costs more as time passes"

    site.run("warehouse", "load", patience=900)
    for _ in range(2):  # what was abandoned is deleted twice
        await keep_house(site, timedelta(0))
    with psycopg.connect(site.ledger) as db:
        total, committed = ledger_rows(db)
        partitions = db.execute("SELECT count(*) FROM streamproc.partitions").fetchone()[0]
    assert total == partitions + committed, "something stays in the ledger for ever"
    lake = site.run("lake", "manifest", "--sql").stdout
    rows, distinct = (
        duckdb.sql(lake).aggregate("count(*), count(DISTINCT (source_partition, position))").fetchall()[0]
    )
    with psycopg.connect(site.ledger) as db:
        accepted = db.execute("SELECT sum(accepted) FROM streamproc.partitions").fetchone()[0]
        merged = db.execute("SELECT count(*) FROM streamproc.objects WHERE key LIKE '%-merged-%'").fetchone()[
            0
        ]
        loaded = db.execute("SELECT count(*) FROM warehouse.clickstream").fetchone()[0]
    assert rows == distinct == accepted == loaded
    # In half a minute an hour may have a single commit, and nothing to merge.
    assert merged > 0 or SECONDS < 3600, "no hour was compacted"
    # Last: it is the one that takes hours to be looked into, and the others shall be known then.
    assert SECONDS < 3600 or slope_per_hour(warm) < 0.01, slope_per_hour(warm)
