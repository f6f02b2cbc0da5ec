"""Batches of an MSK (or Kafka) mapping: what is new in each partition is committed, and nothing is passed over.

What comes: https://docs.aws.amazon.com/lambda/latest/dg/with-msk.html. The mapping is the only one who talks to the
brokers; whether offsets that are missing were ever those of records cannot be asked.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from streamproc.errors import ConfigError, Gap, Mistake, SourceError
from streamproc.model import Partition, RecordBatch
from streamproc.runtimes.aws_lambda.engine import Engine
from streamproc.runtimes.aws_lambda.mapping import Unfinished
from streamproc.sources.kafka_origin import origin_of

#: Arrival times are rounded up to this many milliseconds, so that many records share a batch; by a rule of the
#: record alone, so that an event that comes again is cut as before.
_ARRIVAL_STEP = 1000


class KafkaTrigger:
    """Commits the batches of one topic's partitions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._topic = engine.transform.topology.topic.name

    async def __call__(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], unfinished: Unfinished
    ) -> None:
        """Commit records by the mapping's names of partitions, ``topic-number``, all in one epoch.

        A partition that cannot go on keeps none of the others from it, and is noted in ``unfinished`` as what is done
        is. Raises what kept the rest from being committed: that goes for all of it.
        """
        for some in records.values():
            if some[0]["topic"] != self._topic:
                problem = f"is {self._topic!r}, and the mapping's is {some[0]['topic']!r}"
                raise ConfigError(
                    [Mistake("topic.name", problem, "Name the stream of that topic, function.stream")]
                )
        partitions = {
            name: Partition(self._topic, str(some[0]["partition"])) for name, some in records.items()
        }
        positions = await self._engine.positions(list(partitions.values()))
        batches: list[RecordBatch] = []
        begun = []
        for name, partition in partitions.items():
            try:
                mine = list(batches_of(records[name], partition, positions[partition]))
            except SourceError as error:
                unfinished.failed(name, error)
                continue
            if not mine:
                unfinished.done(name)
                continue
            batches += mine
            begun.append(name)
        if batches:
            await self._engine.commit(batches)
        for name in begun:
            unfinished.done(name)


def item(name: str, offset: int) -> dict[str, object]:
    """How a mapping names a record: https://docs.aws.amazon.com/lambda/latest/dg/kafka-retry-configurations.html."""
    return {"partition": name, "offset": offset}


def batches_of(
    records: Sequence[Mapping[str, Any]], partition: Partition, position: int | None
) -> Iterator[RecordBatch]:
    """Record batches of what is behind the position. A partition that was never committed begins where this does.

    Raises :class:`Gap` where offsets are missing: before the records, or between them.
    """
    fresh = [record for record in records if position is None or record["offset"] > position]
    now = time.time_ns() // 1_000_000
    for received_ms, group in groupby(fresh, key=lambda record: _arrived(record, now)):
        some = list(group)
        first, last = some[0]["offset"], some[-1]["offset"]
        after = first - 1 if position is None else position
        if last - after != len(some) or [record["offset"] for record in some] != list(
            range(after + 1, last + 1)
        ):
            raise Gap(
                f"{partition}: everything through offset {after} is committed, and the offsets {first} to {last} came "
                f"with {len(some)} records: records are missing, or the topic is compacted or written in "
                "transactions, which only a worker can read; to go on without them: streamproc offsets set "
                "--accept-gap"
            )
        values = [
            None if record.get("value") is None else base64.b64decode(record["value"]) for record in some
        ]
        redriven = {}
        for record in some:
            origin = origin_of(_headers(record), partition, record["offset"])
            if origin is not None:
                redriven[record["offset"]] = origin
        size = sum(len(value) for value in values if value is not None)
        position = last
        yield RecordBatch(
            partition, after, last, values, range(after + 1, last + 1), received_ms, size, redriven=redriven
        )


def _arrived(record: Mapping[str, Any], now: int) -> int:
    """Producers may leave the timestamp out (-1); then the best that is known is that it is there now."""
    milliseconds = record.get("timestamp", -1)
    return -(-(milliseconds if milliseconds >= 0 else now) // _ARRIVAL_STEP) * _ARRIVAL_STEP


def _headers(record: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """The mapping writes a header's bytes as numbers, signed ones where it is written in Java; Kafka's may be null."""
    return [
        (name, bytes(byte & 0xFF for byte in value or ()))
        for header in record.get("headers") or ()
        for name, value in header.items()
    ]
