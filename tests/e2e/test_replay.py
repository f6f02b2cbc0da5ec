"""``streamproc replay`` beside a live service: real processes, broker, PostgreSQL, lake and warehouse."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys

import psutil
import psycopg
import pytest

from streamproc.generator import Generator
from tests.e2e import oracle
from tests.e2e.harness import check_everything, committed_records, produce, read_topic, until
from tests.e2e.replays import (
    ALL_ROWS,
    check_warehouse,
    command,
    digest,
    expected_differences,
    named_differences,
    watched,
)

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(400)]

#: A filter that should not be there.
FILTER = """
[[filters]]
name = "mistake"
drop = "event_type = 'add_to_cart' and visitor_id > 'b'"
"""
#: An enrichment that is not told which pages are the site's own: its links count as foreign referrers.
REFERRER = ('page = "page_url"', "")


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


@contextlib.contextmanager
def held_after(site, commits, stream):
    """Behind so many commits of the stream the next wait, in the midst of their transactions, for the block's end."""
    with psycopg.connect(site.ledger, autocommit=True) as db:
        db.execute("select pg_advisory_lock(1)")
        db.execute(
            "create function hold() returns trigger language plpgsql as $$ begin"
            f" if (select count(*) from streamproc.epochs where stream = '{stream}') > {commits}"
            " then perform pg_advisory_xact_lock_shared(1); end if; return new; end $$"
        )
        db.execute(
            "create trigger hold after insert on streamproc.epochs for each row"
            f" when (new.stream = '{stream}') execute function hold()"
        )
        yield
        db.execute("select pg_advisory_unlock(1)")
        db.execute("drop function hold() cascade")


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

    difference = await command(site, "diff", "fix", *ALL_ROWS)
    expected = expected_differences(site, "fix", difference["as_of"])
    assert named_differences(difference) == expected
    assert expected["traffic_sources"] and expected["checkout_funnel"]
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

    now = digest(site)
    assert await command(site, "promote", "fix", "--yes") == {"replay": "fix", "promoted": False}
    assert digest(site) == now


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
    difference = await command(site, "diff", "middle", *ALL_ROWS)
    expected = expected_differences(site, "middle", difference["as_of"])
    assert named_differences(difference) == expected
    assert expected["sessions"] and expected["checkout_funnel"]
    site.extra["STREAMPROC_WAREHOUSE"] = "none"  # a loader elsewhere would load the range again
    verbs = (
        ("promote", "middle", "--yes"),
        ("discard", "middle", "--yes"),
        ("--from=earliest", "--into=other"),
    )
    for arguments in verbs:
        refused = site.run("replay", *arguments, check=False)
        assert refused.returncode == 2 and "none is set here" in refused.stderr
    del site.extra["STREAMPROC_WAREHOUSE"]
    assert (await command(site, "promote", "middle", "--yes"))["promoted"]
    sent += await produce(site.broker, site.topic, itertools.islice(source, 800))
    await until(lambda: committed_records(site.ledger) == sent, "committed", 90, [live])
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


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


