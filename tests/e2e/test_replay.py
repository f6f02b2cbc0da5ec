"""``streamproc replay`` beside a live service: real processes, broker, PostgreSQL, lake and warehouse."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict

import duckdb
import psycopg
import pytest

from streamproc.generator import Generator
from tests.e2e import oracle
from tests.e2e.harness import check_everything, committed_records, produce, read_topic, settled_files, until

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(400)]

#: A filter that should not be there.
FILTER = """
[[filters]]
name = "mistake"
drop = "event_type = 'add_to_cart' and visitor_id > 'b'"
"""
#: An enrichment that is not told which pages are the site's own: its links count as foreign referrers.
REFERRER = ('page = "page_url"', "")

TABLES = ("page_views", "site_activity", "traffic_sources", "audience", "sessions", "checkout_funnel")

#: What analysts see of each table, and the columns that are approximate: compared by the oracle only.
APPROXIMATE = {"visitors", "value_p95"}


def spoil(site):
    """Put both mistakes into the topic page; returns what takes them out again."""
    path = site.topics / "clickstream.toml"
    right = path.read_text()
    assert right.count(REFERRER[0]) == 1
    path.write_text(right.replace(*REFERRER) + FILTER)
    return lambda: path.write_text(right)


def records(events, seed, rate=1):
    """Events over hours, so that sessions end and windows close; some are of no use."""
    for record in Generator(seed=seed, events=events, bad_ratio=0.02, rate=rate).records():
        if record.value is None or len(record.value) < 900_000:
            yield record.key, record.value


def replay(site, *arguments):
    done = site.run("replay", *arguments, "--json", check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


@contextlib.contextmanager
def started(site, *arguments):
    """A command that is killed at the end of the block, and every process it has started."""
    with (site.directory / "command.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamproc", *arguments],
            env=site.environment(),
            cwd=site.directory,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


class Traffic:
    """Records that keep flowing, a hundred at a time, until told to stop."""

    def __init__(self, site, source, sent=0):
        self._site, self._source, self.sent = site, source, sent
        self._stop = asyncio.Event()

    async def __aenter__(self):
        self._task = asyncio.create_task(self._flow())
        return self

    async def __aexit__(self, *_):
        self._stop.set()
        await self._task

    async def _flow(self):
        while not self._stop.is_set():
            some = list(itertools.islice(self._source, 100))
            assert some, "the traffic has run dry"
            self.sent += await produce(self._site.broker, self._site.topic, some)


async def command(site, *arguments):
    """A replay command while the test's own traffic flows."""
    return await asyncio.to_thread(replay, site, *arguments)


def everything(site):
    """All that a promotion may change: table rows, the list of objects, counts, warehouse rows."""
    with psycopg.connect(site.ledger) as db:
        queries = [f"select * from {site.stream}.{table}" for table in TABLES]
        queries += [
            "select key, stream, state, rows from streamproc.objects",
            "select stream, source, partition, position, records, accepted, filtered, rejected, duplicate"
            " from streamproc.partitions",
            "select source_partition, position, event_type, referrer_medium from warehouse.clickstream",
        ]
        return [Counter(map(repr, db.execute(query))) for query in queries]


def lake_rows(files):
    query = "select source_partition, position, event_type, referrer_medium from read_parquet(?)"
    return Counter(duckdb.connect().execute(query, [[str(f) for f in files]]).fetchall())


def check_warehouse(site):
    with psycopg.connect(site.ledger) as db:
        found = db.execute(
            "select source_partition, position, event_type, referrer_medium from warehouse.clickstream"
        )
        assert Counter(found.fetchall()) == lake_rows(settled_files(db, site.lake, stream=site.stream))


