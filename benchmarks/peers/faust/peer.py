"""The workloads as a Faust user writes them: one agent over typed records, windowed tables by event time."""

from __future__ import annotations

import os
import sys
import uuid
from argparse import Namespace
from collections.abc import Iterable
from typing import Any

import faust
from contestant import Clock, arguments, hand_in, path_and_campaign

_HOUR_MS = 3_600_000
_GAP_MS = 1_800_000


class Click(faust.Record, serializer="json"):
    """The fields that the workloads need; Faust drops the others."""

    event_time: int
    visitor_id: str
    page_url: str
    user_agent: str


def event_time(event: faust.types.EventT) -> float:
    return float(event.value.event_time / 1000)


class MinuteCounts:
    """w1."""

    def __init__(self, app: faust.App, partitions: int) -> None:
        self.views = (
            app.Table("views", default=int, partitions=partitions).tumbling(60.0).relative_to(event_time)
        )
        self.visitors = app.SetTable("visitors", partitions=partitions).tumbling(60.0).relative_to(event_time)

    def add(self, click: Click) -> None:
        path, _campaign = path_and_campaign(click.page_url)
        self.views[path] += 1
        self.visitors[path].add(click.visitor_id)

    def rows(self) -> Iterable[tuple[Any, ...]]:
        for (path, window), views in self.views.table.items():
            yield int(window[0] * 1000), path, views, len(self.visitors.table[(path, window)])


class Sessions:
    """w3."""

    def __init__(self, app: faust.App, partitions: int) -> None:
        #: Visitor → sessions as [start, end, events]; the last one is open.
        self.sessions = app.Table("sessions", default=list, partitions=partitions)

    def add(self, click: Click) -> None:
        sessions = self.sessions[click.visitor_id]
        moment = click.event_time
        if sessions and moment - sessions[-1][1] <= _GAP_MS:
            sessions[-1][1] = moment
            sessions[-1][2] += 1
        else:
            sessions.append([moment, moment, 1])
        self.sessions[click.visitor_id] = sessions  # a table notices assignments only

    def rows(self) -> Iterable[tuple[Any, ...]]:
        for visitor, sessions in self.sessions.items():
            for session in sessions:
                yield (visitor, *session)


class VisitorHours:
    """w5."""

    def __init__(self, app: faust.App, partitions: int) -> None:
        hours = app.Table("hours", default=int, partitions=partitions)
        latest = app.Table("latest", default=int, partitions=partitions)
        self.hours = hours.tumbling(3600.0).relative_to(event_time)
        self.latest = latest.tumbling(3600.0).relative_to(event_time)

    def add(self, click: Click) -> None:
        self.hours[click.visitor_id] += 1
        latest = self.latest[click.visitor_id].value()
        self.latest[click.visitor_id] = max(latest, click.event_time)

    def rows(self) -> Iterable[tuple[Any, ...]]:
        for (visitor, window), count in self.hours.table.items():
            yield int(window[0] * 1000), visitor, count, self.latest.table[(visitor, window)]


def build(chosen: Namespace) -> faust.App:
    """The app, its tables and its agent."""
    app = faust.App(
        f"faust-{uuid.uuid4().hex}",
        broker=f"kafka://{chosen.bootstrap}",
        datadir="data",
        store="memory://",
        topic_partitions=chosen.partitions,
        topic_replication_factor=1,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        # Only how soon the group forms: it does not change the speed between first and last event.
        broker_session_timeout=6.0,
        broker_rebalance_timeout=6.0,
        broker_heartbeat_interval=2.0,
        stream_wait_empty=False,
        # Faust's default is one poll of 500 records at most; more at a time is faster.
        broker_max_poll_records=5000,
    )
    clicks = app.topic(chosen.topic, value_type=Click)
    result = {"w1": MinuteCounts, "w3": Sessions, "w5": VisitorHours}[chosen.workload](app, chosen.partitions)
    clock, seen = Clock(), 0

    @app.agent(clicks)
    async def count(stream: faust.StreamT[Click]) -> None:
        nonlocal seen
        async for click in stream:
            clock.start()
            seen += 1
            if "bot" not in click.user_agent:
                result.add(click)
            if seen == chosen.events:
                clock.stop()
                hand_in(clock, chosen.answer, result.rows())
                os._exit(0)  # an orderly end of a Faust worker takes seconds

    return app


if __name__ == "__main__":
    app = build(arguments())
    sys.argv = [sys.argv[0], "worker", "--loglevel", "warn", "--without-web"]
    app.main()
