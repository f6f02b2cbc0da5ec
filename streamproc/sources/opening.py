"""The one place that knows which kinds of source there are. A new one adds its case to each function here.

What a kind cannot do is refused with a :class:`ConfigError` that says so, never by an attribute that is
missing somewhere deep inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from typing import TypeAlias

from streamproc.errors import ConfigError, Mistake
from streamproc.leases import LeaseStore
from streamproc.log_objects import LogLedger
from streamproc.settings import Settings
from streamproc.sources import Listener, Producer, Source, Waiting
from streamproc.sources.administration import Admin
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_admin import admin as kafka_admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.log_store import LogConnection
from streamproc.sources.log_unpack import Caps
from streamproc.sources.logs import LogSource
from streamproc.topology import Topology

#: Seconds between two listings. A bucket's are for what notifications missed, or for logs that nobody waits for.
_LIST_BUCKET, _LIST_FOLDER = 300.0, 1.0

# What needs Kinesis' client is imported where it is used: that takes as long as everything else together.
Connection: TypeAlias = KafkaConnection | KinesisConnection | LogConnection


def connection_of(settings: Settings) -> Connection:
    """How to reach the settings' broker. Not for an embedded one: whoever started it knows where it is."""
    match settings.broker.scheme:
        case "kafka":
            return KafkaConnection.of(settings.broker, settings.kafka)
        case "kinesis":
            return KinesisConnection.of(settings.broker, settings.kinesis)
        case "s3" | "file":
            return _logs_of(settings)
        case scheme:
            raise AssertionError(f"no source is known for {scheme}:")


def _logs_of(settings: Settings) -> LogConnection:
    logs, folder = settings.logs, settings.broker.scheme == "file"
    listing = logs.list_every if logs.list_every is not None else (_LIST_FOLDER if folder else _LIST_BUCKET)
    if folder and logs.queue is not None:
        raise ConfigError([Mistake("logs.queue", "is of no use to a folder", "Remove it, or name a bucket")])
    return LogConnection.of(
        settings.broker,
        endpoint_url=settings.s3.endpoint_url,
        region=settings.s3.region,
        queue=logs.queue,
        list_every=listing,
        caps=Caps(logs.max_ratio, logs.max_size),
    )


def open_source(
    connection: Connection,
    settings: Settings,
    page: Topology,
    listener: Listener,
    *,
    leases: Callable[[], LeaseStore],
    logs: Callable[[], LogLedger],
    waiting: Waiting | None = None,
) -> Source:
    """The page's topic as a source that is not started yet.

    ``leases``, ``logs``: where workers agree on who reads what, for sources that have no groups. ``waiting`` is told
    what is being waited out.
    """
    if isinstance(connection, KafkaConnection):
        kafka = KafkaOptions(
            group=f"{settings.group}-{page.name}",
            start=settings.start,
            session_timeout=None if connection.embedded else settings.kafka.session_timeout,
            rebalance_timeout=settings.drain_deadline + 15.0,
        )
        return KafkaSource(connection, page.topic.name, kafka, listener, waiting)
    if isinstance(connection, LogConnection):
        return LogSource(connection, page.contract, listener, logs(), waiting=waiting)
    from streamproc.sources.kinesis import KinesisOptions, KinesisSource  # noqa: PLC0415 - see above

    since_ms = settings.kinesis.start_timestamp
    kinesis = KinesisOptions(
        start=settings.start if since_ms is None else "timestamp",
        since_ms=since_ms,
        poll_interval=settings.kinesis.poll_interval,
        fan_out=settings.kinesis.fan_out,
    )
    if kinesis.fan_out is not None and find_spec("h2") is None:
        problem = "is set, and enhanced fan-out needs the package h2"
        raise ConfigError([Mistake("kinesis.fan_out", problem, "Install streamproc[fanout]")])
    return KinesisSource(connection, page.topic.name, kinesis, listener, leases(), waiting=waiting)


def admin(connection: Connection) -> AbstractAsyncContextManager[Admin]:
    """Reads and changes topics. Entering raises :class:`DependencyError` when nobody answers."""
    if isinstance(connection, KafkaConnection):
        return kafka_admin(connection)
    if isinstance(connection, LogConnection):
        raise ConfigError([_no_topics(connection, "has no topics: nothing is to be created")])
    from streamproc.sources.kinesis_admin import admin as kinesis_admin  # noqa: PLC0415 - see above

    return kinesis_admin(connection)


def producer(connection: Connection) -> Producer:
    """Writes records, many at a time; not started yet."""
    if isinstance(connection, KafkaConnection):
        return KafkaProducer(connection)
    if isinstance(connection, LogConnection):
        raise ConfigError([_no_topics(connection, "is only read")])
    from streamproc.sources.kinesis_produce import KinesisProducer  # noqa: PLC0415 - see above

    return KinesisProducer(connection)


def _no_topics(connection: LogConnection, why: str) -> Mistake:
    return Mistake("broker", f"is {connection}, which {why}", "See docs/logs.md for what is there")


def check_published(connection: Connection, pages: Iterable[Topology]) -> None:
    """Raises :class:`ConfigError` where a page publishes to topics and the broker is none that has them."""
    if any(page.sinks.published for page in pages):
        kafka_only(connection, "topics are published")


def kafka_only(connection: Connection, what: str) -> KafkaConnection:
    """The connection if it is Kafka's; ConfigError says that ``what`` needs Kafka otherwise."""
    if isinstance(connection, KafkaConnection):
        return connection
    problem = f"is {connection}, and {what} only with Kafka as yet"
    raise ConfigError([Mistake("broker", problem, "See docs/kinesis.md and docs/logs.md for what is there")])
