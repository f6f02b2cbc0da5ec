"""w4: how old an event is when its row can be read in PostgreSQL, at a steady rate of events.

Fifty times a second one event among the others goes to a page of its own, whose row is written once. When that row
was committed is asked of PostgreSQL (``track_commit_timestamp``), so nothing has to poll the tables meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from benchmarks.comparison.datasets import WORKLOADS, Dataset, Workload, create
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.sampling import Sampler
from benchmarks.comparison.stamping import Templates, probe
from benchmarks.comparison.streamproc_worker import StreamprocWorker
from streamproc.embedded.postgres import EmbeddedPostgres, start_postgres
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer

_TICKS_PER_SECOND = 50
#: Before what counts: a worker starts meanwhile, and catches up.
WARM_UP_SECONDS = 15

_PEER_TABLE = """
    CREATE TABLE page_counts (window_start bigint, path text, views bigint, visitors bigint,
                              PRIMARY KEY (window_start, path))
"""


@dataclass(slots=True)
class Produced:
    """What was sent: the human events, and when each probe was (Unix seconds).

    ``begin`` and ``end`` (``CLOCK_MONOTONIC``): the span behind the warm-up.
    """

    humans: int = 0
    probes: list[float] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class Steady:
    """A rate of events (a second) for so many seconds behind the warm-up, into a topic of ``partitions``."""

    rate: int
    seconds: int
    partitions: int
    templates: Templates

    @property
    def ticks(self) -> int:
        return (WARM_UP_SECONDS + self.seconds) * _TICKS_PER_SECOND

    @property
    def events_in_all(self) -> int:
        """All events, probes included."""
        return self.ticks * (self.rate // _TICKS_PER_SECOND)

    @property
    def workload(self) -> str:
        """What rounds at this rate are called."""
        return f"w4-{self.rate}"


@contextmanager
def postgres_with_commit_times(folder: Path) -> Iterator[EmbeddedPostgres]:
    """An embedded PostgreSQL that notes when each transaction was committed."""
    with start_postgres(folder) as postgres, psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    with start_postgres(folder) as postgres:
        yield postgres


async def produce(connection: KafkaConnection, topic: str, steady: Steady, produced: Produced) -> None:
    """Send events at the rate until its time is over. Behind the clock it sends at once, and never less in all."""
    per_tick = steady.rate // _TICKS_PER_SECOND - 1
    async with KafkaProducer(connection) as producer:
        begin = time.monotonic()
        for tick in range(steady.ticks):
            await asyncio.sleep(begin + tick / _TICKS_PER_SECOND - time.monotonic())
            if tick == WARM_UP_SECONDS * _TICKS_PER_SECOND:
                produced.begin = time.monotonic()
            now = time.time()
            stamped = steady.templates.stamped(tick * per_tick, [int(now * 1000)] * per_tick)
            key, value = probe(tick, int(now * 1000))
            await producer.send(topic, [*stamped.values, value], [*stamped.keys, key])
            produced.humans += stamped.humans + 1
            produced.probes.append(now)
        await producer.flush()
        produced.end = time.monotonic()


def measure_streamproc(
    worker: StreamprocWorker, connection: KafkaConnection, steady: Steady, topic: str
) -> Round:
    """One round of streamproc. Raises :class:`Failed`."""
    workload = WORKLOADS["w1"]
    asyncio.run(create(connection, topic, steady.partitions))
    with worker.started(workload, topic) as running:
        produced = produced_aside(connection, topic, steady)
        running.wait_for(steady.events_in_all, worker.timeout)
        lags = lags_of(running.database, "counting.page_counts", produced)
        return freshness_round(worker, steady, lags, running.sampler, produced)


def measure_peer(
    program: PeerProgram, postgres: EmbeddedPostgres, connection: KafkaConnection, steady: Steady, topic: str
) -> Round:
    """One round of a peer. Raises :class:`Failed`."""
    asyncio.run(create(connection, topic, steady.partitions))
    database = topic.replace("-", "_")
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    url = postgres.database_url(database)
    with psycopg.connect(url, autocommit=True) as connected:
        connected.execute(_PEER_TABLE)
        workload = Workload("w4", "", "", Path(), 0, lambda _count, _seed: ())
        dataset = Dataset(workload, topic, steady.events_in_all, steady.partitions, None)
        outcome: list[Produced] = []
        feeding = threading.Thread(target=lambda: outcome.append(produced_aside(connection, topic, steady)))
        feeding.start()
        try:
            with tempfile.TemporaryDirectory(prefix=f"bench-{program.name}-") as folder:
                options = ["--answer", str(Path(folder) / "answer.jsonl"), "--postgres", url]
                _, sampler = program.start_and_wait(dataset, Path(folder), options)
        finally:
            feeding.join()
        produced = outcome[0]
        return freshness_round(
            program, steady, lags_of(connected, "page_counts", produced), sampler, produced
        )


def produced_aside(connection: KafkaConnection, topic: str, steady: Steady) -> Produced:
    """Produce all events, and return what was sent."""
    produced = Produced()
    asyncio.run(produce(connection, topic, steady, produced))
    return produced


def lags_of(database: psycopg.Connection[Any], table: LiteralString, produced: Produced) -> list[float]:
    """Seconds from each probe behind the warm-up to the commit of its row. Raises :class:`Failed` for a wrong table."""
    query = sql.SQL(
        """SELECT substr(path, 8)::int, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, views
             FROM {} WHERE path LIKE '/probe/%%'"""
    )
    rows = database.execute(query.format(sql.SQL(table)), []).fetchall()
    (views,) = database.execute(
        sql.SQL("SELECT sum(views)::bigint FROM {}").format(sql.SQL(table))
    ).fetchone() or (None,)
    committed = {number: at for number, at, _ in rows}
    if views != produced.humans or len(committed) != len(produced.probes) or any(row[2] != 1 for row in rows):
        raise Failed(
            f"wrong answer: {views} views and {len(rows)} probes, not {produced.humans} and {len(produced.probes)}"
        )
    warm = WARM_UP_SECONDS * _TICKS_PER_SECOND
    return [committed[number] - sent for number, sent in enumerate(produced.probes) if number >= warm]


def freshness_round(
    contestant: StreamprocWorker | PeerProgram,
    steady: Steady,
    lags: Sequence[float],
    sampler: Sampler,
    produced: Produced,
) -> Round:
    """The round of so many lags (seconds), one for each probe."""
    cuts = statistics.quantiles(lags, n=100, method="inclusive")
    return Round(
        workload=steady.workload,
        contestant=contestant.name,
        title=contestant.title,
        events=steady.rate * steady.seconds,
        seconds=produced.end - produced.begin,
        cpu_seconds=sampler.cpu_between(produced.begin, produced.end),
        cpu_seconds_in_all=sampler.cpu_seconds,
        peak_rss_bytes=sampler.peak_rss_bytes,
        more={"p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000, "max_ms": max(lags) * 1000},
    )
