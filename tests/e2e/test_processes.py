"""``streamproc run --workers``: several processes are one group, and end together."""

from __future__ import annotations

from itertools import islice

import psutil
import psycopg
import pytest

from tests.e2e.harness import (
    Site,
    Worker,
    check_everything,
    committed_records,
    generated,
    produce,
    read_topic,
    until,
)

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]


def owners(site: Site) -> set[str]:
    with psycopg.connect(site.ledger) as db:
        try:
            query = "SELECT DISTINCT owner FROM streamproc.partitions WHERE owner IS NOT NULL"
            return {owner for (owner,) in db.execute(query)}
        except psycopg.errors.UndefinedTable:  # nobody has made the ledger yet
            return set()


def children(worker: Worker) -> list[psutil.Process]:
    return [child for child in psutil.Process(worker.process.pid).children() if "run" in child.cmdline()]


async def test_two_processes_share_the_partitions_and_drain_on_sigterm(site, start):
    worker = start("pair", "--workers", "2")
    await until(lambda: len(owners(site)) == 2, "two owners", 120, [worker])
    records = list(islice(generated(6_000, seed=5), 6_000))
    await produce(site.broker, site.topic, records)
    await until(lambda: committed_records(site.ledger) == len(records), "all committed", 120, [worker])
    assert worker.stop(90) == 0, worker.tail()
    check_everything(site, await read_topic(site.broker, site.topic))


async def test_when_one_process_is_killed_the_others_drain_and_all_of_it_ends(site, start):
    worker = start("pair", "--workers", "2")
    await until(lambda: len(owners(site)) == 2, "two owners", 120, [worker])
    first, second = children(worker)
    first.kill()
    assert worker.process.wait(90) == 137, "as one that is killed alone, for its memory mostly"
    assert not second.is_running(), "it was left behind"
    assert "worker_ended" in worker.tail()
