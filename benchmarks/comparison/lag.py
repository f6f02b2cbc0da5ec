"""w6: from a cold start to no lag, over a topic of some million events; and the topics of the scaling curves.

The events of w1, which peers can do too, are counted; ``w6-page`` is the shipped page, which is streamproc's alone.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.comparison.answers import WrongAnswer, read_answer
from benchmarks.comparison.datasets import WORKLOADS, Dataset, Workload, create
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.stamping import Templates
from benchmarks.comparison.streamproc_worker import StreamprocWorker
from benchmarks.events import START_MS
from benchmarks.measure import cpu_seconds
from streamproc.generator import Generator
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer

_CHUNK = 20_000


@dataclass(frozen=True, slots=True)
class Lag:
    """A topic of ``count`` events of the counting workload, ``humans`` of which count."""

    topic: str
    count: int
    partitions: int
    humans: int = 0

    @property
    def dataset(self) -> Dataset:
        """The same as w1's, without a reference."""
        return Dataset(WORKLOADS["w1"], self.topic, self.count, self.partitions, None)


def fill_lag(connection: KafkaConnection, wanted: Lag, templates: Templates, *, step_ms: int = 1) -> Lag:
    """Put the ``wanted`` events into a new topic, ``step_ms`` of event time apart. Returns it with its ``humans``."""
    return asyncio.run(_fill(connection, wanted, templates, step_ms))


async def _fill(connection: KafkaConnection, lag: Lag, templates: Templates, step_ms: int) -> Lag:
    await create(connection, lag.topic, lag.partitions)
    humans = 0
    async with KafkaProducer(connection) as producer:
        for first in range(0, lag.count, _CHUNK):
            numbers = range(first, min(first + _CHUNK, lag.count))
            stamped = templates.stamped(first, [START_MS + number * step_ms for number in numbers])
            await producer.send(lag.topic, stamped.values, stamped.keys)
            humans += stamped.humans
        await producer.flush()
    return Lag(lag.topic, lag.count, lag.partitions, humans)


def fill_page_lag(connection: KafkaConnection, wanted: Lag, seed: int) -> Lag:
    """Put the ``wanted`` events, of ``streamproc generate``, into a new topic."""
    asyncio.run(_fill_page(connection, wanted, seed))
    return wanted


async def _fill_page(connection: KafkaConnection, wanted: Lag, seed: int) -> None:
    await create(connection, wanted.topic, wanted.partitions)
    async with KafkaProducer(connection) as producer:
        for chunk in Generator(seed, wanted.count).batches(_CHUNK):
            await producer.send(wanted.topic, [value for _, value in chunk], [key for key, _ in chunk])
        await producer.flush()


def measure_streamproc(worker: StreamprocWorker, lag: Lag) -> Round:
    """From the start of the process until all events are counted. Raises :class:`Failed`."""
    return _measure(worker, lag, "w6", WORKLOADS["w1"], check_views)


def measure_page(worker: StreamprocWorker, lag: Lag) -> Round:
    """From the start of the process until all events have gone through the shipped page. Raises :class:`Failed`."""
    return _measure(worker, lag, "w6-page", WORKLOADS["w2"], check_accounts)


def _measure(
    worker: StreamprocWorker,
    lag: Lag,
    name: str,
    workload: Workload,
    check: Callable[[Lag, psycopg.Connection[Any]], None],
) -> Round:
    begin = time.monotonic()
    with worker.started(workload, lag.topic) as running:
        server = running.server()
        server_begin = cpu_seconds(server)
        first = running.wait_for(1, worker.timeout)
        end = running.wait_for(lag.count, worker.timeout)
        server_spent = cpu_seconds(server) - server_begin
        time.sleep(0.1)  # so that a sample lies behind the end
        check(lag, running.database)
        sampler = running.sampler
        return Round(
            workload=name,
            contestant=worker.name,
            title=worker.title,
            events=lag.count,
            seconds=end - begin,
            cpu_seconds=sampler.cpu_between(begin, end),
            cpu_seconds_in_all=sampler.cpu_seconds,
            peak_rss_bytes=sampler.peak_rss_bytes,
            stages=running.stages(),
            more={
                "seconds_to_first_claim": running.claimed_at() - begin,
                "seconds_to_first_commit": first - begin,
                "postgresql_cpu_seconds_per_million": server_spent / lag.count * 1e6,
            },
        )


def measure_peer(program: PeerProgram, lag: Lag) -> Round:
    """From the start of its process until its result is complete. Raises :class:`Failed`."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{program.name}-") as folder:
        answer = Path(folder) / "answer.jsonl"
        begin = time.monotonic()
        result, sampler = program.start_and_wait(lag.dataset, Path(folder), ["--answer", str(answer)])
        try:
            views = sum(numbers[0] for numbers in read_answer(answer, 2).values())
        except WrongAnswer as error:
            raise Failed(f"wrong answer: {error}") from error
    if views != lag.humans:
        raise Failed(f"wrong answer: {views} views, not {lag.humans}")
    return Round(
        workload="w6",
        contestant=program.name,
        title=program.title,
        events=lag.count,
        seconds=result["end"] - begin,
        cpu_seconds=sampler.cpu_between(begin, result["end"]),
        cpu_seconds_in_all=sampler.cpu_seconds,
        peak_rss_bytes=sampler.peak_rss_bytes,
        more={"seconds_to_first_event": result["begin"] - begin},
        left_out=program.peer.workloads["w1"].left_out,
    )


def check_views(lag: Lag, database: psycopg.Connection[Any]) -> None:
    """Return if every human event was counted once. Raises :class:`Failed` otherwise."""
    (views,) = database.execute("SELECT sum(views)::bigint FROM counting.page_counts").fetchone() or (None,)
    if views != lag.humans:
        raise Failed(f"wrong answer: {views} views, not {lag.humans}")


def check_accounts(lag: Lag, database: psycopg.Connection[Any]) -> None:
    """Return if each record has one outcome and each accepted event is in the lake; else raises :class:`Failed`."""
    found = database.execute(
        """SELECT sum(records), sum(accepted + filtered + rejected + duplicate), sum(accepted),
                  (SELECT sum(rows) FROM streamproc.objects
                    WHERE stream = 'clickstream' AND kind = 'events' AND state = 'committed')
             FROM streamproc.partitions WHERE stream = 'clickstream'"""
    ).fetchone()
    records, accounted, accepted, in_lake = found or (None,) * 4
    if not (records == accounted == lag.count and accepted == in_lake):
        raise Failed(
            f"{records} records of {lag.count}, {accounted} accounted for, {accepted} accepted, {in_lake} in the lake"
        )
