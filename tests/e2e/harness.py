"""Real worker processes, a plain producer and a plain reader, and the checks that must hold after any run."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import psycopg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import ConsumerRecord

from streamproc.generator import Generator
from tests.e2e import oracle

REPOSITORY = Path(__file__).parents[2]

#: Relative standard error of a HyperLogLog sketch with 2^12 registers: 1.04 / sqrt(4096) (Flajolet et al., 2007).
HLL_ERROR = 1.04 / math.sqrt(4096)


@dataclass
class Site:
    """Everything a run needs: a broker, a topic page, a database, a lake folder, a place for logs."""

    directory: Path
    broker: str
    broker_url: str
    ledger: str
    topics: Path
    stream: str = "clickstream"
    topic: str = "clickstream"
    flush_interval: str = "500ms"
    #: What the ids of partitions begin with: a part of the embedded broker's incarnation and a dot.
    partition_prefix: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def lake(self) -> Path:
        return self.directory / "lake"

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "STREAMPROC_BROKER": self.broker_url,
            "STREAMPROC_LEDGER": self.ledger,
            "STREAMPROC_LAKE": self.lake.as_uri(),
            "STREAMPROC_WAREHOUSE": self.ledger,
            "STREAMPROC_DATA_DIR": str(self.directory / "data"),
            "STREAMPROC_TOPICS": str(self.topics),
            "STREAMPROC_FLUSH_INTERVAL": self.flush_interval,
            "STREAMPROC_HEALTH": "127.0.0.1:0",
            "STREAMPROC_LOG_FORMAT": "json",
            "PYTHONWARNINGS": "error::ResourceWarning",
            **self.extra,
        }

    def run(
        self, *arguments: str, check: bool = True, patience: float = 100
    ) -> subprocess.CompletedProcess[str]:
        """A ``streamproc`` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "streamproc", *arguments],
            env=self.environment(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=patience,
            check=check,
        )

    def worker(self, name: str, *arguments: str, **more: str) -> Worker:
        """Start ``streamproc run``; its log goes to ``<name>.log``. ``more``: environment of this worker."""
        return self.start(name, "run", *arguments, **more)

    def start(self, name: str, *arguments: str, **more: str) -> Worker:
        """The same with another command that works on until it is done."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("streamproc")), *arguments],
                env=self.environment() | {"STREAMPROC_WORKER": name} | more,
                cwd=self.directory,
                stdout=output,
                stderr=output,
            )
        return Worker(name, process, log)


@dataclass
class Worker:
    """A running ``streamproc run``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, deadline: float = 40) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline)

    def assert_running(self) -> None:
        assert self.process.poll() is None, (
            f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"
        )

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def generated(events: int, seed: int, bad_ratio: float = 0.02) -> Iterator[tuple[bytes, bytes | None]]:
    """Generated records with their keys, but for those that a broker with default settings would refuse."""
    for record in Generator(seed=seed, events=events, bad_ratio=bad_ratio).records():
        if record.value is None or len(record.value) < 900_000:
            yield record.key, record.value


async def produce(
    broker: str, topic: str, records: Iterable[tuple[bytes, bytes | None]], *, flush_every: int = 20_000
) -> int:
    """Send records keyed as given, spread by Kafka's own partitioner; returns how many."""
    producer = AIOKafkaProducer(
        bootstrap_servers=broker, compression_type="lz4", linger_ms=20, max_batch_size=262_144
    )
    await producer.start()
    sent = 0
    try:
        for key, value in records:
            await producer.send(topic, value, key=key)
            sent += 1
            if sent % flush_every == 0:
                await producer.flush()
        await producer.flush()
    finally:
        await producer.stop()
    return sent


async def read_topic(broker: str, topic: str) -> dict[tuple[str, int], bytes | None]:
    """Everything in the topic, by (partition, offset), read by a consumer without a group."""
    return {at: record.value for at, record in (await read_records(broker, topic)).items()}


