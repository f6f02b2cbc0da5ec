"""Where a claim begins to read, and whose ends it has to know for that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from streamproc.errors import DependencyError
from streamproc.model import Partition
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_claims import Bounds, Claims
from streamproc.sources.kafka_client import KafkaConnection
from tests.sources.consuming import Memory

OURS, LATER, OTHERS = (TopicPartition("clicks", number) for number in range(3))


class Consumer:
    """What a claim tells aiokafka: where to read on, and what to hold back."""

    def __init__(self) -> None:
        self.begins: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {OURS.partition, LATER.partition, OTHERS.partition}

    def pause(self, tp: TopicPartition) -> None:
        self.paused.add(tp)

    def resume(self, tp: TopicPartition) -> None:
        self.paused.discard(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.begins[tp] = offset


def partition(tp: TopicPartition) -> Partition:
    return Partition(tp.topic, str(tp.partition))


async def bounds(tps: Sequence[TopicPartition]) -> Bounds:
    """Of a broker on which somebody else's partition has no leader."""
    if OTHERS in tps:
        await asyncio.Event().wait()
    return Bounds(dict.fromkeys(tps, 2), dict.fromkeys(tps, 10), None)


async def offsets(tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    return dict.fromkeys(tps, 7)


async def no_ids(*_: object) -> None:
    raise NotImplementedError


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_a_partition_without_a_leader_holds_up_no_claim_of_others(start: str) -> None:
    """Where a topic begins that is read from its end is decided for all partitions, but only once."""
    consumer = Consumer()
    memory = Memory({partition(OURS): 4})
    claims = Claims(consumer, memory, bounds, partition=partition, start=start, compacted=False)
    claims.on_partitions_assigned({OURS, LATER})
    assert claims.claiming is not None
    await claims.claiming
    assert consumer.begins == {OURS: 5, LATER: 2}
    assert consumer.paused == set()


async def test_the_first_claim_of_a_topic_that_is_read_from_its_end_waits_for_all_ends() -> None:
    consumer, memory = Consumer(), Memory()
    asked: list[set[TopicPartition]] = []

    async def all_known(tps: Sequence[TopicPartition]) -> Bounds:
        asked.append(set(tps))
        return Bounds(dict.fromkeys(tps, 2), dict.fromkeys(tps, 10), None)

    claims = Claims(consumer, memory, all_known, partition=partition, start="latest", compacted=False)
    claims.on_partitions_assigned({OURS})
    assert claims.claiming is not None
    await claims.claiming
    assert asked[0] == {OURS, LATER, OTHERS}
    assert consumer.begins == {OURS: 10}
    assert memory.positions == dict.fromkeys(map(partition, [OURS, LATER, OTHERS]), 9)


async def test_who_has_no_partitions_because_the_group_has_no_coordinator_waits_for_the_broker() -> None:
    """Its other questions are answered, so it would be ready for ever. Who has some reads on."""
    consumer = SimpleNamespace(
        assignment=set[TopicPartition],
        partitions_for_topic=lambda topic: set(),
        beginning_offsets=offsets,
        end_offsets=offsets,
        _coordinator=SimpleNamespace(coordinator_id=None),
        _client=SimpleNamespace(get_random_node=lambda: 0, send=no_ids),
    )
    source = KafkaSource(KafkaConnection("kafka:9092"), "clicks", KafkaOptions("readers"), Memory())
    source._membership = Claims(
        consumer, Memory(), bounds, partition=partition, start="earliest", compacted=False
    )
    with pytest.raises(DependencyError, match="has no coordinator of the group readers"):
        await source.end_positions()
    consumer._coordinator.coordinator_id = 1
    assert await source.end_positions() == {}
    consumer._coordinator.coordinator_id, consumer.assignment = None, lambda: {OURS}
    assert await source.end_positions() == {partition(OURS): 6}
