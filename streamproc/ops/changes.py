"""``GET /api/v1/events``: server-sent events that say which windows of which tables a commit has changed.

An event says where to look (:mod:`streamproc.ops.tables`), not what is there: its size depends on the windows,
not on the rows. They are counted from an epoch's deltas only while somebody listens, and a minute longer, for one
who lost the connection and says which event was the last. One worker tells of its own commits.

Events by name:

* ``windows``: ``stream``, ``table``, ``epoch``, ``rows`` changed, ``from`` and ``to`` (every changed row begins in
  between, ``to`` excluded), and ``windows``, each with ``start``, ``end`` and ``rows``; ``null`` for sessions, each of
  which has a window of its own, and when there are more than 500 of them.
* ``missed``: what was committed since the event that the client named is not known any more; read anew.
* ``dropped``: the client took its events too slowly; the connection ends.
* ``end``: the worker ends.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import orjson
import polars as pl
import structlog
from aiohttp import web

from streamproc.ops.access import Access, problem
from streamproc.tables.fold import Delta
from streamproc.topology import Table, Topology

log = structlog.get_logger(__name__)

_UNIX = datetime(1970, 1, 1)  # naive: its text gets the Z
_LAST = (datetime.max - _UNIX) // timedelta(microseconds=1)

#: Windows that one event names; more than a day of minutes changes in a backfill, which nobody watches live.
_WINDOWS = 500
#: Clients at once, events that wait for one of them, events that are kept for those who come back.
_CLIENTS, _WAITING, _KEPT = 32, 256, 1_024
#: Seconds: until a client that lost its connection asks again; between two signs of life; without anybody listening
#: until nothing is kept any more; that one write may take.
_RETRY, _HEARTBEAT, _LINGER, _WRITE = 3, 15.0, 60.0, 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """What an epoch changed in one table: one event's ``data``, without its number."""

    stream: str
    table: str
    data: bytes


@dataclass(slots=True, eq=False)
class _Client:
    """``only``: stream and table that it wants, ``None`` for any. ``wake``: something waits, or it is over."""

    only: tuple[str | None, str | None]
    waiting: deque[bytes] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    last_words: bytes | None = None

    def wants(self, change: Change) -> bool:
        stream, table = self.only
        return stream in {None, change.stream} and table in {None, change.table}


