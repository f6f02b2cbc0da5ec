"""``streamproc demo`` to its end, and its report and everything it left behind against the oracle."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import psutil
import psycopg
import pytest

from streamproc.embedded.postgres import start_postgres
from streamproc.errors import ConfigError
from streamproc.generator import Generator
from streamproc.runtimes.demo import prepare
from tests.e2e import oracle
from tests.e2e.harness import REPOSITORY, check_tables, settled_files
from tests.e2e.log_totals import STATIC

EVENTS, SEED, BAD_RATIO = 60_000, 7, 0.02


def demo(directory: Path, *arguments: str) -> dict:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "streamproc",
            "demo",
            "--headless",
            "--json",
            "--dir",
            str(directory),
            *arguments,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("demo") / "d"
    return directory, demo(
        directory, "--events", str(EVENTS), "--seed", str(SEED), "--bad-ratio", str(BAD_RATIO)
    )


def test_the_report_accounts_for_every_record(ran):
    _, report = ran
    assert report["produced"] == EVENTS
    assert report["produced"] == sum(report[k] for k in ("accepted", "filtered", "rejected", "duplicate"))
    assert report["lake_rows"] == report["warehouse_rows"] == report["accepted"]
    generated = [r.value for r in Generator(seed=SEED, events=EVENTS, bad_ratio=BAD_RATIO).records()]
    assert report["rejected"] == sum(oracle.usable(value) is None for value in generated)
    assert report["rejected"] > 0 and report["filtered"] > 0 and report["duplicate"] > 0
    assert set(report) == {
        "produced", "accepted", "filtered", "rejected", "duplicate", "late", "lake_rows", "warehouse_rows",
        "tables", "seconds", "events_per_second", "lake", "ledger",
    }  # fmt: skip


def test_lake_warehouse_and_tables_equal_the_oracle(ran):
    directory, report = ran
    with start_postgres(directory / "postgres") as server, psycopg.connect(server.url) as db:
        files = settled_files(db, directory / "lake")
        lake = (
            duckdb.connect()
            .execute("select source_partition, position from read_parquet(?)", [[str(f) for f in files]])
            .fetchall()
        )
        assert len(lake) == report["lake_rows"] and max(Counter(lake).values()) == 1
        warehouse = db.execute("select source_partition, position from warehouse.clickstream").fetchall()
        assert Counter(warehouse) == Counter(lake)
        expected = oracle.expect(files)
        check_tables(db, expected, "clickstream")
        for table, rows in report["tables"].items():
            assert db.execute(f"select count(*) from clickstream.{table}").fetchone() == (rows,)
        assert report["late"] == sum(
            db.execute(
                "select coalesce(sum(value::int), 0) from streamproc.epochs, jsonb_each_text(late)"
            ).fetchone()
        )


def test_a_second_demo_replaces_the_first_and_nothing_else(ran, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    refused = subprocess.run(
        [sys.executable, "-m", "streamproc", "demo", "--headless", "--events", "10", "--dir", str(precious)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2 and "not made by a demo" in refused.stderr
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_slip_in_another_option_leaves_a_former_demo_as_it_is(ran):
    directory, _ = ran
    for slip in (["--stream", "misspelt"], ["--to", "kafka://localhost:9092"]):
        refused = subprocess.run(
            [sys.executable, "-m", "streamproc", "demo", "--headless", "--dir", str(directory), *slip],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert refused.returncode == 2, refused.stderr
        assert (directory / "lake").is_dir() and (directory / "postgres").is_dir()


def test_a_folder_that_cannot_be_made_is_a_mistake_of_the_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--dir .*cannot be written: Not a directory"):
        prepare(tmp_path / "file" / "demo")


def begin(directory: Path) -> subprocess.Popen[str]:
    """An endless demo with a process group of its own, as a terminal gives it one."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamproc", "demo", "--events", "100000000", "--dir", str(directory)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_ends_a_demo_with_its_report(tmp_path):
    with begin(tmp_path / "d") as running:
        assert running.stdout is not None
        assert "committed" in running.stdout.readline()
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=90)
    assert running.returncode == 0, err
    assert "records produced" in out and "Look around" in out
    assert "Traceback" not in err and "Aborted" not in err


def test_ctrl_c_before_anything_is_processed_is_told_in_one_line(tmp_path):
    with begin(tmp_path / "d") as running:
        feeder_of(running.pid)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=90)
    assert "Traceback" not in err
    if running.returncode == 0:  # there is no telling how far it came
        assert "records produced" in out
    else:
        assert err == "streamproc: ended before anything was processed\n"


def feeder_of(pid: int) -> psutil.Process:
    """The process that feeds the demo of ``pid``, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if "streamproc.runtimes.feed" in child.cmdline():
                    return child
    raise AssertionError("no feeder within a minute")


def test_real_access_log_lines_give_the_totals_of_plain_counting(shared_data, tmp_path):
    log = shared_data / "access_logs" / "apache_combined_10k.log.gz"
    with gzip.open(log, "rt", errors="replace") as file:
        lines = file.read().splitlines()
    report = demo(tmp_path / "d", "--input", str(log))
    assert report["produced"] == len(lines) == 10_000
    assert report["produced"] == sum(report[k] for k in ("accepted", "filtered", "rejected", "duplicate"))
    assert report["lake_rows"] == report["accepted"]
    readable = [parts for parts in (line.split('"') for line in lines) if len(parts) >= 7]
    assert report["rejected"] == len(lines) - len(readable)
    assert report["filtered"] > 0
    expected: dict[int, list[int]] = {}
    for parts in readable:
        status, size = parts[2].split()
        path = re.split("[?#]", parts[1].split()[1])[0]
        if int(status) < 400 and "." in path and path.rpartition(".")[2].lower() in STATIC:
            continue
        requests = expected.setdefault(int(status), [0, 0])
        requests[0] += 1
        requests[1] += 0 if size == "-" else int(size)
    with start_postgres(tmp_path / "d" / "postgres") as server, psycopg.connect(server.url) as db:
        files = [str(f) for f in settled_files(db, tmp_path / "d" / "lake")]
        table = db.execute(
            "select status, sum(requests)::bigint, sum(bytes)::bigint from weblogs.traffic group by 1"
        )
        assert {status: [requests, size or 0] for status, requests, size in table} == expected
    lake = duckdb.connect().execute(
        "select status, count(*), sum(bytes) from read_parquet(?) group by 1", [files]
    )
    assert {status: [requests, int(size or 0)] for status, requests, size in lake.fetchall()} == expected
