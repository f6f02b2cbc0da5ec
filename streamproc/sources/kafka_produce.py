"""Writes records to Kafka, many at a time: generated events, redriven rejects, derived topics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from streamproc.errors import DependencyError
from streamproc.model import EMBEDDED_CLUSTER
from streamproc.sources.kafka_client import KafkaConnection, words

if TYPE_CHECKING:
    import numpy.typing as npt
    from aiokafka.producer.message_accumulator import BatchBuilder

log = structlog.get_logger(__name__)

#: Bytes of records before compression. Brokers take a batch of 1 MiB (``message.max.bytes``) by default,
#: and one that does not compress may grow a little.
BATCH_BYTES = 1_000_000


class KafkaProducer:
    """Sends whole batches, bypassing aiokafka's per-record futures: some 1.5 µs of CPU a record, not 30.

    Idempotent: a retry after a lost answer does not write a record twice (the embedded broker does not
    offer that). A record counts as sent when all in-sync replicas have it. Order is kept in a partition.
    """

    def __init__(self, connection: KafkaConnection, *, compression: str | None = "lz4") -> None:
        self._connection = connection
        self._compression = compression
        self._producer: AIOKafkaProducer | None = None
        self._unacknowledged: list[asyncio.Future[object]] = []
        self._partition_counts: dict[str, int] = {}
        self._next_keyless = 0

    async def start(self) -> None:
        """Connect. Raises :class:`DependencyError` when no broker answers."""
        try:
            self._producer = await started(self._connection, self._compression)
        except KafkaError as error:
            raise DependencyError(str(self._connection), words(error)) from error

    async def stop(self) -> None:
        """Send what is under way, then disconnect."""
        producer, self._producer = self._producer, None
        self._unacknowledged.clear()
        self._partition_counts.clear()
        if producer is not None:
            await producer.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def publish(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """:meth:`send`, and wait until the brokers have everything that was ever sent."""
        await self.send(topic, values, keys, partitions)
        await self.flush()

    async def send(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Queue records; returns when they are on their way, or as soon as there is room for that.

        The partition of a record is taken from ``partitions`` (numbers), else from its key as Kafka's own
        clients do; records without a key are dealt out in blocks. A record may be a tombstone (``None``).

        Raises :class:`DependencyError` when the topic does not exist or an earlier record was not taken.
        """
        assert self._producer is not None, "start() first"
        count = await self._partition_count(topic)
        if partitions is None:
            partitions = self._choose(keys, len(values), count)
        keys = keys if keys is not None else [None] * len(values)
        now_ms = int(time.time() * 1000)
        open_batches: dict[int, BatchBuilder] = {}
        try:
            for key, value, partition in zip(keys, values, partitions, strict=True):
                batch = open_batches.get(partition)
                if batch is None:
                    batch = open_batches[partition] = self._producer.create_batch()
                if batch.append(timestamp=now_ms, key=key, value=value) is None:  # full
                    await self._submit(batch, topic, partition)
                    batch = open_batches[partition] = self._producer.create_batch()
                    batch.append(timestamp=now_ms, key=key, value=value)
            for partition, batch in open_batches.items():
                await self._submit(batch, topic, partition)
        except KafkaError as error:
            raise self._failed(error) from error
        self._raise_failures()

    async def flush(self) -> None:
        """Wait until the brokers have every record. Raises :class:`DependencyError` if one was not taken."""
        if self._unacknowledged:
            await asyncio.wait(self._unacknowledged)
        self._raise_failures()

    async def _submit(self, batch: BatchBuilder, topic: str, partition: int) -> None:
        assert self._producer is not None
        batch.close()
        self._unacknowledged.append(await self._producer.send_batch(batch, topic, partition=partition))

    def _raise_failures(self) -> None:
        done = [future for future in self._unacknowledged if future.done()]
        self._unacknowledged = [future for future in self._unacknowledged if not future.done()]
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            raise self._failed(failures[0]) from failures[0]

    async def _partition_count(self, topic: str) -> int:
        assert self._producer is not None
        if topic not in self._partition_counts:
            try:
                # Asked for by name, an unknown topic is waited for (40 s), or some brokers create it.
                if topic not in (await self._producer.client.fetch_all_metadata()).topics():
                    hint = "streamproc topics apply creates it"
                    raise DependencyError(str(self._connection), f"has no topic {topic}", hint)
                self._partition_counts[topic] = len(await self._producer.partitions_for(topic))
            except KafkaError as error:
                raise self._failed(error) from error
        return self._partition_counts[topic]

    def _choose(self, keys: Sequence[bytes | None] | None, records: int, count: int) -> Sequence[int]:
        # Blocks, not one by one: a broker likes few large batches, and neighbours stay in order.
        turn = (np.arange(records) * count // max(records, 1) + self._next_keyless) % count
        self._next_keyless = (self._next_keyless + 1) % count
        if keys is None:
            chosen: list[int] = turn.tolist()
        else:
            keyed = partitions_of_keys(keys, count)
            chosen = np.where(keyed < 0, turn, keyed).tolist()
        return chosen

    def _failed(self, error: BaseException) -> DependencyError:
        return DependencyError(str(self._connection), f"did not take records: {error!r}")


async def started(connection: KafkaConnection, compression: str | None) -> AIOKafkaProducer:
    """A connected producer that waits for all replicas. Raises aiokafka's KafkaError when no broker answers.

    It is idempotent, but on the embedded broker: that gives producer ids to version 3 of Kafka's InitProducerId
    and later ones only, and aiokafka asks in version 0. Which one it is, an address alone does not tell
    (``kafka://127.0.0.1:41217`` may be the broker of a demo): the broker is asked, and a warning says so.
    Nothing else is ever taken for a reason to do without.
    """
    idempotent = not connection.embedded
    if idempotent and await _is_embedded(connection):
        why = "this is an embedded broker; records can be there twice when a connection is lost"
        log.warning("not_idempotent", broker=connection.bootstrap, why=why)
        idempotent = False
    producer = AIOKafkaProducer(
        **connection.client_options(),
        compression_type=compression,
        enable_idempotence=idempotent,
        acks="all",
        max_batch_size=BATCH_BYTES,
    )
    try:
        await producer.start()
    except KafkaError:
        await producer.stop()
        raise
    return producer


async def _is_embedded(connection: KafkaConnection) -> bool:
    """Whether the broker is an embedded one, by its cluster id. Raises aiokafka's KafkaError if none answers."""
    if connection.security_protocol != "PLAINTEXT":  # the embedded broker speaks nothing else
        return False
    client = AIOKafkaClient(**connection.client_options())
    try:
        await client.bootstrap()
        answer = await client.send(client.get_random_node(), MetadataRequest([]))
    finally:
        await client.close()
    return getattr(answer, "cluster_id", None) == EMBEDDED_CLUSTER  # Kafka before 0.10.1 has none


def partitions_of_keys(keys: Sequence[bytes | None], count: int) -> npt.NDArray[np.int64]:
    """The partition of each key among ``count``, as Kafka's Java clients choose it; -1 for no key.

    They take the murmur2 hash (Austin Appleby; ``org.apache.kafka.common.utils.Utils.murmur2``) without its
    sign bit, modulo the number of partitions. Computed for all keys of a length at once.
    """
    partitions = np.full(len(keys), -1, dtype=np.int64)
    lengths = np.fromiter((-1 if key is None else len(key) for key in keys), dtype=np.int64, count=len(keys))
    for length in np.unique(lengths):
        if length < 0:
            continue
        (rows,) = np.nonzero(lengths == length)
        joined = b"".join(keys[row] or b"" for row in rows.tolist())
        octets = np.frombuffer(joined, dtype=np.uint8).reshape(len(rows), int(length))
        partitions[rows] = (_murmur2(octets) & np.uint32(0x7FFFFFFF)).astype(np.int64) % count
    return partitions


def _murmur2(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Hash of each row; rows have one length. All arithmetic is modulo 2^32."""
    rows, length = octets.shape
    m = np.uint32(0x5BD1E995)
    h = np.full(rows, 0x9747B28C ^ length, dtype=np.uint32)
    words = length // 4
    for word in np.ascontiguousarray(octets[:, : words * 4]).view("<u4").reshape(rows, words).T:
        k = word * m
        k ^= k >> np.uint32(24)
        h = (h * m) ^ (k * m)
    tail = octets[:, words * 4 :].astype(np.uint32)
    if tail.shape[1]:
        for place in range(tail.shape[1]):
            h ^= tail[:, place] << np.uint32(8 * place)
        h *= m
    h ^= h >> np.uint32(13)
    h *= m
    return h ^ (h >> np.uint32(15))
