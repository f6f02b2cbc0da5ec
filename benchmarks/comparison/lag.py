"""w6: from a cold start to no lag, over a topic of some million events; and the topics of the scaling curves."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.comparison.answers import WrongAnswer, read_answer
from benchmarks.comparison.datasets import WORKLOADS, Dataset, create
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.stamping import Templates
from benchmarks.comparison.streamproc_worker import StreamprocWorker
from benchmarks.events import START_MS
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


def measure_streamproc(worker: StreamprocWorker, lag: Lag) -> Round:
    """From the start of the process until all events are committed. Raises :class:`Failed`."""
    begin = time.monotonic()
    with worker.started(WORKLOADS["w1"], lag.topic) as running:
        first = running.wait_for(1, worker.timeout)
        end = running.wait_for(lag.count, worker.timeout)
        time.sleep(0.1)  # so that a sample lies behind the end
        check_views(lag, running.database)
        sampler = running.sampler
        return Round(
            workload="w6",
            contestant=worker.name,
            title=worker.title,
            events=lag.count,
            seconds=end - begin,
            cpu_seconds=sampler.cpu_between(begin, end),
            cpu_seconds_in_all=sampler.cpu_seconds,
            peak_rss_bytes=sampler.peak_rss_bytes,
            more={"seconds_to_first_commit": first - begin},
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
