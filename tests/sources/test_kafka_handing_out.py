"""How much of what was fetched one answer of the source holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from streamproc.model import Partition
from streamproc.sources import kafka, kafka_fetch
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_claims import Bounds, Claims
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_partition import PartitionReader
from tests.sources.batches import LZ4, fetched, record_batch
from tests.sources.consuming import Memory

MEBIBYTE = 1024 * 1024


def named(tp: TopicPartition) -> Partition:
    return Partition(tp.topic, str(tp.partition))


async def nobody_asks(tps: Sequence[TopicPartition]) -> Bounds:
    raise AssertionError(f"of {tps} everything is here")


def reading(readers: dict[TopicPartition, PartitionReader]) -> KafkaSource:
    """A source that has joined and has these to read, without a broker."""
    memory = Memory()
    source = KafkaSource(KafkaConnection("127.0.0.1:1"), "clicks", KafkaOptions("readers"), memory)
    claims = Claims(None, memory, nobody_asks, partition=named, start="earliest", compacted=False)
    claims.readers |= readers
    source._membership = claims
    return source


def test_records_that_unpack_to_a_multiple_come_in_bounded_pieces_from_all_partitions() -> None:
    readers = {}
    for number in range(4):
        tp = TopicPartition("clicks", number)
        readers[tp] = PartitionReader(named(tp), -1, compacted=False)
        log = [record_batch(offset, [b"a" * MEBIBYTE], codec=LZ4) for offset in range(40)]
        readers[tp].add(fetched(*log))
    assert sum(reader.queued_bytes for reader in readers.values()) < 2 * MEBIBYTE
    source = reading(readers)
    positions: dict[Partition, list[int]] = defaultdict(list)
    answers = 0
    while batches := source._hand_out(25_000):
        answers += 1
        assert sum(batch.size for batch in batches) <= (64 + 1) * MEBIBYTE, "at most one batch over"
        assert {batch.partition for batch in batches} == set(map(named, readers))
        for batch in batches:
            assert len(batch.values[0] or b"") == MEBIBYTE
            positions[batch.partition] += batch.positions
    assert positions == {named(tp): list(range(40)) for tp in readers}
    assert answers == 3


def test_a_batch_larger_than_an_answer_comes_as_a_whole_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "_ANSWER_BYTES", MEBIBYTE)
    tp = TopicPartition("clicks", 0)
    reader = PartitionReader(named(tp), -1, compacted=False)
    reader.add(fetched(record_batch(0, [b"a" * MEBIBYTE] * 3, codec=LZ4), record_batch(3, [b"b"])))
    source = reading({tp: reader})
    assert [[len(batch) for batch in source._hand_out(25_000)] for _ in range(3)] == [[3], [1], []]


async def test_a_partition_that_may_not_be_read_is_asked_for_again_and_not_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The right comes back when somebody sees to it, or it was never gone: a broker did not know of it for a moment."""
    answers: list[object] = [TopicAuthorizationFailedError("clicks") for _ in range(2)]
    answers.append(fetched(record_batch(0, [b"a"])))
    monkeypatch.setattr(kafka_fetch, "take", lambda consumer, tp: answers.pop(0))
    tp = TopicPartition("clicks", 0)
    reader = PartitionReader(named(tp), -1, compacted=False)
    source = reading({tp: reader})
    told: list[str] = []
    source._waiting = lambda error, failing: told.append(str(error))
    await source._collect()
    await source._collect()
    assert len(answers) == 2, "not at once"
    for _ in range(2):
        reader.ask_again = 0.0
        await source._collect()
    [batch] = source._hand_out(25_000)
    assert list(batch.values) == [b"a"]
    assert source.stopped == {}
    assert told == ["Kafka at 127.0.0.1:1: does not let us read clicks/0 (see the topic's access rules)"] * 2
