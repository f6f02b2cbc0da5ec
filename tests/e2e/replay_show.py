"""Replay shown at size: ``python -m tests.e2e.replay_show --events 2000000``, or ``make replay-show``.

A live service has processed records with a bug in an enrichment: links of a site to its own pages count as
foreign referrers. The page is corrected, the service restarted, and while it goes on with new traffic the
records are replayed, compared and promoted. What is checked shares no code with the service:

* every table equals the oracle's before and after (:mod:`tests.e2e.oracle`, from the lake's files);
* the lake's rows that a replay changed are those whose raw record links to its own site, judged with
  ``json`` and ``urllib``, and they changed in the referrer's columns only;
* ``replay diff`` names exactly the table rows that the oracle finds different between the two lakes;
* readers that look all the time see old or new;
* the second promotion changes nothing.

The age of the oldest record that live has not committed is looked at twice a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from streamproc.embedded.broker import start_broker
from streamproc.embedded.postgres import start_postgres
from streamproc.generator import Generator, Record
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer
from streamproc.topology import Topic
from tests.e2e import oracle
from tests.e2e.harness import (
    REPOSITORY,
    Site,
    Worker,
    check_everything,
    committed_records,
    read_topic,
    settled_files,
    until,
)
from tests.e2e.replays import (
    ALL_ROWS,
    TABLES,
    altered_rows,
    check_warehouse,
    command,
    coordinates,
    digest,
    expected_differences,
    links_to_itself,
    named_differences,
    superseded_files,
    watched,
)

#: The correct line of the shipped page that the bug takes away.
CORRECT = 'page = "page_url"'

#: The phase in which this module computes.
CHECKS = "checks of the test"

#: Records sent at once; and what a broker with default settings would refuse is left out.
_AT_ONCE = 5_000
_LARGEST = 900_000


@dataclass
class Lag:
    """Sends records at a steady rate and looks how far live is behind them: records, and seconds of the oldest."""

    site: Site
    source: Iterator[Record]
    sent: int
    rate: int
    phase: str = "before"
    seen: list[tuple[float, str, int, float]] = field(default_factory=list)

    async def __aenter__(self) -> Lag:
        self._began = time.monotonic()
        self._marks = [(self._began, self.sent)]
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._flow()), asyncio.create_task(self._look())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _flow(self) -> None:
        first, begun = self.sent, time.monotonic()
        async with KafkaProducer(KafkaConnection(self.site.broker, embedded=True)) as producer:
            while not self._stop.is_set():
                if (
                    self.phase == CHECKS
                ):  # as long as they take: no traffic, or it would be more than the range
                    first, begun = self.sent, time.monotonic()
                due = first + (time.monotonic() - begun) * self.rate
                while self.sent < due:
                    count = max(1, self.rate // 20)
                    self.sent += await publish(producer, self.site.topic, self.source, count)
                    self._marks.append((time.monotonic(), self.sent))
                await asyncio.sleep(0.02)

    async def _look(self) -> None:
        while not self._stop.is_set():
            committed = await asyncio.to_thread(committed_records, self.site.ledger)
            now = time.monotonic()
            while len(self._marks) > 1 and self._marks[0][1] <= committed:
                self._marks.pop(0)
            at, through = self._marks[0]
            behind = max(0, self.sent - committed)
            self.seen.append(
                (now - self._began, self.phase, behind, now - at if through > committed else 0.0)
            )
            await asyncio.sleep(0.5)

    def report(self) -> dict[str, dict[str, float]]:
        """By phase: seconds it took, and the lag's median and maximum."""
        found = {}
        for phase in dict.fromkeys(phase for _, phase, _, _ in self.seen if phase != CHECKS):
            rows = [row for row in self.seen if row[1] == phase]
            ages = sorted(row[3] for row in rows)
            found[phase] = {
                "seconds": round(rows[-1][0] - rows[0][0], 1),
                "lag_median_s": round(ages[len(ages) // 2], 2),
                "lag_max_s": round(ages[-1], 2),
                "lag_max_records": max(row[2] for row in rows),
            }
        return found

    def by_time(self, step: float = 5.0) -> list[str]:
        """The largest age every ``step`` seconds, with the phase it began in."""
        found: dict[int, tuple[str, float]] = {}
        for at, phase, _, age in self.seen:
            first, largest = found.get(int(at // step), (phase, 0.0))
            found[int(at // step)] = first, max(largest, age)
        return [f"{slot * step:.0f} s, {phase}: {age:.1f} s" for slot, (phase, age) in found.items()]


async def publish(producer: KafkaProducer, topic: str, records: Iterator[Record], count: int) -> int:
    """Send the next ``count`` records; returns their number when the broker has them."""
    keys, values = zip(*itertools.islice(records, count), strict=True)
    await producer.publish(topic, values, keys)
    return len(values)


async def read_and_check(site: Site) -> dict[tuple[str, int], bytes | None]:
    """The whole topic, after everything in lake and tables was checked against it."""
    topic = await read_topic(site.broker, site.topic)
    await asyncio.to_thread(check_everything, site, topic)
    return topic


async def show(site: Site, live: list[Worker], events: int, rate: int, workers: int) -> dict[str, object]:
    """All of it; returns the figures. Workers that it starts stand in ``live``; whoever calls ends them."""
    figures: dict[str, object] = {"events": events, "live_records_a_second": rate, "replay_workers": workers}
    page = site.topics / "clickstream.toml"
    right = page.read_text()
    assert right.count(CORRECT) == 1
    page.write_text(right.replace(CORRECT, ""))
    live[:] = [site.worker("with-the-bug")]
    # Half a day of event time, of which the first hour is over long before the end.
    generator = Generator(seed=11, events=10**9, bad_ratio=0.01, rate=max(1, events // 40_000))
    records = (record for record in generator.records() if len(record.value or b"") < _LARGEST)
    sent, begun = 0, time.monotonic()
    async with KafkaProducer(KafkaConnection(site.broker, embedded=True)) as producer:
        while sent < events:
            sent += await publish(producer, site.topic, records, min(_AT_ONCE, events - sent))
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 1200, live)
    figures["live_processed_a_second"] = round(sent / (time.monotonic() - begun))
    assert live[0].stop() == 0
    page.write_text(right)
    topic = await read_and_check(site)
    figures["tables_before"] = "equal the oracle's"

    live[:] = [site.worker("corrected")]
    async with Lag(site, records, sent, rate) as lag:
        await until(lambda: committed_records(site.ledger) > sent, "live goes on", 60, live)
        lag.phase, begun = "live alone", lag.sent
        await until(lambda: committed_records(site.ledger) > begun + 10 * rate, "a baseline", 120, live)
        lag.phase, begun = "replay", time.monotonic()
        done = await command(
            site, "--from", "earliest", "--into", "fix", "--workers", str(workers), patience=1200
        )
        seconds = time.monotonic() - begun
        assert (done["state"], done["left"]) == ("complete", 0)
        assert lag.sent > done["positions"] >= events, "nothing flowed beside the replay"
        figures["replayed"] = done["positions"]
        figures["replayed_a_second"] = round(done["positions"] / seconds)
        lag.phase, begun = "diff", time.monotonic()
        difference = await command(site, "diff", "fix", *ALL_ROWS, patience=1200)
        figures["diff_seconds"] = round(time.monotonic() - begun, 1)
        lag.phase = CHECKS
        old = superseded_files(site, "fix")
        figures.update(await asyncio.to_thread(check_difference, site, difference, topic))
        lag.phase, begun = "promote", time.monotonic()
        async with watched(site, *seen_by_readers(site, old)) as seen:
            answer = await command(site, "promote", "fix", "--yes", patience=1200)
            figures["promote_seconds"] = round(time.monotonic() - begun, 1)
        assert answer == {"replay": "fix", "promoted": True}
        figures["readers_saw"] = [sorted(answers) for answers in seen]
        assert [len(answers) for answers in seen] == [2, 2], "neither old nor new"
        lag.phase, promoted = "after", committed_records(site.ledger)
        await until(lambda: committed_records(site.ledger) > promoted + rate, "live goes on", 60, live)
    figures["lag"], figures["lag_by_time"] = lag.report(), lag.by_time()
    await until(lambda: committed_records(site.ledger) == lag.sent, "all committed", 120, live)
    assert live[0].stop() == 0, live[0].tail()
    site.run("warehouse", "load")
    await read_and_check(site)
    await asyncio.to_thread(check_warehouse, site)
    figures["tables_after"] = "equal the oracle's"

    before = digest(site)
    assert await command(site, "promote", "fix", "--yes") == {"replay": "fix", "promoted": False}
    assert digest(site) == before
    figures["second_promote"] = "changed nothing"
    return figures


def seen_by_readers(site: Site, old: list[Path]) -> list[str]:
    """What one statement sees of the first hour and of a part of the range, old or new: in the ledger's
    database whether the old objects are listed, and page views that come from the site itself; in the
    warehouse the events of a partition's first positions, and those among them."""
    key = old[0].relative_to(site.lake)
    hour = f"(select min(window_start) from {site.stream}.traffic_sources)"
    return [
        f"select (select state from streamproc.objects where key = '{key}'), (select coalesce(sum(views), 0)::text"
        f" from {site.stream}.traffic_sources where window_start = {hour} and referrer_medium = 'internal')",
        f"select count(*), count(*) filter (where referrer_medium = 'internal') from warehouse.{site.stream}"
        f" where source_partition = '{site.partition_prefix}0' and position < 5000",
    ]


def check_difference(
    site: Site, difference: dict[str, Any], topic: dict[tuple[str, int], bytes | None]
) -> dict[str, object]:
    """What the diff names, what the oracle says of the two lakes, and what the raw records say of the bug."""
    with psycopg.connect(site.ledger) as db:
        new = settled_files(db, site.lake, stream=f"{site.stream}__replay_fix")
    changed, elsewhere = altered_rows(superseded_files(site, "fix"), new)
    assert elsewhere == 0, f"{elsewhere} rows differ in more than the referrer"
    usable = ((at, oracle.usable(value)) for at, value in topic.items())
    broken = {
        (site.partition_prefix + number, offset)
        for (number, offset), event in usable
        if event is not None and links_to_itself(event)
    }
    accepted = coordinates(new)
    assert changed == broken & accepted, "other events than those that link to their own site"
    expected = expected_differences(site, "fix", difference["as_of"])
    named = named_differences(difference)
    for table in TABLES:
        assert named[table] == expected[table], (table, sorted(named[table] ^ expected[table])[:5])
    assert expected["traffic_sources"] and expected["sessions"]
    return {
        "events_the_bug_broke": len(broken & accepted),
        "lake_rows_that_changed": len(changed),
        "table_rows_the_oracle_finds_different": {table: len(rows) for table, rows in expected.items()},
        "table_rows_the_diff_names": {table: len(rows) for table, rows in named.items()},
    }


async def main(events: int, rate: int, workers: int) -> dict[str, object]:
    """On servers and in a folder of its own; an epoch is committed every second."""
    with tempfile.TemporaryDirectory(prefix="streamproc-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        topics = directory / "topics"
        topics.mkdir()
        shutil.copy(REPOSITORY / "topics" / "clickstream.toml", topics)
        with (
            start_broker(directory / "data" / "broker") as broker,
            start_postgres(directory / "postgres") as postgres,
        ):
            async with admin(KafkaConnection(broker.bootstrap, embedded=True)) as kafka:
                await kafka.apply(Topic("clickstream", partitions=4))
            site = Site(
                directory=directory,
                broker=broker.bootstrap,
                broker_url="embedded:",
                ledger=postgres.url,
                topics=topics,
                flush_interval="1s",
                partition_prefix=f"{broker.incarnation[:8]}.",
            )
            live: list[Worker] = []
            try:
                return await show(site, live, events, rate, workers)
            finally:
                for worker in live:
                    worker.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.replay_show", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="records of the range")
    parser.add_argument("--rate", type=int, default=1000, help="live records a second meanwhile")
    parser.add_argument("--workers", type=int, default=2, help="processes of the replay")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(main(options.events, options.rate, options.workers)), indent=2))
