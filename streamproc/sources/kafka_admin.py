"""Makes a broker's topics match the topic pages: compare, then create or extend. Nothing is ever shrunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from streamproc.errors import ConfigError, DependencyError
from streamproc.sources.administration import TIMESTAMPS, Difference, TopicState, retention_ms
from streamproc.sources.kafka_client import KafkaConnection, words
from streamproc.topology import Topic

#: ``config_source`` of an override that was set on the topic itself (DescribeConfigs, version 1 and later).
_SET_ON_TOPIC = 1

#: The broker's clock stamps the records.
_APPEND_TIME = "LogAppendTime"

#: Worth a word in the diff, no reason to fail.
_LEFT_ALONE = ("replication", TIMESTAMPS)

_VISIBLE_DEADLINE = 15.0


@asynccontextmanager
async def admin(connection: KafkaConnection) -> AsyncIterator[KafkaAdmin]:
    """A connected :class:`KafkaAdmin`. Raises :class:`DependencyError` when no broker answers."""
    client = AIOKafkaAdminClient(**connection.client_options(), request_timeout_ms=15_000)
    try:
        with _as_dependency_error(connection):
            await client.start()
            yield KafkaAdmin(client)
    finally:
        await client.close()


@contextmanager
def _as_dependency_error(connection: KafkaConnection) -> Iterator[None]:
    try:
        yield
    except (KafkaError, TimeoutError) as error:
        raise DependencyError(str(connection), words(error)) from error


class KafkaAdmin:
    """Reads and changes topics. Made by :func:`admin`."""

    def __init__(self, client: AIOKafkaAdminClient) -> None:
        self._client = client

    async def topics(self) -> list[str]:
        """Names of all topics that are not the broker's own, sorted."""
        return sorted(name for name, internal in (await self._inventory()).items() if not internal)

    async def describe(self, name: str) -> TopicState | None:
        """The topic's state, ``None`` when there is no such topic."""
        # Asking for one topic by name makes some brokers create it, so the list is asked first.
        if name not in await self._inventory():
            return None
        (topic,) = await self._client.describe_topics([name])
        if topic["error_code"] == UnknownTopicOrPartitionError.errno:  # deleted, or not known everywhere yet
            return None
        _check(topic["error_code"])
        partitions = topic["partitions"]
        (answer,) = await self._client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        ((code, _, _, _, entries),) = answer.resources
        if code != TopicAuthorizationFailedError.errno:
            _check(code)
        values = {entry[0]: entry[1] for entry in entries}
        return TopicState(
            name,
            partitions=len(partitions),
            replication=min((len(partition["replicas"]) for partition in partitions), default=0),
            retention_ms=values.get("retention.ms"),
            cleanup_policy=(values.get("cleanup.policy") or "delete") if code == 0 else None,
            overrides={entry[0]: entry[1] for entry in entries if entry[3] == _SET_ON_TOPIC},
            timestamps=values.get(TIMESTAMPS),
        )

    async def diff(self, topic: Topic) -> list[Difference]:
        """What would have to change for the broker's topic to be as ``topic`` says."""
        state = await self.describe(topic.name)
        if state is None:
            shape = f"{topic.partitions} partitions, replication {topic.replication}"
            return [Difference(topic.name, "topic", shape, None)]
        return list(_differences(topic, state))

    async def apply(self, topic: Topic) -> list[Difference]:
        """Create the topic, add partitions, set its retention; returns what was done.

        A topic that another worker creates at the same moment is fine. Raises :class:`ConfigError` when a
        difference cannot be applied (after applying the others).
        """
        done, obstacles = [], []
        for difference in await self.diff(topic):
            if not difference.obstacle:
                try:
                    await self._change(topic, difference)
                except IncompatibleBrokerVersion:
                    obstacles.append(replace(difference, obstacle="this broker cannot change it"))
                else:
                    done.append(difference)
            elif difference.what not in _LEFT_ALONE:
                obstacles.append(difference)
        if done:
            await self._until_visible(topic, {difference.what for difference in done})
        if obstacles:
            raise ConfigError(obstacle.as_mistake() for obstacle in obstacles)
        return done

    async def _until_visible(self, topic: Topic, changed: set[str]) -> None:
        """Brokers learn of a change one after the other, and each answers from what it knows."""
        async with asyncio.timeout(_VISIBLE_DEADLINE):
            while changed & {difference.what for difference in await self.diff(topic)}:  # noqa: ASYNC110 - remote
                await asyncio.sleep(0.02)

    async def _change(self, topic: Topic, difference: Difference) -> None:
        match difference.what:
            case "topic":
                await self._create(topic)
            case "partitions":
                await self._client.create_partitions({topic.name: NewPartitions(topic.partitions)})
            case "retention.ms":
                await self._set_retention(topic)

    async def _create(self, topic: Topic) -> None:
        configs = {"retention.ms": retention_ms(topic), "cleanup.policy": "delete"}
        if topic.append_time:
            configs[TIMESTAMPS] = _APPEND_TIME
        new = NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=configs)
        answer = await self._client.create_topics([new])
        ((_, code, message),) = answer.topic_errors
        if code != TopicAlreadyExistsError.errno:
            _check(code, message)

    async def _set_retention(self, topic: Topic) -> None:
        # AlterConfigs replaces all overrides of the topic, so those that are there go with it.
        state = await self.describe(topic.name)
        overrides = {**(state.overrides if state else {}), "retention.ms": retention_ms(topic)}
        resource = ConfigResource(ConfigResourceType.TOPIC, topic.name, overrides)
        (answer,) = await self._client.alter_configs([resource])
        ((code, message, *_),) = answer.resources
        _check(code, message)

    async def _inventory(self) -> dict[str, bool]:
        """Topic → whether it is the broker's own."""
        return {topic["topic"]: topic["is_internal"] for topic in await self._client.describe_topics()}


def _differences(topic: Topic, state: TopicState) -> Iterator[Difference]:
    if state.partitions != topic.partitions:
        fewer = topic.partitions < state.partitions
        obstacle = "a topic never gets fewer partitions" if fewer else ""
        yield Difference(topic.name, "partitions", str(topic.partitions), str(state.partitions), obstacle)
    if state.replication != topic.replication:
        obstacle = "moving replicas is a task for Kafka's own tools"
        wanted, actual = str(topic.replication), str(state.replication)
        yield Difference(topic.name, "replication", wanted, actual, obstacle)
    if state.retention_ms != retention_ms(topic):
        yield Difference(topic.name, "retention.ms", retention_ms(topic), state.retention_ms)
    if topic.append_time and state.timestamps not in (None, _APPEND_TIME):
        obstacle = "left as it is, for what goes by its producers' clocks; Kafka's own tools change it"
        yield Difference(topic.name, TIMESTAMPS, _APPEND_TIME, state.timestamps, obstacle)


def _check(code: int, message: str | None = None) -> None:
    if code:
        raise for_code(code)(message or "")
