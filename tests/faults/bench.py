"""Where the runs take place: a broker and a PostgreSQL for all of them, a topic and a database for each."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from streamproc.embedded.broker import start_broker
from streamproc.embedded.postgres import EmbeddedPostgres, start_postgres
from streamproc.ledger import Ledger
from streamproc.sinks.loader import Loader
from streamproc.sinks.object_store import open_store
from streamproc.sinks.warehouse import open_warehouse
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import Topic
from tests.e2e.harness import REPOSITORY, Site, Worker, read_records
from tests.faults import audit
from tests.faults.checks import Verdict, judge
from tests.faults.records import Keyed

#: Seconds; the embedded broker's, and the least a worker takes for another.
SESSION_TIMEOUT = 6.0

PARTITIONS = 4

#: Records a second of a feed, and how many are there when the workers begin.
RATE = 250
BACKLOG = 600


class NotSettled(Exception):
    """Something that had to come about did not within its deadline: a failed run."""


@dataclass(frozen=True)
class Firing:
    """A failpoint that fired: which, in which worker, when (Unix time), with how many uncommitted positions."""

    point: str
    action: str
    worker: str
    at: float
    uncommitted: int


@dataclass
class Stage:
    """One run's site: its workers, its feed, its database."""

    site: Site
    db: psycopg.Connection
    records: list[Keyed]
    workers: list[Worker] = field(default_factory=list)
    sent: int = 0
    _feeding: asyncio.Task[None] | None = None

    # -- workers ---------------------------------------------------------------------------------------

    @property
    def firings(self) -> Path:
        return self.site.directory / "firings"

    def start(self, name: str, failpoints: str = "", **environment: str) -> Worker:
        """Start a worker, armed if ``failpoints`` says so."""
        armed = {"STREAMPROC_FAILPOINTS": failpoints, "STREAMPROC_FAILPOINTS_LOG": str(self.firings)}
        worker = self.site.worker(name, **environment, **(armed if failpoints else {}))
        self.workers.append(worker)
        return worker

    def fired(self) -> Firing | None:
        """The first firing, if there was one."""
        if not self.firings.exists() or not (lines := self.firings.read_text().splitlines()):
            return None
        line = json.loads(lines[0])
        return Firing(line["point"], line["action"], line["worker"], line["at"], line["uncommitted"])

    async def until(self, holds: Callable[[], object], what: str, deadline: float = 60.0) -> None:
        """Poll until ``holds()``; :class:`NotSettled` with the workers' last words when it does not."""
        end = time.monotonic() + deadline
        while not holds():
            if time.monotonic() > end:
                tails = "\n".join(
                    f"--- {w.name} ({w.process.poll()})\n{w.tail()[-2500:]}" for w in self.workers
                )
                raise NotSettled(f"not within {deadline:.0f} s: {what}\n{tails}")
            await asyncio.sleep(0.05)

    def replace_dead(self) -> int:
        """Start a worker for each that has ended, as whoever runs containers would; returns how many."""
        dead = [worker for worker in self.workers if worker.process.poll() is not None]
        for worker in dead:
            self.workers.remove(worker)
            self.start(f"{worker.name}x")
        return len(dead)

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.process.poll() is None]

    async def stop_workers(self) -> None:
        """SIGTERM to all, once all have begun; each has to end well."""
        await self.until(
            lambda: all(b'"worker_running"' in worker.log.read_bytes() for worker in self.running),
            "workers run",
        )
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        try:
            await self.until(lambda: not self.running, "workers ended", 60)
        except NotSettled as failure:
            for worker in self.running:
                worker.process.send_signal(signal.SIGABRT)  # faulthandler writes where each thread is
                worker.process.wait(10)
            tails = "\n".join(worker.tail() for worker in self.workers if worker.process.returncode < 0)
            raise NotSettled(f"workers do not end: {tails}") from failure
        failed = [worker for worker in self.workers if worker.process.returncode != 0]
        if failed:
            raise NotSettled(
                "\n".join(f"{w.name} ended with {w.process.returncode}: {w.tail()}" for w in failed)
            )

    def kill_workers(self) -> None:
        for worker in self.running:
            worker.kill()

    # -- records ---------------------------------------------------------------------------------------

    async def feed(self, rate: float = RATE, backlog: int = BACKLOG) -> None:
        """Begin to produce: ``backlog`` records at once, then ``rate`` a second until :meth:`stop_feeding`."""
        producer = AIOKafkaProducer(bootstrap_servers=self.site.broker, linger_ms=5, compression_type="lz4")
        await producer.start()
        self._feeding = asyncio.create_task(self._feed(producer, rate, backlog))

    async def _feed(self, producer: AIOKafkaProducer, rate: float, backlog: int) -> None:
        begin = time.monotonic()
        try:
            while self.sent < len(self.records):
                due = min(len(self.records), backlog + int(rate * (time.monotonic() - begin)))
                pending = [
                    await producer.send(self.site.topic, value, key=key)
                    for key, value in self.records[self.sent : due]
                ]
                # Sent is what the broker acknowledged; a cancellation waits for that (see stop_feeding).
                await asyncio.shield(asyncio.gather(*pending))
                self.sent = due
                if self._stopping:
                    return
                await asyncio.sleep(0.05)
        finally:
            await producer.stop()

    _stopping: bool = False

    async def stop_feeding(self) -> None:
        self._stopping = True
        if self._feeding is not None:
            await self._feeding
            self._feeding = None

    # -- what the ledger says ----------------------------------------------------------------------------

    def committed(self) -> int:
        """Records committed."""
        row = self.db.execute("select coalesce(sum(records), 0) from streamproc.partitions").fetchone()
        return int(row[0])

    def claimed_since(self, at: float, worker: str) -> set[str]:
        """Partitions that others than ``worker`` claimed after ``at`` (Unix time)."""
        rows = self.db.execute(
            "select distinct partition from audit.claims where at > %s and owner <> %s",
            [datetime.fromtimestamp(at, UTC), worker],
        )
        return {partition for (partition,) in rows}

    def owned_by(self, worker: str) -> set[str]:
        """Partitions this worker holds."""
        rows = self.db.execute("select partition from streamproc.partitions where owner = %s", [worker])
        return {partition for (partition,) in rows}

    def progressed_since(self, at: float) -> dict[str, float]:
        """Seconds from ``at`` (Unix time) to the first commit after it, for each partition that had one."""
        rows = self.db.execute(
            "select partition, extract(epoch from min(committed_at))::float8 from streamproc.epochs as e"
            " join streamproc.epoch_ranges as r on r.epoch = e.id where committed_at > %s group by partition",
            [datetime.fromtimestamp(at, UTC)],
        )
        return {partition: first - at for partition, first in rows}

    async def recovered(self, at: float, deadline: float = 90.0) -> float:
        """Wait until every partition was committed after ``at``; returns how long that took, in seconds."""
        await self.until(
            lambda: len(self.progressed_since(at)) == PARTITIONS, "all partitions progress again", deadline
        )
        return max(self.progressed_since(at).values())

    def in_flight(self, topic: dict[tuple[str, int], ConsumerRecord], at: float) -> int:
        """Records that were in the topic at ``at`` (Unix time) and committed later."""
        first: dict[str, int] = {}
        rows = self.db.execute(
            "select partition, min(coalesce(after, -1)) from streamproc.epochs as e"
            " join streamproc.epoch_ranges as r on r.epoch = e.id where committed_at > %s group by partition",
            [datetime.fromtimestamp(at, UTC)],
        )
        first = {partition: int(after) for partition, after in rows}
        return sum(
            1
            for (partition, offset), record in topic.items()
            if record.timestamp < at * 1000 and offset > first.get(partition, 2**62)
        )

    # -- the end -----------------------------------------------------------------------------------------

    async def settle(self) -> dict[tuple[str, int], ConsumerRecord]:
        """Everything committed, workers ended, warehouse loaded, store swept; returns the topic."""
        await self.stop_feeding()
        await self.until(lambda: self.committed() >= self.sent, f"all {self.sent} records committed", 90)
        await self.stop_workers()
        found = await read_records(self.site.broker, self.site.topic)
        topic = {(self.site.partition_prefix + p, n): record for (p, n), record in found.items()}
        if len(topic) != self.sent:
            raise NotSettled(f"{len(topic)} records are in the topic, {self.sent} were sent")
        async with Ledger(self.site.ledger, self.site.stream, "settling") as ledger:
            store = open_store(self.site.lake.as_uri())
            warehouse = open_warehouse(self.site.ledger, self.site.stream)
            assert warehouse is not None
            await warehouse.open()
            await Loader(ledger, warehouse, store).run_once()
            await warehouse.close()
            for hours in (2, 4, 30):  # orphans are abandoned; objects deleted, and deleted once more
                await ledger.sweep(store, now=datetime.now(UTC) + timedelta(hours=hours))
        return topic

    async def verdict(self, topic: dict[tuple[str, int], ConsumerRecord]) -> Verdict:
        """The checks, in a thread: other runs go on meanwhile."""
        values = {at: record.value for at, record in topic.items()}
        return await asyncio.to_thread(judge, self.site, values)


