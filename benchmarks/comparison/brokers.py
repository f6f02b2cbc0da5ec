"""The broker under a comparison: a real Apache Kafka where this machine can run one, else the embedded broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streamproc.embedded.broker import start_broker
from streamproc.sources.kafka_client import KafkaConnection
from tests.support.apache_kafka import KAFKA_VERSION, ApacheKafka, KafkaUnavailable


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker: ``kind`` is ``kafka`` or ``embedded``, ``title`` what the tables call it."""

    kind: str
    title: str
    connection: KafkaConnection

    @property
    def bootstrap(self) -> str:
        """``host:port``."""
        return self.connection.bootstrap


def choose_broker(wanted: str) -> str:
    """``kafka`` or ``embedded`` for a wish that may be ``auto``. Raises :class:`KafkaUnavailable`."""
    if wanted == "embedded":
        return wanted
    try:
        ApacheKafka.check()
    except KafkaUnavailable:
        if wanted == "kafka":
            raise
        return "embedded"
    return "kafka"


@contextmanager
def running_broker(kind: str, folder: Path) -> Iterator[Broker]:
    """A broker of ``kind`` with its data in ``folder``."""
    if kind == "kafka":
        with ApacheKafka(folder, heap="1g") as kafka:
            connection = KafkaConnection(kafka.bootstrap)
            yield Broker(kind, f"Apache Kafka {KAFKA_VERSION}", connection)
    else:
        with start_broker(folder) as embedded:
            connection = KafkaConnection(embedded.bootstrap, embedded=True)
            yield Broker(kind, "embedded broker", connection)
