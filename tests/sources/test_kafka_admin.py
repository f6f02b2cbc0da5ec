"""Topics as the pages say: what differs, what is changed, and what never is."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from streamproc.errors import ConfigError, DependencyError
from streamproc.sources.administration import TIMESTAMPS, TopicState
from streamproc.sources.kafka_admin import _differences, admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import DAY, Topic
from tests.support.apache_kafka import ApacheKafka, free_ports


def fresh() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


async def test_a_missing_topic_is_a_difference_and_is_made(kafka: KafkaConnection) -> None:
    topic = Topic(fresh(), partitions=3, retention=2 * DAY)
    async with admin(kafka) as broker:
        (difference,) = await broker.diff(topic)
        assert str(difference) == f"{topic.name}: topic is missing, should be 3 partitions, replication 1"
        assert await broker.apply(topic) == [difference]
        assert await broker.diff(topic) == []
        assert topic.name in await broker.topics()
        state = await broker.describe(topic.name)
    assert state is not None
    assert (state.partitions, state.retention_ms, state.compacted) == (3, str(2 * 86_400_000), False)


async def test_comparing_does_not_make_a_topic(kafka: KafkaConnection) -> None:
    name = fresh()
    async with admin(kafka) as broker:
        assert await broker.describe(name) is None
        assert len(await broker.diff(Topic(name))) == 1
        assert name not in await broker.topics()


async def test_two_workers_that_make_the_same_topic_at_once_both_succeed(kafka: KafkaConnection) -> None:
    topic = Topic(fresh())
    async with admin(kafka) as one, admin(kafka) as other:
        await asyncio.gather(one.apply(topic), other.apply(topic))
        assert await one.diff(topic) == []


async def test_fewer_partitions_are_refused(kafka: KafkaConnection) -> None:
    name = fresh()
    async with admin(kafka) as broker:
        await broker.apply(Topic(name, partitions=4))
        (difference,) = await broker.diff(Topic(name, partitions=2))
        assert difference.obstacle == "a topic never gets fewer partitions"
        with pytest.raises(ConfigError, match="partitions is 4, should be 2: a topic never gets fewer"):
            await broker.apply(Topic(name, partitions=2))


async def test_a_broker_that_does_not_answer_is_named() -> None:
    (port,) = free_ports(1)
    with pytest.raises(DependencyError, match=f"Kafka at 127.0.0.1:{port}"):
        async with admin(KafkaConnection(f"127.0.0.1:{port}")):
            pass


def test_a_topic_whose_configuration_is_hidden_from_us_may_be_compacted() -> None:
    state = TopicState("t", 1, 1, retention_ms=None, cleanup_policy=None, overrides={})
    assert state.compacted


def test_timestamps_of_producers_are_told_of_the_topic_that_is_read() -> None:
    read = Topic("t")
    state = TopicState("t", 4, 1, str(7 * 86_400_000), "delete", {}, timestamps="CreateTime")
    assert [(d.what, d.advice) for d in _differences(read, state)] == [(TIMESTAMPS, True)]
    assert not any(
        d.advice for d in _differences(replace(read, partitions=5), replace(state, timestamps=None))
    )
    assert list(_differences(replace(read, append_time=False), state)) == []
    for fine in ("LogAppendTime", None):  # some brokers do not say
        assert list(_differences(read, replace(state, timestamps=fine))) == []


@pytest.mark.kafka
async def test_partitions_are_added_and_retention_set_without_losing_other_overrides(
    apache_kafka: ApacheKafka,
) -> None:
    name = fresh()
    async with admin(KafkaConnection(apache_kafka.bootstrap)) as broker:
        await broker.apply(Topic(name, partitions=2))
        by_hand = AIOKafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap)
        await by_hand.start()
        overrides = {"retention.ms": "1000", "max.message.bytes": "2000000", TIMESTAMPS: "LogAppendTime"}
        await by_hand.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, overrides)])
        await by_hand.close()

        wanted = Topic(name, partitions=6, retention=None)
        assert [(d.what, d.actual, d.wanted) for d in await broker.diff(wanted)] == [
            ("partitions", "2", "6"),
            ("retention.ms", "1000", "-1"),
        ]
        assert len(await broker.apply(wanted)) == 2
        assert await broker.diff(wanted) == []
        state = await broker.describe(name)
    assert state is not None
    assert state.overrides == {**overrides, "retention.ms": "-1"}


@pytest.mark.kafka
async def test_the_broker_stamps_what_comes_to_a_new_topic(apache_kafka: ApacheKafka) -> None:
    topic = Topic(fresh())
    async with admin(KafkaConnection(apache_kafka.bootstrap)) as broker:
        await broker.apply(topic)
        assert await broker.diff(topic) == []
    ahead_ms = int(time.time() * 1000) + 86_400_000
    async with AIOKafkaProducer(bootstrap_servers=apache_kafka.bootstrap) as producer:
        sent = await producer.send_and_wait(topic.name, b"event", timestamp_ms=ahead_ms)
    assert sent.timestamp < ahead_ms - 3_600_000


@pytest.mark.kafka
async def test_a_topic_that_producers_stamp_is_a_difference_and_left_as_it_is(
    apache_kafka: ApacheKafka,
) -> None:
    published = Topic(fresh(), append_time=False)
    wanted = replace(published, append_time=True)
    async with admin(KafkaConnection(apache_kafka.bootstrap)) as broker:
        await broker.apply(published)
        assert await broker.diff(published) == []
        (difference,) = await broker.diff(wanted)
        assert (difference.what, difference.actual, difference.wanted) == (
            TIMESTAMPS,
            "CreateTime",
            "LogAppendTime",
        )
        assert difference.obstacle.startswith("left as it is")
        assert await broker.apply(wanted) == []
        assert await broker.diff(wanted) == [difference]
        assert [d.what for d in await broker.apply(replace(wanted, retention=DAY))] == ["retention.ms"]


async def test_a_change_that_the_embedded_broker_cannot_make_says_so(kafka: KafkaConnection) -> None:
    if not kafka.embedded:
        pytest.skip("Apache Kafka can")
    name = fresh()
    async with admin(kafka) as broker:
        await broker.apply(Topic(name, partitions=2))
        with pytest.raises(ConfigError, match="partitions is 2, should be 6: this broker cannot change it"):
            await broker.apply(Topic(name, partitions=6))
