"""The counting workload as a Faust user writes it: one agent, two windowed tables, event time.

Tables are in memory and have no changelog traffic but Faust's own. Prints one JSON object when ``--events``
events were seen: seconds from the first to the last of them, CPU seconds, peak memory and the answer's rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from pathlib import Path

import faust
from measure import cpu_seconds, peak_rss_bytes


def options() -> argparse.Namespace:
    """Which topic of which broker, and how many events end the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    return parser.parse_args()


class Click(faust.Record, serializer="json"):
    """The fields that the workload needs; Faust drops the others."""

    event_time: int
    visitor_id: str
    page_url: str
    user_agent: str


def path_and_campaign(url: str) -> tuple[str, str | None]:
    """The two parts by hand: three times as fast as urllib, to the peer's advantage."""
    base, _, query = url.partition("?")
    at = query.find("utm_campaign=")
    campaign = query[at + 13 :].partition("&")[0] if at >= 0 else None
    return base[base.find("/", 8) :], campaign


def build(chosen: argparse.Namespace) -> faust.App:
    """The app, its tables and its agent."""
    app = faust.App(
        f"plain-faust-{uuid.uuid4().hex}",
        broker=f"kafka://{chosen.bootstrap}",
        datadir=str(chosen.directory),
        store="memory://",
        topic_partitions=4,
        topic_replication_factor=1,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        # Only how soon the group forms and ends: neither changes the speed between first and last event.
        broker_session_timeout=6.0,
        broker_rebalance_timeout=6.0,
        broker_heartbeat_interval=2.0,
        stream_wait_empty=False,
        # Faust's default is one poll of 500 records at most; more at a time is faster.
        broker_max_poll_records=5000,
    )
    clicks = app.topic(chosen.topic, value_type=Click)

    def event_time(event: faust.types.EventT) -> float:
        return float(event.value.event_time / 1000)

    views = app.Table("views", default=int, partitions=4).tumbling(60.0).relative_to(event_time)
    visitors = app.SetTable("visitors", partitions=4).tumbling(60.0).relative_to(event_time)
    seen = 0
    begin = begin_cpu = 0.0

    @app.agent(clicks)
    async def count(stream: faust.StreamT[Click]) -> None:
        nonlocal seen, begin, begin_cpu
        async for click in stream:
            if not seen:
                begin, begin_cpu = time.perf_counter(), cpu_seconds(os.getpid())
            seen += 1
            if "bot" not in click.user_agent:
                path, _campaign = path_and_campaign(click.page_url)
                views[path] += 1
                visitors[path].add(click.visitor_id)
            if seen == chosen.events:
                report()

    def report() -> None:
        result = {
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": cpu_seconds(os.getpid()) - begin_cpu,
            "peak_rss_bytes": peak_rss_bytes(os.getpid()),
            "rows": [
                [int(window[0] * 1000), path, total, len(visitors.table[(path, window)])]
                for (path, window), total in views.table.items()
            ],
        }
        sys.__stdout__.write(json.dumps(result) + "\n")  # Faust has replaced sys.stdout by a logger
        sys.__stdout__.flush()
        os._exit(0)  # the measurement is over; an orderly end of a Faust worker takes seconds

    return app


if __name__ == "__main__":
    app = build(options())
    sys.argv = [sys.argv[0], "worker", "--loglevel", "warn", "--without-web"]
    app.main()