class Changes:
    """Tells the clients what the workers of this process commit. ``clock``: seconds, monotonic."""

    def __init__(self, *, heartbeat: float = _HEARTBEAT, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients: set[_Client] = set()
        self._heartbeat = heartbeat
        self._clock = clock
        self._left_at: float | None = None
        # Numbers of another process, or of one that was started again, are not ours.
        self._life = uuid.uuid4().hex[:8]
        self._number = 0
        self._kept: deque[tuple[int, Change]] = deque(maxlen=_KEPT)
        self._closed = False
        #: Streams and tables of which there is something to tell: what nobody names here is not listened to in vain.
        self.known: set[tuple[str, str]] = set()
        #: Clients that were too slow, since the start.
        self.dropped = 0

    @property
    def listening(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens, or did a minute ago; else what is kept is forgotten."""
        if self._clients:
            return True
        if self._left_at is not None and self._clock() - self._left_at < _LINGER:
            return True
        if self._left_at is not None:
            self._left_at = None
            self._kept.clear()
            self._number += 1  # whoever saw the last one has missed something from here on
        return False

    def tell(self, changes: list[Change]) -> None:
        """Send these on; never waits."""
        for change in changes:
            self._number += 1
            self._kept.append((self._number, change))
            text = self._event(self._number, change)
            for client in list(self._clients):
                if client.last_words is None and client.wants(change):
                    self._queue(client, text)

    async def close(self) -> None:
        """Tell the clients that it is over."""
        self._closed = True
        for client in self._clients:
            self._end(client, _text("end", {"why": "the worker ends"}))

    def add_routes(self, app: web.Application, access: Access) -> None:
        """Serve it."""
        app.router.add_get("/api/v1/events", access.guarded(self._listen))

    # -- clients -----------------------------------------------------------------------------------------

    def _queue(self, client: _Client, text: bytes) -> None:
        if len(client.waiting) >= _WAITING:
            client.waiting.clear()
            self.dropped += 1
            why = f"more than {_WAITING} events were waiting; read the tables anew"
            self._end(client, _text("dropped", {"why": why}))
            return
        client.waiting.append(text)
        client.wake.set()

    @staticmethod
    def _end(client: _Client, words: bytes) -> None:
        client.last_words = words
        client.wake.set()

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        if unknown := set(request.query) - {"stream", "table"}:
            return problem(400, f"there is no parameter {min(unknown)!r}: there are stream, table")
        stream, table = request.query.get("stream"), request.query.get("table")
        if self.known and not any(stream in {None, s} and table in {None, t} for s, t in self.known):
            known = ", ".join(f"{s}.{t}" for s, t in sorted(self.known))
            return problem(404, f"there is no such table. There are: {known}")
        if self._closed or len(self._clients) >= _CLIENTS:
            return problem(503, "nobody more can listen now", {"Retry-After": "5"})
        client = _Client((stream, table))
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx would keep events until its buffer is full
            }
        )
        since = self._catch_up(client, request.headers.get("Last-Event-ID"))
        self._clients.add(client)
        # A number without an event: a client that loses the connection before the first one can say since when.
        opening = f"{since}retry: {_RETRY * 1000}\n\n".encode()
        try:
            await response.prepare(request)
            await self._write(response, opening)
            while await self._send(client, response):
                pass
        except (ConnectionError, TimeoutError) as error:
            log.debug("listener_gone", why=repr(error))
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._clients.discard(client)
            self._left_at = self._clock()
        return response

    async def _send(self, client: _Client, response: web.StreamResponse) -> bool:
        """Send what waits, or a sign of life when nothing does for a while; false after the last words."""
        try:
            async with asyncio.timeout(self._heartbeat):
                await client.wake.wait()
        except TimeoutError:
            await self._write(response, b": still here\n\n")
            return True
        client.wake.clear()
        while client.waiting:
            await self._write(response, client.waiting.popleft())
        if client.last_words is not None:
            await self._write(response, client.last_words)
            return False
        return True

    @staticmethod
    async def _write(response: web.StreamResponse, text: bytes) -> None:
        async with asyncio.timeout(_WRITE):
            await response.write(text)

    def _catch_up(self, client: _Client, last: str | None) -> str:
        """What came after the event ``last``, or that it cannot be told. Returns the line that says so far."""
        if last is None:
            return f"id: {self._id(self._number)}\n"
        wanted = self.wanted
        life, _, number = last.partition("-")
        oldest = self._kept[0][0] if self._kept else self._number + 1
        known = life == self._life and number.isdecimal() and oldest - 1 <= int(number[:18]) <= self._number
        after = int(number) if known and wanted else self._number
        behind = [(at, change) for at, change in self._kept if at > after and client.wants(change)]
        if not known or not wanted or len(behind) > _WAITING:
            self._queue(client, _text("missed", {"why": "read the tables anew"}, self._id(self._number)))
            return ""  # it keeps the number that it has until it was told
        for at, change in behind:
            self._queue(client, self._event(at, change))
        return f"id: {self._id(after)}\n"

    def _event(self, number: int, change: Change) -> bytes:
        return b"id: %s\nevent: windows\ndata: %s\n\n" % (self._id(number).encode(), change.data)

    def _id(self, number: int) -> str:
        return f"{self._life}-{number}"


class Watching:
    """What one stream's pipeline tells of its commits, into ``changes``."""

    def __init__(self, topology: Topology, changes: Changes) -> None:
        self._topology = topology
        self._changes = changes
        changes.known |= {(topology.name, table.name) for table in topology.tables}

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._changes.wanted

    async def committed(self, epoch: uuid.UUID, deltas: Mapping[str, Delta]) -> None:
        """Tell what the deltas have changed."""
        self._changes.tell(await asyncio.to_thread(changes_of, self._topology, epoch, deltas))


def _text(event: str, data: Mapping[str, object], number: str | None = None) -> bytes:
    line = b"" if number is None else b"id: %s\n" % number.encode()
    return line + b"event: %s\ndata: %s\n\n" % (event.encode(), orjson.dumps(data))


def changes_of(topology: Topology, epoch: uuid.UUID, deltas: Mapping[str, Delta]) -> list[Change]:
    """What the deltas of an epoch change, table by table."""
    return [
        Change(topology.name, table.name, _data(topology.name, table, epoch, delta.rows))
        for table in topology.tables
        if (delta := deltas.get(table.name)) is not None and len(delta)
    ]


def _data(stream: str, table: Table, epoch: uuid.UUID, rows: pl.DataFrame) -> bytes:
    session = table.window.kind == "session"
    begins = rows["session_start" if session else "window_start"].cast(pl.Int64)
    ends = rows["session_end"].cast(pl.Int64) if session else begins + table.window.size
    windows = None
    if not session and begins.n_unique() <= _WINDOWS:
        counted = begins.value_counts().sort(begins.name)
        windows = [
            {"start": _iso(start), "end": _iso(start + table.window.size), "rows": number}
            for start, number in counted.iter_rows()
        ]
    first, last = begins.min(), ends.max()
    assert isinstance(first, int) and isinstance(last, int)
    if session:
        # The delta has pieces: they go on with sessions that began up to the cap before them, and take in those that
        # begin up to the gap behind them.
        first, last = first - table.window.cap, last + table.window.gap + 1
    return orjson.dumps(
        {
            "stream": stream,
            "table": table.name,
            "epoch": str(epoch),
            "rows": rows.height,
            "from": _iso(first),
            "to": _iso(last),
            "windows": windows,
        }
    )


def _iso(microseconds: int) -> str:
    return f"{(_UNIX + timedelta(microseconds=min(microseconds, _LAST))).isoformat()}Z"
