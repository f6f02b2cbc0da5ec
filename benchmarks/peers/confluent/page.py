"""w2 as a loop by hand: confluent-kafka, msgspec, dictionaries; each second a Parquet file, upserts, then the offsets.

File and rows of a second are written by a thread while the loop goes on with the next one.
"""

from __future__ import annotations

import gc
import time
from argparse import Namespace
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition
from contestant import Clock, Url, hand_in, is_bot, parts_of
from page_tables import HOUR_MS, MINUTE_MS, Row, Sessions, SiteActivity, Views
from page_writer import FIELDS, PageWriter

_FLUSH_SECONDS = 1.0
_HORIZON_MS = 600_000
_FIELDS_OF = attrgetter(*FIELDS)


class Event(msgspec.Struct, gc=False):
    """An event of the page's contract."""

    event_id: str
    event_type: str
    event_time: int
    visitor_id: str
    page_url: str
    session_id: str | None = None
    referrer: str | None = None
    user_agent: str | None = None
    ip: str | None = None
    value: float | None = None
    properties: msgspec.Raw = msgspec.Raw()


class Duplicates:
    """The ids of a partition's last ten minutes at least, twenty at most."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._older: set[str] = set()
        self._until = 0

    def is_new(self, event: Event) -> bool:
        """Was its id not seen before?"""
        if event.event_id in self._ids or event.event_id in self._older:
            return False
        if event.event_time > self._until:
            self._ids, self._older = set(), self._ids
            self._until = event.event_time + _HORIZON_MS
        self._ids.add(event.event_id)
        return True


class Second(NamedTuple):
    """What is to be written: accepted events, keys of sessions to be deleted, rows by table."""

    accepted: list[tuple[Event, Url]]
    moved: list[tuple[str, int]]
    rows: dict[str, list[Row]]


class Page:
    """All that is made of the events since the last second's end."""

    def __init__(self) -> None:
        self.page_views = Views(MINUTE_MS)
        self.traffic_sources = Views(HOUR_MS)
        self.site_activity = SiteActivity()
        self.sessions = Sessions()
        self.accepted: list[tuple[Event, Url]] = []

    def add(self, event: Event) -> None:
        url, moment, visitor = parts_of(event.page_url), event.event_time, event.visitor_id
        is_page = event.event_type == "page_view"
        if is_page:
            self.page_views.add(moment, url.page, visitor, True)
            self.traffic_sources.add(moment, url.source, visitor, True)
        self.site_activity.add(moment, url.host, visitor, is_page)
        revenue = event.value if event.event_type == "purchase" and event.value is not None else 0.0
        self.sessions.add(moment, visitor, url.path if is_page else None, revenue)
        self.accepted.append((event, url))

    def take(self) -> Second:
        """What has changed. It is the caller's: the loop does not touch it any more."""
        accepted, self.accepted = self.accepted, []
        names = ("page_views", "traffic_sources", "site_activity", "sessions")
        return Second(accepted, self.sessions.moved(), {name: getattr(self, name).rows() for name in names})


def write(writer: PageWriter, second: Second) -> None:
    """A second's file and then, in one transaction, its rows."""
    if second.accepted:
        events = [event for event, _ in second.accepted]
        urls = [url for _, url in second.accepted]
        columns: dict[str, Any] = dict(zip(FIELDS, zip(*map(_FIELDS_OF, events), strict=True), strict=True))
        columns["properties"] = [bytes(it).decode() or None for it in columns["properties"]]
        columns |= {"host": [it.host for it in urls], "path": [it.path for it in urls]}
        for at, name in enumerate(("utm_source", "utm_medium", "utm_campaign"), 1):
            columns[name] = [it.source[at] or None for it in urls]
        writer.write_file(columns)
    writer.write_rows(second.rows, second.moved)


class Flushing:
    """Hands each second to the writer, once the one before it is written and the offsets behind that are committed."""

    def __init__(self, writer: PageWriter, consumer: Consumer) -> None:
        self._writer = writer
        self._consumer = consumer
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._offsets: list[TopicPartition] = []
        self._at = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._at >= _FLUSH_SECONDS

    def flush(self, second: Second) -> None:
        self.finish()
        self._offsets = self._consumer.position(self._consumer.assignment())
        self._pending = self._thread.submit(write, self._writer, second)
        self._at = time.monotonic()

    def finish(self) -> None:
        """Wait for what is under way."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
            self._consumer.commit(offsets=self._offsets, asynchronous=True)


def main(chosen: Namespace, consumer: Consumer) -> None:
    """Until all events are in files and rows. An event that breaks the contract ends it."""
    # Nothing here makes cycles, and looking for them takes a quarter of the loop's CPU.
    gc.disable()
    decode = msgspec.json.Decoder(Event).decode
    page = Page()
    duplicates: defaultdict[int, Duplicates] = defaultdict(Duplicates)
    flushing = Flushing(PageWriter(chosen.lake, chosen.postgres), consumer)
    clock, seen = Clock(), 0
    while seen < chosen.events:
        messages = consumer.consume(5000, timeout=0.1)
        for message in messages:
            if message.error():
                raise SystemExit(str(message.error()))
            clock.start()
            event = decode(message.value())
            if event.event_type == "heartbeat" or is_bot(event.user_agent):
                continue
            if duplicates[message.partition()].is_new(event):
                page.add(event)
        seen += len(messages)
        if flushing.is_due():
            flushing.flush(page.take())
    flushing.flush(page.take())
    flushing.finish()
    clock.stop()
    hand_in(clock, chosen.answer, [])