def exact(expected):
    """The oracle's tables without what is approximate: by table, key → values."""
    found = asdict(expected)
    found["checkout_funnel"] = found.pop("funnel")
    for name in ("page_views", "site_activity", "traffic_sources"):
        found[name] = {key: row[:-1] for key, row in found[name].items()}
    found["audience"] = {key: (row[0], round(row[2] or 0, 6)) for key, row in found["audience"].items()}
    found["sessions"] = {
        key: (*row[:-1], None if row[-1] is None else round(row[-1], 6))
        for key, row in found["sessions"].items()
    }
    return found


def expected_differences(site, name):
    """By table: rows only live has, rows only the replay has, rows of both that differ, by the oracle."""
    with psycopg.connect(site.ledger) as db:
        live = settled_files(db, site.lake, stream=site.stream)
        own = settled_files(db, site.lake, stream=f"{site.stream}__replay_{name}")
        kept = {
            site.lake / key
            for (key,) in db.execute(
                "select o.key from streamproc.objects o left join streamproc.replay_ranges g using (source, partition)"
                " where o.stream = %s and (g.name is null or g.name = %s) and (g.through is null"
                " or o.through <= g.after or coalesce(o.after, -1) >= g.through)",
                [site.stream, name],
            )
        }
    before = exact(oracle.expect(live))
    after = exact(oracle.expect([file for file in live if file in kept] + own))
    return {
        table: (
            len(before[table].keys() - after[table].keys()),
            len(after[table].keys() - before[table].keys()),
            sum(
                before[table][key] != after[table][key] for key in before[table].keys() & after[table].keys()
            ),
        )
        for table in TABLES
    }


async def test_a_mistake_in_the_page_is_repaired_while_traffic_flows(site, start):
    correct = spoil(site)
    source = records(1_000_000, seed=21)
    broken = start("broken")
    sent = await produce(site.broker, site.topic, itertools.islice(source, 8_000))
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 90, [broken])
    correct()
    assert broken.stop() == 0
    live = start("live")
    async with Traffic(site, source, sent) as traffic:
        before = committed_records(site.ledger)
        await until(lambda: committed_records(site.ledger) > before, "live goes on", 60, [live])
        done = await command(site, "--from", "earliest", "--into", "fix")
        assert (done["state"], done["left"]) == ("complete", 0)
        during = committed_records(site.ledger)
        assert during > done["positions"], "nothing was committed beside the replay"
    await until(lambda: committed_records(site.ledger) == traffic.sent, "all committed", 90, [live])
    topic = await read_topic(site.broker, site.topic)
    check_everything(site, topic)

    difference = await command(site, "diff", "fix", "--rows", "1")
    expected = expected_differences(site, "fix")
    found = {name: (t["missing"], t["added"], t["changed"]) for name, t in difference["tables"].items()}
    assert found == expected
    assert expected["traffic_sources"] != (0, 0, 0) and expected["checkout_funnel"] != (0, 0, 0)
    counts = difference["records"]
    assert counts["live"]["records"] == counts["replay"]["records"] == done["positions"]
    assert counts["live"]["filtered"] > counts["replay"]["filtered"]

    async with Traffic(site, source, traffic.sent) as traffic:
        await until(lambda: committed_records(site.ledger) > during, "live goes on", 60, [live])
        assert await command(site, "promote", "fix", "--yes") == {"replay": "fix", "promoted": True}
        promoted = committed_records(site.ledger)
        await until(lambda: committed_records(site.ledger) > promoted, "live goes on after it", 60, [live])
    await until(lambda: committed_records(site.ledger) == traffic.sent, "all committed", 90, [live])
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)
    carts = {
        key for key, value in topic.items() if (oracle.usable(value) or {}).get("event_type") == "add_to_cart"
    }
    with psycopg.connect(site.ledger) as db:
        rows = db.execute(
            "select source_partition, position from warehouse.clickstream where event_type = 'add_to_cart'"
        )
        mended = {(p.removeprefix(site.partition_prefix), int(n)) for p, n in rows}
        assert len(carts - mended) < len(carts) / 3, "only bots and retries may be missing"
        states = dict(db.execute("select state, count(*) from streamproc.objects group by 1"))
        assert states["superseded"] > 0
        assert db.execute("select to_regclass('clickstream__replay_fix.sessions')").fetchone() == (None,)

    now = everything(site)
    assert await command(site, "promote", "fix", "--yes") == {"replay": "fix", "promoted": False}
    assert everything(site) == now


