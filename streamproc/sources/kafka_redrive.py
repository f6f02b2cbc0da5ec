"""Sends rejected records again: to a given partition, with headers, and with the fate of each known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from streamproc.errors import DependencyError
from streamproc.sources.kafka_client import KafkaConnection, words
from streamproc.sources.kafka_produce import BATCH_BYTES, started

#: Generous bounds of what the format adds to a record and to a batch
#: (https://kafka.apache.org/documentation/#recordbatch).
_RECORD_OVERHEAD = 40
_BATCH_OVERHEAD = 1000

#: Answers by which a broker says that it has not written a record and, asked again, would not either.
#: After any other failure (a timeout above all) it may have.
_REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTopicError,
    TopicAuthorizationFailedError,
)


@dataclass(frozen=True, slots=True)
class Resend:
    """A record to send: its value as it was, and headers for whoever wonders why it is there twice."""

    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    ``sent``: it is written; ``position`` is where, ``None`` if the broker did not say. ``refused``: it is
    certainly not written. Neither: nobody knows. ``problem``: the broker's words.
    """

    sent: bool = False
    refused: bool = False
    position: int | None = None
    problem: str = ""


class RedriveProducer:
    """Sends batches to the partitions of one topic. Connected between enter and exit.

    Idempotent, so that a retry after a lost answer does not write a record twice. The embedded broker does
    not offer that: there, a connection lost at the wrong moment can.
    """

    def __init__(self, connection: KafkaConnection, topic: str) -> None:
        self._connection = connection
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        try:
            self._producer = await started(self._connection, "lz4")
        except KafkaError as error:
            raise DependencyError(str(self._connection), words(error)) from error

    async def _stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def partitions(self) -> frozenset[str]:
        """Ids of the topic's partitions. Raises :class:`DependencyError` when there is no such topic."""
        assert self._producer is not None, "connect first"
        try:
            # Asked for by name, an unknown topic is waited for, or created by some brokers.
            if self._topic not in (await self._producer.client.fetch_all_metadata()).topics():
                hint = "streamproc topics apply creates it"
                raise DependencyError(str(self._connection), f"has no topic {self._topic}", hint)
            numbers = await self._producer.partitions_for(self._topic)
            return frozenset(self._connection.partition(self._topic, number).id for number in numbers)
        except KafkaError as error:
            raise DependencyError(str(self._connection), words(error)) from error

    async def send(self, records: Mapping[str, Sequence[Resend]]) -> dict[str, list[Outcome]]:
        """Send the records of each partition (by its id), in order; returns when the fate of all is decided.

        A record that was not taken does not keep the others from being sent: its outcome says so. Raises
        :class:`DependencyError` when the broker is gone after refusing one.
        """
        outcomes: dict[str, list[Outcome]] = {}
        for partition_id, resends in records.items():
            number = self._connection.number(partition_id)
            assert number is not None, "one of partitions()"
            outcomes[partition_id] = [
                outcome for batch in _batches(resends) for outcome in await self._send(batch, number)
            ]
        return outcomes

    async def _send(self, batch: Sequence[Resend], partition: int) -> list[Outcome]:
        assert self._producer is not None, "connect first"
        builder = self._producer.create_batch()
        now_ms = int(time.time() * 1000)
        for record in batch:
            taken = builder.append(timestamp=now_ms, key=None, value=record.value, headers=record.headers)
            assert taken is not None, "batches are cut below the limit, and a single record always fits"
        builder.close()
        base = -1
        try:
            delivered = await self._producer.send_batch(builder, self._topic, partition=partition)
            base = (await delivered).offset
        except _REFUSALS as error:
            # The broker misses the sequence numbers that the refused batch had and would refuse all that
            # follow; a new producer begins anew.
            await self._stop()
            await self._start()
            return [Outcome(refused=True, problem=words(error))] * len(batch)
        except KafkaError as error:
            return [Outcome(problem=words(error))] * len(batch)
        return [
            Outcome(sent=True, position=base + place if base >= 0 else None) for place in range(len(batch))
        ]


def _batches(records: Sequence[Resend]) -> Iterator[list[Resend]]:
    """In order, none larger than :data:`BATCH_BYTES` unless it is a single record."""
    batch: list[Resend] = []
    size = 0
    for record in records:
        of_headers = sum(len(name) + len(value) + 10 for name, value in record.headers)
        bytes_ = len(record.value or b"") + of_headers + _RECORD_OVERHEAD
        if batch and size + bytes_ > BATCH_BYTES - _BATCH_OVERHEAD:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += bytes_
    if batch:
        yield batch
