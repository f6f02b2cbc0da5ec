"""Makes Kinesis streams match the topic pages: compare, then create or extend. Nothing is ever shrunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

from streamproc.errors import ConfigError, DependencyError
from streamproc.sources.administration import FOREVER, Difference, TopicState, retention_ms
from streamproc.sources.kinesis_client import KinesisClient, KinesisError, connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.topology import Topic

#: Kinesis keeps records for a day to a year
#: (https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html).
_LEAST_HOURS, _MOST_HOURS = 24, 8760

#: A stream is copied to three zones, always.
_COPIES = 3

#: Resharding doubles or halves at once.
_FACTOR = 2

#: Seconds; creating a stream of many shards takes minutes.
_ACTIVE_DEADLINE = 600.0


@asynccontextmanager
async def admin(connection: KinesisConnection) -> AsyncIterator[KinesisAdmin]:
    """A connected :class:`KinesisAdmin`. Raises :class:`DependencyError` when Kinesis does not answer."""
    async with connected(connection) as client:
        yield KinesisAdmin(client)


class KinesisAdmin:
    """Reads and changes streams; a stream's open shards are the topic's partitions. Made by :func:`admin`."""

    def __init__(self, client: KinesisClient) -> None:
        self._client = client

    async def topics(self) -> list[str]:
        """Names of all streams of the region, sorted."""
        names: list[str] = []
        answer = await self._client.call("list_streams")
        names += answer["StreamNames"]
        while answer.get("HasMoreStreams"):
            answer = await self._client.call("list_streams", ExclusiveStartStreamName=names[-1])
            names += answer["StreamNames"]
        return sorted(names)

    async def describe(self, name: str) -> TopicState | None:
        """The stream's state, ``None`` when there is no such stream."""
        try:
            found = await self._client.summary(name)
        except KinesisError as error:
            if error.code == "ResourceNotFoundException":
                return None
            raise
        return TopicState(
            name,
            partitions=found.open_shards,
            replication=_COPIES,
            retention_ms=str(found.kept * 1000),
            cleanup_policy="delete",
            overrides={"mode": found.mode},
        )

    async def diff(self, topic: Topic) -> list[Difference]:
        """What would have to change for the stream to be as ``topic`` says.

        An on-demand stream has as many shards as it needs, whatever the page says.
        """
        state = await self.describe(topic.name)
        if state is None:
            return [Difference(topic.name, "topic", f"{topic.partitions} shards", None)]
        return list(_differences(topic, state))

    async def apply(self, topic: Topic) -> list[Difference]:
        """Create the stream, add shards, set its retention; returns what was done.

        Raises :class:`ConfigError` when a difference cannot be applied (after applying the others).
        """
        done, obstacles = [], []
        for difference in await self.diff(topic):
            if difference.obstacle:
                obstacles.append(difference)
                continue
            try:
                await self._change(topic, difference)
            except KinesisError as error:
                if error.code not in {"InvalidArgumentException", "LimitExceededException"}:
                    raise
                obstacles.append(replace(difference, obstacle=error.problem))
            else:
                done.append(difference)
                await self._until_active(topic)
        if done and done[0].what == "topic":  # it begins with a day's retention
            done += await self.apply(topic)
        if obstacles:
            raise ConfigError(obstacle.as_mistake() for obstacle in obstacles)
        return done

    async def _until_active(self, topic: Topic) -> None:
        async with asyncio.timeout(_ACTIVE_DEADLINE):
            while (await self._client.summary(topic.name)).status != "ACTIVE":  # noqa: ASYNC110 - remote
                await asyncio.sleep(0.1)

    async def _change(self, topic: Topic, difference: Difference) -> None:
        name = topic.name
        match difference.what:
            case "topic":
                await self._create(topic)
            case "partitions":
                await self._reshard(topic)
            case "retention.ms":
                hours = int(difference.wanted) // 3_600_000
                longer = int(difference.wanted) > int(difference.actual or 0)
                operation = f"{'increase' if longer else 'decrease'}_stream_retention_period"
                await self._client.call(operation, StreamName=name, RetentionPeriodHours=hours)

    async def _create(self, topic: Topic) -> None:
        try:
            await self._client.call("create_stream", StreamName=topic.name, ShardCount=topic.partitions)
        except KinesisError as error:
            if error.code != "ResourceInUseException":  # another worker created it at the same moment
                raise

    async def _reshard(self, topic: Topic) -> None:
        """In steps of a factor of two, more Kinesis does not do at once."""
        while (shards := (await self._client.summary(topic.name)).open_shards) < topic.partitions:
            target = min(shards * _FACTOR, topic.partitions)
            await self._client.call(
                "update_shard_count",
                StreamName=topic.name,
                TargetShardCount=target,
                ScalingType="UNIFORM_SCALING",
            )
            await self._until_active(topic)
            if (await self._client.summary(topic.name)).open_shards < target:
                raise DependencyError(
                    str(self._client.connection), f"{topic.name} has not got {target} shards"
                )


def _differences(topic: Topic, state: TopicState) -> Iterator[Difference]:
    if state.partitions != topic.partitions and state.overrides["mode"] == "PROVISIONED":
        fewer = topic.partitions < state.partitions
        obstacle = "merging shards is left to Kinesis' own tools" if fewer else ""
        yield Difference(topic.name, "partitions", str(topic.partitions), str(state.partitions), obstacle)
    wanted = retention_ms(topic)
    if state.retention_ms != wanted:
        hours = _MOST_HOURS + 1 if wanted == FOREVER else int(wanted) / 3_600_000
        possible = _LEAST_HOURS <= hours <= _MOST_HOURS and hours == int(hours)
        obstacle = "" if possible else "Kinesis keeps records for whole hours, 24 to 8760"
        yield Difference(topic.name, "retention.ms", wanted, state.retention_ms, obstacle)
