#!/usr/bin/env python
"""Kinesis: what reading costs, and what the local server allows.

``decode``: CPU of an answer of GetRecords of 10,000 records, as botocore reads it and as streamproc does.
``local``: records a second that kinesis-local takes, gives to a reader that does nothing with them (its own
ceiling), and that a worker commits from it, with the CPU seconds of each side. Needs Node 18 and npm.

Run it as a module of the project: ``.venv/bin/python -m benchmarks.kinesis [decode|local] [--events N]``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import botocore.parsers
import botocore.session
import orjson
import psutil
import psycopg

from streamproc.embedded.postgres import start_postgres
from streamproc.generator import Generator
from streamproc.leases import Mark
from streamproc.sources.kinesis_client import KinesisClient, connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_produce import KinesisProducer
from streamproc.sources.kinesis_records import ALL_KEYS, decode_page, pack, runs
from tests.support.kinesis_local import KinesisLocal

ROOT = Path(__file__).resolve().parents[1]
RECORDS = 10_000
REGION = "us-east-1"
STREAM = "clickstream"
SHARDS = 4

_COMMITTED = """
    SELECT extract(epoch FROM max(committed_at) - min(started_at))::float8, coalesce(sum(records), 0)::bigint
    FROM streamproc.epochs JOIN streamproc.epoch_ranges ON epoch = id
"""


def decode() -> None:
    """Compare the two ways to read an answer, in turns."""
    events = [record.value or b"" for record in Generator(seed=1, events=RECORDS).records()]
    hundreds = [events[first : first + 100] for first in range(0, RECORDS, 100)]
    packed = [pack([(b"visitor", event) for event in some]) for some in hundreds]
    model = botocore.session.get_session().get_service_model("kinesis")
    shape = model.operation_model("GetRecords").output_shape
    parser = botocore.parsers.create_parser("json")
    for name, data in (("one by one", events), ("packed by 100", packed)):
        body = _answer(data)
        answer = {"status_code": 200, "headers": {}, "body": body}
        theirs, ours = [], []
        for _ in range(5):
            theirs.append(_cpu(lambda answer=answer: parser.parse(answer, shape)))
            ours.append(_cpu(lambda body=body: list(runs(decode_page(body), ALL_KEYS))))
        print(
            f"{RECORDS} records, {name}, {len(body) / 1e6:.1f} MB: botocore {statistics.median(theirs):.0f} ms CPU"
            f" (packed ones stay so), streamproc {statistics.median(ours):.0f} ms CPU"
        )


def _answer(data: list[bytes]) -> bytes:
    first = 49590338271490256608559692538361571095921575989136588898
    records = [
        {
            "Data": base64.b64encode(each).decode(),
            "SequenceNumber": str(first + number),
            "PartitionKey": f"visitor-{number}",
            "ApproximateArrivalTimestamp": 1.7e9 + number / 5000,
        }
        for number, each in enumerate(data)
    ]
    return orjson.dumps({"Records": records, "MillisBehindLatest": 0, "NextShardIterator": "x"})


def _cpu(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1000


class Server:
    """The local server, and what it has spent since it was last asked."""

    def __init__(self, local: KinesisLocal) -> None:
        self.connection = KinesisConnection(REGION, local.url)
        self._process = psutil.Process(local.pid)
        self._spent = 0.0

    def cpu(self) -> float:
        """Seconds since the last call."""
        times = self._process.cpu_times()
        before, self._spent = self._spent, times.user + times.system
        return self._spent - before


async def fill(server: Server, events: int) -> None:
    """Make the stream and put the events, packed."""
    async with connected(server.connection) as client:
        await client.call("create_stream", StreamName=STREAM, ShardCount=SHARDS)
        while (await client.summary(STREAM)).status != "ACTIVE":  # noqa: ASYNC110 - remote
            await asyncio.sleep(0.05)
    async with KinesisProducer(server.connection) as producer:
        for chunk in Generator(seed=1, events=events).batches(2000):
            await producer.send(STREAM, [value for _, value in chunk], [key for key, _ in chunk])


async def drain(server: Server, events: int) -> None:
    """Read everything, without any pause, and do nothing with it."""
    async with connected(server.connection) as client:
        shards = await client.shards(STREAM)
        counts = await asyncio.gather(*(_drain(client, name, events) for name in shards))
        assert sum(counts) == events


async def _drain(client: KinesisClient, shard: str, events: int) -> int:
    keys = (await client.shards(STREAM))[shard].keys
    place, count = await client.iterator(STREAM, shard, Mark(-1)), 0
    while True:
        page = await client.page(place, 10_000)
        count += sum(len(run.values) for run in runs(page, keys))
        if page.iterator is None or not len(page):
            return count
        place = page.iterator


def work(server: Server, events: int, directory: Path) -> None:
    """Let a worker commit everything."""
    with start_postgres(directory / "postgres", durable=False) as postgres:
        environment = {
            **os.environ,
            "STREAMPROC_BROKER": f"kinesis://{REGION}",
            "STREAMPROC_KINESIS_ENDPOINT_URL": str(server.connection.endpoint_url),
            "STREAMPROC_LEDGER": postgres.url,
            "STREAMPROC_LAKE": (directory / "lake").as_uri(),
            "STREAMPROC_WAREHOUSE": "none",
            "STREAMPROC_HEALTH": "127.0.0.1:0",
            "STREAMPROC_LOG_LEVEL": "warning",
            "STREAMPROC_TOPICS": str(ROOT / "topics"),
        }
        command = [sys.executable, "-m", "streamproc", "run", STREAM]
        worker = subprocess.Popen(command, env=environment, cwd=directory)
        at_work, done, seconds = psutil.Process(worker.pid), 0, 0.0
        with psycopg.connect(postgres.url, autocommit=True) as db:
            while done < events:
                time.sleep(0.5)
                assert worker.poll() is None, "the worker ended"
                there = db.execute("SELECT to_regclass('streamproc.shards')").fetchone()
                if there is not None and there[0] is not None:
                    seconds, done = db.execute(_COMMITTED).fetchone() or (0.0, 0)
        spent = at_work.cpu_times()
        worker.terminate()
        worker.wait(60)
    print(
        f"committed by a worker: {events / seconds:.0f} records a second in {seconds:.1f} s;"
        f" server {server.cpu():.1f} s CPU, worker {spent.user + spent.system:.1f} s CPU, its start included"
    )


def local(events: int) -> None:
    """The local server's own ceiling, and a worker's throughput on it."""
    with tempfile.TemporaryDirectory(prefix="streamproc-") as folder, KinesisLocal(Path(folder)) as running:
        os.environ.update(running.environment)
        server = Server(running)
        for what, step in (("put, packed", fill), ("read, nothing done", drain)):
            server.cpu()
            begin, mine = time.monotonic(), time.process_time()
            asyncio.run(step(server, events))
            seconds, mine = time.monotonic() - begin, time.process_time() - mine
            print(
                f"{what}: {events / seconds:.0f} records a second in {seconds:.1f} s;"
                f" server {server.cpu():.1f} s CPU, client {mine:.1f} s CPU"
            )
        work(server, events, Path(folder))


def main() -> None:
    """Run what was asked for, or both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["decode", "local"])
    parser.add_argument("--events", type=int, default=100_000, help="for local")
    options = parser.parse_args()
    if options.what in {None, "decode"}:
        decode()
    if options.what in {None, "local"}:
        local(options.events)


if __name__ == "__main__":
    main()
