"""Where the runs take place: a broker and a PostgreSQL for all of them, a topic and a database for each."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import psutil
import psycopg

from streamproc.embedded.broker import start_broker
from streamproc.embedded.postgres import start_postgres
from streamproc.ledger import Ledger
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import Topic
from tests.conftest import S3Server
from tests.e2e.harness import REPOSITORY, Site
from tests.faults import audit, nursery
from tests.faults.feed import Feed
from tests.faults.records import Keyed
from tests.faults.stage import PARTITIONS, Stage
from tests.support.apache_kafka import ApacheKafka

#: Seconds; the embedded broker's, and the least a worker takes for another.
SESSION_TIMEOUT = 6.0


class Bench:
    """The servers that all runs share."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.postgres = stack.enter_context(start_postgres(directory / "postgres", durable=False))
        self._stack = stack
        self._kafka: ApacheKafka | None = None
        self._s3: S3Server | None = None
        self.patience = 1.0
        #: Host and port, the setting, what its partition ids begin with.
        self.broker = self.broker_url = self.partition_prefix = ""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directory: Path, *, kafka: bool = False, patience: float = 1.0
    ) -> AsyncIterator[Bench]:
        """Start the servers; ``directory`` needs a short path, for PostgreSQL's socket.

        ``kafka``: Apache Kafka in place of the embedded broker, which forgets everything when it ends.
        ``patience``: what deadlines are multiplied by.
        """
        with ExitStack() as stack:
            # Not when the first worker starts: the runs' transactions would wait for it.
            await asyncio.to_thread(nursery.warm_up)
            bench = cls(directory, stack)
            bench.patience = patience
            if kafka:
                bench._kafka = ApacheKafka(directory / "kafka")
                bench._kafka.patience = patience
                stack.enter_context(bench._kafka)
                bench.broker = bench._kafka.bootstrap
                bench.broker_url = f"kafka://{bench.broker}"
            else:
                broker = stack.enter_context(start_broker(directory / "data" / "broker"))
                bench.broker, bench.broker_url = broker.bootstrap, "embedded:"
                bench.partition_prefix = f"{broker.incarnation[:8]}."
            yield bench

    def another(self, directory: Path, *, kafka: bool) -> AbstractAsyncContextManager[Bench]:
        """Servers of one's own."""
        return Bench.open(directory, kafka=kafka or self._kafka is not None, patience=self.patience)

    async def create_topic(self, name: str) -> None:
        """A run's topic."""
        connection = KafkaConnection(self.broker, embedded=self.broker_url == "embedded:")
        async with admin(connection) as broker:
            await broker.apply(Topic(name, partitions=PARTITIONS))

    def make_stage(self, site: Site, db: psycopg.Connection, records: list[Keyed]) -> Stage:
        """A run's stage."""
        return Stage(self, site, db, Feed(self.broker, site.topic, records), patience=self.patience)

    @property
    def s3(self) -> S3Server:
        """An S3 server, started when it is first asked for."""
        if self._s3 is None:
            from moto.server import ThreadedMotoServer

            logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it reports every request
            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            self._stack.callback(server.stop)
            host, port = server.get_host_and_port()
            self._s3 = S3Server(f"http://{host}:{port}")
            os.environ.update(self._s3.environment)
        return self._s3

    def crash_postgres(self, away: float) -> None:
        """SIGQUIT: PostgreSQL ends without a checkpoint and has to recover. Blocks until it answers again."""
        pid = int((self.directory / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        server = psutil.Process(pid)
        server.send_signal(signal.SIGQUIT)
        server.wait(30)
        time.sleep(away)
        start = start_postgres(self.directory / "postgres", durable=False)
        self.postgres = self._stack.enter_context(start)

    def restart_broker(self, *, kill: bool) -> None:
        """Restart Apache Kafka on its data. Blocks until it answers."""
        assert self._kafka is not None
        if kill:
            self._kafka.kill()
        else:
            self._kafka.stop()
        self._kafka.start()

    def truncate(self, log: str, part: float) -> None:
        """Kill Apache Kafka, cut the only segment of ``log`` (topic-partition), and start it again."""
        assert self._kafka is not None
        self._kafka.kill()
        (segment,) = (self.directory / "kafka" / "data" / log).glob("*.log")
        os.truncate(segment, int(segment.stat().st_size * part))
        self._kafka.start()

    @asynccontextmanager
    async def stage(self, name: str, records: list[Keyed]) -> AsyncIterator[Stage]:
        """A fresh database, topic and folder; whatever still runs at the end is killed."""
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        directory = self.directory / "runs" / unique
        (directory / "topics").mkdir(parents=True)
        page = (REPOSITORY / "topics" / "clickstream.toml").read_text()
        page, replaced = re.subn(r'(?m)(?<=^\[topic\]\n)name = "clickstream"', f'name = "{unique}"', page)
        assert replaced == 1
        (directory / "topics" / "clickstream.toml").write_text(page)
        await self.create_topic(unique)
        database = f"run_{uuid.uuid4().hex[:12]}"
        await asyncio.to_thread(self._administer, f"create database {database}")
        ledger = self.postgres.database_url(database)
        try:
            async with Ledger(ledger, "clickstream", "bench") as migrating:
                await migrating.migrate()
            with psycopg.connect(ledger, autocommit=True) as db:
                audit.install(db)
                site = Site(
                    directory=directory,
                    broker=self.broker,
                    broker_url=self.broker_url,
                    ledger=ledger,
                    topics=directory / "topics",
                    topic=unique,
                    flush_interval="1s",
                    partition_prefix=self.partition_prefix,
                    extra={
                        # Some hundred records at a time: threads would only get in each other's way.
                        "POLARS_MAX_THREADS": "1",
                        "STREAMPROC_GROUP": unique,
                        "STREAMPROC_DATA_DIR": str(self.directory / "data"),
                        "STREAMPROC_KAFKA_SESSION_TIMEOUT": f"{SESSION_TIMEOUT:.0f}s",
                    },
                )
                stage = self.make_stage(site, db, records)
                try:
                    yield stage
                finally:
                    stage.kill_workers()
                    await stage.stop_feeding()
                    stage.unmount_lake()
                    stage.db.close()
        finally:
            # In a thread: it waits for every session of the server, those of this event loop among them.
            await asyncio.to_thread(self._administer, f"drop database {database} with (force)")
            shutil.rmtree(directory / "lake", ignore_errors=True)

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self.postgres.database_url("postgres"), autocommit=True) as server:
            server.execute(statement)
