"""Workers that merge the lake's objects by themselves while events flow, seen by a reader who never stops looking.

The reader shares nothing with the service: one SQL statement over the ledger's tables is its manifest, DuckDB reads
the files. At every look the rows of the lake are those that the ledger counts as accepted at that moment, each once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import duckdb
import psycopg
import pytest

from tests.e2e.harness import Site, Worker, check_everything, committed_records, produce, read_topic, until
from tests.e2e.replays import (
    ALL_ROWS,
    check_warehouse,
    command,
    digest,
    expected_differences,
    named_differences,
)
from tests.e2e.test_replay import records, spoil

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(900)]

LOOK = """
    SELECT (SELECT coalesce(sum(accepted), 0)::bigint FROM streamproc.partitions WHERE stream = %(stream)s),
           array(SELECT key FROM streamproc.objects
                 WHERE stream = %(stream)s AND kind = 'events' AND state = 'committed')
"""

#: What a worker says of a process that did not live to the end of its turn.
KILLED = "the process that compacts: ended with -9"

#: Merged objects, and sources that are still as they were written, by state.
MERGED = """
    SELECT count(*) FILTER (WHERE state = 'committed' AND key LIKE '%%-merged-%%'),
           count(*) FILTER (WHERE state = 'superseded')
    FROM streamproc.objects WHERE stream = %s
"""


@pytest.fixture(autouse=True)
def often(site: Site) -> None:
    """Many small commits, and a worker that looks for what to merge all the time."""
    site.flush_interval = "200ms"
    site.extra["STREAMPROC_COMPACT_EVERY"] = "1s"


class Reader:
    """``looks``: how often it looked; ``merged``: in how many looks an object was a merged one."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self.looks = self.merged = 0

    def look(self, db: psycopg.Connection[Any]) -> None:
        accepted, keys = db.execute(LOOK, {"stream": self._site.stream}).fetchone() or (0, [])
        files = [str(self._site.lake / key) for key in keys]
        rows = distinct = 0
        if files:
            query = (
                "SELECT count(*), count(DISTINCT (source_partition, position))"
                " FROM read_parquet(?, union_by_name = true)"
            )
            with duckdb.connect(config={"threads": 1}) as lake:
                [(rows, distinct)] = lake.execute(query, [files]).fetchall()
        assert rows == distinct, f"{rows - distinct} rows were seen twice"
        assert rows == accepted, f"{rows} rows were seen of {accepted}"
        self.looks += 1
        self.merged += any("-merged-" in key for key in keys)

    def look_on(self) -> None:
        with psycopg.connect(self._site.ledger, autocommit=True) as db:
            while not self._stop.wait(0.02):
                self.look(db)

    def stop(self) -> None:
        self._stop.set()


@contextlib.asynccontextmanager
async def watched(site: Site) -> AsyncIterator[Reader]:
    """Someone who looks all the time until the end of the block, and then once more."""
    reader = Reader(site)
    looking = asyncio.create_task(asyncio.to_thread(reader.look_on))
    try:
        yield reader
    finally:
        reader.stop()
        await looking
    with psycopg.connect(site.ledger) as db:
        reader.look(db)


class Traffic:
    """Records that keep flowing, a thousand a second at most; ``sent`` of them so far."""

    def __init__(self, site: Site, source: Iterator[Any], sent: int) -> None:
        self._site, self._source, self.sent = site, source, sent

    async def __aenter__(self) -> Traffic:
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._flow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task

    async def _flow(self) -> None:
        while not self._stop.is_set():
            some = list(itertools.islice(self._source, 250))
            self.sent += await produce(self._site.broker, self._site.topic, some)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 0.2)


def merged_objects(site: Site) -> tuple[int, int]:
    """Committed objects that were merged, and those that they took the place of."""
    with psycopg.connect(site.ledger) as db:
        merged, superseded = db.execute(MERGED, [site.stream]).fetchone() or (0, 0)
    return merged, superseded


def hours_merged(site: Site) -> int:
    """Runs: a range of one partition has an object of each kind and hour of its events."""
    query = (
        "SELECT count(DISTINCT (source, partition, through)) FROM streamproc.objects"
        " WHERE stream = %s AND state = 'committed' AND key LIKE '%%-merged-%%'"
    )
    with psycopg.connect(site.ledger) as db:
        return (db.execute(query, [site.stream]).fetchone() or (0,))[0]


