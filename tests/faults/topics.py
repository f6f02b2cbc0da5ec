"""What happens to the topic and to its page: records gone, another topic of its name, more partitions, a new page."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import duckdb
import psycopg
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition

from tests.e2e.harness import read_records, settled_files
from tests.faults.checks import Verdict
from tests.faults.stage import PARTITIONS, Firing, NotSettled, Stage
from tests.faults.world import World, two_workers, went_on

#: How long a consumer may not know of new partitions: the service looks every minute.
_NEW_PARTITIONS_SEEN = 90.0

#: A measure and a field that the shipped page does not have.
_NEW_MEASURE = 'measures.clicks = { kind = "count", where = "event_type = \'click\'" }\n'
_NEW_FIELD = 'release    = { type = "string", max_length = 64 }\n'


async def retention_gap(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """Records are deleted that nobody read. Their partition stops, the others go on, an operator accepts the gap."""
    await two_workers(stage)
    await _quiet(stage)
    await stage.retire(stage.running)
    unread = await _ends(stage)
    await _feed_some(stage)
    read_before = await read_records(stage.site.broker, stage.site.topic)
    victim = chance.randrange(PARTITIONS)
    mine = sorted(offset for partition, offset in read_before if partition == str(victim))
    first_kept = chance.choice([offset for offset in mine if offset > unread.get(victim, -1) + 1])
    async with _admin(stage) as admin:
        await admin.delete_records({TopicPartition(stage.site.topic, victim): RecordsToDelete(first_kept)})
    gone = {
        (str(victim), offset) for offset in mine if unread.get(victim, -1) < offset < first_kept
    }  # nobody's loss but the topic's
    stage.kept = {at: record for at, record in read_before.items() if at not in gone}
    stage.gone = gone
    at = time.time()
    for _ in range(2):
        stage.start(stage.fresh("after"))
    partition = f"{stage.site.partition_prefix}{victim}"
    await stage.until(lambda: _stopped(stage, partition, "offsets are gone"), "the gap is noticed")
    await stage.until(lambda: len(stage.progressed_since(at)) == PARTITIONS - 1, "the other partitions go on")
    if stage.position(partition) != unread.get(victim, -1):
        raise NotSettled(f"{partition} went past the gap by itself")
    await stage.retire(stage.running)
    words = ("offsets", "set", stage.site.topic, partition, "earliest", "--accept-gap", "--yes", "--force")
    done = await asyncio.to_thread(stage.site.run, *words, "--note", "deleted by the bench", check=False)
    if done.returncode != 0:
        raise NotSettled(f"the position cannot be set: {done.stderr}")
    resumed = time.time()
    stage.start(stage.fresh("resumed"))
    stage.start(stage.fresh("resumed"))
    await stage.feed()
    return Firing("topic", "retention gap", "", at, len(gone)), await went_on(stage, resumed)


async def truncated(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """The broker dies and has less of one log than was read of it. That partition stops, the others go on."""
    await two_workers(stage)
    stage.own_topic = await stage.committed_all()
    victim = chance.randrange(PARTITIONS)
    before = await _ends(stage)
    await stage.truncate(victim, chance.uniform(0.2, 0.8))
    lost = before[victim] - (await _ends(stage)).get(victim, -1)
    if lost <= 0:
        raise NotSettled("nothing was cut off")
    at = time.time()
    await stage.until(
        lambda: _stopped(stage, str(victim), "the log ends before"), "the lost records are noticed", 90
    )
    noticed = time.time() - at
    if stage.position(str(victim)) != before[victim]:
        raise NotSettled(f"partition {victim} went from {before[victim]} to {stage.position(str(victim))}")
    await stage.retire(stage.running)
    return Firing("broker", "log cut", "", at, lost), noticed


async def made_anew(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """The topic is deleted, created and filled beyond every position. Nothing of it may be committed.

    The workers run, sleep (SIGSTOP) or are away meanwhile. ``recovery`` is how long it took to notice.
    """
    await two_workers(stage)
    stage.own_topic = await _quiet(stage)
    positions = {p: stage.position(p) for p in stage.partitions_known()}
    meanwhile = chance.choice(("run", "sleep", "away"))
    if meanwhile == "away":
        await stage.retire(stage.running)
    elif meanwhile == "sleep":
        for worker in stage.running:
            worker.process.send_signal(signal.SIGSTOP)
    async with _admin(stage) as admin:
        await admin.delete_topics([stage.site.topic])
        deadline = time.monotonic() + 30
        while True:  # until it is really gone
            answer = await admin.create_topics([NewTopic(stage.site.topic, PARTITIONS, 1)])
            if answer.topic_errors[0][1] == 0:
                break
            if time.monotonic() > deadline:
                raise NotSettled(f"the topic cannot be made anew: {answer}")
    stage.feeder.rewind()
    await _feed_some(stage, at_least=int(max(positions.values())) * PARTITIONS * 2)
    at = time.time()
    if meanwhile == "away":
        for _ in range(2):
            stage.start(stage.fresh("after"))
    elif meanwhile == "sleep":
        for worker in stage.running:
            worker.process.send_signal(signal.SIGCONT)
    await stage.until(
        lambda: all(_stopped(stage, partition, "of another topic") for partition in positions),
        f"it is noticed (workers {meanwhile})",
    )
    noticed = time.time() - at
    if (now := {p: stage.position(p) for p in positions}) != positions:
        raise NotSettled(f"of the new topic something was committed: {positions}, {now}")
    await stage.retire(stage.running)
    return Firing("topic", f"made anew while workers {meanwhile}", "", at, stage.sent), noticed


async def more_partitions(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """The topic grows from 4 to 12 partitions under two workers and a steady feed."""
    await two_workers(stage)
    at = time.time()
    async with _admin(stage) as admin:
        await admin.create_partitions({stage.site.topic: NewPartitions(3 * PARTITIONS)})
    await stage.stop_feeding()
    await stage.feed()  # with a producer that knows of them
    if chance.random() < 0.5:
        stage.start(stage.fresh("third"))
    await stage.until(
        lambda: len(stage.progressed_since(at)) == 3 * PARTITIONS,
        "all twelve partitions are committed",
        _NEW_PARTITIONS_SEEN,
    )
    return Firing("topic", "4 to 12 partitions", "", at, 1), max(stage.progressed_since(at).values())


async def new_page(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """Workers are replaced one by one by such with another measure and another field; once somebody goes back."""
    page = (stage.site.topics / "clickstream.toml").read_text()
    page, fields = re.subn(r"(?m)^(properties = .*\n)", rf"\1{_NEW_FIELD}", page)
    page, measures = re.subn(
        r"(?m)(?<=^\[tables\.site_activity\]\n)((?:.+\n)+)", lambda found: found[1] + _NEW_MEASURE, page
    )
    assert fields == measures == 1
    newer = stage.site.directory / "newer"
    newer.mkdir()
    (newer / "clickstream.toml").write_text(page)
    await two_workers(stage)
    at = time.time()
    changes = 0
    for new in (True, True, False, True):
        leaving = stage.running[0]
        if chance.random() < 0.5:
            await stage.retire([leaving])
        else:
            leaving.kill()
            stage.forget_dead()
        begin = time.time()
        stage.start(stage.fresh("page"), **({"STREAMPROC_TOPICS": str(newer)} if new else {}))
        await went_on(stage, begin)
        changes += 1
    # The last with the old page goes: what comes from here on is counted by the new one alone.
    await stage.retire([w for w in stage.running if not _has_new_page(w.log.parent, w.name, stage)])
    begin = time.time()
    stage.start(stage.fresh("page"), STREAMPROC_TOPICS=str(newer))
    recovery = await went_on(stage, begin)
    stage.more_checks.append(_clicks_are_plausible)
    return Firing("page", "rolling upgrade", "", at, 0, changes + 1), recovery


def _has_new_page(_folder: object, name: str, stage: Stage) -> bool:
    return stage.environments[name].get("STREAMPROC_TOPICS", "").endswith("newer")


def _clicks_are_plausible(db: psycopg.Connection, stage: Stage, verdict: Verdict) -> None:
    """The new measure counts clicks of workers that knew it: never more than there were, and some."""
    files = settled_files(db, stage.site.lake)
    exact = (
        duckdb.connect()
        .execute(
            "select count(*) from read_parquet(?, union_by_name = true) where event_type = 'click'",
            [[str(file) for file in files]],
        )
        .fetchone()
    )
    row = db.execute("select coalesce(sum(clicks), 0) from clickstream.site_activity").fetchone()
    # Each event is in five hopping windows, less where a window was closed before it came.
    verdict.expect(
        0 < row[0] <= 5 * exact[0], f"new measure: {row[0]} clicks in the windows of {exact[0]} events"
    )


# -- of the faults ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _admin(stage: Stage) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=stage.site.broker)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def _quiet(stage: Stage) -> dict:
    """No more is fed and everything there is committed; the workers stay. Returns the topic."""
    return await stage.committed_all()


async def _ends(stage: Stage) -> dict[int, int]:
    """The last offset of each partition."""
    found = await read_records(stage.site.broker, stage.site.topic)
    return {
        int(partition): max(offset for _, offset in some)
        for partition, some in itertools.groupby(sorted(found), key=lambda at: at[0])
    }


async def _feed_some(stage: Stage, at_least: int = 0) -> None:
    """Feed while no worker looks."""
    wanted = stage.sent + max(at_least, 600)
    await stage.feed()
    await stage.until(lambda: stage.sent >= min(wanted, len(stage.feeder.records)), "records are fed", 120)
    await stage.stop_feeding()


def _stopped(stage: Stage, partition: str, why: str) -> bool:
    """Whether a worker that runs said that it stopped the partition, and why."""
    return any(
        "partition_stopped" in line and f"/{partition}" in line and why in line
        for worker in stage.running
        for line in worker.log.read_text(errors="replace").splitlines()
    )


TOPICS = [
    World("records deleted that nobody read", retention_gap, alone=True, kafka=True),
    World("the broker loses the end of a log", truncated, alone=True, kafka=True),
    World("the topic is made anew and filled", made_anew),
    World("4 partitions become 12", more_partitions, alone=True, kafka=True),
    World("rolling upgrade of the topic page", new_page),
]
