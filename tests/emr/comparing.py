"""The same logs by the service and by Spark: two sites with one visitors' key, and what their tables say."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import psycopg
from psycopg import sql

from streamproc.ledger import Ledger
from streamproc.topology import Topology
from tests.e2e.harness import HLL_ERROR, REPOSITORY, Site, settled_files

#: Values up to which DataSketches' HyperLogLog with 2^12 registers keeps the values themselves and counts them exactly.
#: A larger one estimates otherwise when it was built in one go than when it was united.
EXACT = 300


#: Tables → window and key → row.
Rows = dict[str, dict[tuple[object, ...], Mapping[str, object]]]


def share_key(first: str, second: str) -> None:
    """Make the visitors of the second ledger those of the first."""
    asyncio.run(_migrate(second))
    with psycopg.connect(first) as db:
        [(key,)] = db.execute("SELECT value FROM streamproc.keys WHERE name = 'visitors'").fetchall()
    with psycopg.connect(second) as db:
        db.execute("UPDATE streamproc.keys SET value = %s WHERE name = 'visitors'", [key])


async def _migrate(conninfo: str) -> None:
    async with Ledger(conninfo, "any", "test") as ledger:
        await ledger.migrate()


def java_environment() -> dict[str, str]:
    """For ``spark-submit``: this interpreter, everywhere."""
    return {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}


def spark(site: Site, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """``spark-submit`` of a job on two cores, to its end."""
    environment = site.environment() | java_environment() | more
    environment.pop("PYTHONWARNINGS", None)  # pyspark's own
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("spark-submit")),
            *("--master", "local[2]", "--conf", "spark.ui.enabled=false"),
            *("--conf", "spark.driver.bindAddress=127.0.0.1", "--conf", "spark.driver.host=127.0.0.1"),
            str(REPOSITORY / "deploy" / "emr" / "job.py"),
            *(*arguments, "--json"),
        ],
        env=environment,
        cwd=site.directory,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a job that went well says it did. ``spark-submit`` puts the driver's log lines among its output."""
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    [told] = [line for line in done.stdout.splitlines() if line.startswith(('{"epochs"', '{"dates"'))]
    return dict(json.loads(told))


def rows_of(conninfo: str, page: Topology) -> Rows:
    """Each table's public rows, by window (or session) and key."""
    found: Rows = {}
    with psycopg.connect(conninfo) as db:
        for table in page.tables:
            by = [table.window.key] if table.window.kind == "session" else list(table.by)
            span = "session_start" if table.window.kind == "session" else "window_start"
            cursor = db.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(page.name, table.name)))
            names = [column.name for column in cursor.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            found[table.name] = {tuple(row[name] for name in [span, *by]): row for row in rows}
            assert len(found[table.name]) == len(rows)
    return found


def assert_same_tables(mine: str, theirs: str, page: Topology) -> int:
    """Every row of every table; returns how many there are."""
    left, right = rows_of(mine, page), rows_of(theirs, page)
    assert_same_rows(left, right, page)
    return sum(map(len, left.values()))


def assert_same_rows(left: Rows, right: Rows, page: Topology) -> None:
    """The same for what :func:`rows_of` has found."""
    for table in page.tables:
        assert left[table.name].keys() == right[table.name].keys(), table.name
        kinds = {measure.name: measure.kind for measure in table.measures}
        for key, row in left[table.name].items():
            other = right[table.name][key]
            assert row.keys() == other.keys()
            for name, value in row.items():
                assert _alike(value, other[name], kinds.get(name)), (
                    table.name,
                    key,
                    name,
                    value,
                    other[name],
                )


def _alike(value: Any, other: Any, kind: str | None) -> bool:
    if value == other:
        return True
    if kind == "approx_distinct":
        return bool(min(value, other) > EXACT and abs(value - other) <= 6 * HLL_ERROR * max(value, other))
    # Doubles are added in another order.
    return isinstance(value, float) and isinstance(other, float) and math.isclose(value, other, rel_tol=1e-12)


def lake_rows(site: Site) -> list[tuple[object, ...]]:
    """All columns of the events in the committed objects, sorted."""
    with psycopg.connect(site.ledger) as db:
        files = [str(file) for file in settled_files(db, site.lake)]
    return sorted(
        duckdb.execute("SELECT * FROM read_parquet(?)", [files]).fetchall(),
        key=lambda row: tuple(map(str, row)),
    )


def fates(conninfo: str) -> list[tuple[object, ...]]:
    """What became of the records of each log, and the late events of each table."""
    with psycopg.connect(conninfo) as db:
        logs = db.execute(
            "SELECT partition, position, clock_us, records, accepted, filtered, rejected, duplicate"
            " FROM streamproc.partitions ORDER BY partition"
        ).fetchall()
        late = db.execute(
            "SELECT key, sum(value::bigint) FROM streamproc.epochs, jsonb_each_text(late) GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return [*logs, *late]