async def test_a_range_in_the_middle_leaves_tables_and_lake_in_agreement(site, start):
    """Sessions and windows that reach over either end have events of both."""
    correct = spoil(site)
    live = start("live")
    source = records(1_000_000, seed=22)
    sent = 0
    for _ in range(12):  # several commits of all partitions
        sent += await produce(site.broker, site.topic, itertools.islice(source, 800))
        await until(lambda s=sent: committed_records(site.ledger) == s, "committed", 90, [live])
    correct()
    with psycopg.connect(site.ledger) as db:
        ends = dict(db.execute("select partition, position from streamproc.partitions order by 1"))
    numbers = {p.removeprefix(site.partition_prefix): int(end) for p, end in ends.items()}
    begin = ",".join(f"{p}:{end // 3}" for p, end in numbers.items())
    end = ",".join(f"{p}:{end * 2 // 3}" for p, end in numbers.items())

    plan = await command(site, f"--from={begin}", f"--to={end}", "--dry-run")
    assert plan["widened"]
    refused = site.run("replay", f"--from={begin}", f"--to={end}", "--exact", check=False)
    assert refused.returncode == 2 and plan["options"] in refused.stderr
    options = plan["options"].split()
    assert not (await command(site, *options, "--exact", "--dry-run"))["widened"]

    done = await command(site, f"--from={begin}", f"--to={end}", "--into", "middle", "--workers", "2")
    assert sum(numbers.values()) // 4 < done["positions"] < sent
    difference = await command(site, "diff", "middle")
    expected = expected_differences(site, "middle")
    found = {name: (t["missing"], t["added"], t["changed"]) for name, t in difference["tables"].items()}
    assert found == expected
    assert expected["sessions"] != (0, 0, 0) and expected["checkout_funnel"] != (0, 0, 0)
    assert (await command(site, "promote", "middle", "--yes"))["promoted"]
    sent += await produce(site.broker, site.topic, itertools.islice(source, 800))
    await until(lambda: committed_records(site.ledger) == sent, "committed", 90, [live])
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


@contextlib.asynccontextmanager
async def watched(site):
    """What a reader sees meanwhile: rows of the lake's list with a table's sum, and the warehouse's rows."""
    tables, warehouse = set(), set()
    stop = threading.Event()

    def look():
        with psycopg.connect(site.ledger, autocommit=True) as db:
            while not stop.is_set():
                lake = (
                    "select sum(rows) from streamproc.objects"
                    f" where state = 'committed' and kind = 'events' and stream = '{site.stream}'"
                )
                both = f"select ({lake}), (select sum(events) from {site.stream}.audience)"
                tables.add(db.execute(both).fetchone())
                warehouse.add(db.execute("select count(*) from warehouse.clickstream").fetchone())

    looking = asyncio.create_task(asyncio.to_thread(look))
    try:
        yield tables, warehouse
    finally:
        stop.set()
        await looking


async def waits_for_a_lock(site, process, table):
    """Until the promotion has begun and waits for a table that the test has locked."""

    def waiting():
        assert process.poll() is None, (site.directory / "command.log").read_text()[-3000:]
        with psycopg.connect(site.ledger) as db:
            (found,) = db.execute(
                "select count(*) from pg_locks where not granted and relation = %s::regclass"
                " and exists (select from streamproc.replays where state = 'promoting')",
                [table],
            ).fetchone()
        return found > 0

    await until(waiting, "the promotion waits", 60)


