"""``streamproc run --agents``: users' own Faust agents beside the pipeline, in a real process."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaConsumer

from tests.e2e.harness import REPOSITORY, Site, committed_records, produce, until

pytestmark = pytest.mark.broker

START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=2)
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"


@pytest.fixture
def publishing(site: Site) -> Site:
    """A site whose page publishes tables, with the examples in its working folder."""
    page = site.topics / "clickstream.toml"
    text, replaced = re.subn(
        r"(?m)(?<=^\[sinks\]\n)", f'publish_tables = "{site.topic}-tables"\n', page.read_text()
    )
    assert replaced == 1
    page.write_text(text)
    shutil.copytree(REPOSITORY / "examples", site.directory / "alerting")
    site.run("topics", "apply", "--yes")
    return site


def visits(per_minute: list[int]) -> list[tuple[bytes, bytes]]:
    """Page views of one site, so many in each minute from ``START`` on."""
    found = []
    for minute, events in enumerate(per_minute):
        for number in range(events):
            visitor = f"visitor-{number}"
            event = {
                "event_id": f"{minute}-{number}",
                "event_type": "page_view",
                "event_time": int((START + timedelta(minutes=minute, seconds=number)).timestamp() * 1000),
                "visitor_id": visitor,
                "page_url": "https://shop.example/",
                "user_agent": USER_AGENT,
            }
            found.append((visitor.encode(), json.dumps(event).encode()))
    return found


async def first_alert(broker: str) -> tuple[bytes, dict]:
    consumer = AIOKafkaConsumer(
        "traffic-alerts", bootstrap_servers=broker, auto_offset_reset="earliest", metadata_max_age_ms=500
    )
    await consumer.start()
    try:
        while True:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    alert = json.loads(record.value)
                    if datetime.fromisoformat(alert["window_start"]) >= START:
                        return record.key, alert
    finally:
        await consumer.stop()


@pytest.mark.slow
async def test_a_drop_in_traffic_raises_an_alert_and_sigterm_ends_the_worker_cleanly(publishing, start):
    worker = start("only", "clickstream", "--agents", "alerting.traffic_alert")
    await until(lambda: b'"agents_started"' in worker.log.read_bytes(), "agents started", 60, [worker])
    await produce(publishing.broker, publishing.topic, visits([20] * 30 + [1] * 12))
    async with asyncio.timeout(60):
        key, alert = await first_alert(publishing.broker)
    worker.assert_running()
    assert key == b"shop.example" and alert["site"] == "shop.example"
    assert alert["events"] < alert["usual"] / 2
    dropped = START + timedelta(minutes=26)  # the first five minutes that hold the drop
    assert dropped <= datetime.fromisoformat(alert["window_start"]) < START + timedelta(minutes=42)
    assert worker.stop(30) == 0, worker.tail()
    assert b'"exception"' not in worker.log.read_bytes(), worker.tail()


FAULTY = """
def setup(app, streams):
    @app.agent(streams.rows)
    async def fail(rows):
        async for change in rows:
            raise RuntimeError("an agent's own mistake")
"""


@pytest.mark.slow
async def test_an_agent_that_raises_does_not_stop_the_pipeline(publishing, start):
    (publishing.directory / "faulty.py").write_text(FAULTY)
    worker = start("only", "clickstream", "--agents", "faulty")
    await until(lambda: b'"agents_started"' in worker.log.read_bytes(), "agents started", 60, [worker])
    first = visits([10] * 5)
    await produce(publishing.broker, publishing.topic, first)
    await until(lambda: b"an agent's own mistake" in worker.log.read_bytes(), "it failed", 60, [worker])
    await produce(publishing.broker, publishing.topic, visits([10] * 10)[len(first) :])
    await until(lambda: committed_records(publishing.ledger) == 100, "all committed", 60, [worker])
    assert worker.stop(30) == 0, worker.tail()


def test_a_module_that_is_not_there_or_cannot_be_set_up_is_a_mistake_of_the_configuration(publishing):
    missing = publishing.run("run", "clickstream", "--agents", "nowhere", check=False)
    assert missing.returncode == 2 and "nowhere" in missing.stderr
    (publishing.directory / "picky.py").write_text(
        'def setup(app, streams):\n    raise ValueError("not so")\n'
    )
    (publishing.directory / "broken.py").write_text("def setup(app, streams)\n")
    for module, problem in (("picky", "not so"), ("broken", "SyntaxError")):
        refused = publishing.run("run", "clickstream", "--agents", module, check=False)
        assert refused.returncode == 2 and problem in refused.stderr