async def read_records(broker: str, topic: str) -> dict[tuple[str, int], ConsumerRecord]:
    """As :func:`read_topic`, with keys and timestamps."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await consumer.start()
    found: dict[tuple[str, int], ConsumerRecord] = {}
    try:
        await admin.start()
        (described,) = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, p["partition"]) for p in described["partitions"]]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        behind, fetched = True, {}
        # The embedded broker gives the newest batch's first offset as the end: read until nothing more comes.
        while behind or fetched:
            fetched = await consumer.getmany(timeout_ms=500)
            for record in itertools.chain.from_iterable(fetched.values()):
                found[str(record.partition), record.offset] = record
            behind = any([await consumer.position(p) < ends[p] for p in partitions])
    finally:
        await consumer.stop()
        await admin.close()
    return found


async def until(condition, what: str, deadline: float = 60, workers: Iterable[Worker] = ()) -> None:
    """Poll until ``condition()`` holds. Fails early when a worker has ended."""
    end = time.monotonic() + deadline
    while not condition():
        for worker in workers:
            worker.assert_running()
        if time.monotonic() > end:
            tails = "\n".join(f"--- {w.name}\n{w.tail()}" for w in workers)
            raise AssertionError(f"not within {deadline} s: {what}\n{tails}")
        await asyncio.sleep(0.1)


def committed_records(ledger: str, stream: str = "clickstream") -> int:
    """Records that the ledger says are committed."""
    with psycopg.connect(ledger) as db:
        exists = db.execute("select to_regclass('streamproc.partitions')").fetchone()
        if exists is None or exists[0] is None:
            return 0
        row = db.execute(
            "select coalesce(sum(records), 0) from streamproc.partitions where stream = %s", [stream]
        )
        return int(row.fetchone()[0])


def owners_of_partitions(ledger: str) -> set[str]:
    """Workers that hold claims now."""
    with psycopg.connect(ledger) as db:
        exists = db.execute("select to_regclass('streamproc.partitions')").fetchone()
        if exists is None or exists[0] is None:
            return set()
        rows = db.execute("select distinct owner from streamproc.partitions where owner is not null")
        return {owner for (owner,) in rows}


def settled_files(
    db: psycopg.Connection, lake: Path, kind: str = "events", stream: str | None = None
) -> list[Path]:
    """The lake's committed objects; each is there with its recorded size and checksum."""
    rows = db.execute(
        "select key, size, checksum from streamproc.objects where state = 'committed' and kind = %s"
        " and stream = coalesce(%s, stream) order by key",
        [kind, stream],
    ).fetchall()
    files = []
    for key, size, checksum in rows:
        path = lake / key
        body = path.read_bytes()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (size, checksum), key
        files.append(path)
    return files


def check_everything(site: Site, topic: dict[tuple[str, int], bytes | None]) -> None:
    """What must hold after any run in which every record of the topic was committed."""
    topic = {(site.partition_prefix + number, offset): value for (number, offset), value in topic.items()}
    with psycopg.connect(site.ledger) as db:
        check_ranges(db, topic, site.stream)
        files = settled_files(db, site.lake, stream=site.stream)
        lake = (
            duckdb.connect()
            .execute(
                "select source_partition, position, event_id from read_parquet(?)", [[str(f) for f in files]]
            )
            .fetchall()
        )
        coordinates = Counter((p, n) for p, n, _ in lake)
        assert max(coordinates.values()) == 1, "a position is in the lake twice"
        counts = db.execute(
            "select sum(records), sum(accepted), sum(filtered), sum(rejected), sum(duplicate)"
            " from streamproc.partitions where stream = %s",
            [site.stream],
        ).fetchone()
        records, accepted, filtered, rejected, duplicate = map(int, counts)
        assert records == len(topic) == accepted + filtered + rejected + duplicate
        assert len(lake) == accepted
        refused = settled_files(db, site.lake, "rejects", site.stream)
        check_against_topic(refused, topic, set(coordinates), (filtered, rejected, duplicate))
        check_tables(db, oracle.expect(files), site.stream)


def check_ranges(db: psycopg.Connection, topic: dict[tuple[str, int], bytes | None], stream: str) -> None:
    """Each partition's ranges follow one another without gap or overlap and end at its last record."""
    last = {}
    for partition, offset in topic:
        last[partition] = max(last.get(partition, -1), offset)
    ranges: dict[str, list[tuple[int | None, int]]] = {}
    for partition, after, through in db.execute(
        "select partition, after, through from streamproc.epoch_ranges join streamproc.epochs on id = epoch"
        " where stream = %s order by partition, through",
        [stream],
    ):
        ranges.setdefault(partition, []).append((None if after is None else int(after), int(through)))
    for partition, offset in last.items():
        chain = ranges[partition]
        assert chain[0][0] in (None, -1)
        for (_, through), (after, _) in itertools.pairwise(chain):
            assert after == through, f"partition {partition}: {after} does not follow {through}"
        assert chain[-1][1] == offset


