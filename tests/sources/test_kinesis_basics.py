"""Streams made, filled and read on two servers that nobody here wrote: moto and kinesis-local."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from streamproc.errors import ConfigError
from streamproc.settings import read_settings
from streamproc.sources import opening
from streamproc.sources.kinesis_admin import KinesisAdmin, admin
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_produce import KinesisProducer
from streamproc.sources.opening import connection_of, kafka_only, open_source
from streamproc.topic_pages import load_pages
from streamproc.topology import Topic
from tests.e2e.harness import REPOSITORY
from tests.sources.kinesis_consuming import REGION, assert_seamless, member, read_until, records
from tests.support.kinesis_reader import read_stream

pytestmark = pytest.mark.timeout(240)

DAY = 24 * 3600 * 1_000_000


@pytest.fixture(params=["moto", "kinesis-local"])
def connection(request: pytest.FixtureRequest) -> KinesisConnection:
    if request.param == "moto":
        return KinesisConnection(REGION, request.getfixturevalue("s3_server").endpoint_url)
    return KinesisConnection(REGION, request.getfixturevalue("kinesis_local").url)


@pytest.fixture
async def streams(connection: KinesisConnection) -> AsyncIterator[KinesisAdmin]:
    async with admin(connection) as streams:
        yield streams


@pytest.fixture
def name() -> str:
    return f"s-{uuid.uuid4().hex[:12]}"


def numbered(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


async def test_a_stream_is_made_as_the_page_says_and_then_nothing_is_left_to_do(streams, name):
    wanted = Topic(name, partitions=2, retention=7 * DAY)
    assert await streams.describe(name) is None
    assert [str(d) for d in await streams.diff(wanted)] == [f"{name}: topic is missing, should be 2 shards"]
    assert [d.what for d in await streams.apply(wanted)] == ["topic", "retention.ms"]
    state = await streams.describe(name)
    assert (state.partitions, state.retention_ms) == (2, str(7 * DAY // 1000))
    assert await streams.diff(wanted) == [] == await streams.apply(wanted)
    assert name in await streams.topics()


async def test_shards_are_added_and_never_taken_away(streams, name):
    await streams.apply(Topic(name, partitions=2, retention=DAY))
    more = Topic(name, partitions=5, retention=DAY)
    assert [(d.what, d.actual, d.wanted) for d in await streams.apply(more)] == [("partitions", "2", "5")]
    assert (await streams.describe(name)).partitions == 5
    fewer = Topic(name, partitions=1, retention=DAY)
    (difference,) = await streams.diff(fewer)
    assert difference.obstacle
    with pytest.raises(ConfigError, match="merging shards"):
        await streams.apply(fewer)


async def test_a_retention_that_kinesis_does_not_have_is_an_obstacle(streams, name):
    for retention in (None, DAY // 2, 366 * DAY):
        with pytest.raises(ConfigError, match="24 to 8760"):
            await streams.apply(Topic(name, partitions=1, retention=retention))


@pytest.mark.parametrize("packed", [True, False])
async def test_what_is_sent_is_in_the_stream_and_is_read_once(
    connection, streams, name, postgres, packed: bool
):
    await streams.apply(Topic(name, partitions=2, retention=DAY))
    values = [*numbered(700), None, b"\x00\xff", "ä".encode()]
    keys = [None if n % 5 == 0 else b"visitor-%d" % (n % 20) for n in range(len(values))]
    async with KinesisProducer(connection, packed=packed) as producer:
        await producer.send(name, values, keys)
        await producer.flush()
    there = await asyncio.to_thread(read_stream, connection.endpoint_url, name)
    assert sorted(record.value for record in there.values()) == sorted(value or b"" for value in values)
    async with member(postgres, connection.endpoint_url, name) as one:
        await read_until(lambda: len(records(one.batches)) >= len(values), one)
        assert_seamless(one.batches)
        assert {(shard, number): value for shard, number, value in records(one.batches)} == {
            at: record.value for at, record in there.items()
        }
    by_key: dict[bytes, set[str]] = {}
    shard_of = {value: shard for shard, _, value in records(one.batches)}
    for key, value in zip(keys, values, strict=True):
        if key is not None and value is not None:
            by_key.setdefault(key, set()).add(shard_of[value])
    assert all(len(shards) == 1 for shards in by_key.values()), "a visitor's events are in one shard"


async def test_a_packed_record_that_went_astray_in_a_split_is_sent_again(kinesis_local, name, postgres):
    """The producer has packed for a shard that is closed by now: readers leave out what does not belong."""
    connection = KinesisConnection(REGION, kinesis_local.url)
    async with admin(connection) as streams, KinesisProducer(connection) as producer:
        await streams.apply(Topic(name, partitions=1, retention=DAY))
        keys = [b"key-%d" % n for n in range(40)]
        await producer.send(name, numbered(40), keys)
        await streams.apply(Topic(name, partitions=2, retention=DAY))
        await producer.send(name, [b"after-%d" % n for n in range(40)], keys)
    wanted = sorted([*numbered(40), *(b"after-%d" % n for n in range(40))])
    there = await asyncio.to_thread(read_stream, kinesis_local.url, name)
    assert sorted(record.value for record in there.values()) == wanted
    async with member(postgres, kinesis_local.url, name) as one:
        await read_until(lambda: len(records(one.batches)) >= 80, one, committing=True)
        assert sorted(value for _, _, value in records(one.batches)) == wanted


def test_the_settings_name_the_connection():
    environ = {
        "STREAMPROC_BROKER": "kinesis://eu-central-1/",
        "STREAMPROC_KINESIS_ENDPOINT_URL": "http://localhost:4568/",
    }
    connection = connection_of(read_settings(environ=environ))
    assert connection == KinesisConnection("eu-central-1", "http://localhost:4568")
    assert str(connection) == "Kinesis in eu-central-1 at http://localhost:4568"
    with pytest.raises(ConfigError, match="agents run only with Kafka"):
        kafka_only(connection, "agents run")


def test_fan_out_without_its_package_is_refused_with_what_to_install(monkeypatch):
    environ = {"STREAMPROC_BROKER": "kinesis://eu-central-1", "STREAMPROC_KINESIS_FAN_OUT": "readers"}
    settings = read_settings(environ=environ)
    assert settings.kinesis.fan_out == "readers"
    page = load_pages(REPOSITORY / "topics")["clickstream"]
    ledger = SimpleNamespace(worker="w1")

    def opened() -> object:
        return open_source(connection_of(settings), settings, page, None, leases=lambda: ledger, logs=None)

    assert opened()._options.fan_out == "readers"
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"kinesis\.fan_out: .*\n?.*streamproc\[fanout\]"):
        opened()
