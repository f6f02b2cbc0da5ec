"""Which positions a topic has, asked without joining its group."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streamproc.errors import DependencyError
from streamproc.model import Partition
from streamproc.sources import kafka_fetch
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection, words


class Span(NamedTuple):
    """The positions of a partition that can be read, ``first`` to ``last`` inclusive.

    An empty partition has ``last = first - 1``. ``last`` is the newest that a reader of committed records
    gets to (Kafka's last stable offset - 1).
    """

    first: int
    last: int


async def spans(connection: KafkaConnection, topic: str) -> dict[Partition, Span]:
    """The span of every partition of the topic.

    Raises :class:`DependencyError` when no broker answers or there is no such topic.
    """
    async with _reader(connection, topic) as (consumer, partitions):
        first = await consumer.beginning_offsets(partitions)
        ends = kafka_fetch.high_watermarks if connection.embedded else AIOKafkaConsumer.end_offsets
        after = await ends(consumer, partitions)
        return {
            connection.partition(topic, tp.partition): Span(first[tp], after[tp] - 1) for tp in partitions
        }


async def first_since(connection: KafkaConnection, topic: str, time_ms: int) -> dict[Partition, int | None]:
    """Per partition, the first position whose record has a timestamp of ``time_ms`` or later.

    ``time_ms``: Unix milliseconds, on the clock of the topic's timestamps: the broker's where we made the topic, else
    the producer's, by Kafka's default; the embedded broker goes by arrival. ``None`` where there is no such record.
    Raises :class:`DependencyError` like :func:`spans`.
    """
    async with _reader(connection, topic) as (consumer, partitions):
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, time_ms))
        # Where there is none, Kafka answers with nothing and the embedded broker with the timestamp -1.
        return {
            connection.partition(topic, tp.partition): at.offset
            if at is not None and at.timestamp >= 0
            else None
            for tp in partitions
            for at in [found[tp]]
        }


@asynccontextmanager
async def _reader(
    connection: KafkaConnection, topic: str
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    async with admin(connection) as broker:
        state = await broker.describe(topic)
    if state is None:
        hint = "streamproc topics apply creates it"
        raise DependencyError(str(connection), f"has no topic {topic}", hint)
    consumer = AIOKafkaConsumer(
        **connection.client_options(),
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        request_timeout_ms=15_000,
    )
    try:
        await consumer.start()
        yield consumer, [TopicPartition(topic, number) for number in range(state.partitions)]
    except KafkaError as error:
        raise DependencyError(str(connection), words(error)) from error
    finally:
        await consumer.stop()
