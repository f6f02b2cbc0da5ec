"""Who is measured. Each contestant is a process of its own that reads a topic from the start to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from measure import Run, cpu_seconds, peak_rss_bytes
from workloads import Workload, to_answer

from streamproc.embedded.postgres import EmbeddedPostgres

_HERE = Path(__file__).parent
_DEADLINE_SECONDS = 600.0
_POLL_SECONDS = 0.02


class Failed(Exception):
    """A contestant ended early or not at all; the message holds the end of what it said."""


@dataclass(frozen=True, slots=True)
class Streamproc:
    """``streamproc run`` with a fresh database and group each time.

    Its clock runs from the first claim of a partition to the last commit, both as the database saw them: the
    seek, the fetches, all work and every commit lie between.
    """

    bootstrap: str
    postgres: EmbeddedPostgres
    directory: Path
    name: str = "streamproc"

    def run(self, workload: Workload, number: int) -> Run:
        """Process the workload once. Raises :class:`Failed`."""
        database = f"{workload.stream}_{number}"
        with psycopg.connect(self.postgres.database_url("postgres"), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {database}")
        directory = self.directory / database
        directory.mkdir(parents=True)
        environment = os.environ | {
            "STREAMPROC_BROKER": f"kafka://{self.bootstrap}",
            "STREAMPROC_LEDGER": self.postgres.database_url(database),
            "STREAMPROC_WAREHOUSE": "none",
            "STREAMPROC_LAKE": (directory / "lake").resolve().as_uri(),
            "STREAMPROC_DATA_DIR": str(directory),
            "STREAMPROC_TOPICS": str(workload.page),
            "STREAMPROC_GROUP": f"bench-{database}",
            # The last, partly filled epoch waits this long; the default of 5 s would be most of a run.
            "STREAMPROC_FLUSH_INTERVAL": "1s",
            "STREAMPROC_HEALTH": "127.0.0.1:0",
            "STREAMPROC_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "streamproc", "run", workload.stream]
        log = directory / "worker.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            with psycopg.connect(self.postgres.database_url(database), autocommit=True) as ledger:
                return self._measure(workload, worker, ledger, log)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)

    def _measure(
        self,
        workload: Workload,
        worker: subprocess.Popen[bytes],
        ledger: psycopg.Connection[object],
        log: Path,
    ) -> Run:
        begin_cpu: float | None = None
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while True:
            claimed, records = _progress(ledger, workload.stream)
            if claimed and begin_cpu is None:
                begin_cpu = cpu_seconds(worker.pid)
            if records >= workload.count and begin_cpu is not None:
                break
            if worker.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"streamproc did not finish:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(_POLL_SECONDS)
        spent = cpu_seconds(worker.pid) - begin_cpu
        (seconds,) = ledger.execute(
            """SELECT extract(epoch FROM (SELECT max(committed_at) FROM streamproc.epochs)
                                       - (SELECT min(claimed_at) FROM streamproc.partitions))::float8"""
        ).fetchone() or (0.0,)
        stages = dict(
            ledger.execute(
                """SELECT stage.key, sum(stage.value::float8)
                     FROM streamproc.epochs, jsonb_each_text(seconds) AS stage GROUP BY stage.key"""
            ).fetchall()
        )
        return Run(
            name=self.name,
            events=workload.count,
            seconds=seconds,
            cpu_seconds=spent,
            peak_rss_bytes=peak_rss_bytes(worker.pid),
            equal=workload.is_right(ledger) and records == workload.count,
            stages=stages,
        )


def _progress(ledger: psycopg.Connection[object], stream: str) -> tuple[bool, int]:
    """Whether a partition is claimed, and how many records are committed."""
    try:
        claimed, records = ledger.execute(
            """SELECT count(*) > 0, coalesce(sum(records), 0)::bigint
                 FROM streamproc.partitions WHERE stream = %s""",
            [stream],
        ).fetchone() or (False, 0)
    except psycopg.errors.UndefinedTable:  # the worker has not made its tables yet
        return False, 0
    return bool(claimed), int(records)


@dataclass(frozen=True, slots=True)
class PlainFaust:
    """``plain_faust.py``. Its clock runs from its first event to its last, to its advantage."""

    bootstrap: str
    directory: Path
    name: str = "plain Faust agent"

    def run(self, workload: Workload, number: int) -> Run:
        """Process the workload once. Raises :class:`Failed`."""
        directory = self.directory / f"faust_{number}"
        directory.mkdir(parents=True)
        command = [
            sys.executable, str(_HERE / "plain_faust.py"),
            "--bootstrap", self.bootstrap, "--topic", workload.topic,
            "--events", str(workload.count), "--directory", str(directory),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise Failed(f"the Faust agent did not finish:\n{str(error.stderr)[-4000:]}") from error
        result = json.loads(done.stdout.splitlines()[-1])
        return Run(
            name=self.name,
            events=workload.count,
            seconds=result["seconds"],
            cpu_seconds=result["cpu_seconds"],
            peak_rss_bytes=result["peak_rss_bytes"],
            equal=to_answer(result["rows"]) == workload.answer,
        )
