"""What only a real Apache Kafka does: transactions, retention, restarts, static members, TLS and SCRAM."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from streamproc.errors import DependencyError, Gap, UnexpectedPosition
from streamproc.model import Partition, RecordBatch
from streamproc.redaction import Secret
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer
from streamproc.topology import Topic
from tests.sources.consuming import Memory, by_partition, consuming, read, read_records, until
from tests.support.apache_kafka import ApacheKafka, KafkaUnavailable, free_ports

pytestmark = pytest.mark.kafka


@pytest.fixture
def connection(apache_kafka: ApacheKafka) -> KafkaConnection:
    return KafkaConnection(apache_kafka.bootstrap)


@pytest.fixture
async def clicks(connection: KafkaConnection, request: pytest.FixtureRequest) -> str:
    """A fresh topic of one partition, named after the test."""
    name = request.node.name[-80:]
    async with admin(connection) as broker:
        await broker.apply(Topic(name, partitions=1))
    return name


@asynccontextmanager
async def by_hand(connection: KafkaConnection) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**connection.client_options())
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def test_committed_transactions_are_read_aborted_and_open_ones_are_not(
    connection: KafkaConnection, clicks: str
) -> None:
    partition = Partition(clicks, "0")
    producer = AIOKafkaProducer(**connection.client_options(), transactional_id=clicks)
    await producer.start()
    try:
        async with producer.transaction():
            for n in range(3):
                await producer.send_and_wait(clicks, b"committed %d" % n)
        await producer.begin_transaction()
        await producer.send_and_wait(clicks, b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(clicks, b"committed 3")
        await producer.begin_transaction()
        await producer.send_and_wait(clicks, b"open")
        async with consuming(connection, clicks, Memory()) as source:
            batches = await read(source, lambda got: bool(got) and got[-1].through == 7)
            assert await source.end_positions() == {partition: 7}
            assert await source.next(10, 0.5) == []
            assert (source.lag, source.fetched_newest(partition)) == ({partition: 0}, 7)
            await producer.commit_transaction()
            batches += await read_records(source, 1)
    finally:
        await producer.stop()
    # Offsets 3, 5 and 7 are the transactions' markers, 4 was aborted.
    committed = [(0, b"committed 0"), (1, b"committed 1"), (2, b"committed 2"), (6, b"committed 3")]
    assert by_partition(batches) == {partition: [*committed, (8, b"open")]}
    assert [batch.after for batch in batches[1:]] == [batch.through for batch in batches[:-1]]


async def test_a_log_that_ends_with_markers_is_read_to_its_very_end(
    connection: KafkaConnection, clicks: str
) -> None:
    producer = AIOKafkaProducer(**connection.client_options(), transactional_id=clicks)
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(clicks, b"aborted")
        await producer.abort_transaction()
    finally:
        await producer.stop()
    async with consuming(connection, clicks, Memory()) as source:
        batches = await read(source, bool)
        assert await source.end_positions() == {Partition(clicks, "0"): 1}
    assert [(batch.after, batch.through, batch.values) for batch in batches] == [(-1, 1, [])]


async def test_a_partition_that_was_added_is_read_whole_though_the_topic_is_read_from_its_latest_records(
    connection: KafkaConnection, clicks: str
) -> None:
    memory = Memory()
    async with KafkaProducer(connection) as producer:
        await producer.publish(clicks, [b"old"])
    async with consuming(connection, clicks, memory, start="latest") as source:
        await read(source, lambda _: len(source.lag) == 1)
    async with admin(connection) as broker:
        await broker.apply(Topic(clicks, partitions=2))
    async with KafkaProducer(connection) as producer:
        await producer.publish(clicks, [b"new"] * 2, partitions=[0, 1])
    async with consuming(connection, clicks, memory, start="latest") as source:
        batches = await read_records(source, 2)
    assert by_partition(batches) == {
        Partition(clicks, "0"): [(1, b"new")],
        Partition(clicks, "1"): [(0, b"new")],
    }


async def test_records_deleted_before_they_were_read_are_a_gap_with_both_offsets(
    connection: KafkaConnection, clicks: str
) -> None:
    async with KafkaProducer(connection) as producer:
        await producer.publish(clicks, [b"x"] * 10)
    async with by_hand(connection) as client:
        await client.delete_records({TopicPartition(clicks, 0): RecordsToDelete(6)})
    partition = Partition(clicks, "0")
    async with consuming(connection, clicks, Memory({partition: 2})) as source:
        await read(source, lambda _: bool(source.stopped))
        error = source.stopped[partition]
    assert isinstance(error, Gap)
    assert (
        f"{partition}: everything through offset 2 is read, but the oldest record kept is 6: 3 offsets"
        in str(error)
    )
    async with consuming(connection, clicks, Memory({partition: 5})) as source:  # 6 is still there: no gap
        assert by_partition(await read_records(source, 4)) == {partition: [(n, b"x") for n in range(6, 10)]}


async def test_records_deleted_while_we_lag_are_a_gap_after_everything_that_was_fetched(
    connection: KafkaConnection, clicks: str
) -> None:
    partition = Partition(clicks, "0")
    async with consuming(connection, clicks, Memory()) as source:
        async with KafkaProducer(connection) as producer:
            await producer.publish(clicks, [b"first"] * 5)
            assert len(await read_records(source, 5)) == 1
            source.pause([partition])
            await asyncio.sleep(0)
            await producer.publish(clicks, [b"second"] * 5)
            await producer.publish(clicks, [b"third"] * 5)
        async with by_hand(connection) as client:
            await client.delete_records({TopicPartition(clicks, 0): RecordsToDelete(12)})
        source.resume([partition])
        batches = await read(source, lambda _: bool(source.stopped))
        assert isinstance(source.stopped[partition], Gap)
        assert "the oldest record kept is 12" in str(source.stopped[partition])
    # A fetch that was under way may have brought the second batch before it was deleted.
    assert all(batch.values == [b"second"] * 5 for batch in batches)


async def test_a_topic_made_anew_is_not_read_as_the_old_one(connection: KafkaConnection, clicks: str) -> None:
    async with KafkaProducer(connection) as producer:
        await producer.publish(clicks, [b"old"] * 10)
    async with by_hand(connection) as client, admin(connection) as broker:
        await client.delete_topics([clicks])
        async with asyncio.timeout(20):
            while clicks in await broker.topics():  # noqa: ASYNC110 - answered before it is done, no event
                await asyncio.sleep(0.05)
        await broker.apply(Topic(clicks, partitions=1))
    async with KafkaProducer(connection) as producer:
        await producer.publish(clicks, [b"new"] * 3)
    partition = Partition(clicks, "0")
    async with consuming(connection, clicks, Memory({partition: 9})) as source:
        await read(source, lambda _: bool(source.stopped))
        assert isinstance(source.stopped[partition], UnexpectedPosition)


async def test_a_static_member_gets_its_partitions_back_without_disturbing_the_others(
    connection: KafkaConnection, topic_of_four: str
) -> None:
    options = {"session_timeout": 10.0}
    others = Memory()
    async with consuming(connection, topic_of_four, others, instance="one", **options) as one:
        mine = Memory()
        async with consuming(connection, topic_of_four, mine, instance="two", **options) as two:
            await until(lambda: len(one.assignment) == 2 and len(two.assignment) == 2)
            had = two.assignment
        rebalances = one.rebalances
        async with consuming(connection, topic_of_four, mine, instance="two", **options) as two:
            await until(lambda: bool(two.assignment))
            assert two.assignment == had
            assert one.rebalances == rebalances


@pytest.fixture
async def topic_of_four(connection: KafkaConnection) -> str:
    async with admin(connection) as broker:
        await broker.apply(Topic("four"))
    return "four"


async def test_a_broker_that_restarts_and_one_that_is_killed_lose_nothing(
    tmp_path: Path, kafka_available: None
) -> None:
    kafka = ApacheKafka(tmp_path)
    connection = KafkaConnection(kafka.bootstrap)
    with kafka:
        async with admin(connection) as broker:
            await broker.apply(Topic("clicks", partitions=1))
        memory = Memory()
        async with consuming(connection, "clicks", memory, session_timeout=20.0) as source:
            seen: list[bytes | None] = []
            for turn, stop in enumerate([kafka.stop, kafka.kill, None]):
                async with KafkaProducer(connection) as producer:
                    await producer.publish("clicks", [b"%d" % (turn * 10 + n) for n in range(10)])
                for batch in await read_tolerantly(source, 10):
                    seen += batch.values
                    memory.positions[batch.partition] = batch.through
                if stop is not None:
                    await asyncio.to_thread(stop)
                    await asyncio.to_thread(kafka.start)
    assert seen == [b"%d" % n for n in range(30)]


async def read_tolerantly(source: KafkaSource, count: int) -> list[RecordBatch]:
    batches: list[RecordBatch] = []
    async with asyncio.timeout(60):
        while sum(map(len, batches)) < count:
            try:
                batches += await source.next(100, 0.2)
            except DependencyError:
                continue
    return batches


# -- encrypted and authenticated -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kafka_available() -> None:
    try:
        ApacheKafka.check()
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for localhost (PEM, and PKCS #12 for Java), by openssl."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    new = "openssl req -newkey rsa:2048 -nodes"
    for command in (
        f"{new} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        f"{new} -subj /CN=localhost -keyout broker.key -out broker.csr",
        "openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -days 2 -extfile names -out broker.pem",
        "openssl pkcs12 -export -in broker.pem -inkey broker.key -out broker.p12 -passout pass:changeit",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def secure_kafka(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory, kafka_available: None
) -> Iterator[dict[str, str]]:
    """Listeners by protocol: TLS, and TLS with SCRAM and PLAIN."""
    tls, sasl = free_ports(2)
    directory = tmp_path_factory.mktemp("secure")
    plain = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_bob="bobs-secret";'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    kafka = ApacheKafka(
        directory,
        more_listeners={"TLS": tls, "SASLTLS": sasl},
        properties={
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,SASLTLS:SASL_SSL"
            ),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasltls.plain.sasl.jaas.config": plain,
            "listener.name.sasltls.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.sasltls.scram-sha-512.sasl.jaas.config": scram,
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(certificates / "broker.p12"),
            "ssl.keystore.password": "changeit",
        },
        format_options=[
            "--add-scram",
            "SCRAM-SHA-256=[name=alice,password=alices-secret]",
            "--add-scram",
            "SCRAM-SHA-512=[name=alice,password=alices-secret]",
        ],
    )
    with kafka:
        yield {"SSL": f"localhost:{tls}", "SASL_SSL": f"localhost:{sasl}"}


@pytest.mark.parametrize(
    ("protocol", "mechanism", "user", "password"),
    [
        ("SSL", None, None, None),
        ("SASL_SSL", "PLAIN", "bob", "bobs-secret"),
        ("SASL_SSL", "SCRAM-SHA-256", "alice", "alices-secret"),
        ("SASL_SSL", "SCRAM-SHA-512", "alice", "alices-secret"),
    ],
)
async def test_records_go_there_and_back_over_tls_and_sasl(
    secure_kafka: dict[str, str],
    certificates: Path,
    protocol: str,
    mechanism: str | None,
    user: str | None,
    password: str | None,
) -> None:
    connection = KafkaConnection(
        secure_kafka[protocol],
        protocol,
        ca_file=certificates / "ca.pem",
        sasl_mechanism=mechanism,
        username=user,
        password=Secret(password) if password else None,
    )
    name = f"secure-{mechanism}"
    async with admin(connection) as broker:
        await broker.apply(Topic(name, partitions=1))
    async with KafkaProducer(connection) as producer:
        await producer.publish(name, [b"secret"])
    async with consuming(connection, name, Memory()) as source:
        (batch,) = await read_records(source, 1)
    assert batch.values == [b"secret"]


async def test_a_wrong_password_is_waited_out_and_named_but_not_shown(
    secure_kafka: dict[str, str], certificates: Path
) -> None:
    connection = KafkaConnection(
        secure_kafka["SASL_SSL"],
        "SASL_SSL",
        ca_file=certificates / "ca.pem",
        sasl_mechanism="SCRAM-SHA-512",
        username="alice",
        password=Secret("hunter2"),
    )
    waited: list[DependencyError] = []
    source = KafkaSource(
        connection, "clicks", KafkaOptions("g"), Memory(), lambda error, _: waited.append(error)
    )
    starting = asyncio.create_task(source.start())
    await until(lambda: bool(waited))
    starting.cancel()
    await asyncio.wait({starting})
    assert secure_kafka["SASL_SSL"] in str(waited[0])
    assert "hunter2" not in repr(waited[0])


async def test_a_broker_whose_certificate_nobody_vouches_for_is_refused(secure_kafka: dict[str, str]) -> None:
    with pytest.raises(DependencyError):
        async with admin(KafkaConnection(secure_kafka["SSL"], "SSL")):
            pass


async def test_a_broker_of_another_name_is_refused(secure_kafka: dict[str, str], certificates: Path) -> None:
    by_address = secure_kafka["SSL"].replace("localhost", "127.0.0.1")
    connection = KafkaConnection(by_address, "SSL", ca_file=certificates / "ca.pem")
    assert isinstance(connection.client_options()["ssl_context"], ssl.SSLContext)
    with pytest.raises(DependencyError):
        async with admin(connection):
            pass
