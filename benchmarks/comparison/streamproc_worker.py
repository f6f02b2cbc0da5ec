"""Runs ``streamproc run`` on a dataset, with a fresh database and consumer group each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from benchmarks.comparison.answers import WrongAnswer, compare, compare_on_time, keyed
from benchmarks.comparison.datasets import Dataset, Workload
from benchmarks.comparison.page_reference import PageAnswer
from benchmarks.comparison.peer_process import tail
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.sampling import Sampler
from benchmarks.measure import cpu_seconds
from streamproc.embedded.postgres import EmbeddedPostgres

#: Looks at the finished database, and raises :class:`Failed` for a wrong answer.
Check = Callable[[psycopg.Connection[Any]], None]

_POLL_SECONDS = 0.02
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class StreamprocWorker:
    """streamproc as a contestant.

    Its clock runs from the claim of its first partition, as the database saw it, until all events are seen to be
    committed: the seek, the fetches, all work and every commit lie between.
    """

    bootstrap: str
    postgres: EmbeddedPostgres
    timeout: float
    name: str = "streamproc"
    title: str = "streamproc"
    numbers: Iterator[int] = field(default_factory=count)

    def run(self, dataset: Dataset, check: Check | None = None) -> Round:
        """Process the dataset once and compare the answer, or ``check`` the tables. Raises :class:`Failed`."""
        with self.started(dataset.workload, dataset.topic) as worker:
            server = worker.server()
            server_begin = cpu_seconds(server)
            end = worker.wait_for(dataset.count, self.timeout)
            server_spent = cpu_seconds(server) - server_begin
            begin = worker.claimed_at()
            time.sleep(0.1)  # so that a sample lies behind the end
            if check is not None:
                check(worker.database)
            else:
                compare_tables(worker.database, dataset)
            return Round(
                workload=dataset.workload.name,
                contestant=self.name,
                title=self.title,
                events=dataset.count,
                seconds=end - begin,
                cpu_seconds=worker.sampler.cpu_between(begin, end),
                cpu_seconds_in_all=worker.sampler.cpu_seconds,
                peak_rss_bytes=worker.sampler.peak_rss_bytes,
                stages=worker.stages(),
                more={"postgresql_cpu_seconds_per_million": server_spent / dataset.count * 1e6},
            )

    @contextmanager
    def started(
        self, workload: Workload, topic: str, first: Callable[[str], None] | None = None
    ) -> Iterator[RunningWorker]:
        """A worker on ``topic`` and a connection to its fresh database; both end with the context.

        ``first`` is called with the database's URL before the worker starts.
        """
        database = f"{workload.stream}_{next(self.numbers)}"
        with psycopg.connect(self.postgres.database_url("postgres"), autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        with tempfile.TemporaryDirectory(prefix="bench-streamproc-") as folder:
            page = Path(folder) / "pages" / workload.page.name
            page.parent.mkdir()
            page.write_text(with_topic(workload.page.read_text(encoding="utf-8"), workload.stream, topic))
            url = self.postgres.database_url(database)
            environment = os.environ | {
                "STREAMPROC_BROKER": f"kafka://{self.bootstrap}",
                "STREAMPROC_LEDGER": url,
                "STREAMPROC_WAREHOUSE": "none",
                "STREAMPROC_LAKE": (Path(folder) / "lake").resolve().as_uri(),
                "STREAMPROC_DATA_DIR": folder,
                "STREAMPROC_TOPICS": str(page),
                "STREAMPROC_GROUP": f"bench-{database}",
                # The last, partly filled epoch waits this long; the default of 5 s would be most of a run.
                "STREAMPROC_FLUSH_INTERVAL": "1s",
                # As the peers': the embedded broker answers a group's first join after half of it.
                "STREAMPROC_KAFKA_SESSION_TIMEOUT": "6s",
                "STREAMPROC_HEALTH": "127.0.0.1:0",
                "STREAMPROC_LOG_LEVEL": "warning",
            }
            if first is not None:
                first(url)
            command = [sys.executable, "-m", "streamproc", "run", workload.stream]
            log = Path(folder) / "worker.log"
            with log.open("wb") as output:
                process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                with psycopg.connect(url, autocommit=True) as ledger, Sampler(process.pid) as sampler:
                    yield RunningWorker(process, sampler, ledger, workload.stream, log)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        with psycopg.connect(self.postgres.database_url("postgres"), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker under way: its process, what is sampled of it, and its ledger."""

    process: subprocess.Popen[bytes]
    sampler: Sampler
    database: psycopg.Connection[Any]
    stream: str
    log: Path

    def server(self) -> int:
        """The process id of PostgreSQL, whose descendants serve the worker and this connection."""
        return int(psutil.Process(self.database.info.backend_pid).ppid())

    def wait_for(self, records: int, timeout: float) -> float:
        """The moment (``CLOCK_MONOTONIC``) at which so many are seen to be committed. Raises :class:`Failed`."""
        deadline = time.monotonic() + timeout
        while self.committed() < records:
            if self.process.poll() is not None:
                raise Failed(f"it ended with {self.process.returncode}:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise Failed(
                    f"{self.committed():,} of {records:,} events after {timeout:.0f} s:\n{tail(self.log)}"
                )
            time.sleep(_POLL_SECONDS)
        return time.monotonic()

    def committed(self) -> int:
        """Records committed so far."""
        try:
            row = self.database.execute(
                "SELECT coalesce(sum(records), 0)::bigint FROM streamproc.partitions WHERE stream = %s",
                [self.stream],
            ).fetchone()
        except psycopg.errors.UndefinedTable:  # the worker has not made its tables yet
            return 0
        return int(row[0]) if row else 0

    def claimed_at(self) -> float:
        """The moment (``CLOCK_MONOTONIC``) of the first claim of a partition."""
        row = self.database.execute(
            "SELECT extract(epoch FROM clock_timestamp() - min(claimed_at))::float8 FROM streamproc.partitions"
        ).fetchone()
        assert row is not None
        return time.monotonic() - float(row[0])

    def stages(self) -> dict[str, float]:
        """Wall-clock seconds by stage of all epochs, as the worker notes them; stages overlap."""
        return dict(
            self.database.execute(
                """SELECT stage.key, sum(stage.value::float8)
                     FROM streamproc.epochs, jsonb_each_text(seconds) AS stage GROUP BY stage.key"""
            ).fetchall()
        )