async def waits_for_a_row(site, process):
    """Until the promotion is about to take live's commits out of the history: its last step but for a few."""

    def waiting():
        assert process.poll() is None, (site.directory / "command.log").read_text()[-3000:]
        with psycopg.connect(site.ledger) as db:
            (found,) = db.execute(
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                " and query like 'DELETE FROM streamproc.epochs%'"
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
    before = digest(site)

    def done():
        return committed_records(site.ledger, f"{site.stream}__replay_fix")

    with held_after(site, 3, f"{site.stream}__replay_fix"):
        with started(site, "replay", "--from", "earliest", "--into", "fix", "--workers", "2") as process:
            await until(lambda: done() > 0 or process.poll() is not None, "the replay has begun", 60)
        assert 0 < done() < sent
    resumed = await command(site, "--into", "fix")
    assert (resumed["state"], resumed["left"], done()) == ("complete", 0, sent)
    difference = await command(site, "diff", "fix", *ALL_ROWS)
    expected = expected_differences(site, "fix", difference["as_of"])
    assert named_differences(difference) == expected
    before = digest(site)

    promote = ("replay", "promote", "fix", "--yes")
    lake = (
        "select sum(rows) from streamproc.objects"
        f" where state = 'committed' and kind = 'events' and stream = '{site.stream}'"
    )
    both = f"select ({lake}), (select sum(events) from {site.stream}.audience)"
    async with watched(site, both, "select count(*) from warehouse.clickstream") as (tables, warehouse):
        await _killed_and_promoted(site, promote, before)
    assert len(tables) == 2 and len(warehouse) == 2, "readers saw something that is neither old nor new"

    sent += await produce(site.broker, site.topic, itertools.islice(source, 2_000))
    await until(lambda: committed_records(site.ledger) == sent, "live goes on", 90, [live])
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


@pytest.mark.timeout(600)
async def test_workers_that_are_killed_at_random_are_replaced_and_count_nothing_twice(site, start):
    chance = random.Random(9)
    correct = spoil(site)
    # So many commits that none of them comes to the end before it is killed.
    site.extra |= {"STREAMPROC_MAX_EPOCH_RECORDS": "500", "STREAMPROC_BATCH_RECORDS": "250"}
    live = start("live")
    sent = await produce(site.broker, site.topic, itertools.islice(records(1_000_000, seed=25), 30_000))
    await until(lambda: committed_records(site.ledger) == sent, "committed", 90, [live])
    correct()

    def done():
        return committed_records(site.ledger, f"{site.stream}__replay_fix")

    arguments = ["--from", "earliest"]
    killed = 0
    for round_ in range(2):  # workers one after the other, then all with their parent; and the same resumed
        with started(site, "replay", *arguments, "--into", "fix", "--workers", "3") as process:
            for _ in range(3):
                wanted = done() + chance.randrange(1, 3_000)
                await until(lambda n=wanted: done() >= n or process.poll() is not None, "progress", 180)
                if process.poll() is not None:
                    break
                workers = [each for each in psutil.Process(process.pid).children() if is_worker(each)]
                if workers and done() < sent:
                    chance.choice(workers).kill()
                    killed += 1
            assert process.poll() is None or round_ == 1, (site.directory / "command.log").read_text()[-3000:]
        arguments = []
    assert killed >= 2
    finished = await command(site, "--into", "fix", "--workers", "3")
    assert (finished["state"], finished["left"], done()) == ("complete", 0, sent)
    difference = await command(site, "diff", "fix", *ALL_ROWS)
    expected = expected_differences(site, "fix", difference["as_of"])
    assert named_differences(difference) == expected
    assert expected["traffic_sources"]
    assert (await command(site, "promote", "fix", "--yes"))["promoted"]
    assert live.stop() == 0, live.tail()
    site.run("warehouse", "load")
    check_everything(site, await read_topic(site.broker, site.topic))
    check_warehouse(site)


def is_worker(process):
    """Not multiprocessing's own helper, which a killed worker leaves alone, and not one that has ended."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie too
        return False


async def _killed_and_promoted(site, promote, before):
    with psycopg.connect(site.ledger) as db:  # killed before the warehouse's transaction
        db.execute("lock table warehouse.loads in share row exclusive mode")
        with started(site, *promote) as process:
            await waits_for_a_lock(site, process, "warehouse.loads")
    assert digest(site) == before
    assert site.run("replay", "discard", "fix", "--yes", check=False).returncode == 1
    with psycopg.connect(site.ledger) as db:  # killed before the ledger's transaction, after the warehouse's
        db.execute(f"lock table {site.stream}.sessions in row exclusive mode")
        with started(site, *promote) as process:
            await waits_for_a_lock(site, process, f"{site.stream}.sessions")
    between = digest(site)
    assert between[:-2] == before[:-2] and between[-2] != before[-2] and between[-1] != before[-1]
    site.run("warehouse", "load")
    assert digest(site) == between, "a loader in between must leave both alone"
    with psycopg.connect(site.ledger) as db:  # killed when the tables are swapped, and nothing is committed
        db.execute(f"select from streamproc.epochs where stream = '{site.stream}' for update")
        with started(site, *promote) as process:
            await waits_for_a_row(site, process)
    assert digest(site) == between
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