def check_against_topic(
    files: list[Path],
    topic: dict[tuple[str, int], bytes | None],
    in_lake: set[tuple[str, int]],
    others: tuple[int, int, int],
) -> None:
    """The lake holds the records that an independent judge accepts, but for filtered ones and duplicates."""
    filtered, rejected, duplicate = others
    usable = {c for c, value in topic.items() if oracle.usable(value) is not None}
    refused = (
        duckdb.connect()
        .execute(
            "select source_partition, position, original, reason from read_parquet(?)",
            [[str(f) for f in files]],
        )
        .fetchall()
        if files
        else []
    )
    wrongly = [(reason, original) for p, n, original, reason in refused if (p, n) in usable]
    assert not wrongly, f"{len(wrongly)} good records were refused: {wrongly[:3]}"
    accepted = [topic[c] for c in set(topic) - usable - {(p, n) for p, n, _, _ in refused}]
    assert not accepted, f"{len(accepted)} bad records were not refused: {accepted[:3]}"
    assert len(refused) == rejected
    assert in_lake <= usable
    assert len(usable) - len(in_lake) == filtered + duplicate
    for partition, position, original, reason in refused:
        assert original == topic[partition, position], (partition, position, reason)
        assert reason


def _rows(db: psycopg.Connection, sql: str, keys: int) -> dict:
    rows = db.execute(sql).fetchall()
    out = {row[:keys]: row[keys:] for row in rows}
    assert len(out) == len(rows)
    return out


#: Rows of a table whose small distinct count may be one short. A small sketch lists its values as hashes of 26
#: bits, so of 114 visitors two are the same with a probability of 1e-4 (n^2 / 2^27), and the crash bench has
#: met such a pair. It is one short in each of the five windows that both are in, and in the day's or hour's row.
_PAIRS_OF_ONE_HASH = 10


def _near(estimate: int, exact: int) -> bool:
    """Within four standard errors; while the sketch still lists its values, exact or one short."""
    if exact < 200:
        return estimate == exact or (estimate == exact - 1 and exact > 1)
    return abs(estimate - exact) <= max(1, 4 * HLL_ERROR * exact)


def check_tables(db: psycopg.Connection, expected: oracle.Expected, schema: str) -> None:
    """Every table equals the oracle's, row for row; distinct counts within four standard errors."""
    db.execute("set timezone = 'UTC'")
    for table, sql, keys, wanted in (
        ("page_views", "window_start, host, path, views, visitors", 3, expected.page_views),
        ("site_activity", "window_start, host, events, page_views, visitors", 2, expected.site_activity),
        (
            "traffic_sources",
            "window_start, host, referrer_medium, referrer_source, utm_source, utm_medium, utm_campaign, views,"
            " visitors",
            7,
            expected.traffic_sources,
        ),
        ("audience", "window_start, country, device_class, events, visitors, revenue", 3, expected.audience),
    ):
        got = _rows(db, f"select {sql} from {schema}.{table}", keys)
        assert got.keys() == wanted.keys(), f"{table}: {_difference(got, wanted)}"
        names = sql.split(", ")[keys:]
        short = 0
        for key, row in got.items():
            for name, value, exact in zip(names, row, wanted[key], strict=True):
                if name == "visitors":
                    assert _near(value, exact), (table, key, value, exact)
                    short += value < exact < 200
                elif isinstance(exact, float):
                    assert value is not None and math.isclose(value, exact, rel_tol=1e-9), (
                        table,
                        key,
                        name,
                        value,
                        exact,
                    )
                else:
                    assert value == exact, (table, key, name, value, exact)
        assert short <= _PAIRS_OF_ONE_HASH, f"{table}: {short} rows are a visitor short"
    got = _rows(
        db,
        "select visitor_id, session_start, session_end, events, pages, landing_page, exit_page, host, utm_campaign,"
        f" referrer_medium, referrer_source, revenue from {schema}.sessions",
        2,
    )
    assert got.keys() == expected.sessions.keys(), f"sessions: {_difference(got, expected.sessions)}"
    for key, (*row, revenue) in got.items():
        *wanted_row, wanted_revenue = expected.sessions[key]
        assert row == wanted_row, ("sessions", key, row, wanted_row)
        assert (revenue is None) == (wanted_revenue is None), key
        assert revenue is None or math.isclose(revenue, wanted_revenue, rel_tol=1e-9), key
    steps = ", ".join(f"checkout_{step}_at" for step in oracle.FUNNEL)
    got = _rows(
        db,
        f"select visitor_id, session_start, events, checkout_step, {steps} from {schema}.checkout_funnel",
        2,
    )
    assert got == expected.funnel, f"checkout_funnel: {_difference(got, expected.funnel)}"


def _difference(got: dict, wanted: dict) -> str:
    missing, extra = (
        sorted(wanted.keys() - got.keys(), key=repr),
        sorted(got.keys() - wanted.keys(), key=repr),
    )
    other = [(k, got[k], wanted[k]) for k in got.keys() & wanted.keys() if got[k] != wanted[k]]
    return f"{len(missing)} missing {missing[:3]}, {len(extra)} extra {extra[:3]}, {len(other)} differ {other[:3]}"
