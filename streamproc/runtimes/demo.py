"""The whole pipeline on a bare machine: embedded broker and PostgreSQL, a lake folder, one worker.

A feeder process puts events into the broker; the worker runs in this process; whoever shows the demo asks
:meth:`Demo.facts` now and then. At the end the warehouse is loaded and everything is counted.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from psycopg import AsyncConnection, sql

from streamproc.errors import ConfigError, Mistake, StreamprocError
from streamproc.ledger import Ledger
from streamproc.model import Counts
from streamproc.pipeline import Stats
from streamproc.redaction import Url
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.feed import arguments
from streamproc.runtimes.service import apply_embedded
from streamproc.runtimes.worker import Worker
from streamproc.settings import Bind, Settings
from streamproc.sinks.warehouse import open_warehouse
from streamproc.sources.opening import admin
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Marks a folder that a demo made, and that the next one may empty.
_MARKER = ".streamproc-demo"


@dataclass(frozen=True, slots=True)
class Feed:
    """What the demo is fed with: ``events`` generated ones (``None``: until stopped), or a file's lines."""

    events: int | None
    seed: int
    bad_ratio: float
    input: Path | None = None
    rate: float | None = None

    def arguments(self) -> list[str]:
        """The options of ``python -m streamproc.runtimes.feed``."""
        given = {
            "--events": self.events,
            "--seed": self.seed,
            "--bad-ratio": self.bad_ratio,
            "--input": self.input,
            "--rate": self.rate,
        }
        options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
        return options if self.events is not None or self.input is not None else [*options, "--live"]


def demo_settings(settings: Settings, directory: Path) -> Settings:
    """Everything embedded under ``directory``, and short epochs, so that numbers move at once.

    A Kinesis stream stays where it is: there is none to embed. What it held before is left alone.
    """
    outside = settings.broker.scheme == "kinesis"
    return replace(
        settings,
        broker=settings.broker if outside else Url("embedded:"),
        start="latest" if outside else settings.start,
        ledger=Url("embedded:"),
        warehouse=Url("embedded:"),
        lake=Url((directory / "lake").as_uri()),
        data_dir=directory,
        flush_interval=min(settings.flush_interval, 1.0),
        health=Bind("127.0.0.1", 0),
    )


def prepare(directory: Path) -> Path:
    """An empty folder for the demo; a former demo's is emptied, anything else is left alone.

    Raises :class:`ConfigError` when the folder holds something that no demo made, or cannot be written.
    """
    directory = directory.expanduser().resolve()
    try:
        _empty(directory)
    except OSError as error:
        problem = f"cannot be written: {error.strerror or type(error).__name__}"
        raise ConfigError([Mistake(f"--dir {directory}", problem, "Give another folder")]) from error
    return directory


def _empty(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARKER).exists():
            problem = "is not empty and was not made by a demo"
            raise ConfigError([Mistake(f"--dir {directory}", problem, "Give an empty or a new folder")])
        for part in directory.iterdir():
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARKER).touch()