async def test_a_worker_merges_by_itself_and_no_reader_sees_a_row_twice_or_not_at_all(
    site: Site, start: Any
) -> None:
    worker = start("alone")
    source = records(1_000_000, seed=31)
    sent = await produce(site.broker, site.topic, itertools.islice(source, 100))
    await until(lambda: committed_records(site.ledger) == sent, "the first commit", 180, [worker])
    async with watched(site) as reader, Traffic(site, source, sent) as traffic:
        await until(lambda: hours_merged(site) >= 4, "an hour of all partitions is merged", 300, [worker])
        seen = reader.merged
        await until(lambda: reader.merged > seen + 3, "they are read", 60, [worker])
    await until(lambda: committed_records(site.ledger) == traffic.sent, "all committed", 180, [worker])
    assert worker.stop() == 0, worker.tail()
    site.run("warehouse", "load")
    assert reader.looks > reader.merged > 0
    merged, superseded = merged_objects(site)
    assert superseded > 2 * merged
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


def shrunk(site: Site) -> bool:
    """Whether everything that can be merged is: a command finds nothing to do."""
    done = site.run("lake", "compact", site.stream, "--dry-run", "--json", check=False)
    return done.returncode == 0 and json.loads(done.stdout)["streams"][0]["runs"] == []


async def small_objects(site: Site, start: Any, source: Iterator[Any], events: int) -> int:
    """Events over hours, in many commits, by a worker that merges nothing; how many."""
    site.extra["STREAMPROC_COMPACT_EVERY"] = "7d"
    first = start("first")
    sent = 0
    while sent < events:
        sent += await produce(site.broker, site.topic, itertools.islice(source, events // 24))
        await until(lambda n=sent: committed_records(site.ledger) == n, "committed", 180, [first])
    assert first.stop() == 0, first.tail()
    site.run("warehouse", "load")
    site.extra["STREAMPROC_COMPACT_EVERY"] = "1s"
    assert merged_objects(site) == (0, 0)
    return sent


async def test_workers_and_their_compactors_that_are_killed_while_they_merge_lose_and_double_nothing(
    site: Site, start: Any
) -> None:
    source = records(1_000_000, seed=32)
    sent = await small_objects(site, start, source, 13_000)
    async with watched(site) as reader, Traffic(site, source, sent) as traffic:
        for point in ("compact.intended", "compact.put", "compact.noted", "compact.replaced"):
            site.extra["STREAMPROC_FAILPOINTS"] = f"{point}=kill"
            victim: Worker = start(point)
            await until(lambda w=victim: KILLED in w.log.read_text(), f"killed at {point}", 180, [victim])
            victim.kill()
        del site.extra["STREAMPROC_FAILPOINTS"]
        before = hours_merged(site)
        assert before > 0, "the last one was killed when it was done"
        worker = start("survivor")
        await until(lambda: hours_merged(site) > before and shrunk(site), "the others too", 180, [worker])
    await until(lambda: committed_records(site.ledger) == traffic.sent, "all committed", 180, [worker])
    assert worker.stop() == 0, worker.tail()
    site.run("warehouse", "load")
    assert reader.looks > 0
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


async def test_a_replay_over_merged_objects_repairs_its_range_and_merging_waits_for_it(
    site: Site, start: Any
) -> None:
    correct = spoil(site)
    source = records(1_000_000, seed=33)
    sent = await small_objects(site, start, source, 13_000)
    correct()
    live = start("live")
    await until(lambda: hours_merged(site) > 0 and shrunk(site), "all is merged", 180, [live])
    with psycopg.connect(site.ledger) as db:
        ends = dict(db.execute("SELECT partition, position FROM streamproc.partitions").fetchall())
    numbers = {p.removeprefix(site.partition_prefix): int(end) for p, end in ends.items()}
    begin, end = (",".join(f"{p}:{end * third // 3}" for p, end in numbers.items()) for third in (1, 2))
    async with watched(site) as reader, Traffic(site, source, sent) as traffic:
        done = await command(site, f"--from={begin}", f"--to={end}", "--into", "fix")
        assert done["state"] == "complete"
        assert sum(numbers.values()) // 3 < done["positions"], "not whole objects"
        merged = hours_merged(site)
        difference = await command(site, "diff", "fix", *ALL_ROWS)
        expected = expected_differences(site, "fix", difference["as_of"])
        assert named_differences(difference) == expected
        assert expected["traffic_sources"] and expected["checkout_funnel"]
        hour = sent + 7_000
        await until(lambda: committed_records(site.ledger) > hour, "an hour has passed", 180, [live])
        assert hours_merged(site) == merged, "merged while the replay was open"
        assert (await command(site, "promote", "fix", "--yes"))["promoted"]
        await until(lambda: hours_merged(site) > 0 and shrunk(site), "merged again", 180, [live])
    await until(lambda: committed_records(site.ledger) == traffic.sent, "all committed", 180, [live])
    assert live.stop() == 0, live.tail()
    assert reader.looks > 0
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)
    now = digest(site)
    assert await command(site, "promote", "fix", "--yes") == {"replay": "fix", "promoted": False}
    assert digest(site) == now
