"""The workloads, and the topics that hold their events."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit

import orjson
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks import events
from benchmarks.comparison import references
from benchmarks.comparison.answers import Answer, Key
from benchmarks.comparison.page_reference import PageAnswer, whole_page
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer

_HERE = Path(__file__).parents[1]
_CHUNK = 2_000

#: Key and value of one record.
Record = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for. ``page``: streamproc's topic page for it, of the stream ``stream``.

    ``generate``: a number of events and a seed → records. ``reference``: their values → the answer, whose rows
    the first ``keys`` columns identify. ``rows``: the statement that reads streamproc's answer. ``events``: how
    many streamproc is given.
    """

    name: str
    title: str
    stream: str
    page: Path
    events: int
    generate: Callable[[int, int], Iterable[Record]]
    reference: Callable[[Iterable[bytes]], dict[Key, tuple[int, ...]] | PageAnswer] | None = None
    keys: int = 2
    rows: LiteralString = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The first ``count`` events of a workload in ``topic``, and the reference where the workload has one."""

    workload: Workload
    topic: str
    count: int
    partitions: int
    answer: Answer | PageAnswer | None


def _shipped_events(count: int, seed: int) -> list[Record]:
    """Believable visitors' events for the shipped clickstream page."""
    command = [sys.executable, "-m", "streamproc", "generate", "--events", str(count), "--seed", str(seed)]
    lines = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
    return [(orjson.loads(line)["visitor_id"].encode(), line) for line in lines]


_COUNTING = Workload(
    name="w1",
    title="w1: views and visitors per path and minute",
    stream="counting",
    page=_HERE / "counting.toml",
    events=5_000_000,
    generate=events.generate,
    reference=references.minute_counts,
    rows="""SELECT (extract(epoch FROM window_start) * 1000)::bigint, path, views, visitors
              FROM counting.page_counts""",
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        _COUNTING,
        Workload(
            name="w2",
            title="w2: the shipped page, six tables and Parquet",
            stream="clickstream",
            page=_HERE.parent / "topics" / "clickstream.toml",
            events=2_000_000,
            generate=_shipped_events,
            reference=whole_page,
            keys=3,
            rows="""SELECT (extract(epoch FROM window_start) * 1000)::bigint, host, path, views
                      FROM clickstream.page_views""",
        ),
        Workload(
            name="w3",
            title="w3: sessions of 50,000 visitors",
            stream="visits",
            page=_HERE / "sessions.toml",
            events=5_000_000,
            # 22 ms apart: a visitor comes back after 18 minutes on average, after more than 30 in one case of five.
            generate=partial(events.generate, step_ms=22),
            reference=references.sessions,
            rows="""SELECT visitor_id, (extract(epoch FROM session_start) * 1000)::bigint,
                           (extract(epoch FROM session_end) * 1000)::bigint, events
                      FROM visits.sessions""",
        ),
        Workload(
            name="w5",
            title="w5: 1,000,000 visitors in windows of an hour",
            stream="visitor_hours",
            page=_HERE / "visitor_hours.toml",
            events=5_000_000,
            # 10 ms apart: 360,000 events in a window, two thirds of which make a row each.
            generate=partial(events.generate, visitors=1_000_000, step_ms=10),
            reference=references.visitor_hours,
            rows="""SELECT (extract(epoch FROM window_start) * 1000)::bigint, visitor_id, events,
                           (extract(epoch FROM last) * 1000)::bigint
                      FROM visitor_hours.visitor_hours""",
        ),
    )
}


def fill_topics(
    connection: KafkaConnection,
    workload: Workload,
    wanted: Iterable[tuple[int, str]],
    *,
    seed: int,
    partitions: int,
) -> dict[tuple[int, str], Dataset]:
    """A topic for each (number of events, key) that is ``wanted``: all begin with the same events.

    The key is ``visitor`` or ``path``. The reference is the same for both.
    """
    sizes = sorted(set(wanted))
    records = list(workload.generate(max(count for count, _ in sizes), seed))
    answers: dict[int, Answer | PageAnswer | None] = {}
    datasets = {}
    for count, key in sizes:
        chosen: Sequence[Record] = records[:count]
        if count not in answers:
            answers[count] = workload.reference(value for _, value in chosen) if workload.reference else None
        if key == "path":
            chosen = [(_path_of(value), value) for _, value in chosen]
        topic = f"{workload.name}-{count}-{key}"
        asyncio.run(fill(connection, topic, chosen, partitions))
        datasets[count, key] = Dataset(workload, topic, len(chosen), partitions, answers[count])
    return datasets


async def fill(connection: KafkaConnection, topic: str, records: Sequence[Record], partitions: int) -> None:
    """Create ``topic`` and put all records into it, by key as Kafka's own clients do."""
    await create(connection, topic, partitions)
    async with KafkaProducer(connection) as producer:
        for start in range(0, len(records), _CHUNK):
            keys, values = zip(*records[start : start + _CHUNK], strict=True)
            await producer.send(topic, values, keys)
        await producer.flush()


async def create(connection: KafkaConnection, topic: str, partitions: int) -> None:
    """Create a topic of one replica."""
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1)])
    finally:
        await admin.close()


def _path_of(value: bytes) -> bytes:
    url: str = orjson.loads(value)["page_url"]
    return urlsplit(url).path.encode()
