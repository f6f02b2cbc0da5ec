"""Everything that a real worker's port answers, while it works."""

from __future__ import annotations

import asyncio
import json
import re

import aiohttp
import psycopg
import pytest

from tests.e2e.harness import committed_records, generated, produce, until
from tests.ops.promql import unknown
from tests.ops.test_alerts import EXPRESSIONS, RULES, labels
from tests.ops.test_tracing import Collector

pytestmark = [pytest.mark.slow, pytest.mark.broker]

PORT = re.compile(r'"address": "(http://127\.0\.0\.1:\d+)"')

#: Of sources and sinks that this worker does not have.
ELSEWHERE = {
    "streamproc_lag_seconds",
    "streamproc_unpublished_notes",
    "streamproc_unpublished_oldest_seconds",
}


async def events(session: aiohttp.ClientSession, got: list[dict], there: asyncio.Event) -> None:
    async with session.get("/api/v1/events?table=page_views") as response:
        async for line in response.content:
            there.set()
            if line.startswith(b"data: "):
                got.append(json.loads(line.removeprefix(b"data: ")))


async def test_the_port_of_a_worker_at_work(site, start):
    with Collector() as collector:
        site.extra["STREAMPROC_TRACES"] = collector.url
        worker = start("one")
        await until(lambda: PORT.search(worker.log.read_text()), "it listens", 60, [worker])
        address = PORT.search(worker.log.read_text())[1]
        got: list[dict] = []
        there = asyncio.Event()
        async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(None)) as session:
            listening = asyncio.create_task(events(session, got, there))
            await asyncio.wait_for(there.wait(), 60)
            sent = await produce(site.broker, site.topic, generated(8_000, seed=21))
            await until(lambda: committed_records(site.ledger) == sent, "all committed", 90, [worker])
            await until(
                lambda: {each["epoch"] for each in got} == epochs(site.ledger), "all told", 60, [worker]
            )
            await metrics_are_those_that_alerts_and_dashboard_name(session)
            await pages_are_the_table(session, site.ledger, got)
            assert worker.stop() == 0, worker.tail()
            await asyncio.wait_for(asyncio.gather(listening, return_exceptions=True), 30)
        roots = {span.trace_id.hex() for span in collector.spans if span.name == "epoch"}
        collector.shutdown()
        collector.thread.join()
    assert roots == {each.replace("-", "") for each in epochs(site.ledger)}, "one trace for each epoch"


def epochs(ledger: str) -> set[str]:
    with psycopg.connect(ledger) as db:
        return {str(row[0]) for row in db.execute("SELECT id FROM streamproc.epochs")}


async def metrics_are_those_that_alerts_and_dashboard_name(session: aiohttp.ClientSession) -> None:
    async with session.get("/metrics") as answer:
        exposed = labels(await answer.text())
    missing = set()
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        missing |= unknown(expression, exposed)
    assert missing <= ELSEWHERE


async def pages_are_the_table(session: aiohttp.ClientSession, ledger: str, got: list[dict]) -> None:
    found, following = [], "/api/v1/tables/page_views?limit=500"
    while following:
        async with session.get(following) as answer:
            found += (await answer.json())["rows"]
            following = answer.links["next"]["url"] if "next" in answer.links else None
    with psycopg.connect(ledger) as db:
        rows = db.execute("SELECT window_start, host, path, views FROM clickstream.page_views").fetchall()
    key = [(start.strftime("%Y-%m-%dT%H:%M:%SZ"), host, path, views) for start, host, path, views in rows]
    assert sorted(key, key=repr) == sorted(
        ((row["window_start"], row["host"], row["path"], row["views"]) for row in found), key=repr
    )
    windows = {each["start"] for event in got for each in event["windows"]}
    assert windows == {start for start, *_ in key}, "each window of the table was told of"
