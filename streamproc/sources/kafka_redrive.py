"""Sends rejected records again: to a given partition, with headers, and with the fate of each known."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from streamproc.errors import DependencyError
from streamproc.sources.kafka_client import KafkaConnection

if TYPE_CHECKING:
    import asyncio

    from aiokafka.producer.message_accumulator import BatchBuilder

#: Bytes of a batch; a broker takes 1 MiB by default. A larger record goes alone.
_BATCH_BYTES = 1_000_000

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
        producer = AIOKafkaProducer(
            **self._connection.client_options(),
            compression_type="lz4",
            enable_idempotence=not self._connection.embedded,
            acks="all",
            max_batch_size=_BATCH_BYTES,
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise DependencyError(str(self._connection), str(error) or type(error).__name__) from error
        self._producer = producer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def partitions(self) -> frozenset[str]:
        """Ids of the topic's partitions. Raises :class:`DependencyError` when there is no such topic."""
        assert self._producer is not None, "connect first"
        try:
            # Asked for by name, an unknown topic is waited for, or created by some brokers.
            if self._topic not in (await self._producer.client.fetch_all_metadata()).topics():
                hint = "streamproc topics apply creates it"
                raise DependencyError(str(self._connection), f"has no topic {self._topic}", hint)
            return frozenset(str(number) for number in await self._producer.partitions_for(self._topic))
        except KafkaError as error:
            raise DependencyError(str(self._connection), str(error) or type(error).__name__) from error

    async def send(self, records: Mapping[str, Sequence[Resend]]) -> dict[str, list[Outcome]]:
        """Send the records of each partition (by its id), in order; returns when the fate of all is decided.

        Never raises for a record that was not taken: its outcome says so.
        """
        return {
            number: [
                outcome for batch in await self._submit(number, resends) for outcome in await batch.fate()
            ]
            for number, resends in records.items()
        }

    async def _submit(self, number: str, records: Sequence[Resend]) -> list[_Submitted]:
        assert self._producer is not None, "connect first"
        now_ms = int(time.time() * 1000)
        batches: list[tuple[BatchBuilder, int]] = []
        for record in records:
            fields = {"timestamp": now_ms, "key": None, "value": record.value, "headers": record.headers}
            builder, count = batches[-1] if batches else (self._producer.create_batch(), 0)
            if builder.append(**fields) is None:
                builder, count = self._producer.create_batch(), 0
                builder.append(**fields)  # the first record of a batch is taken whatever its size
            if count:
                batches[-1] = (builder, count + 1)
            else:
                batches.append((builder, 1))
        return [await self._submit_batch(builder, count, int(number)) for builder, count in batches]

    async def _submit_batch(self, builder: BatchBuilder, count: int, number: int) -> _Submitted:
        assert self._producer is not None
        builder.close()
        try:
            future = await self._producer.send_batch(builder, self._topic, partition=number)
        except KafkaError as error:  # no room for it in time: it never left this process
            return _Submitted(count, None, Outcome(refused=True, problem=_words(error)))
        return _Submitted(count, future)


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A batch of ``count`` records on its way; or one that never was, with its ``outcome``."""

    count: int
    future: asyncio.Future[object] | None
    outcome: Outcome = Outcome()

    async def fate(self) -> list[Outcome]:
        if self.future is None:
            return [self.outcome] * self.count
        try:
            base = getattr(await self.future, "offset", -1)
        except _REFUSALS as error:
            return [Outcome(refused=True, problem=_words(error))] * self.count
        except KafkaError as error:
            return [Outcome(problem=_words(error))] * self.count
        known = base is not None and base >= 0
        return [Outcome(sent=True, position=base + place if known else None) for place in range(self.count)]


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
