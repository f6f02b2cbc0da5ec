"""w2 as a loop by hand: confluent-kafka, msgspec, dictionaries; each second a Parquet file, upserts, then the offsets.

File and rows of a second are written by a thread while the loop goes on with the next one.
"""

from __future__ import annotations

import gc
import time
import uuid
from argparse import Namespace
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_plus

import msgspec
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition
from contestant import Clock, hand_in
from page_tables import HOUR_MS, MINUTE_MS, Row, Sessions, SiteActivity, Views

_FLUSH_SECONDS = 1.0
_HORIZON_MS = 600_000
_BOTS = ("bot", "facebookexternalhit", "python-requests")

_COLUMNS = {
    "page_views": ("window_start", "host", "path", "views", "visitors"),
    "site_activity": ("window_start", "host", "events", "page_views", "visitors"),
    "traffic_sources": (
        "window_start", "host", "utm_source", "utm_medium", "utm_campaign", "views", "visitors",
    ),
    "sessions": (
        "visitor_id", "session_start", "session_end", "events", "pages", "landing_page", "exit_page", "revenue",
    ),
}  # fmt: skip
_KEYS = {"page_views": 3, "site_activity": 2, "traffic_sources": 5, "sessions": 2}


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


class Url(NamedTuple):
    """What is asked for of ``page_url``. ``page``: host and path; ``source``: host and campaign, empty if none."""

    host: str
    path: str
    page: tuple[str, str]
    source: tuple[str, str, str, str]


@lru_cache(maxsize=100_000)
def parts_of(url: str) -> Url:
    """By hand: three times as fast as urllib where the cache has it not."""
    base, _, query = url.partition("#")[0].partition("?")
    host, _, path = base.partition("://")[2].partition("/")
    found = {"utm_source": "", "utm_medium": "", "utm_campaign": ""}
    if "utm_" in query:
        for parameter in query.split("&"):
            name, _, value = parameter.partition("=")
            if found.get(name) == "":
                found[name] = unquote_plus(value)
    host, path = host.lower(), f"/{path}"
    return Url(host, path, (host, path), (host, *found.values()))


@lru_cache(maxsize=10_000)
def is_bot(agent: str | None) -> bool:
    """Does the user agent say so, or say nothing?"""
    return not agent or any(text in agent.lower() for text in _BOTS)


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


class Second(NamedTuple):
    """What is to be written: accepted events, keys of sessions to be deleted, rows by table."""

    accepted: list[tuple[Event, Url]]
    moved: list[tuple[str, int]]
    rows: dict[str, list[Row]]


class Writer:
    """Writes a second's file and then, in one transaction, its rows."""

    def __init__(self, folder: str, url: str) -> None:
        self._folder = Path(folder)
        self._connection = psycopg.connect(url)
        for name in _COLUMNS:
            self._connection.execute(f"CREATE TEMP TABLE new_{name} (LIKE {name}) ON COMMIT DELETE ROWS")
        self._connection.commit()

    def write(self, second: Second) -> None:
        if second.accepted:
            self._write_file(second.accepted)
        with self._connection.cursor() as cursor:
            if second.moved:
                cursor.execute(
                    """DELETE FROM sessions USING unnest(%s::text[], %s::bigint[]) AS moved (visitor, start)
                        WHERE visitor_id = visitor AND session_start = start""",
                    [*map(list, zip(*second.moved, strict=True))],
                )
            for name, rows in second.rows.items():
                with cursor.copy(f"COPY new_{name} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
                cursor.execute(_upsert(name))
        self._connection.commit()

    def _write_file(self, accepted: list[tuple[Event, Url]]) -> None:
        events = [event for event, _ in accepted]
        urls = [url for _, url in accepted]
        properties = [bytes(it.properties) or None for it in events]
        table = pa.table(
            {
                "event_id": [it.event_id for it in events],
                "event_type": [it.event_type for it in events],
                "event_time": pa.array([it.event_time for it in events], pa.int64()),
                "visitor_id": [it.visitor_id for it in events],
                "session_id": pa.array([it.session_id for it in events], pa.string()),
                "page_url": [it.page_url for it in events],
                "referrer": pa.array([it.referrer for it in events], pa.string()),
                "user_agent": pa.array([it.user_agent for it in events], pa.string()),
                "ip": pa.array([it.ip for it in events], pa.string()),
                "value": pa.array([it.value for it in events], pa.float64()),
                "properties": pa.array(properties, pa.binary()).cast(pa.string()),
                "host": [it.host for it in urls],
                "path": [it.path for it in urls],
                "utm_source": [it.source[1] or None for it in urls],
                "utm_medium": [it.source[2] or None for it in urls],
                "utm_campaign": [it.source[3] or None for it in urls],
            }
        )
        pq.write_table(table, self._folder / f"{uuid.uuid4().hex}.parquet", compression="zstd")


def _upsert(table: str) -> str:
    columns, keys = _COLUMNS[table], _KEYS[table]
    new = ", ".join(f"{name} = excluded.{name}" for name in columns[keys:])
    return (
        f"INSERT INTO {table} SELECT * FROM new_{table} "
        f"ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {new}"
    )


class Flushing:
    """Hands each second to the writer, once the one before it is written and the offsets behind that are committed."""

    def __init__(self, writer: Writer, consumer: Consumer) -> None:
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
        self._pending = self._thread.submit(self._writer.write, second)
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
    flushing = Flushing(Writer(chosen.lake, chosen.postgres), consumer)
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
