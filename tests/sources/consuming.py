"""A listener that remembers, and helpers to read a source to its end."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from streamproc.model import Partition, RecordBatch
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_client import KafkaConnection

#: Short, so that a member that was lost is noticed soon; the brokers' minimum is 1 s.
SESSION_TIMEOUT = 2.0


class Memory:
    """A ledger in a dictionary. ``positions`` may be shared by several members of a group."""

    def __init__(self, positions: dict[Partition, int | None] | None = None) -> None:
        self.positions = {} if positions is None else positions
        self.events: list[tuple[str, tuple[Partition, ...]]] = []
        self.owned: set[Partition] = set()
        self.logs: dict[Partition, str] = {}

    async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        self.events.append(("assigned", tuple(partitions)))
        self.owned = set(partitions)
        return {partition: self.positions.get(partition) for partition in partitions}

    async def begun(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None] | None:
        if all(position is None for position in self.positions.values()):
            return None
        return {partition: self.positions.get(partition) for partition in partitions}

    async def begin_behind(
        self, newest: Mapping[Partition, int], log: str | None
    ) -> Mapping[Partition, int | None]:
        if all(self.positions.get(partition) is None for partition in newest):
            self.positions |= newest
            self.logs |= dict.fromkeys(newest, log) if log is not None else {}
        return {partition: self.positions.get(partition) for partition in newest}

    async def read_from(self, partitions: Sequence[Partition], log: str) -> Mapping[Partition, str]:
        for partition in partitions:
            if self.positions.get(partition) is None or partition not in self.logs:
                self.logs[partition] = log
        return {partition: self.logs[partition] for partition in partitions}

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        self.events.append(("revoked", tuple(partitions)))
        self.owned.clear()


@asynccontextmanager
async def consuming(
    kafka: KafkaConnection, topic: str, listener: object, **options: object
) -> AsyncIterator[KafkaSource]:
    """A started member of a group of its own (``group=`` for a shared one), closed at the end."""
    settings = {"group": f"{topic}-readers", "session_timeout": SESSION_TIMEOUT} | options
    source = KafkaSource(kafka, topic, KafkaOptions(**settings), listener)  # type: ignore[arg-type]  # by the test
    await source.start()
    try:
        yield source
    finally:
        await source.close()


async def read(
    source: KafkaSource, enough: Callable[[list[RecordBatch]], bool], *, max_records: int = 1_000
) -> list[RecordBatch]:
    """Read until there is enough; fails after 30 s."""
    batches: list[RecordBatch] = []
    deadline = time.monotonic() + 30
    while not enough(batches):
        assert time.monotonic() < deadline, f"only {sum(map(len, batches))} records in {batches}"
        batches += await source.next(max_records, 0.2)
    return batches


async def read_records(source: KafkaSource, count: int, *, max_records: int = 1_000) -> list[RecordBatch]:
    return await read(source, lambda batches: sum(map(len, batches)) >= count, max_records=max_records)


async def until(holds: Callable[[], bool], *, seconds: float = 30) -> None:
    """Give others their turn until it holds."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - a condition of others' state: nobody sets an event for it
            await asyncio.sleep(0.01)


def by_partition(batches: Sequence[RecordBatch]) -> dict[Partition, list[tuple[int, bytes | None]]]:
    records: dict[Partition, list[tuple[int, bytes | None]]] = defaultdict(list)
    for batch in batches:
        records[batch.partition] += zip(batch.positions, batch.values, strict=True)
    return dict(records)


def assert_seamless(batches: Sequence[RecordBatch]) -> None:
    """Each partition's batches follow each other without a gap or an overlap."""
    through: dict[Partition, int] = {}
    for batch in batches:
        assert batch.after == through.get(batch.partition, batch.after)
        assert batch.after < batch.through
        assert all(batch.after < position <= batch.through for position in batch.positions)
        through[batch.partition] = batch.through
