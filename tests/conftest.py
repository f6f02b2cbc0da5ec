"""Real parts for every test: PostgreSQL, a Kafka-protocol broker, an S3 server.

The servers live as long as the session (one of each per xdist worker); what a test gets from them is
fresh: a database, a bucket, a topic. ``STREAMPROC_TEST_BROKER=kafka`` puts Apache Kafka in the place of
the embedded broker, ``STREAMPROC_TEST_POSTGRES=/usr/lib/postgresql/15/bin`` the PostgreSQL of those programs
in the place of the embedded one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psycopg
import pytest

from streamproc.embedded.broker import start_broker
from streamproc.embedded.postgres import EmbeddedPostgres, start_postgres
from streamproc.ledger import Ledger
from streamproc.sources.kafka_client import KafkaConnection
from tests.support.apache_kafka import ApacheKafka, KafkaUnavailable
from tests.support.installed_postgres import InstalledPostgres
from tests.support.kinesis_local import KinesisLocal, KinesisUnavailable

pytest_plugins = ["tests.support.lost_connections"]

#: Sample data that is not part of the project (access logs, naughty strings): see ``shared_data``.
SHARED_DATA = Path(os.environ.get("STREAMPROC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

#: What ``broker`` is: ``embedded`` or ``kafka``.
BROKER = os.environ.get("STREAMPROC_TEST_BROKER", "embedded")

#: The folder of the programs of a PostgreSQL to test with instead of the embedded one.
POSTGRES = os.environ.get("STREAMPROC_TEST_POSTGRES")


# On a busy machine an example of a millisecond can take a second, and hypothesis calls that a failure.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a misspelt choice of broker before it quietly means another."""
    if BROKER not in {"embedded", "kafka"}:
        raise pytest.UsageError(f"STREAMPROC_TEST_BROKER={BROKER}: it is embedded or kafka")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Apache Kafka, ``-m kafka`` means the broker's ordinary tests too."""
    for item in items:
        if BROKER == "kafka" and "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A short path: a Unix socket's may have 107 characters."""
    directory = Path(tempfile.mkdtemp(prefix="streamproc-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres_server(server_directory: Path) -> Iterator[EmbeddedPostgres | InstalledPostgres]:
    """The session's PostgreSQL, without fsync."""
    if POSTGRES is not None:
        with InstalledPostgres(Path(POSTGRES), server_directory / "postgres") as installed:
            yield installed
        return
    with start_postgres(server_directory / "postgres", durable=False) as server:
        yield server


def fresh_database(server: EmbeddedPostgres | InstalledPostgres) -> Iterator[str]:
    """Conninfo of an empty database, dropped at the end: the body of a fixture."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield server.database_url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres(postgres_server: EmbeddedPostgres | InstalledPostgres) -> Iterator[str]:
    """Conninfo of a fresh, empty database."""
    yield from fresh_database(postgres_server)


@dataclass(frozen=True)
class S3Server:
    """An S3 server and the credentials it takes. ``environment`` is what the AWS SDKs read."""

    endpoint_url: str
    access_key_id: str = "test"
    secret_access_key: str = "test"  # the server takes any
    region: str = "us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's S3 on a free port; its environment is set for the whole session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3 = S3Server(f"http://{host}:{port}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        yield s3
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """Name of a fresh, empty bucket."""
    import boto3

    name = f"test-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture(scope="session")
def broker(server_directory: Path) -> Iterator[str]:
    """``host:port`` of the session's broker."""
    if BROKER == "kafka":
        try:
            kafka = ApacheKafka(server_directory / "kafka")
        except KafkaUnavailable as reason:
            pytest.skip(f"STREAMPROC_TEST_BROKER=kafka, but {reason}")
        with kafka:
            yield kafka.bootstrap
        return
    with start_broker(server_directory / "broker") as started:
        yield started.bootstrap


@pytest.fixture(scope="session")
def kafka(broker: str) -> KafkaConnection:
    """How to reach the session's broker."""
    return KafkaConnection(broker, embedded=BROKER == "embedded")


@pytest.fixture
async def topic(broker: str) -> str:
    """Name of a fresh topic of 4 partitions."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    name = f"test-{uuid.uuid4().hex[:12]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 4, 1)])
        while name not in await admin.list_topics():  # a broker of Apache Kafka hears of it a moment later
            pass
    finally:
        await admin.close()
    return name


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A real Apache Kafka, whatever ``broker`` is; tests that use it carry the mark ``kafka``."""
    try:
        kafka = ApacheKafka(tmp_path_factory.mktemp("apache-kafka"))
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    with kafka:
        yield kafka


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of sample data, beside the checkout or in ``STREAMPROC_TEST_DATA``."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"sample data not found at {SHARED_DATA}; set STREAMPROC_TEST_DATA")
    return SHARED_DATA


@pytest.fixture(scope="session")
def kinesis_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KinesisLocal]:
    """npm's ``kinesis-local``, for everything about shards; skips where Node is missing."""
    try:
        server = KinesisLocal(tmp_path_factory.mktemp("kinesis-local"))
    except KinesisUnavailable as reason:
        pytest.skip(str(reason))
    with server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
async def ledger(postgres: str) -> AsyncIterator[Ledger]:
    """Worker ``w1``'s view of stream ``clicks``."""
    async with Ledger(postgres, "clicks", "w1") as ledger:
        await ledger.migrate()
        yield ledger
