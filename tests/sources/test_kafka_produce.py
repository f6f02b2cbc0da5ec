"""Records written in whole batches: where they go, that they are there, what is said when they are not."""

from __future__ import annotations

import random

import pytest
import structlog
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import DependencyError
from streamproc.model import Partition
from streamproc.sources import kafka_produce
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer, partitions_of_keys, started
from tests.conftest import BROKER
from tests.sources.consuming import Memory, by_partition, consuming, read_records
from tests.support.apache_kafka import ApacheKafka, free_ports


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.none() | st.binary(max_size=40), max_size=50), count=st.integers(1, 100))
def test_keys_go_where_other_kafka_clients_send_them(keys: list[bytes | None], count: int) -> None:
    other_client = DefaultPartitioner()
    everywhere = list(range(count))
    expected = [-1 if key is None else other_client(key, everywhere, everywhere) for key in keys]
    assert partitions_of_keys(keys, count).tolist() == expected


async def test_records_with_one_key_stay_together_and_in_order(kafka: KafkaConnection, topic: str) -> None:
    rng = random.Random(5)
    keys = [b"visitor-%d" % rng.randrange(20) for _ in range(1_000)]
    values = [b"%d" % n for n in range(1_000)]
    async with KafkaProducer(kafka) as producer:
        await producer.send(topic, values[:500], keys[:500])
        await producer.send(topic, values[500:], keys[500:])
        await producer.flush()
    async with consuming(kafka, topic, Memory()) as source:
        arrived = by_partition(await read_records(source, 1_000))
    place = {value: (partition, position) for partition, got in arrived.items() for position, value in got}
    assert len(place) == 1_000
    for key in set(keys):
        places = [place[value] for value, of in zip(values, keys, strict=True) if of == key]
        assert len({partition for partition, _ in places}) == 1
        assert places == sorted(places)


async def test_records_without_a_key_are_spread(kafka: KafkaConnection, topic: str) -> None:
    async with KafkaProducer(kafka) as producer:
        await producer.publish(topic, [b"x"] * 100)
        for _ in range(4):
            await producer.publish(topic, [b"single"])
    async with consuming(kafka, topic, Memory()) as source:
        arrived = by_partition(await read_records(source, 104))
    assert sorted(map(len, arrived.values())) == [26, 26, 26, 26]


async def test_more_than_a_batch_goes_out_in_several(kafka: KafkaConnection, topic: str) -> None:
    rng = random.Random(6)
    values = [rng.randbytes(100_000) for _ in range(30)]  # does not compress; brokers take 1 MiB at a time
    async with KafkaProducer(kafka) as producer:
        await producer.publish(topic, values, partitions=[2] * 30)
    async with consuming(kafka, topic, Memory()) as source:
        batches = await read_records(source, 30)
    assert by_partition(batches) == {Partition(topic, "2"): list(enumerate(values))}
    assert len(batches) >= 3


async def test_a_topic_that_does_not_exist_is_an_error_at_once_and_is_not_made(
    kafka: KafkaConnection,
) -> None:
    async with KafkaProducer(kafka) as producer:
        with pytest.raises(DependencyError, match="has no topic misspelt"):
            await producer.publish("misspelt", [b"x"])
    async with admin(kafka) as broker:
        assert "misspelt" not in await broker.topics()


async def test_a_broker_that_does_not_answer_is_an_error() -> None:
    (port,) = free_ports(1)
    with pytest.raises(DependencyError, match=f"Kafka at 127.0.0.1:{port}: no broker answers"):
        await KafkaProducer(KafkaConnection(f"127.0.0.1:{port}")).start()


async def test_lengths_that_do_not_match_are_refused_before_anything_is_sent(
    kafka: KafkaConnection, topic: str
) -> None:
    async with KafkaProducer(kafka) as producer:
        with pytest.raises(ValueError, match="zip"):
            await producer.send(topic, [b"a", b"b"], partitions=[0])


@pytest.mark.skipif(BROKER != "embedded", reason="about the embedded broker")
class TestTheEmbeddedBrokerByItsAddress:
    """An address alone does not say whose broker it is."""

    async def test_it_is_sent_to_without_idempotence_and_that_is_said(self, broker: str, topic: str) -> None:
        with structlog.testing.capture_logs() as logs:
            async with KafkaProducer(KafkaConnection(broker)) as producer:
                await producer.publish(topic, [b"a", b"b"], partitions=[1, 1])
        (warning,) = [entry for entry in logs if entry["event"] == "not_idempotent"]
        assert (warning["log_level"], warning["broker"]) == ("warning", broker)
        async with consuming(KafkaConnection(broker, embedded=True), topic, Memory()) as source:
            arrived = by_partition(await read_records(source, 2))
        assert arrived == {Partition(topic, "1"): [(0, b"a"), (1, b"b")]}

    async def test_another_broker_that_gives_no_producer_id_is_an_error(
        self, broker: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kafka_produce, "EMBEDDED_CLUSTER", "another")
        with pytest.raises(DependencyError, match="UnknownError"):
            await KafkaProducer(KafkaConnection(broker)).start()


@pytest.mark.kafka
async def test_on_apache_kafka_producers_are_idempotent(apache_kafka: ApacheKafka) -> None:
    with structlog.testing.capture_logs() as logs:
        producer = await started(KafkaConnection(apache_kafka.bootstrap), "lz4")
        try:
            assert producer._txn_manager.has_pid()
        finally:
            await producer.stop()
    assert logs == []
