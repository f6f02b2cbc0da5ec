"""The stream and Spark on the same logs: the same tables, lake and fates, row for row."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import psycopg
import pytest

from streamproc.topic_pages import load_page
from tests.e2e.harness import REPOSITORY, Site
from tests.e2e.log_totals import assert_counted, site_of
from tests.emr.comparing import (
    answer,
    assert_same_rows,
    assert_same_tables,
    fates,
    lake_rows,
    rows_of,
    share_key,
    spark,
)

pytestmark = [
    pytest.mark.aws,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17"),
]

WEBLOGS = load_page(REPOSITORY / "topics" / "weblogs.toml")


@pytest.fixture
def lines(shared_data: Path) -> list[bytes]:
    return gzip.decompress(
        (shared_data / "access_logs" / "apache_combined_10k.log.gz").read_bytes()
    ).splitlines()


def sites(tmp_path: Path, ledgers: tuple[str, str], **extra: str) -> tuple[Site, Site]:
    directories = [tmp_path / name for name in ("stream", "spark")]
    for directory in directories:
        directory.mkdir()
    return (
        site_of(directories[0], ledgers[0], "embedded:", **extra),
        site_of(directories[1], ledgers[1], "embedded:", **extra),
    )


def test_real_lines_give_the_stream_s_tables_also_when_the_driver_was_killed_and_the_job_run_again(
    tmp_path: Path, postgres: str, other_postgres: str, lines: list[bytes]
) -> None:
    stream, batch = sites(tmp_path, (postgres, other_postgres), STREAMPROC_LOGS_LEASE_TIMEOUT="5s")
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(7):
        body = b"\n".join(lines[number::7]) + b"\n"
        packed = number % 2 == 1
        name = f"{number}.log.gz" if packed else f"{number}.log"
        (folder / name).write_bytes(gzip.compress(body, mtime=0) if packed else body)
    place = folder.as_uri()
    report = json.loads(stream.run("backfill", place, "--json", patience=400).stdout)
    assert (report["complete"], report["records"]) == (True, len(lines))
    share_key(postgres, other_postgres)

    job = ("job", place, "--stream", "weblogs", "--task-size", "300KiB")
    killed = spark(batch, *job, STREAMPROC_FAILPOINTS="commit.merged=kill")
    assert killed.returncode != 0
    assert not any(rows_of(other_postgres, WEBLOGS).values())

    told = answer(spark(batch, *job))
    assert (told["epochs"], told["logs"], told["counts"]["records"]) == (1, 7, len(lines))
    assert assert_same_tables(postgres, other_postgres, WEBLOGS) > 1000
    assert fates(postgres) == fates(other_postgres)
    assert lake_rows(stream) == lake_rows(batch)
    assert_counted(batch, lines)

    before = rows_of(other_postgres, WEBLOGS)
    assert answer(spark(batch, *job))["logs"] == 0
    assert rows_of(other_postgres, WEBLOGS) == before

    with psycopg.connect(other_postgres) as db:
        db.execute("DELETE FROM weblogs.traffic")
        db.execute("UPDATE weblogs.page_views SET views = views + 1")
    dates = ("--from", "2015-05-17", "--to", "2015-05-22")
    rebuilt = answer(spark(batch, "rebuild", "weblogs", "traffic", "page_views", *dates))
    assert (rebuilt["dates"], rebuilt["rows"]) == (10, len(before["traffic"]) + len(before["page_views"]))
    assert_same_rows(before, rows_of(other_postgres, WEBLOGS), WEBLOGS)
