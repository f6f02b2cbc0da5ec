"""The queries that the documentation shows run on what the demo leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb
import psycopg
import pytest

from tests.house.documents import ROOT, Block, blocks


@dataclass(frozen=True)
class DemoRun:
    """Where a finished demo left its data, and what it reported."""

    directory: Path
    report: dict[str, object]


def streamproc(*arguments: str) -> str:
    command = [sys.executable, "-m", "streamproc", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(server_directory: Path) -> DemoRun:
    directory = server_directory / "documented-demo"
    return DemoRun(directory, json.loads(streamproc("demo", "--json", "--dir", str(directory))))


def test_the_report_has_what_the_command_line_promises(demo: DemoRun) -> None:
    promised = "produced accepted filtered rejected duplicate late lake_rows warehouse_rows tables seconds"
    assert {*promised.split(), "events_per_second", "lake", "ledger"} <= demo.report.keys()


def test_the_readme_shows_what_the_demo_reports(demo: DemoRun) -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    report = demo.report
    tables = report["tables"]
    assert isinstance(tables, dict)
    names = (
        "produced",
        "accepted",
        "filtered",
        "rejected",
        "duplicate",
        "lake_rows",
        "warehouse_rows",
        "late",
    )
    expected = [*(report[name] for name in names), *tables.values()]
    assert [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", shown)] == expected
    assert all(name in shown for name in tables)


def of_administrators(block: Block) -> bool:
    return block.text.lstrip().startswith("CREATE")


@pytest.mark.parametrize("block", [b for b in blocks("sql") if of_administrators(b)], ids=str)
def test_what_administrators_are_to_run_is_right(postgres: str, block: Block) -> None:
    with psycopg.connect(postgres) as db:
        db.execute("CREATE SCHEMA clickstream")
        if not db.execute("SELECT FROM pg_roles WHERE rolname = 'streamproc'").fetchall():
            db.execute("CREATE ROLE streamproc")
        db.execute(block.text.encode())
        db.rollback()  # roles are the whole server's


@pytest.mark.parametrize(
    "block",
    [b for b in blocks("sql") if "read_parquet" not in b.text and not of_administrators(b)],
    ids=str,
)
def test_postgresql_examples_run(demo: DemoRun, block: Block) -> None:
    streamproc("sql", "--data-dir", str(demo.directory), "--json", block.text.strip().rstrip(";"))


@pytest.mark.parametrize("block", [b for b in blocks("sql") if "read_parquet" in b.text], ids=str)
def test_duckdb_examples_count_every_accepted_event(demo: DemoRun, block: Block) -> None:
    rows = duckdb.sql(block.text.replace("demo-data", str(demo.directory))).fetchall()
    assert sum(row[-1] for row in rows) == demo.report["accepted"]
