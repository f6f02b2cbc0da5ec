"""``streamproc run`` as a user runs it: real processes, broker, PostgreSQL and lake folder."""

from __future__ import annotations

import json
import re

import aiohttp
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from tests.e2e.harness import (
    Worker,
    check_everything,
    committed_records,
    generated,
    owners_of_partitions,
    produce,
    read_topic,
    until,
)

pytestmark = pytest.mark.broker


async def test_two_workers_share_a_topic_and_everything_is_accounted_for(site, start):
    workers = [start("one"), start("two")]
    await until(
        lambda: owners_of_partitions(site.ledger) == {"one", "two"}, "both have partitions", 60, workers
    )
    sent = await produce(site.broker, site.topic, generated(40_000, seed=11))
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 90, workers)
    assert [worker.stop() for worker in workers] == [0, 0], workers[0].tail() + workers[1].tail()
    check_everything(site, await read_topic(site.broker, site.topic))
    with psycopg.connect(site.ledger) as db:
        owners = {row[0] for row in db.execute("select distinct worker from streamproc.epochs")}
        assert owners == {"one", "two"}, "one worker did all the work"
        assert db.execute(
            "select count(*) from streamproc.partitions where owner is not null"
        ).fetchone() == (0,)


@pytest.mark.slow
async def test_a_worker_that_is_stopped_and_started_goes_on_where_it_was(site, start):
    first = start("first")
    sent = await produce(site.broker, site.topic, generated(10_000, seed=12))
    await until(lambda: committed_records(site.ledger) > 0, "something committed", 60, [first])
    assert first.stop() == 0, first.tail()
    sent += await produce(site.broker, site.topic, generated(10_000, seed=13))
    second = start("second")
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 60, [second])
    assert second.stop() == 0, second.tail()
    check_everything(site, await read_topic(site.broker, site.topic))


async def test_the_workers_port_counts_what_the_ledger_counts(site, start):
    worker = start("one")
    sent = await produce(site.broker, site.topic, generated(10_000, seed=14))
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 60, [worker])
    with psycopg.connect(site.ledger) as db:
        columns = "sum(accepted), sum(filtered), sum(rejected), sum(duplicate), max(position)"
        *ledger, furthest = db.execute(f"select {columns} from streamproc.partitions").fetchone()
    address = re.search(r"http://127\.0\.0\.1:\d+", worker.log.read_text()).group()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{address}/metrics") as answer:
            families = {family.name: family for family in parse_metrics(await answer.text())}
        async with http.get(f"{address}/api/v1/status") as answer:
            [status] = (await answer.json())["workers"]
    outcomes: dict[str, float] = {}
    for sample in families["streamproc_records"].samples:
        if sample.name.endswith("_total"):
            outcome = sample.labels["outcome"]
            outcomes[outcome] = outcomes.get(outcome, 0) + sample.value
    assert [outcomes[name] for name in ("accepted", "filtered", "rejected", "duplicate")] == ledger
    assert sum(sample.value for sample in families["streamproc_lag_records"].samples) == 0
    positions = [sample.value for sample in families["streamproc_committed_position"].samples]
    assert max(positions) == furthest
    assert status["ready"] and status["records"] == sent
    assert {part["lag"] for part in status["partitions"]} == {0}
    assert worker.stop() == 0, worker.tail()


async def test_a_worker_waits_for_a_database_that_is_not_there_and_says_so(site, start):
    site.extra["STREAMPROC_LEDGER"] = "postgresql://nobody@127.0.0.1:1/nothing"
    worker = start("early")
    await until(lambda: lines(worker, "waiting_for_endpoint"), "the log says what it waits for", 30, [worker])
    assert lines(worker, "waiting_for_endpoint")[0]["endpoint"] == "ledger"
    address = re.search(r"http://127\.0\.0\.1:\d+", worker.log.read_text()).group()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{address}/readyz") as answer:
            assert answer.status == 503
            assert "ledger" in (await answer.json())["reason"]
        async with http.get(f"{address}/livez") as answer:
            assert answer.status == 200
    assert worker.stop() == 0


async def test_a_worker_that_waits_for_its_broker_ends_when_it_is_told_to(site, start):
    site.extra["STREAMPROC_BROKER"] = "kafka://127.0.0.1:1"
    worker = start("early")
    await until(lambda: lines(worker, "waiting_for_endpoint"), "the log says what it waits for", 60, [worker])
    assert {line["endpoint"] for line in lines(worker, "waiting_for_endpoint")} == {"broker"}
    assert worker.stop() == 0, worker.tail()


@pytest.mark.slow
async def test_a_worker_that_starts_while_the_warehouse_is_away_works_without_it(site, start):
    site.extra["STREAMPROC_WAREHOUSE"] = "postgresql://nobody@127.0.0.1:1/nothing"
    worker = start("one")
    sent = await produce(site.broker, site.topic, generated(2_000, seed=15))
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 90, [worker])
    assert "warehouse" in {line["endpoint"] for line in lines(worker, "waiting_for_endpoint")}
    await until(
        lambda: "load" in {line["work"] for line in lines(worker, "upkeep_failed")},
        "it tries to load what is committed",
        30,
        [worker],
    )
    address = re.search(r"http://127\.0\.0\.1:\d+", worker.log.read_text()).group()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{address}/readyz") as answer:
            assert answer.status == 200
        async with http.get(f"{address}/metrics") as answer:
            families = {family.name: family for family in parse_metrics(await answer.text())}
    up = {sample.labels["sink"]: sample.value for sample in families["streamproc_sink_up"].samples}
    assert up == {"summaries": 1, "lake": 1, "warehouse": 0}
    assert worker.stop() == 0, worker.tail()


def lines(worker: Worker, message: str) -> list[dict]:
    """What the worker's log says under that name."""
    whole = worker.log.read_text().rpartition("\n")[0]
    told = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [line for line in told if line.get("message") == message]
