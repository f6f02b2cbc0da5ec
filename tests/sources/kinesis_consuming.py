"""A stream of a Kinesis server, workers that share it by a real ledger, and what they read."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from streamproc.ledger import Ledger
from streamproc.ledger.shards import Shards
from streamproc.model import Partition, RecordBatch
from streamproc.sources.kinesis import KinesisOptions, KinesisSource
from streamproc.sources.kinesis_connection import KinesisConnection
from tests.sources.taking import Taking

#: Short, so that a worker that is gone is noticed soon. Where there are two, one that is only slow is as well.
LEASE_TIMEOUT = 2.0

REGION = "us-east-1"


class Member(Taking):
    """A worker: claims in the ledger, keeps what it is given, commits when it is told to or has to let go."""

    def __init__(self, ledger: Ledger, connection: KinesisConnection, stream: str, **options: Any) -> None:
        self.events: list[tuple[str, frozenset[str]]] = []
        self.batches: list[RecordBatch] = []
        self.ledger = ledger
        self._uncommitted: list[RecordBatch] = []
        timeout = options.pop("lease_timeout", LEASE_TIMEOUT)
        waiting = options.pop("waiting", None)
        self.store = Shards(ledger.database, ledger.stream, stream, ledger.worker, timeout)
        made = KinesisOptions(**{"poll_interval": 0.2, **options})
        self.source = KinesisSource(connection, stream, made, self, self.store, waiting=waiting)

    async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        self.events.append(("assigned", frozenset(partition.id for partition in partitions)))
        claims = await self.ledger.claim(partitions)
        return {partition: claim.position for partition, claim in claims.items()}

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        await self.commit()
        self.events.append(("revoked", frozenset(partition.id for partition in partitions)))

    async def finished(self, partitions: Sequence[Partition]) -> None:
        self.events.append(("finished", frozenset(partition.id for partition in partitions)))


@asynccontextmanager
async def member(
    postgres: str, url: str, stream: str, *, name: str = "w1", **options: Any
) -> AsyncIterator[Member]:
    """A started worker, gone in good order at the end."""
    async with Ledger(postgres, "clicks", name) as ledger:
        await ledger.migrate()
        one = Member(ledger, KinesisConnection(REGION, url), stream, **options)
        await one.source.start()
        try:
            yield one
        finally:
            await one.source.close()


async def read_until(
    holds: Callable[[], object], *members: Member, seconds: float = 100, committing: bool = False
) -> None:
    """Let the members read, in turn, until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, [(len(records(each.batches)), each.events) for each in members]
        for each in members:
            await each.take()
            if committing:
                await each.commit()


def records(*batches: Sequence[RecordBatch]) -> list[tuple[str, int, bytes]]:
    """Shard, position and value of every record."""
    return [
        (batch.partition.id, position, value or b"")
        for some in batches
        for batch in some
        for position, value in zip(batch.positions, batch.values, strict=True)
    ]


def assert_seamless(batches: Sequence[RecordBatch], begin: int = -1) -> None:
    """Each shard's batches follow each other without a gap or an overlap, numbered one by one."""
    through: dict[Partition, int] = {}
    for batch in batches:
        assert batch.after == through.get(batch.partition, begin)
        assert list(batch.positions) == list(range(batch.after + 1, batch.through + 1))
        assert len(batch.positions) == len(batch.values) > 0
        through[batch.partition] = batch.through


class Stream:
    """A stream of a server, filled and resharded with Amazon's own client."""

    def __init__(self, url: str, shards: int) -> None:
        import boto3

        self.name = f"s-{uuid.uuid4().hex[:12]}"
        self._shards = shards
        self._client = boto3.client("kinesis", endpoint_url=url, region_name=REGION)
        #: What was put, by shard, in order.
        self.put_by_shard: dict[str, list[bytes]] = {}

    async def _call(self, operation: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(getattr(self._client, operation), StreamName=self.name, **arguments)

    async def create(self) -> None:
        await self._call("create_stream", ShardCount=self._shards)
        await self._until_active()

    async def _until_active(self) -> None:
        async with asyncio.timeout(60):
            while True:
                found = await self._call("describe_stream_summary")
                if found["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                    return
                await asyncio.sleep(0.05)

    async def put(self, values: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        """Put records, one partition key each unless given."""
        keys = keys or [value.decode("latin-1")[:100] or "-" for value in values]
        for first in range(0, len(values), 500):
            some = list(zip(values, keys, strict=True))[first : first + 500]
            entries = [{"Data": value, "PartitionKey": key} for value, key in some]
            answer = await self._call("put_records", Records=entries)
            assert answer["FailedRecordCount"] == 0
            for (value, _), done in zip(some, answer["Records"], strict=True):
                self.put_by_shard.setdefault(done["ShardId"], []).append(value)

    async def open_shards(self) -> dict[str, tuple[int, int]]:
        shards = (await self._call("list_shards"))["Shards"]
        return {
            shard["ShardId"]: (
                int(shard["HashKeyRange"]["StartingHashKey"]),
                int(shard["HashKeyRange"]["EndingHashKey"]),
            )
            for shard in shards
            if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
        }

    async def split(self, shard: str) -> None:
        """In the middle."""
        first, last = (await self.open_shards())[shard]
        await self._call("split_shard", ShardToSplit=shard, NewStartingHashKey=str((first + last) // 2 + 1))
        await self._until_active()

    async def merge(self, shard: str, adjacent: str) -> None:
        await self._call("merge_shards", ShardToMerge=shard, AdjacentShardToMerge=adjacent)
        await self._until_active()

    async def delete(self) -> None:
        """Returns when there is no such stream any more."""
        await self._call("delete_stream")
        async with asyncio.timeout(60):
            with suppress(self._client.exceptions.ResourceNotFoundException):
                while True:
                    await self._call("describe_stream_summary")
                    await asyncio.sleep(0.05)

    async def make_anew(self) -> None:
        """Delete the stream of this name and make another, whose records have sequence numbers of their own.

        The server makes those of running numbers and of the seconds in which shard and record came. Within a second
        the new stream would give its records the numbers of the old one's. Amazon's takes longer to be deleted.
        """
        old = await self._first_numbers()
        while True:
            await self.delete()
            await self.create()
            if old.isdisjoint(await self._first_numbers()):
                return

    async def _first_numbers(self) -> set[str]:
        shards = (await self._call("list_shards"))["Shards"]
        return {shard["SequenceNumberRange"]["StartingSequenceNumber"] for shard in shards}

    def close(self) -> None:
        self._client.delete_stream(StreamName=self.name, EnforceConsumerDeletion=True)
        self._client.close()