def compare_tables(database: psycopg.Connection[Any], dataset: Dataset) -> None:
    """Return if the tables hold the right answer. Raises :class:`Failed` otherwise.

    Of w2, each record has to be accounted for, the accepted events and the lake's rows have to be as many as the
    reference's, and the views of each page and minute have to be right.
    """
    workload = dataset.workload
    if isinstance(dataset.answer, PageAnswer):
        _compare_page(database, dataset, dataset.answer)
    elif dataset.answer is not None:
        try:
            compare(keyed(database.execute(workload.rows), workload.keys), dataset.answer)
        except WrongAnswer as error:
            raise Failed(f"wrong answer: {error}") from error


def _compare_page(database: psycopg.Connection[Any], dataset: Dataset, answer: PageAnswer) -> None:
    records, accounted, accepted, in_lake = (
        database.execute(
            """SELECT sum(records), sum(accepted + filtered + rejected + duplicate), sum(accepted),
                  (SELECT sum(rows) FROM streamproc.objects
                    WHERE stream = %(stream)s AND kind = 'events' AND state = 'committed')
             FROM streamproc.partitions WHERE stream = %(stream)s""",
            {"stream": dataset.workload.stream},
        ).fetchone()
        or (None,) * 4
    )
    expected = answer.lake(repeats=False).total()
    if not (records == accounted == dataset.count and accepted == in_lake == expected):
        raise Failed(
            f"{records} records, {accounted} accounted for, {accepted} accepted, {in_lake} in the lake; "
            f"not {dataset.count} records and {expected} accepted"
        )
    without, with_late = (
        {key: row[:1] for key, row in answer.table("page_views", repeats=False, late=late).items()}
        for late in (False, True)
    )
    try:
        compare_on_time(
            keyed(database.execute(dataset.workload.rows), dataset.workload.keys), without, with_late
        )
    except WrongAnswer as error:
        raise Failed(f"wrong answer: page_views: {error}") from error


def with_topic(page: str, stream: str, topic: str) -> str:
    """A topic page whose stream reads another topic. Its ``[topic]`` has the stream's name."""
    head, found, rest = page.partition("[topic]\n")
    named = rest.replace(f'name = "{stream}"', f'name = "{topic}"', 1)
    assert found and named != rest, f"the page has no topic {stream}"
    return head + found + named
