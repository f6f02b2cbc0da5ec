"""``streamproc rejects redrive`` beside a live service: several at once, killed, and what lake and warehouse say."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import duckdb
import psycopg
import pytest

from tests.e2e import oracle
from tests.e2e.harness import committed_records, generated, produce, read_records, settled_files, until

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(400)]

LIMIT = 'page_url   = { type = "string", required = true, max_length = 4096 }'
TOO_LOW = LIMIT.replace("4096", "40")

COLUMNS = "source_partition, position, redriven_from, event_id"


def redrive(site, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "streamproc", "rejects", "redrive", "--yes", *arguments],
        env=site.environment(),
        cwd=site.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def claimed(site):
    with psycopg.connect(site.ledger) as db:
        return db.execute("select count(*) from streamproc.redrives").fetchone()[0]


async def test_redriven_records_say_where_they_were_rejected_each_once_whatever_is_killed(site, start):
    chance = random.Random(4)
    page = site.topics / "clickstream.toml"
    right = page.read_text()
    assert right.count(LIMIT) == 1
    page.write_text(right.replace(LIMIT, TOO_LOW))
    strict = start("strict")
    sent = await produce(site.broker, site.topic, generated(6_000, seed=31, bad_ratio=0.02))
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 120, [strict])
    assert strict.stop() == 0
    page.write_text(right)
    live = start("live")
    before = await read_records(site.broker, site.topic)

    for at_least in (1, 500, 1000):  # two at once, both killed when the ledger says that they have begun
        both = [redrive(site), redrive(site)]
        wanted = claimed(site) + chance.randrange(at_least)
        await until(
            lambda n=wanted, both=both: claimed(site) > n or all(p.poll() is not None for p in both),
            "begun",
            60,
        )
        for process in both:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
    done = json.loads(site.run("rejects", "redrive", "--yes", "--json", check=False).stdout)
    again = json.loads(site.run("rejects", "redrive", "--yes", "--json", check=False).stdout)
    assert again["sent"] == again["refused"] == 0

    topic = await read_records(site.broker, site.topic)
    await until(lambda: committed_records(site.ledger) == len(topic), "all committed", 120, [live])
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    copies = {}
    for at, record in topic.items():
        headers = dict(record.headers)
        if "streamproc.redrive.position" in headers:
            copies[at] = int(headers["streamproc.redrive.position"])
            assert record.value == before[at[0], copies[at]].value
    origins = Counter((partition, origin) for (partition, _), origin in copies.items())
    assert max(origins.values()) == 1, "a reject was sent twice"
    assert len(copies) > 1000
    unsure = done["unconfirmed"]
    listed = site.run("rejects", "list", "--json", "--limit", "100000").stdout.splitlines()
    rejects = {
        (reject["partition"].removeprefix(site.partition_prefix), reject["position"])
        for reject in map(json.loads, listed)
    }
    worth = {at for at in rejects if oracle.usable(before[at].value) is not None}
    assert origins.keys() <= worth
    assert len(worth) - unsure <= len(copies) <= len(worth), (
        "only what a kill left unconfirmed may be missing"
    )

    with psycopg.connect(site.ledger) as db:
        files = [str(file) for file in settled_files(db, site.lake, stream=site.stream)]
        lake = duckdb.connect().execute(f"select {COLUMNS} from read_parquet(?, union_by_name=true)", [files])
        rows = lake.fetchall()
        warehouse = db.execute(f"select {COLUMNS} from warehouse.clickstream").fetchall()
    assert Counter(rows) == Counter(warehouse)
    redriven = 0
    for partition, position, origin, event_id in rows:
        at = partition.removeprefix(site.partition_prefix), position
        assert origin == copies.get(at), (at, origin)
        if origin is not None:
            redriven += 1
            assert json.loads(before[at[0], origin].value)["event_id"] == event_id
    assert redriven > 0.5 * len(copies), "only bots, heartbeats and retries may be missing"
