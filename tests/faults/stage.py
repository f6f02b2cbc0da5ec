"""One run's place: a site with its workers, its feed, and what its ledger says."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psycopg

from streamproc.ledger import Ledger
from streamproc.sinks.loader import Loader
from streamproc.sinks.object_store import ObjectStore, open_store
from streamproc.sinks.warehouse import open_warehouse
from tests.e2e.harness import Site, Worker, read_records
from tests.faults.checks import Verdict, judge
from tests.faults.feed import Feed
from tests.faults.nursery import Process
from tests.faults.observed import Observed, Records

if TYPE_CHECKING:
    from tests.faults.bench import Bench

PARTITIONS = 4


class NotSettled(Exception):
    """Something that had to come about did not within its deadline: a failed run."""


@dataclass(frozen=True)
class Firing:
    """What happened: where, how, in which worker, when (Unix time), with how many uncommitted positions."""

    point: str
    action: str
    worker: str
    at: float
    uncommitted: int
    #: How often it happened in this run.
    times: int = 1


@dataclass
class Stage(Observed):
    """One run's site: its workers, its feed, its database."""

    bench: Bench
    site: Site
    db: psycopg.Connection
    feeder: Feed
    workers: list[Worker] = field(default_factory=list)
    store: str = ""
    #: Deadlines are multiplied by it: for a machine that has other things to do.
    patience: float = 1.0
    _topic: Records | None = None
    _mounted: bool = False
    _names: int = 0
    #: What each worker was started with beyond the site's environment.
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Records that were read before the topic lost them, and those that it lost before anybody read them.
    kept: Records = field(default_factory=dict)
    gone: set[tuple[str, int]] = field(default_factory=set)
    #: The topic as it was, when it is another one at the end.
    own_topic: Records | None = None
    #: What a fault wants to be checked beyond what is always checked.
    more_checks: list[Callable[[psycopg.Connection, Stage, Verdict], None]] = field(default_factory=list)

    # -- workers ---------------------------------------------------------------------------------------

    @property
    def firings(self) -> Path:
        return self.site.directory / "firings"

    def start(self, name: str, failpoints: str = "", netns: str | None = None, **environment: str) -> Worker:
        """Start a worker, armed if ``failpoints`` says so; ``netns``: in this network namespace."""
        self.environments[name] = environment
        more = {
            "STREAMPROC_WORKER": name,
            "STREAMPROC_FAILPOINTS": failpoints,
            "STREAMPROC_FAILPOINTS_LOG": str(self.firings),
            **environment,
        }
        log = self.site.directory / f"{name}.log"
        process = Process(["run"], self.site.environment() | more, log, netns)
        worker = Worker(name, process, log)
        self.workers.append(worker)
        return worker

    async def arm(self, worker: Worker, failpoints: str) -> None:
        """Arm a worker that runs."""
        worker.process.arm(failpoints)
        await self.until(lambda: not worker.process.arming, f"{worker.name} is armed")

    def fresh(self, name: str) -> str:
        """A worker's name that was not used before."""
        self._names += 1
        return f"{name}{self._names}"

    def fired(self) -> Firing | None:
        """The first firing, if there was one."""
        if not self.firings.exists() or not (lines := self.firings.read_text().splitlines()):
            return None
        line = json.loads(lines[0])
        return Firing(line["point"], line["action"], line["worker"], line["at"], line["uncommitted"])

    async def until(self, holds: Callable[[], object], what: str, deadline: float = 60.0) -> None:
        """Poll until ``holds()``; :class:`NotSettled` with the workers' last words when it does not."""
        end = time.monotonic() + deadline * self.patience
        while not holds():
            if time.monotonic() > end:
                tails = "\n".join(
                    f"--- {w.name} ({w.process.poll()})\n{w.tail()[-2500:]}" for w in self.workers
                )
                what += "; the feed is at its end" if self.feeder.at_end else ""
                raise NotSettled(f"not within {deadline * self.patience:.0f} s: {what}\n{tails}")
            await asyncio.sleep(0.2)

    def forget_dead(self) -> None:
        """Those that ended are nobody's concern any more."""
        self.workers = self.running

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
        await self.retire(self.workers)

    async def retire(self, leaving: Sequence[Worker], *, well: bool = True) -> None:
        """SIGTERM to these, once they have begun; each has to end (``well``), and is forgotten then."""
        await self.until(
            lambda: all(
                worker.process.poll() is not None or b'"worker_running"' in worker.log.read_bytes()
                for worker in leaving
            ),
            "workers run",
        )
        for worker in leaving:
            worker.process.send_signal(signal.SIGTERM)
        try:
            await self.until(
                lambda: all(worker.process.poll() is not None for worker in leaving), "workers ended", 60
            )
        except NotSettled as failure:
            stuck = [worker for worker in leaving if worker.process.poll() is None]
            for worker in stuck:
                worker.process.send_signal(signal.SIGABRT)  # faulthandler writes where each thread is
                worker.process.wait(10)
            raise NotSettled(f"workers do not end: {[w.tail() for w in stuck]}") from failure
        failed = [worker for worker in leaving if worker.process.returncode != 0]
        if failed and well:
            raise NotSettled(
                "\n".join(f"{w.name} ended with {w.process.returncode}: {w.tail()}" for w in failed)
            )
        self.workers = [worker for worker in self.workers if worker not in leaving]

    def kill_workers(self) -> None:
        for worker in self.running:
            worker.kill()

    # -- records ---------------------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """Records that the broker acknowledged."""
        return self.feeder.sent

    async def feed(self) -> None:
        """Begin to produce, or go on."""
        await self.feeder.start(self.committed)

    async def until_in_flight(self) -> None:
        """Something is in the topic that is not committed: a fault now is one that counts."""
        await self.until(lambda: self.sent > self.committed(), "records are in flight")

    async def stop_feeding(self) -> None:
        """The broker has what was sent."""
        await self.feeder.stop()

    # -- servers ---------------------------------------------------------------------------------------

    def use_s3(self) -> str:
        """Have the lake in a bucket of the bench's S3 server; returns the server's URL."""
        bucket = f"lake-{uuid.uuid4().hex[:12]}"
        self.store = f"s3://{bucket}/run"
        self.site.extra["STREAMPROC_LAKE"] = self.store
        self.site.extra |= self.bench.s3.environment
        client = boto3.client("s3", endpoint_url=self.bench.s3.endpoint_url, region_name=self.bench.s3.region)
        client.create_bucket(Bucket=bucket)
        client.close()
        return self.bench.s3.endpoint_url

    def mount_lake(self, size: str) -> None:
        """Give the lake a small disk of its own. Needs the right to mount."""
        self.site.lake.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "lake", self.site.lake], check=True)
        self._mounted = True

    def unmount_lake(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.site.lake], check=True)

    async def crash_postgres(self, away: float) -> None:
        """Shut PostgreSQL down at once, as a crash would, and start it again after ``away`` seconds."""
        self.db.close()
        await asyncio.to_thread(self.bench.crash_postgres, away)
        self.db = psycopg.connect(self.site.ledger, autocommit=True)

    async def restart_broker(self, *, kill: bool) -> None:
        await asyncio.to_thread(self.bench.restart_broker, kill=kill)

    async def truncate(self, partition: int, part: float) -> None:
        """Kill the broker and start it with only ``part`` of the bytes of a partition's log."""
        await asyncio.to_thread(self.bench.truncate, f"{self.site.topic}-{partition}", part)

    async def recovered(self, at: float, deadline: float = 90.0) -> float:
        """Wait until every partition was committed after ``at``; returns how long that took, in seconds."""
        await self.until(lambda: self.all_go_on(at), "all partitions progress again", deadline)
        return max(self.progressed_since(at).values())

    def all_go_on(self, at: float) -> bool:
        """Whether every partition was committed after ``at`` (Unix time)."""
        return len(self.progressed_since(at)) >= PARTITIONS

    # -- the end -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """No more records; all that there are committed; all workers ended."""
        if self.own_topic is not None:
            self._topic = self._named(self.own_topic)
        if self._topic is None:
            topic = await self.committed_all()
            await self.stop_workers()
            self._topic = self._named(topic)

    async def committed_all(self) -> Records:
        """No more is fed, and what there is is committed; returns the topic."""
        await self.stop_feeding()
        found = self.kept | await self.read()
        # More than were sent when a broker ended before its answer: such a record is there twice.
        if len(found) + len(self.gone) < self.sent:
            raise NotSettled(f"{len(found)} records are in the topic, {self.sent} were sent")
        await self.until(lambda: self.committed() >= len(found), f"all {len(found)} records committed", 90)
        return found

    async def read(self) -> Records:
        """All that is in the topic, by a plain consumer."""
        return await read_records(self.site.broker, self.site.topic)

    def _named(self, topic: Records) -> Records:
        """Partitions as the ledger calls them."""
        return {(self.site.partition_prefix + p, n): record for (p, n), record in topic.items()}

    async def settle(self, *, running: bool = False) -> Records:
        """Drained, warehouse loaded, store swept; returns the topic.

        ``running``: the workers stay, with nothing to do.
        """
        if running:
            topic = self._named(await self.committed_all())
        else:
            await self.drain()
            assert self._topic is not None
            topic = self._topic
        async with Ledger(self.site.ledger, self.site.stream, "settling") as ledger:
            store = open_store(self.store or self.site.lake.as_uri())
            warehouse = open_warehouse(self.site.ledger, self.site.stream)
            assert warehouse is not None
            await store.open()
            await warehouse.open()
            await Loader(ledger, warehouse, store).run_once()
            await warehouse.close()
            for hours in (2, 4, 30):  # orphans are abandoned; objects deleted, and deleted once more
                await ledger.sweep(store, now=datetime.now(UTC) + timedelta(hours=hours))
            if self.store:
                await self._fetch(store)
            await store.close()
        return topic

    async def _fetch(self, store: ObjectStore) -> None:
        """Copy the objects of another store to where a folder's would be, to be checked there."""
        keys = [listed.key async for listed in store.list()]
        for key in keys:
            (self.site.lake / key).parent.mkdir(parents=True, exist_ok=True)
            (self.site.lake / key).write_bytes(await store.get(key))

    async def verdict(self, topic: Records) -> Verdict:
        """The checks, in a thread: other runs go on meanwhile."""
        values = {at: record.value for at, record in topic.items()}
        return await asyncio.to_thread(self._judge, values)

    def _judge(self, values: dict[tuple[str, int], bytes | None]) -> Verdict:
        verdict = judge(self.site, values)
        with psycopg.connect(self.site.ledger) as db:
            for check in self.more_checks:
                check(db, self, verdict)
        return verdict