class Bench:
    """The servers that all runs share."""

    def __init__(self, directory: Path, postgres: EmbeddedPostgres, broker: tuple[str, str, str]) -> None:
        """``broker``: host and port, the setting, what its partition ids begin with."""
        self.directory = directory
        self.postgres = postgres
        self.broker, self.broker_url, self.partition_prefix = broker

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[Bench]:
        """Start the servers; ``directory`` needs a short path, for PostgreSQL's socket."""
        async with AsyncExitStack() as stack:
            postgres = stack.enter_context(start_postgres(directory / "postgres", durable=False))
            broker = stack.enter_context(start_broker(directory / "data" / "broker"))
            yield cls(directory, postgres, (broker.bootstrap, "embedded:", f"{broker.incarnation[:8]}."))

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
        connection = KafkaConnection(self.broker, embedded=self.broker_url == "embedded:")
        async with admin(connection) as broker:
            await broker.apply(Topic(unique, partitions=PARTITIONS))
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
                    flush_interval="300ms",
                    partition_prefix=self.partition_prefix,
                    extra={
                        "PYTHONFAULTHANDLER": "1",
                        # As errors they keep uvloop from closing a connection that aiokafka left open
                        # when it was stopped while it connected again, and the loop waits for that for ever.
                        "PYTHONWARNINGS": "default",
                        "STREAMPROC_GROUP": unique,
                        "STREAMPROC_DATA_DIR": str(self.directory / "data"),
                        "STREAMPROC_KAFKA_SESSION_TIMEOUT": f"{SESSION_TIMEOUT:.0f}s",
                    },
                )
                stage = Stage(site, db, records)
                try:
                    yield stage
                finally:
                    stage.kill_workers()
                    await stage.stop_feeding()
        finally:
            # In a thread: it waits for every session of the server, those of this event loop among them.
            await asyncio.to_thread(self._administer, f"drop database {database} with (force)")
            shutil.rmtree(directory / "lake", ignore_errors=True)

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self.postgres.database_url("postgres"), autocommit=True) as server:
            server.execute(statement)
