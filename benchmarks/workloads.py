"""What is measured: events in a topic, the topic page that describes them, and how to tell a right answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import events as counting_events
import orjson
import psycopg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer

PARTITIONS = 4
_HERE = Path(__file__).parent
_SHIPPED_PAGE = _HERE.parent / "topics" / "clickstream.toml"
_CHUNK = 2_000

#: Key and value of one record.
Record = tuple[bytes | None, bytes]


@dataclass(frozen=True, slots=True)
class Workload:
    """``count`` records in ``topic``, processed as ``page`` (a file) says, which is the stream ``stream``.

    ``lake``: whether objects are written. ``is_right`` looks at the finished database (of streamproc).
    ``answer``: the reference for contestants that hand back rows, ``None`` where there is none.
    """

    stream: str
    topic: str
    count: int
    page: Path
    is_right: Callable[[psycopg.Connection[Any]], bool]
    answer: counting_events.Answer | None = None


def prepare_counting(bootstrap: str, topic: str, count: int, seed: int) -> Workload:
    """Make the events of the counting workload, count them the slow way and put them into ``topic``."""
    records = [(event.key, event.value) for event in counting_events.generate(count, seed)]
    answer = counting_events.reference(value for _, value in records)
    asyncio.run(_fill(bootstrap, topic, records))

    def is_right(database: psycopg.Connection[Any]) -> bool:
        rows = database.execute(
            """SELECT (extract(epoch FROM window_start) * 1000)::bigint, path, views, visitors
                 FROM counting.page_counts"""
        )
        return to_answer(rows) == answer

    return Workload("counting", topic, count, _HERE / "counting.toml", is_right, answer)


def prepare_page(bootstrap: str, topic: str, count: int, seed: int) -> Workload:
    """Put believable visitors' events into ``topic``, for the shipped clickstream page with everything on."""
    command = [sys.executable, "-m", "streamproc", "generate", "--events", str(count), "--seed", str(seed)]
    lines = subprocess.run(command, check=True, capture_output=True).stdout.splitlines()
    asyncio.run(
        _fill(bootstrap, topic, [(orjson.loads(line)["visitor_id"].encode(), line) for line in lines])
    )

    def is_right(database: psycopg.Connection[Any]) -> bool:
        accepted, in_lake = database.execute(
            """SELECT (SELECT sum(accepted) FROM streamproc.partitions WHERE stream = 'clickstream'),
                      (SELECT sum(rows) FROM streamproc.objects
                        WHERE stream = 'clickstream' AND kind = 'events' AND state = 'committed')"""
        ).fetchone() or (None, None)
        return accepted is not None and accepted == in_lake

    return Workload("clickstream", topic, len(lines), _SHIPPED_PAGE, is_right)


def to_answer(rows: Any) -> counting_events.Answer:
    """Rows of window start in milliseconds, path, views, visitors as an answer that can be compared."""
    return {
        counting_events.Cell(window, path): counting_events.Total(views, visitors)
        for window, path, views, visitors in rows
    }


async def _fill(bootstrap: str, topic: str, records: list[Record]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()
    async with KafkaProducer(KafkaConnection(bootstrap, embedded=True)) as producer:
        for start in range(0, len(records), _CHUNK):
            keys, values = zip(*records[start : start + _CHUNK], strict=True)
            await producer.send(topic, values, keys)
        await producer.flush()
