"""w2 as a Bytewax dataflow: accepted events to Parquet files, windows by event time to PostgreSQL as they close."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow, Stream
from bytewax.operators import windowing
from bytewax.operators.windowing import EventClock, SessionWindower, SlidingWindower, TumblingWindower
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from contestant import Clock, hand_in, is_bot, parts_of
from page_writer import FIELDS, PageWriter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: What an event may be behind the latest of its key; the partitions are read at different speeds.
_WAIT = timedelta(hours=1)
_FLUSH_SECONDS = 1.0

clock = Clock()

#: Of a key: time, visitor, kind of event, path, value.
Value = tuple[int, str, str, str, float]


class _Writing(StatelessSinkPartition[Any]):
    """Gathers what comes and writes it once a second, and at the end."""

    def __init__(self, write: Callable[[list[Any]], None]) -> None:
        self._write = write
        self._items: list[Any] = []
        self._at = time.monotonic()

    def write_batch(self, items: list[Any]) -> None:
        self._items += items
        if time.monotonic() - self._at >= _FLUSH_SECONDS:
            self.close()

    def close(self) -> None:
        if self._items:
            self._write(self._items)
        self._items = []
        self._at = time.monotonic()


class Written(DynamicSink[Any]):
    """A sink that hands a second's items to a function."""

    def __init__(self, write: Callable[[list[Any]], None]) -> None:
        self._write = write

    def build(self, _step_id: str, _worker_index: int, _worker_count: int) -> _Writing:
        return _Writing(self._write)


def parse(message: KafkaSourceMessage[Any, Any]) -> Any:
    """The event as a dictionary."""
    clock.start()
    return orjson.loads(message.value)


def is_accepted(event: Any) -> bool:
    return event["event_type"] != "heartbeat" and not is_bot(event.get("user_agent"))


def value_of(event: Any) -> Value:
    path, kind = parts_of(event["page_url"]).path, event["event_type"]
    value = event.get("value", 0.0) if kind == "purchase" else 0.0
    return event["event_time"], event["visitor_id"], kind, path, value


def moment(value: Value) -> datetime:
    return datetime.fromtimestamp(value[0] / 1000, UTC)


class Counts:
    """Events, page views and visitors of a window."""

    __slots__ = ("events", "pages", "visitors")

    def __init__(self) -> None:
        self.events = self.pages = 0
        self.visitors: set[str] = set()

    def add(self, value: Value) -> Counts:
        self.events += 1
        self.pages += value[2] == "page_view"
        self.visitors.add(value[1])
        return self

    def merge(self, other: Counts) -> Counts:
        self.events += other.events
        self.pages += other.pages
        self.visitors |= other.visitors
        return self


class Visit:
    """A session. ``pages``: time and path of each page view."""

    __slots__ = ("events", "pages", "revenue", "times")

    def __init__(self) -> None:
        self.events = 0
        self.times: list[int] = []
        self.pages: list[tuple[int, str]] = []
        self.revenue = 0.0

    def add(self, value: Value) -> Visit:
        self.events += 1
        self.times.append(value[0])
        if value[2] == "page_view":
            self.pages.append((value[0], value[3]))
        self.revenue += value[4]
        return self

    def merge(self, other: Visit) -> Visit:
        self.events += other.events
        self.times += other.times
        self.pages += other.pages
        self.revenue += other.revenue
        return self

    def columns(self) -> tuple[Any, ...]:
        """The row behind the visitor."""
        landing, leaving = (min(self.pages)[1], max(self.pages)[1]) if self.pages else (None, None)
        return min(self.times), max(self.times), self.events, len(self.pages), landing, leaving, self.revenue


def write_file(writer: PageWriter, events: list[Any]) -> None:
    """A file of accepted events."""
    columns = {name: [event.get(name) for event in events] for name in FIELDS}
    columns["properties"] = [it and orjson.dumps(it).decode() for it in columns["properties"]]
    urls = [parts_of(event["page_url"]) for event in events]
    columns |= {"host": [url.host for url in urls], "path": [url.path for url in urls]}
    for at, name in enumerate(("utm_source", "utm_medium", "utm_campaign"), 1):
        columns[name] = [url.source[at] or None for url in urls]
    writer.write_file(columns)


def folded(
    name: str, keyed: Stream[tuple[str, Value]], windower: Any, total: type[Counts] | type[Visit]
) -> Stream[Any]:
    """(key, (window, total)) of each window that closes. Late events are left out."""
    event_clock = EventClock(moment, wait_for_system_duration=_WAIT)
    folding: Any = total
    return windowing.fold_window(
        name, keyed, event_clock, windower, folding, folding.add, folding.merge, ordered=False
    ).down


def main(chosen: Namespace) -> None:
    """Until the end of the topic, which closes all windows."""
    writer = PageWriter(chosen.lake, chosen.postgres)
    flow = Dataflow("page")
    source = KafkaSource(
        [chosen.bootstrap],
        [chosen.topic],
        tail=False,
        batch_size=1_000,
        # librdkafka's default of 1 s leaves the source waiting for part of its time once its queue was full.
        add_config={"fetch.queue.backoff.ms": "10"},
    )
    events = op.filter("accepted", op.map("parse", op.input("events", flow, source), parse), is_accepted)
    op.output("files", events, Written(lambda items: write_file(writer, items)))
    pages = op.filter("pages", events, lambda event: event["event_type"] == "page_view")

    def to(table: str, windows: Stream[Any], row: Callable[[str, int, Any], tuple[Any, ...]]) -> None:
        op.output(
            f"to {table}",
            windows,
            Written(lambda items: writer.write_rows({table: [row(key, *it) for key, it in items]})),
        )

    minutes = TumblingWindower(align_to=_EPOCH, length=timedelta(minutes=1))
    by_page = op.map(
        "by page", pages, lambda event: ("\t".join(parts_of(event["page_url"]).page), value_of(event))
    )
    to(
        "page_views",
        folded("page views", by_page, minutes, Counts),
        lambda key, window, it: (window * 60_000, *key.split("\t"), it.events, len(it.visitors)),
    )
    hours = TumblingWindower(align_to=_EPOCH, length=timedelta(hours=1))
    by_source = op.map(
        "by source", pages, lambda event: ("\t".join(parts_of(event["page_url"]).source), value_of(event))
    )
    to(
        "traffic_sources",
        folded("sources", by_source, hours, Counts),
        lambda key, window, it: (window * 3_600_000, *key.split("\t"), it.events, len(it.visitors)),
    )
    hops = SlidingWindower(align_to=_EPOCH, length=timedelta(minutes=5), offset=timedelta(minutes=1))
    by_host = op.map("by host", events, lambda event: (parts_of(event["page_url"]).host, value_of(event)))
    to(
        "site_activity",
        folded("activity", by_host, hops, Counts),
        lambda key, window, it: (window * 60_000, key, it.events, it.pages, len(it.visitors)),
    )
    by_visitor = op.map("by visitor", events, lambda event: (event["visitor_id"], value_of(event)))
    to(
        "sessions",
        folded("sessions", by_visitor, SessionWindower(gap=timedelta(minutes=30)), Visit),
        lambda key, _window, it: (key, *it.columns()),
    )
    run_main(flow)
    clock.stop()
    hand_in(clock, chosen.answer, [])