class Demo:
    """One run of the demo. ``directory`` is prepared; ``facts()`` may be called from start to end."""

    def __init__(
        self, settings: Settings, topology: Topology, feed: Feed, *, directory: Path, pages: Path
    ) -> None:
        self.settings = demo_settings(settings, directory)
        self._pages = pages
        self.topology = topology
        self.produced = 0
        self.feeding = False
        self.dashboard: str | None = None  # address of its pages, while somebody serves them
        self.started = time.monotonic()
        self.first_record: float | None = None
        self.last_commit: float | None = None
        self._feed = feed
        self._rate = _Rate()
        self._worker: Worker | None = None
        self._endpoints: Endpoints | None = None

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        """Run until everything fed is committed, or ``stop``; returns the report.

        Raises :class:`StreamprocError` when ``stop`` came before the first commit.
        """
        async with Endpoints(self.settings) as endpoints:
            self._endpoints = endpoints
            assert endpoints.broker is not None
            await apply_embedded(self.settings, endpoints, [self.topology])
            if not endpoints.broker.embedded:
                async with admin(endpoints.broker) as topics:
                    await topics.apply(self.topology.topic)
            self._worker = Worker(self.settings, self.topology, endpoints, pages=self._pages)
            ending = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    work = group.create_task(self._worker.run(ending))
                    await self._feed_and_follow(stop, work)
                    ending.set()
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            if stop.is_set() and not self._worker.pipeline.stats.epochs:
                raise StreamprocError("ended before anything was processed")  # there may be no tables yet
            await self._worker.upkeep.finish()
            return await self._report(endpoints)

    async def _feed_and_follow(self, stop: asyncio.Event, work: asyncio.Task[None]) -> None:
        assert self._endpoints is not None and self._endpoints.broker is not None
        feeder = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "streamproc.runtimes.feed",
            *arguments(self._endpoints.broker),
            "--topic",
            self.topology.topic.name,
            *self._feed.arguments(),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for this process; it tells the feeder
        )
        following = asyncio.create_task(self._follow(feeder))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({following, stopping, work}, return_when=asyncio.FIRST_COMPLETED)
            told = feeder.returncode is None
            if told:
                feeder.send_signal(signal.SIGTERM)
            await following
            # It may have been told before it listened.
            if feeder.returncode and not (told and feeder.returncode == -signal.SIGTERM):
                raise StreamprocError(f"the feeder ended with exit code {feeder.returncode}")
            await self._until_all_committed(work)
        finally:
            stopping.cancel()
            if feeder.returncode is None:
                feeder.kill()
                await feeder.wait()

    async def _follow(self, feeder: asyncio.subprocess.Process) -> None:
        assert feeder.stdout is not None
        self.feeding = True
        async for line in feeder.stdout:
            self.produced = json.loads(line)["produced"]
        self.feeding = False
        await feeder.wait()

    async def _until_all_committed(self, work: asyncio.Task[None]) -> None:
        assert self._worker is not None
        pipeline = self._worker.pipeline
        while pipeline.stats.records < self.produced and not work.done():
            progress = asyncio.create_task(pipeline.progressed.wait())
            await asyncio.wait({progress, work}, return_when=asyncio.FIRST_COMPLETED)
            progress.cancel()
            pipeline.progressed.clear()

    @property
    def stats(self) -> Stats | None:
        """The worker's totals, ``None`` before there is one."""
        return self._worker.pipeline.stats if self._worker else None

    async def glance(self) -> Glance | None:
        """Look at the tables as an analyst would; ``None`` until they are there."""
        if self._worker is None or self._worker.state != "running":
            return None
        stats = self._worker.pipeline.stats
        rate = self._rate(stats.records)
        tables = []
        async with self._worker.ledger.database.connection("look at the tables") as conn:
            for table in self.topology.tables:
                time_column = "session_start" if table.window.kind == "session" else "window_start"
                query = sql.SQL("SELECT count(*), max({}) FROM {}").format(
                    sql.Identifier(time_column), sql.Identifier(self.topology.name, table.name)
                )
                row = await (await conn.execute(query)).fetchone()
                rows, newest = row or (0, None)
                tables.append((table.name, rows, f"{newest:%Y-%m-%d %H:%M}" if newest else "", table.comment))
            columns, top = await self._top(conn)
        return Glance(stats, rate, tables, columns, top)

    async def _top(self, conn: AsyncConnection[Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The first table's biggest rows of its newest window, which is still filling."""
        table = next((t for t in self.topology.tables if t.window.kind == "tumbling"), None)
        if table is None:
            return [], []
        name = sql.Identifier(self.topology.name, table.name)
        measures = [m.name for m in table.measures]
        columns = ["window_start", *table.by, *measures]
        query = sql.SQL(
            "SELECT {columns} FROM {name} WHERE window_start = (SELECT max(window_start) FROM {name})"
            " ORDER BY {order} DESC NULLS LAST LIMIT 8"
        ).format(
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
            name=name,
            order=sql.Identifier(measures[0]),
        )
        rows = await (await conn.execute(query)).fetchall()
        return columns, [(f"{start:%Y-%m-%d %H:%M}", *rest) for start, *rest in rows]

    async def _report(self, endpoints: Endpoints) -> dict[str, Any]:
        assert self._worker is not None
        stats = self._worker.pipeline.stats
        seconds = stats.last_commit_at - stats.first_taken_at
        figures = await count(self.topology, endpoints)
        return {
            "produced": self.produced,
            **figures,
            "seconds": round(seconds, 3),
            "events_per_second": round(stats.records / seconds) if seconds > 0 else 0,
            "lake": str(self.settings.lake),
            "ledger": endpoints.ledger,
        }


@dataclass(frozen=True, slots=True)
class Glance:
    """A look at a running demo. ``tables``: name, rows, newest window, comment; ``rate``: records a second."""

    stats: Stats
    rate: float
    tables: list[tuple[str, int, str, str]]
    top_columns: list[str]
    top_rows: list[tuple[Any, ...]]


#: Seconds over which the rate is taken.
_RATE_SPAN = 5.0


class _Rate:
    """Records a second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, records: int) -> float:
        now = time.monotonic()
        self._seen.append((now, records))
        while now - self._seen[0][0] > _RATE_SPAN and len(self._seen) > 2:
            self._seen.popleft()
        (then, before), (_, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now - then) if now > then else 0.0


async def count(topology: Topology, endpoints: Endpoints) -> dict[str, Any]:
    """What ledger, lake, warehouse and tables say happened. Lake rows are those of committed objects."""
    async with Ledger(endpoints.ledger, topology.name, "demo") as ledger:
        counts = Counts()
        for status in await ledger.status():
            counts.add(status.counts)
        lake = sum(
            t.rows for t in await ledger.object_totals() if (t.kind, t.state) == ("events", "committed")
        )
        late = await ledger.late()
        tables = {}
        async with ledger.database.connection("count the tables") as conn:
            for table in topology.tables:
                name = sql.Identifier(topology.name, table.name)
                row = await (await conn.execute(sql.SQL("SELECT count(*) FROM {}").format(name))).fetchone()
                tables[table.name] = int(row[0]) if row else 0
    warehouse = open_warehouse(endpoints.warehouse or "none", topology.name)
    loaded = 0
    if warehouse is not None:
        await warehouse.open()
        loaded = (await warehouse.status()).rows
        await warehouse.close()
    return {
        "accepted": counts.accepted,
        "filtered": counts.filtered,
        "rejected": counts.rejected,
        "duplicate": counts.duplicate,
        "late": sum(late.values()),
        "lake_rows": lake,
        "warehouse_rows": loaded,
        "tables": tables,
    }
