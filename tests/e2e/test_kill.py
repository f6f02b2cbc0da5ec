"""``kill -9`` under load: nothing lost, nothing twice, every table as if nothing had happened."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.e2e.harness import check_everything, committed_records, generated, produce, read_topic, until

KILLS = 10
RATE = 2_000  # records a second


async def feed(site, sent: list[int], enough: asyncio.Event) -> None:
    """Produce steadily for as long as there are kills to come, so that each hits records in flight."""
    records = generated(10**7, seed=21)
    clock = asyncio.get_running_loop().time
    begin = clock()
    while not enough.is_set():
        chunk = list(itertools.islice(records, RATE // 2))
        sent[0] += await produce(site.broker, site.topic, chunk)
        await asyncio.sleep(max(0.0, begin + sent[0] / RATE - clock()))


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(500)
async def test_killing_one_of_two_workers_ten_times_loses_and_doubles_nothing(site, start):
    chance = random.Random(5)
    names = (f"worker-{n}" for n in itertools.count())
    workers = [start(next(names)), start(next(names))]
    sent = [0]
    enough = asyncio.Event()
    feeding = asyncio.create_task(feed(site, sent, enough))
    fired = 0
    for _ in range(KILLS):
        before = committed_records(site.ledger)
        await until(
            lambda b=before: committed_records(site.ledger) > b, "progress between two kills", 60, workers
        )
        await asyncio.sleep(chance.uniform(0.1, 3.0))
        victim = chance.randrange(2)
        in_flight = committed_records(site.ledger) < sent[0]
        workers[victim].kill()
        fired += in_flight
        workers[victim] = start(next(names))
    enough.set()
    await feeding
    assert fired >= KILLS // 2, "too few kills hit records in flight"
    await until(lambda: committed_records(site.ledger) == sent[0], "all committed", 120, workers)
    assert [worker.stop() for worker in workers] == [0, 0]
    topic = await read_topic(site.broker, site.topic)
    assert len(topic) == sent[0]
    check_everything(site, topic)
