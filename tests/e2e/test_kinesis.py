"""Kinesis end to end: what docs/kinesis.md tells people to type, and what does not work on it says so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.e2e.harness import REPOSITORY, Site, check_everything, committed_records, until
from tests.support.kinesis_local import VERSION
from tests.support.kinesis_reader import read_stream

pytestmark = pytest.mark.timeout(600)

PAGE = (REPOSITORY / "docs" / "kinesis.md").read_text()
DEMO, SERVICE = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)

EVENTS = 1000


@pytest.fixture
def site(tmp_path: Path, kinesis_local, postgres: str) -> Site:
    """The shipped clickstream page on a local Kinesis; the stream is still to be made."""
    pages = tmp_path / "topics"
    pages.mkdir()
    page = (REPOSITORY / "topics" / "clickstream.toml").read_text()
    stream = f"clicks-{tmp_path.name}"
    page, replaced = re.subn(r'(?m)(?<=^\[topic\]\n)name = "clickstream"', f'name = "{stream}"', page)
    assert replaced == 1
    (pages / "clickstream.toml").write_text(page)
    return Site(
        directory=tmp_path,
        broker=kinesis_local.url,
        broker_url="kinesis://us-east-1",
        ledger=postgres,
        topics=pages,
        topic=stream,
        extra={**kinesis_local.environment, "STREAMPROC_KINESIS_ENDPOINT_URL": kinesis_local.url},
    )


def shell(lines: str, site: Site) -> subprocess.CompletedProcess[str]:
    """The lines as a reader would type them, with ``streamproc`` on the PATH and the test's own stream."""
    environment = site.environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    del environment["STREAMPROC_LOG_FORMAT"]
    script = lines.replace("us-east-1/clickstream", f"us-east-1/{site.topic}")
    return subprocess.run(
        ["bash", "-euc", script],
        env=environment,
        cwd=site.directory,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_quick_start_runs_the_demo_through_kinesis(site: Site):
    install, serve, export, demo = DEMO.splitlines()
    assert f"kinesis-local@{VERSION}" in install and "node main.js" in serve
    assert "STREAMPROC_KINESIS_ENDPOINT_URL" in export
    done = shell(demo.replace("--events 5000", f"--events {EVENTS}"), site)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["produced"] == EVENTS
    assert sum(report[name] for name in ("accepted", "filtered", "rejected", "duplicate")) == EVENTS
    assert report["lake_rows"] == report["warehouse_rows"] == report["accepted"] > 0
    assert len(read_stream(site.broker, site.topic)) == EVENTS


@pytest.mark.slow
async def test_the_quick_starts_service_reads_what_was_generated_exactly_once(site: Site):
    *before, run = SERVICE.splitlines()
    assert run == "streamproc run"
    done = shell("\n".join(before), site)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"1000 records sent to kinesis://us-east-1/{site.topic}" in done.stderr
    worker = site.worker("w1", "clickstream")
    try:
        await until(lambda: committed_records(site.ledger) == 1000, "all committed", 240, [worker])
        # What a shard's last read said comes to the ledger with a heartbeat, the commit may be before it.
        await until(lambda: _seconds_behind(site) == {0.0}, "the lag is told", 240, [worker])
        assert "seconds behind" in site.run("status").stdout
        shown = json.loads(site.run("offsets", "show", "--json").stdout)
        assert (
            sum(p["position"] + 1 for p in shown["streams"][0]["partitions"] if p["position"] is not None)
            == 1000
        )
        await until(lambda: _loaded(site) > 0, "the warehouse is loaded", 240, [worker])
        assert worker.stop(90) == 0
    finally:
        if worker.process.poll() is None:
            worker.kill()
    topic = {at: record.value for at, record in read_stream(site.broker, site.topic).items()}
    check_everything(site, topic)
    _set_by_hand(site, topic)


def _set_by_hand(site: Site, topic: dict[tuple[str, int], bytes]) -> None:
    """``streamproc offsets set`` knows the numbers that were counted, and makes a new one beyond them."""
    shard, last = max(topic)

    def change(where: str, *accepted: str) -> subprocess.CompletedProcess[str]:
        arguments = (
            "offsets",
            "set",
            "clickstream",
            shard,
            where,
            *accepted,
            "--note",
            "test",
            "--yes",
            "--json",
        )
        return site.run(*arguments, check=False)

    back = json.loads(change("10", "--accept-repeat").stdout)
    assert (back["before"], back["position"], back["repeated"]) == (last, 10, last - 10)
    assert "would be skipped" in change("latest").stderr
    on = json.loads(change("latest", "--accept-gap").stdout)
    assert on["position"] == last + 1
    assert "is not in the topic" in change(str(last + 9), "--accept-gap").stderr
    assert "no record is missing" in change("earliest", "--accept-gap").stderr


def _seconds_behind(site: Site) -> set[float | None]:
    (stream,) = json.loads(site.run("status", "--json").stdout)["streams"]
    return {partition["behind_seconds"] for partition in stream["partitions"]}


def _loaded(site: Site) -> int:
    with psycopg.connect(site.ledger) as db:
        return db.execute("select count(*) from warehouse.clickstream").fetchone()[0]


REPLAY = ("replay", "--stream", "clickstream", "--from", "earliest")
REDRIVE = ("rejects", "redrive", "clickstream")
PUBLISH = "topics are published only with Kafka"


@pytest.mark.parametrize(
    ("arguments", "sinks", "said"),
    [
        (REPLAY, "", "replays run only with Kafka"),
        (REDRIVE, "", "rejects are sent again only with Kafka"),
        (("run", "--agents", "examples.traffic_alert"), "", "agents run only with Kafka"),
        (("run",), 'publish_events = "enriched"', PUBLISH),
        (("run",), 'publish_tables = "tables"', PUBLISH),
        (("check",), 'publish_events = "enriched"', PUBLISH),
        (("topics", "apply", "--yes"), 'publish_tables = "tables"', PUBLISH),
    ],
)
async def test_what_kinesis_has_not_yet_is_refused_in_words_and_the_page_quotes_them(
    site: Site, arguments, sinks, said
):
    from streamproc.ledger import Ledger

    if sinks:
        page = site.topics / "clickstream.toml"
        page.write_text(page.read_text().replace("[sinks]\n", f"[sinks]\n{sinks}\n"))
    shutil.copytree(REPOSITORY / "examples", site.directory / "examples")
    async with Ledger(site.ledger, "clickstream", "test") as ledger:
        await ledger.migrate()
    done = site.run(*arguments, check=False)
    assert done.returncode == 2
    assert f"broker: is Kinesis in us-east-1 at {site.broker}, and {said} as yet" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    quoted = " ".join(PAGE.split())
    assert f"broker: is Kinesis in eu-central-1, and {said} as yet" in quoted
    assert "See docs/kinesis.md" in done.stdout + done.stderr
