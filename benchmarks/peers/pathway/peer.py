"""The workloads as Pathway tables: windows by event time over a topic that is read to its end."""

from __future__ import annotations

import uuid
from typing import Any

import pathway as pw
from contestant import Clock, arguments, hand_in, path_and_campaign

_MINUTE_MS = 60_000
_HOUR_MS = 3_600_000
_GAP_MS = 1_800_000

clock = Clock()


class Click(pw.Schema):
    """The fields that the workloads need."""

    event_time: int
    visitor_id: str
    page_url: str
    user_agent: str


@pw.udf(deterministic=True)
def is_human(agent: str) -> bool:
    return "bot" not in agent


@pw.udf(deterministic=True)
def path_of(url: str) -> str:
    return path_and_campaign(url)[0]


@pw.udf(deterministic=True)
def campaign_of(url: str) -> str | None:
    return path_and_campaign(url)[1]


def windows(workload: str, clicks: pw.Table) -> tuple[pw.Table, list[str]]:
    """The windows of a workload, and its columns in the order of the answer."""
    if workload == "w1":
        views = clicks.select(
            clicks.event_time,
            clicks.visitor_id,
            path=path_of(clicks.page_url),
            campaign=campaign_of(clicks.page_url),
        )
        minutes = views.windowby(
            views.event_time, window=pw.temporal.tumbling(duration=_MINUTE_MS), instance=views.path
        )
        table = minutes.reduce(
            start=pw.this._pw_window_start,
            path=pw.this._pw_instance,
            views=pw.reducers.count(),
            visitors=pw.reducers.count_distinct(pw.this.visitor_id),
            campaign=pw.reducers.max(pw.this.campaign),  # used, or the engine would not look for it
        )
        return table, ["start", "path", "views", "visitors"]
    window: Any = pw.temporal.tumbling(duration=_HOUR_MS)
    columns = ["start", "visitor", "events", "last"]
    if workload == "w3":
        window = pw.temporal.session(max_gap=_GAP_MS)
        columns = ["visitor", "first", "last", "events"]
    visits = clicks.windowby(clicks.event_time, window=window, instance=clicks.visitor_id)
    table = visits.reduce(
        start=pw.this._pw_window_start,
        visitor=pw.this._pw_instance,
        events=pw.reducers.count(),
        first=pw.reducers.min(pw.this.event_time),
        last=pw.reducers.max(pw.this.event_time),
    )
    return table, columns


def main() -> None:
    chosen = arguments()
    settings = {
        "bootstrap.servers": chosen.bootstrap,
        "group.id": f"pathway-{uuid.uuid4().hex}",
        "session.timeout.ms": "6000",
        "auto.offset.reset": "earliest",
    }
    clicks = pw.io.kafka.read(settings, topic=chosen.topic, format="json", schema=Click, mode="static")
    clicks = clicks.filter(is_human(clicks.user_agent))
    table, columns = windows(chosen.workload, clicks)
    rows: dict[Any, list[Any]] = {}

    def keep(key: Any, row: Any, time: int, is_addition: bool) -> None:
        if is_addition:
            rows[key] = [row[column] for column in columns]
        elif rows.get(key) == [row[column] for column in columns]:
            del rows[key]

    pw.io.subscribe(table, on_change=keep)
    # Its code is not told when the first event is read, and the engine may read far ahead of the first function that
    # is called: so the clock starts before the engine does, about a second early.
    clock.start()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    clock.stop()
    hand_in(clock, chosen.answer, rows.values())


if __name__ == "__main__":
    main()
