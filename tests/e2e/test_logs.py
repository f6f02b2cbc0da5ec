"""Web logs end to end: what docs/logs.md tells people to type, and the same totals from everywhere.

The 10,000 real lines come as objects of a bucket, as files of a folder and as records of a topic; what the tables
say of them has to be what plain counting says.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import boto3
import psycopg
import pytest

from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topology import Topic
from tests.conftest import S3Server
from tests.e2e.harness import REPOSITORY, Site, committed_records, produce, until
from tests.e2e.log_totals import assert_counted, plain_counting, site_of

pytestmark = pytest.mark.timeout(1500)

PAGE = (REPOSITORY / "docs" / "logs.md").read_text()
(QUICK_START,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def lines(shared_data: Path) -> list[bytes]:
    return gzip.decompress(
        (shared_data / "access_logs" / "apache_combined_10k.log.gz").read_bytes()
    ).splitlines()


async def run_until_all_is_committed(site: Site, records: int) -> None:
    worker = site.worker("w1", "weblogs")
    try:
        await until(
            lambda: committed_records(site.ledger, "weblogs") == records, "all committed", 900, [worker]
        )
        assert worker.stop(300) == 0
    finally:
        if worker.process.poll() is None:
            worker.kill()


def test_the_quick_start_counts_the_three_lines(tmp_path: Path, postgres: str) -> None:
    site = site_of(tmp_path, postgres, "embedded:")
    environment = site.environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name in ("BROKER", "LOG_FORMAT", "TOPICS", "DATA_DIR"):
        del environment[f"STREAMPROC_{name}"]
    done = subprocess.run(
        ["bash", "-euc", QUICK_START],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, _, rest = done.stdout.partition("\n")
    report = json.loads(first)
    assert (report["complete"], report["logs"], report["records"], report["accepted"]) == (True, 1, 3, 3)
    assert re.findall(r"(download|error|page_view)\s+(\d+)", rest) == [
        ("download", "1"),
        ("error", "1"),
        ("page_view", "1"),
    ]


@pytest.mark.slow
async def test_the_real_lines_as_objects_notified_and_listed(
    tmp_path: Path, postgres: str, s3_server: S3Server, bucket: str, lines: list[bytes]
) -> None:
    """Seven objects: one is notified three times, one uploaded again, one not notified at all."""
    s3 = boto3.client("s3", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    sqs = boto3.client("sqs", endpoint_url=s3_server.endpoint_url, region_name=s3_server.region)
    queue = sqs.create_queue(QueueName=f"q-{bucket}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    bodies = [gzip.compress(b"\n".join(lines[n::7]) + b"\n", mtime=0) for n in range(7)]
    s3.put_object(Bucket=bucket, Key="logs/6.log.gz", Body=bodies[6])
    configuration = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=configuration)
    for number in (0, 1, 2, 3, 4, 5, 0, 3, 3):  # each upload is notified by the server
        s3.put_object(Bucket=bucket, Key=f"logs/{number}.log.gz", Body=bodies[number])
    site = site_of(
        tmp_path,
        postgres,
        f"s3://{bucket}/logs/",
        STREAMPROC_LOGS_QUEUE=queue,
        STREAMPROC_LOGS_LIST_EVERY="1s",
        **s3_server.environment,
    )
    await run_until_all_is_committed(site, len(lines))
    assert_counted(site, lines)
    # Everything is done: a backfill of the same place finds nothing to do.
    done = await asyncio.to_thread(site.run, "backfill", f"s3://{bucket}/logs/", "--json", patience=400)
    report = json.loads(done.stdout)
    assert (report["complete"], report["logs"], report["done"], report["records"]) == (True, 7, 7, 0)
    assert_counted(site, lines)
    s3.close()
    sqs.close()


@pytest.mark.slow
def test_the_real_lines_as_files_backfilled_in_two_goes(
    tmp_path: Path, postgres: str, lines: list[bytes]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "access.log").write_bytes(b"\n".join(lines[6000:]) + b"\n")
    (folder / "access.log.2.gz").write_bytes(gzip.compress(b"\n".join(lines[:3000]) + b"\n"))
    site = site_of(tmp_path, postgres, "embedded:")
    first = json.loads(site.run("backfill", folder.as_uri(), "--json", patience=400).stdout)
    assert (first["complete"], first["logs"], first["records"]) == (True, 2, 7000)
    (folder / "access.log.1").write_bytes(b"\n".join(lines[3000:6000]) + b"\n")
    second = json.loads(site.run("backfill", folder.as_uri(), "--json", patience=400).stdout)
    assert (second["complete"], second["logs"], second["records"]) == (True, 3, 3000)
    assert_counted(site, lines)
    with psycopg.connect(postgres) as db:
        kept = sum(plain_counting(lines, b"").traffic.values())
        assert db.execute("SELECT count(*) FROM warehouse.weblogs").fetchone()[0] == kept


@pytest.mark.slow
async def test_the_real_lines_as_records_of_a_topic(
    tmp_path: Path, broker_of_site: tuple[str, str, str], postgres: str, lines: list[bytes]
) -> None:
    bootstrap, url, _ = broker_of_site
    async with admin(KafkaConnection(bootstrap, embedded=url == "embedded:")) as broker:
        await broker.apply(Topic("weblogs", partitions=4))
    site = site_of(tmp_path, postgres, url, STREAMPROC_KAFKA_SESSION_TIMEOUT="6s")
    await produce(bootstrap, "weblogs", [(line.split(b" ")[0], line) for line in lines])
    await run_until_all_is_committed(site, len(lines))
    assert_counted(site, lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kafka://localhost:9092",), "is no place of logs"),
        (("file:///nowhere", "--stream", "nothing"), "there is no page named nothing"),
        (("file:///nowhere", "--from", "yesterday"), "is no time"),
        (("file:///nowhere", "--from", "2026-02-01", "--to", "2026-01-01"), "is not behind"),
    ],
)
def test_wrong_arguments_are_told_at_once(
    tmp_path: Path, postgres: str, arguments: tuple[str, ...], said: str
) -> None:
    done = site_of(tmp_path, postgres, "embedded:").run("backfill", *arguments, check=False)
    assert done.returncode == 2 and said in done.stderr


def test_a_place_that_is_not_there_fails(tmp_path: Path, postgres: str) -> None:
    done = site_of(tmp_path, postgres, "embedded:").run("backfill", "file:///nowhere/at/all", check=False)
    assert done.returncode == 1 and "there is no such folder" in done.stderr


def test_check_says_whether_the_place_can_be_read(tmp_path: Path, postgres: str) -> None:
    folder = tmp_path / "logs"
    site = site_of(tmp_path, postgres, folder.as_uri())
    assert "there is no such folder" in site.run("check", check=False).stdout
    folder.mkdir()
    assert "can be listed" in site.run("check").stdout
