"""The workloads as a Quix Streams application: windows by event time, state in RocksDB and its changelog topics."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from contestant import Clock, arguments, hand_in, path_and_campaign
from quixstreams import Application, State
from quixstreams.dataframe import StreamingDataFrame
from quixstreams.dataframe.windows import Count, Max, Min

_MINUTE_MS = 60_000
_GRACE = timedelta(hours=1)


def with_path(event: Any) -> Any:
    """What w1 needs of an event."""
    path, campaign = path_and_campaign(event["page_url"])
    time, visitor = event["event_time"], event["visitor_id"]
    return {"event_time": time, "path": path, "campaign": campaign, "visitor_id": visitor}


def with_visitors(event: Any, state: State) -> Any:
    """Adds the number of distinct visitors of the path and minute so far. The state is the record's key's, the path's.

    An aggregation of the window itself would read and write all its visitors at every event, and ``Collect`` gives
    none before its window closes, which those at the end of the topic do not.
    """
    minute = event["event_time"] // _MINUTE_MS
    visitors = state.get(f"{minute}", 0)
    seen = f"{minute}:{event['visitor_id']}"
    if not state.exists(seen):
        visitors += 1
        state.set(seen, True)
        state.set(f"{minute}", visitors)
    return event | {"visitors": visitors}


def windows(workload: str, events: StreamingDataFrame) -> StreamingDataFrame:
    """The windows of a workload, each with every change of it."""
    if workload == "w1":
        views = events.apply(with_path).apply(with_visitors, stateful=True)
        window = views.tumbling_window(timedelta(minutes=1), grace_ms=_GRACE)
        return window.agg(views=Count(), visitors=Max("visitors")).current()
    if workload == "w3":
        session = events.session_window(timedelta(minutes=30), grace_ms=_GRACE)
        return session.agg(events=Count(), first=Min("event_time"), last=Max("event_time")).current()
    hour = events.tumbling_window(timedelta(hours=1), grace_ms=_GRACE)
    return hour.agg(events=Count(), last=Max("event_time")).current()


def main() -> None:
    chosen = arguments()
    clock, seen = Clock(), 0

    def processed(_topic: str, _partition: int, _offset: int) -> None:
        nonlocal seen
        seen += 1
        if seen == chosen.events:
            clock.stop()
            app.stop()

    app = Application(
        broker_address=chosen.bootstrap,
        consumer_group=f"quix-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        state_dir="state",
        loglevel="WARNING",
        on_message_processed=processed,
        consumer_extra_config={"session.timeout.ms": 6000, "fetch.queue.backoff.ms": 10},
    )
    topic = app.topic(
        chosen.topic,
        key_deserializer="str",
        value_deserializer="json",
        timestamp_extractor=lambda value, _headers, _timestamp, _kind: value["event_time"],
    )
    totals: dict[tuple[str, int], Any] = {}

    def keep(window: Any, key: Any, _timestamp: int, _headers: Any) -> None:
        totals[key, window["start"]] = window

    events = app.dataframe(topic).update(lambda _event: clock.start())
    events = events[events["user_agent"].apply(lambda agent: "bot" not in agent)]
    windows(chosen.workload, events).update(keep, metadata=True)
    app.run()
    if chosen.workload == "w1":
        rows = [[start, path, it["views"], it["visitors"]] for (path, start), it in totals.items()]
    elif chosen.workload == "w3":
        rows = [[visitor, it["first"], it["last"], it["events"]] for (visitor, _), it in totals.items()]
    else:
        rows = [[start, visitor, it["events"], it["last"]] for (visitor, start), it in totals.items()]
    hand_in(clock, chosen.answer, rows)


if __name__ == "__main__":
    main()