async def test_killed_anywhere_it_goes_on(site, start):
    correct = spoil(site)
    site.extra["STREAMPROC_MAX_EPOCH_RECORDS"] = "1000"  # more commits to be killed between
    live = start("live")
    source = records(1_000_000, seed=23)
    sent = await produce(site.broker, site.topic, itertools.islice(source, 25_000))
    await until(lambda: committed_records(site.ledger) == sent, "committed", 90, [live])
    site.run("warehouse", "load")
    correct()
    topic = await read_topic(site.broker, site.topic)
    check_everything(site, topic)
    before = everything(site)

    def done():
        return committed_records(site.ledger, f"{site.stream}__replay_fix")

    with started(site, "replay", "--from", "earliest", "--into", "fix", "--workers", "2") as process:
        await until(lambda: done() > 0 or process.poll() is not None, "the replay has begun", 60)
    assert 0 < done() < sent, "killed too late to show anything"
    resumed = await command(site, "--into", "fix")
    assert (resumed["state"], resumed["left"], done()) == ("complete", 0, sent)
    expected = expected_differences(site, "fix")
    difference = await command(site, "diff", "fix")
    assert {n: (t["missing"], t["added"], t["changed"]) for n, t in difference["tables"].items()} == expected
    before = everything(site)

    promote = ("replay", "promote", "fix", "--yes")
    async with watched(site) as (tables, warehouse):
        await _killed_and_promoted(site, promote, before)
    assert len(tables) == 2 and len(warehouse) == 2, "readers saw something that is neither old nor new"

    sent += await produce(site.broker, site.topic, itertools.islice(source, 2_000))
    await until(lambda: committed_records(site.ledger) == sent, "live goes on", 90, [live])
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


async def _killed_and_promoted(site, promote, before):
    with psycopg.connect(site.ledger) as db:  # killed before the warehouse's transaction
        db.execute("lock table warehouse.loads in share row exclusive mode")
        with started(site, *promote) as process:
            await waits_for_a_lock(site, process, "warehouse.loads")
    assert everything(site) == before
    assert site.run("replay", "discard", "fix", "--yes", check=False).returncode == 1
    with psycopg.connect(site.ledger) as db:  # killed before the ledger's transaction, after the warehouse's
        db.execute(f"lock table {site.stream}.sessions in row exclusive mode")
        with started(site, *promote) as process:
            await waits_for_a_lock(site, process, f"{site.stream}.sessions")
    between = everything(site)
    assert between[:-1] == before[:-1] and between[-1] != before[-1]
    site.run("warehouse", "load")
    assert everything(site) == between, "a loader in between must leave both alone"
    assert await command(site, "promote", "fix", "--yes") == {"replay": "fix", "promoted": True}


async def test_a_discarded_replay_leaves_nothing_behind(site, start):
    live = start("live")
    sent = await produce(site.broker, site.topic, itertools.islice(records(100_000, seed=24), 4_000))
    await until(lambda: committed_records(site.ledger) == sent, "committed", 90, [live])
    await command(site, "--from", "earliest", "--into", "try")
    assert site.run("replay", "discard", "try", "--yes").stdout == "try: discarded.\n"
    assert await command(site, "status") == {"replays": []}
    with psycopg.connect(site.ledger) as db:
        space = f"{site.stream}__replay_try"
        for table in ("partitions", "epochs", "objects", "replays"):
            column = "namespace" if table == "replays" else "stream"
            found = db.execute(f"select count(*) from streamproc.{table} where {column} = %s", [space])
            assert found.fetchone() == (0,), table
        assert db.execute(
            "select to_regnamespace(%s), to_regclass(%s)", [space, f"warehouse.{space}"]
        ).fetchone() == (
            None,
            None,
        )
        left = db.execute("select count(*) from streamproc.objects where state = 'abandoned'")
        assert left.fetchone()[0] > 0, "its objects are the sweep's to delete"
    assert live.stop() == 0
    check_everything(site, await read_topic(site.broker, site.topic))
