"""Workers that are killed in the middle of a large log: the next one goes on, and every row counts once."""

from __future__ import annotations

import gzip
import json
import signal
from pathlib import Path

import boto3
import duckdb
import psycopg
import pytest

from tests.conftest import S3Server
from tests.e2e.harness import committed_records, settled_files
from tests.e2e.log_totals import assert_counted, site_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: Moments at which a worker kills itself, all in the middle of the object; most have committed some of it by then.
DEATHS = (
    "intend.after=kill",
    "put.first=kill@2",
    "commit.merged=kill@2",
    "commit.sent=kill@2",
    "tell=kill@2",
)


@pytest.mark.parametrize("command", [("run", "weblogs"), ("backfill",)], ids=["run", "backfill"])
def test_workers_that_are_killed_in_the_middle_of_a_large_object_leave_each_row_once(
    tmp_path: Path, postgres: str, s3_server: S3Server, bucket: str, command: tuple[str, ...]
) -> None:
    lines = [
        f"192.0.2.{n % 200} - - [17/May/2026:{n // 36000:02}:{n // 600 % 60:02}:{n // 10 % 60:02} +0000] "
        f'"GET /p/{n % 500} HTTP/1.1" 200 {n % 1000} "-" "Agent/{n % 7}"'.encode()
        for n in range(200_000)
    ]
    s3 = boto3.client("s3", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    s3.put_object(Bucket=bucket, Key="big.log.gz", Body=gzip.compress(b"\n".join(lines) + b"\n", 1))
    s3.close()
    place = f"s3://{bucket}/"
    site = site_of(
        tmp_path,
        postgres,
        place,
        STREAMPROC_LOGS_LEASE_TIMEOUT="2s",
        STREAMPROC_MAX_EPOCH_RECORDS="10000",
        STREAMPROC_BATCH_RECORDS="10000",
        **s3_server.environment,
    )
    arguments = command if command[0] == "run" else (*command, place)
    before = 0
    for number, death in enumerate(DEATHS):
        worker = site.start(f"w{number}", *arguments, STREAMPROC_FAILPOINTS=death)
        try:
            assert worker.process.wait(300) == -signal.SIGKILL, worker.tail()
        finally:
            worker.kill()
        committed = committed_records(postgres, "weblogs")
        assert before <= committed < len(lines)
        before = committed
    assert before > 0
    report = json.loads(site.run("backfill", place, "--json", patience=300).stdout)
    assert (report["complete"], report["logs"], report["records"]) == (True, 1, len(lines) - before)
    assert_counted(site, lines)
    with psycopg.connect(postgres) as db:
        files = [str(file) for file in settled_files(db, site.lake)]
        ranges = db.execute("SELECT after, through FROM streamproc.epoch_ranges ORDER BY through").fetchall()
    rows = duckdb.execute("SELECT position FROM read_parquet(?) ORDER BY position", [files]).fetchall()
    assert [position for (position,) in rows] == list(range(len(lines)))
    assert [after for after, _ in ranges[1:]] == [through for _, through in ranges[:-1]]
