"""The Kafka source on a real broker: what is delivered, from where, and what stops it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streamproc.errors import DependencyError, Fenced, UnexpectedPosition
from streamproc.model import Partition
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer
from streamproc.topology import Topic
from tests.sources.consuming import (
    Memory,
    assert_seamless,
    by_partition,
    consuming,
    read,
    read_records,
    until,
)
from tests.support.apache_kafka import free_ports


async def publish(kafka: KafkaConnection, topic: str, values: Sequence[bytes | None], partition: int) -> None:
    async with KafkaProducer(kafka) as producer:
        await producer.publish(topic, values, partitions=[partition] * len(values))


async def test_every_record_of_every_partition_arrives_once_in_order(
    kafka: KafkaConnection, topic: str
) -> None:
    sent = {n: [b"%d-%d" % (n, i) for i in range(500)] for n in range(4)}
    async with KafkaProducer(kafka) as producer:
        for start in range(0, 500, 50):
            for n, values in sent.items():
                await producer.publish(topic, values[start : start + 50], partitions=[n] * 50)
    async with consuming(kafka, topic, Memory()) as source:
        batches = await read_records(source, 2_000, max_records=120)
    assert_seamless(batches)
    assert by_partition(batches) == {
        Partition(topic, str(n)): list(enumerate(values)) for n, values in sent.items()
    }


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_compressed_records_with_keys_headers_and_tombstones_arrive(
    kafka: KafkaConnection, topic: str, compression: str | None
) -> None:
    producer = AIOKafkaProducer(**kafka.client_options(), compression_type=compression)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"plain", partition=1)
        await producer.send_and_wait(topic, b"keyed", key=b"", partition=1)
        await producer.send_and_wait(topic, None, key=b"tombstone", partition=1)
        headers = [("source", b"web"), ("nothing", None)]
        await producer.send_and_wait(topic, b"with headers", headers=headers, partition=1)
    finally:
        await producer.stop()
    async with consuming(kafka, topic, Memory()) as source:
        batches = await read_records(source, 4)
    assert by_partition(batches) == {
        Partition(topic, "1"): list(enumerate([b"plain", b"keyed", None, b"with headers"]))
    }


async def test_reading_goes_on_after_the_claimed_position_whatever_the_group_committed(
    kafka: KafkaConnection, topic: str
) -> None:
    await publish(kafka, topic, [b"%d" % i for i in range(10)], 0)
    partition = Partition(topic, "0")
    async with consuming(kafka, topic, Memory()) as source:
        await read_records(source, 10)
        assert await source.copy_commit({partition: 2})
    async with consuming(kafka, topic, Memory({partition: 6})) as source:
        batches = await read_records(source, 3)
    assert by_partition(batches) == {partition: [(7, b"7"), (8, b"8"), (9, b"9")]}
    assert batches[0].after == 6


async def test_latest_starts_at_the_end_and_gives_what_comes_then(kafka: KafkaConnection, topic: str) -> None:
    await publish(kafka, topic, [b"old"] * 5, 2)
    memory = Memory()
    async with consuming(kafka, topic, memory, start="latest") as source:
        assert await read(source, lambda _: len(source.lag) == 4) == []
        await publish(kafka, topic, [b"new"], 2)
        (batch,) = await read_records(source, 1)
    assert (batch.after, list(batch.positions), batch.values) == (4, [5], [b"new"])


async def test_latest_is_decided_once_and_not_at_each_claim(kafka: KafkaConnection, topic: str) -> None:
    """A worker that goes before its first commit leaves nothing out."""
    await publish(kafka, topic, [b"old"] * 5, 2)
    memory = Memory()
    async with consuming(kafka, topic, memory, start="latest") as source:
        await read(source, lambda _: len(source.lag) == 4)
    await publish(kafka, topic, [b"meanwhile"], 2)
    async with consuming(kafka, topic, memory, start="latest") as source:
        (batch,) = await read_records(source, 1)
    assert (list(batch.positions), batch.values) == ([5], [b"meanwhile"])


async def test_a_partition_that_comes_after_latest_was_decided_is_read_from_its_first_record(
    kafka: KafkaConnection, topic: str
) -> None:
    await publish(kafka, topic, [b"before anybody saw it"], 2)
    memory = Memory({Partition(topic, "0"): -1})
    async with consuming(kafka, topic, memory, start="latest") as source:
        (batch,) = await read_records(source, 1)
    assert (batch.partition.id, list(batch.positions)) == ("2", [0])


async def test_copied_offsets_are_the_next_record_to_read(kafka: KafkaConnection, topic: str) -> None:
    await publish(kafka, topic, [b"x"] * 10, 3)
    async with consuming(kafka, topic, Memory()) as source:
        await read_records(source, 10)
        assert await source.copy_commit({Partition(topic, "3"): 9})
    monitor = AIOKafkaConsumer(**kafka.client_options(), group_id=f"{topic}-readers")
    await monitor.start()
    try:
        assert await monitor.committed(TopicPartition(topic, 3)) == 10
    finally:
        await monitor.stop()


async def test_offsets_of_a_partition_that_is_not_ours_are_not_copied(
    kafka: KafkaConnection, topic: str
) -> None:
    async with consuming(kafka, topic, Memory()) as source:
        await read(source, lambda _: bool(source.assignment))
        assert not await source.copy_commit({Partition("somebody-elses", "0"): 1})


async def test_beginning_end_and_lag_are_positions(kafka: KafkaConnection, topic: str) -> None:
    await publish(kafka, topic, [b"x"] * 10, 0)
    parts = [Partition(topic, str(n)) for n in range(4)]
    async with consuming(kafka, topic, Memory({parts[0]: 3})) as source:
        await read_records(source, 6)
        assert await source.beginning_positions() == dict.fromkeys(parts, 0)
        assert await source.end_positions() == {parts[0]: 9, parts[1]: -1, parts[2]: -1, parts[3]: -1}
        assert source.lag[parts[0]] == 0
        source.pause([parts[0]])
        assert source.assignment == frozenset(parts)


@pytest.mark.parametrize(("start", "behind"), [("earliest", -1), ("latest", -1)])
async def test_where_reading_begins_is_known_of_partitions_that_were_never_committed(
    kafka: KafkaConnection, topic: str, start: str, behind: int
) -> None:
    parts = [Partition(topic, str(n)) for n in range(4)]
    await publish(kafka, topic, [b"x"] * 5, 0)
    await publish(kafka, topic, [b"x"] * 5, 1)
    async with consuming(kafka, topic, Memory({parts[1]: 2}), start=start) as source:
        assert source.begins == {}, "nothing is claimed yet"
        await read(source, lambda _: bool(source.begins))
        assert source.begins == {parts[0]: behind, parts[2]: -1, parts[3]: -1}
    assert source.begins == {}


async def test_nothing_within_the_wait_is_an_empty_list(kafka: KafkaConnection, topic: str) -> None:
    async with consuming(kafka, topic, Memory()) as source:
        begin = time.monotonic()
        assert await source.next(100, 0.3) == []
        assert time.monotonic() - begin > 0.25


async def test_a_paused_partition_gives_nothing_until_it_is_resumed(
    kafka: KafkaConnection, topic: str
) -> None:
    paused, other = Partition(topic, "0"), Partition(topic, "1")
    async with consuming(kafka, topic, Memory()) as source:
        await read(source, lambda _: len(source.lag) == 4)
        source.pause([paused])
        await publish(kafka, topic, [b"held"], 0)
        await publish(kafka, topic, [b"flows"], 1)
        assert by_partition(await read_records(source, 1)) == {other: [(0, b"flows")]}
        assert await source.next(100, 0.3) == []
        source.resume([paused])
        assert by_partition(await read_records(source, 1)) == {paused: [(0, b"held")]}


async def test_no_record_is_handed_out_before_its_claim_is_finished(
    kafka: KafkaConnection, topic: str
) -> None:
    await publish(kafka, topic, [b"x"] * 10, 0)
    claimed = asyncio.Event()

    class SlowLedger(Memory):
        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            positions = await super().assigned(partitions)
            await claimed.wait()
            return positions

    memory = SlowLedger({Partition(topic, "0"): 4})
    async with consuming(kafka, topic, memory) as source:
        await read(source, lambda _: bool(memory.events))
        assert await source.next(100, 1.0) == []
        claimed.set()
        batches = await read_records(source, 5)
    assert by_partition(batches) == {Partition(topic, "0"): [(n, b"x") for n in range(5, 10)]}


async def test_a_claim_slower_than_the_session_timeout_keeps_its_membership(
    kafka: KafkaConnection, topic: str
) -> None:
    await publish(kafka, topic, [b"x"], 0)

    class SlowLedger(Memory):
        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            positions = await super().assigned(partitions)
            await asyncio.sleep(3.0)  # the session timeout is 2 s
            return positions

    memory = SlowLedger()
    async with consuming(kafka, topic, memory) as source:
        await read_records(source, 1)
        assert source.rebalances == 1
    assert [what for what, _ in memory.events] == ["assigned"]


async def test_what_the_listener_raises_is_raised_by_next(kafka: KafkaConnection, topic: str) -> None:
    class Refusing(Memory):
        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            raise Fenced("somebody else was faster")

    async with consuming(kafka, topic, Refusing()) as source:
        for _ in range(2):  # not only once: nothing was claimed, so there is nothing to go on with
            with pytest.raises(Fenced, match="somebody else was faster"):
                await read(source, lambda _: False)


async def test_claiming_again_goes_back_to_the_committed_position(kafka: KafkaConnection, topic: str) -> None:
    await publish(kafka, topic, [b"%d" % i for i in range(10)], 0)
    partition = Partition(topic, "0")
    memory = Memory()
    async with consuming(kafka, topic, memory) as source:
        await read_records(source, 10)
        memory.positions[partition] = 7
        await source.reclaim()
        batches = await read_records(source, 2)
        assert source.rebalances == 1
    assert by_partition(batches) == {partition: [(8, b"8"), (9, b"9")]}
    assert [what for what, _ in memory.events] == ["assigned", "assigned"]


async def test_a_position_beyond_the_end_stops_that_partition_and_no_other(
    kafka: KafkaConnection, topic: str
) -> None:
    await publish(kafka, topic, [b"x"] * 3, 0)
    await publish(kafka, topic, [b"y"] * 3, 1)
    recreated, fine = Partition(topic, "0"), Partition(topic, "1")
    async with consuming(kafka, topic, Memory({recreated: 700, fine: 0})) as source:
        batches = await read_records(source, 2)
        assert by_partition(batches) == {fine: [(1, b"y"), (2, b"y")]}
        assert set(source.stopped) == {recreated}
        error = source.stopped[recreated]
        assert isinstance(error, UnexpectedPosition)
        assert f"{recreated}: everything through offset 700 is read, but the log ends before offset 3" in str(
            error
        )


async def test_a_topic_made_anew_and_filled_beyond_the_position_stops_the_partition(
    kafka: KafkaConnection, topic: str
) -> None:
    memory, partition = Memory(), Partition(topic, "0")
    await publish(kafka, topic, [b"old"] * 3, 0)
    async with consuming(kafka, topic, memory) as source:
        await read_records(source, 3)
        memory.positions[partition] = 2
    await make_anew(kafka, topic)
    await publish(kafka, topic, [b"new"] * 6, 0)
    await publish(kafka, topic, [b"new"] * 6, 1)
    async with consuming(kafka, topic, memory) as source:
        batches = await read_records(source, 6)
        assert set(by_partition(batches)) == {Partition(topic, "1")}, "nothing was committed of it"
        assert set(source.stopped) == {partition}
        assert "through offset 2 is read, but of another topic" in str(source.stopped[partition])


async def test_a_topic_made_anew_while_a_worker_sleeps_stops_it(
    kafka: KafkaConnection, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kafka.embedded:
        pytest.skip(
            "Apache Kafka takes the partitions away first; the claim after that looks, as in the test before"
        )
    memory = Memory()
    await publish(kafka, topic, [b"old"] * 3, 0)
    async with consuming(kafka, topic, memory) as source:
        await read_records(source, 3)
        memory.positions[Partition(topic, "0")] = 2
        source.pause([Partition(topic, "0")])
        await make_anew(kafka, topic)
        await publish(kafka, topic, [b"new"] * 6, 0)
        source.resume([Partition(topic, "0")])
        async with asyncio.timeout(60):  # Apache Kafka's metadata is some moments behind
            while not source.stopped:
                monkeypatch.setattr(source, "_look_again", 0.0)
                assert await source.next(100, 0.5) == []
        assert "of another topic" in str(source.stopped[Partition(topic, "0")])


async def make_anew(kafka: KafkaConnection, topic: str) -> None:
    """Delete the topic and create it again, with as many partitions."""
    client = AIOKafkaAdminClient(**kafka.client_options())
    await client.start()
    try:
        await client.delete_topics([topic])
        made = False
        while not made:  # until it is really gone
            answer = await client.create_topics([NewTopic(topic, 4, 1)])
            made = answer.topic_errors[0][1] == 0
        there = False
        while not there:  # until all of the broker knows it
            (found,) = await client.describe_topics([topic])
            there = found["error_code"] == 0 and len(found["partitions"]) == 4
    finally:
        await client.close()


async def test_large_fetches_are_handed_out_in_bounded_pieces_from_all_partitions(
    kafka: KafkaConnection, topic: str
) -> None:
    async with KafkaProducer(kafka) as producer:
        for _ in range(20):
            for n in range(4):
                await producer.publish(topic, [b"v" * 100] * 50, partitions=[n] * 50)
    async with consuming(kafka, topic, Memory()) as source:
        begun = await read(source, lambda _: len(source.lag) == 4, max_records=1)
        left = 4_000 - sum(map(len, begun))
        pieces = []
        while left > 0:
            piece = await source.next(200, 5)
            assert sum(map(len, piece)) < 200 + 50, "at most one batch over"
            pieces.append(piece)
            left -= sum(map(len, piece))
    partitions = [[batch.partition for batch in piece] for piece in pieces]
    assert all(names == sorted(names, key=names.index) for names in partitions), "side by side"
    assert max(len(set(names)) for names in partitions) > 1, "no partition waits for another to be empty"


async def test_it_waits_for_a_broker_and_a_topic_and_says_which(kafka: KafkaConnection) -> None:
    waited: list[DependencyError] = []
    (port,) = free_ports(1)
    nowhere = KafkaConnection(f"127.0.0.1:{port}")
    source = KafkaSource(
        nowhere, "clicks", KafkaOptions("g"), Memory(), lambda error, _: waited.append(error)
    )
    starting = asyncio.create_task(source.start())
    await until(lambda: len(waited) >= 2)
    starting.cancel()
    await asyncio.wait({starting})
    await source.close()
    assert f"Kafka at 127.0.0.1:{port}" in str(waited[0])

    waited.clear()
    source = KafkaSource(
        kafka,
        "not-made-yet",
        KafkaOptions("g", session_timeout=2),
        Memory(),
        lambda error, _: waited.append(error),
    )
    starting = asyncio.create_task(source.start())
    await until(lambda: bool(waited))
    assert "has no topic not-made-yet" in str(waited[0])
    async with admin(kafka) as broker:
        await broker.apply(Topic("not-made-yet", partitions=2))
    await starting
    await read(source, lambda _: len(source.assignment) == 2)
    await source.close()
