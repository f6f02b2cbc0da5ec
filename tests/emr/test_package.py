"""The package for EMR: a job runs with nothing else than it, Spark and a bare Python."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import psycopg
import pytest

from tests.e2e.harness import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11) or sys.platform != "linux" or platform.machine() != "x86_64",
        reason="the package is for Python 3.11 on Linux, this one for x86_64",
    ),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17"),
]

LINES = [
    '192.0.2.7 - - [17/May/2026:10:05:03 +0000] "GET / HTTP/1.1" 200 7697 "-" "Mozilla/5.0"',
    '192.0.2.7 - - [17/May/2026:10:05:09 +0000] "GET /guide.pdf HTTP/1.1" 200 81020 "-" "Mozilla/5.0"',
    '192.0.2.9 - - [17/May/2026:10:06:41 +0000] "GET /nothing HTTP/1.1" 404 196 "-" "Googlebot/2.1"',
]


def test_a_job_runs_with_the_package_alone(tmp_path: Path, postgres: str) -> None:
    pyspark = pytest.importorskip("pyspark")
    made = tmp_path / "made"
    subprocess.run([sys.executable, REPOSITORY / "deploy" / "emr" / "package.py", made], check=True)
    package = tmp_path / "package"
    with tarfile.open(made / "streamproc.tar.gz") as archive:
        archive.extractall(package, filter="data")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "access.log").write_text("\n".join(LINES) + "\n")
    python = Path(sys.base_prefix) / "bin" / "python3.11"
    bare = subprocess.run([python, "-I", "-c", "import polars"], capture_output=True, check=False)
    assert bare.returncode != 0, "this Python is not bare: the test would show nothing"
    home = Path(pyspark.__file__).parent
    environment = {
        "PATH": "/usr/bin:/bin",
        "SPARK_HOME": str(home),
        "PYTHONPATH": str(package),
        "PYTHONNOUSERSITE": "1",
        "PYSPARK_PYTHON": str(python),
        "PYSPARK_DRIVER_PYTHON": str(python),
        "STREAMPROC_LEDGER": postgres,
        "STREAMPROC_LAKE": (tmp_path / "lake").as_uri(),
        "STREAMPROC_LOG_FORMAT": "json",
        **{name: os.environ[name] for name in ("JAVA_HOME", "TMPDIR") if name in os.environ},
    }
    done = subprocess.run(
        [
            *(home / "bin" / "spark-submit", "--master", "local[2]", "--conf", "spark.ui.enabled=false"),
            *("--conf", "spark.driver.bindAddress=127.0.0.1", "--conf", "spark.driver.host=127.0.0.1"),
            *(made / "job.py", "job", logs.as_uri(), "--stream", "weblogs", "--json"),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    [told] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"epochs"')]
    assert told["counts"]["accepted"] == 3
    with psycopg.connect(postgres) as db:
        rows = db.execute("SELECT event_type, requests FROM weblogs.traffic ORDER BY 1").fetchall()
    assert rows == [("download", 1), ("error", 1), ("page_view", 1)]
