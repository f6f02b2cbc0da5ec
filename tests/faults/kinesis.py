"""The bench on Kinesis: the same workers, ledger and checks, with a stream of a local server as the topic.

Half of the records are sent packed, as Amazon's producer library does, and half one by one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from streamproc.sources.kinesis_client import KinesisClient, Shard, connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_produce import KinesisProducer
from tests.e2e.harness import Site
from tests.faults import nursery
from tests.faults.bench import Bench
from tests.faults.feed import Feed
from tests.faults.observed import Records
from tests.faults.records import Keyed
from tests.faults.stage import Stage
from tests.support.kinesis_local import KinesisLocal
from tests.support.kinesis_reader import read_stream

#: Shards at the beginning: one for each of the workers, of which there are three while one joins that is armed.
SHARDS = 3

#: Seconds. Less than the bench's session timeout, which is how long a frozen worker stays so at least.
LEASE_TIMEOUT = 5.0

#: Records a second. The local server takes some hundreds of a machine that does other things too.
RATE = 40

REGION = "us-east-1"


class KinesisBench(Bench):
    """A local Kinesis and a PostgreSQL that all runs share."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directory: Path, *, kafka: bool = False, patience: float = 1.0
    ) -> AsyncIterator[KinesisBench]:
        """Start the servers. Raises :class:`KinesisUnavailable` where there is no Node."""
        assert not kafka, "it is one or the other"
        with ExitStack() as stack:
            local = stack.enter_context(KinesisLocal(directory / "kinesis"))
            os.environ.update(local.environment)
            await asyncio.to_thread(nursery.warm_up)
            bench = cls(directory, stack)
            bench.patience = patience
            bench.broker, bench.broker_url = local.url, f"kinesis://{REGION}"
            yield bench

    def another(self, directory: Path, *, kafka: bool) -> AbstractAsyncContextManager[Bench]:
        return KinesisBench.open(directory, kafka=kafka, patience=self.patience)

    async def create_topic(self, name: str) -> None:
        async with connected(KinesisConnection(REGION, self.broker)) as client:
            await client.call("create_stream", StreamName=name, ShardCount=SHARDS)
            await _until_active(client, name)

    def make_stage(self, site: Site, db: psycopg.Connection, records: list[Keyed]) -> Stage:
        site.extra |= {
            "STREAMPROC_KINESIS_ENDPOINT_URL": self.broker,
            "STREAMPROC_KINESIS_LEASE_TIMEOUT": f"{LEASE_TIMEOUT:.0f}s",
            # Each read costs the local server more than it costs the worker.
            "STREAMPROC_KINESIS_POLL_INTERVAL": "1s",
        }
        feed = KinesisFeed(self.broker, site.topic, records, rate=RATE)
        return KinesisStage(self, site, db, feed, patience=self.patience)


@dataclass
class KinesisFeed(Feed):
    """``broker``: the server's URL. In turns packed and one by one."""

    _producers: list[KinesisProducer] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def connect(self) -> None:
        connection = KinesisConnection(REGION, self.broker)
        self._producers = [
            await self._stack.enter_async_context(KinesisProducer(connection, packed=packed))
            for packed in (True, False)
        ]

    async def send(self, records: Sequence[Keyed]) -> None:
        self._producers.reverse()
        keys, values = [key for key, _ in records], [value for _, value in records]
        await self._producers[0].send(self.topic, values, keys)

    async def disconnect(self) -> None:
        await self._stack.aclose()


class KinesisStage(Stage):
    """A run on a stream of its own."""

    async def read(self) -> Records:
        return dict(await asyncio.to_thread(read_stream, self.site.broker, self.site.topic))

    def all_go_on(self, at: float) -> bool:
        """Whether every shard that is not read to its end was committed after ``at`` (Unix time)."""
        unfinished = self.unfinished()
        return bool(unfinished) and unfinished <= self.progressed_since(at).keys()

    def unfinished(self) -> set[str]:
        """Shards that the ledger knows and that are not committed to their ends."""
        rows = self.db.execute(
            "select partition from streamproc.shards left join streamproc.partitions as p"
            " using (stream, source, partition)"
            " where last_position is null or last_position > coalesce(p.position, -1)"
        )
        return {shard for (shard,) in rows}

    async def open_shards(self, client: KinesisClient) -> list[Shard]:
        """In the order of their keys."""
        shards = (await client.shards(self.site.topic)).values()
        return sorted((shard for shard in shards if not shard.closed), key=lambda shard: shard.keys)

    async def split_all(self, client: KinesisClient) -> None:
        """Each open shard becomes two."""
        for shard in await self.open_shards(client):
            middle = (shard.keys.first + shard.keys.last) // 2 + 1
            await client.call(
                "split_shard",
                StreamName=self.site.topic,
                ShardToSplit=shard.info.id,
                NewStartingHashKey=str(middle),
            )
            await _until_active(client, self.site.topic)

    async def merge(self, client: KinesisClient, first: int) -> None:
        """The open shard with this number, by its keys, and the one after it become one."""
        one, other = (await self.open_shards(client))[first : first + 2]
        await client.call(
            "merge_shards",
            StreamName=self.site.topic,
            ShardToMerge=one.info.id,
            AdjacentShardToMerge=other.info.id,
        )
        await _until_active(client, self.site.topic)


async def _until_active(client: KinesisClient, stream: str) -> None:
    while (await client.summary(stream)).status != "ACTIVE":  # noqa: ASYNC110 - it changes elsewhere
        await asyncio.sleep(0.05)
