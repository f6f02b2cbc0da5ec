"""Stands between the workers and a server, and is the network that fails."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

#: COMMIT as a query of its own; after some uses psycopg prepares it, under a name.
_COMMIT = b"COMMIT\x00"
_PREPARED_COMMIT = re.compile(rb"(_pg3_\d+)\x00COMMIT\x00")

#: The statement that only the commit of an epoch (T2) has, and the same prepared.
_T2 = b"INSERT INTO streamproc.epochs "
_PREPARED = re.compile(rb"(_pg3_\d+)\x00\s*" + re.escape(_T2))


class CommitCutter:
    """A proxy to PostgreSQL that cuts connections while the COMMIT of an epoch is on its way.

    Every other such COMMIT, in one of three ways: it never arrives (``lost``), its answer never arrives
    (``answer lost``), or it arrives after the client has given up on it (``late``).
    """

    def __init__(self, conninfo: str, chance: random.Random) -> None:
        self._host = conninfo_to_dict(conninfo)["host"]
        self._chance = chance
        self._spare = True
        self._tasks = set[asyncio.Task[None]]()
        #: When (Unix time) and how.
        self.cuts: list[tuple[float, str]] = []
        self.cutting = False

    @classmethod
    @asynccontextmanager
    async def between(cls, conninfo: str, chance: random.Random) -> AsyncIterator[tuple[Self, str]]:
        """The proxy, and the URL to reach the server through it."""
        proxy = cls(conninfo, chance)
        listener = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        parts = conninfo_to_dict(conninfo)
        try:
            yield (
                proxy,
                f"postgresql://{parts['user']}@127.0.0.1:{port}/{parts['dbname']}?sslmode=disable&gssencmode=disable",
            )
        finally:
            listener.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_in, server_out = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.5432")
        answers = asyncio.create_task(_pump(server_in, client_out))
        try:
            await self._requests(client_in, client_out, server_out, answers)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            answers.cancel()
            client_out.close()
            server_out.close()
            self._tasks.discard(task)

    async def _requests(
        self,
        client_in: asyncio.StreamReader,
        client_out: asyncio.StreamWriter,
        server_out: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        names: set[bytes] = set()
        commits: set[bytes] = set()
        epoch = False
        while data := await client_in.read(1 << 20):
            names |= set(_PREPARED.findall(data))
            epoch = epoch or _T2 in data or any(name + b"\x00" in data for name in names)
            commits |= set(_PREPARED_COMMIT.findall(data))
            if _COMMIT in data or any(name + b"\x00" in data for name in commits):
                if epoch and self._due():
                    how = self._chance.choice(("lost", "answer lost", "late"))
                    self.cuts.append((time.time(), how))
                    answers.cancel()
                    client_out.close()
                    if how == "late":
                        await asyncio.sleep(self._chance.uniform(0.2, 1.5))  # how late
                    if how != "lost":
                        server_out.write(data)
                        await server_out.drain()
                    return
                epoch = False
            server_out.write(data)
            await server_out.drain()

    def _due(self) -> bool:
        self._spare = not self._spare
        return self.cutting and not self._spare


class FaultyHttp:
    """A proxy to an HTTP server (S3) that can refuse, delay, cut and hold requests.

    ``refuse``: part of the requests answered with 503 SlowDown. ``cut``: part of the PUTs whose connection is
    reset in the middle of the body. ``cut_answers``: part of the GETs of ranges whose answer is cut off somewhere.
    ``delay``: seconds each answer waits at most. ``hold``: PUTs wait while set.
    """

    def __init__(self, upstream: str, chance: random.Random) -> None:
        self._upstream = urlsplit(upstream)
        self._chance = chance
        self._tasks = set[asyncio.Task[None]]()
        self.refuse = self.cut = self.cut_answers = self.delay = 0.0
        self.hold = False
        #: Requests that something was done to.
        self.hits = 0

    @classmethod
    @asynccontextmanager
    async def before(cls, upstream: str, chance: random.Random) -> AsyncIterator[tuple[Self, str]]:
        """The proxy and its URL."""
        proxy = cls(upstream, chance)
        listener = await asyncio.start_server(proxy._accept, "127.0.0.1", 0, limit=1 << 24)
        try:
            yield proxy, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(client_in, client_out):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            client_out.close()
            self._tasks.discard(task)

    async def _request(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> bool:
        """One request and its answer; false when the connection is to be closed."""
        head = await client_in.readuntil(b"\r\n\r\n")
        if b"100-continue" in head.lower():
            client_out.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)expect: 100-continue\r\n", b"", head)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        put = head.startswith(b"PUT")
        if put and self._chance.random() < self.cut:
            self.hits += 1
            await client_in.readexactly(size // 2)
            client_out.transport.abort()
            return False
        body = await client_in.readexactly(size)
        while put and self.hold:
            self.hits += 1
            await asyncio.sleep(0.1)
        if self.delay:
            self.hits += 1
            await asyncio.sleep(self._chance.uniform(0, self.delay))
        if self._chance.random() < self.refuse:
            self.hits += 1
            answer = (
                b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            )
            client_out.write(
                b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
            )
            await client_out.drain()
            return True
        return await self._forward(head, body, client_out)

    async def _forward(self, head: bytes, body: bytes, client_out: asyncio.StreamWriter) -> bool:
        """A connection to the server for each request, closed by it: then the answer ends with it."""
        server_in, server_out = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            server_out.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            await server_out.drain()
            answer = await server_in.read(-1)
            if re.search(rb"(?i)\r\nrange:", head) and self._chance.random() < self.cut_answers:
                self.hits += 1
                begin = answer.index(b"\r\n\r\n") + 4
                answer = answer[: self._chance.randint(begin, len(answer) - 1)]
            client_out.write(answer)
            await client_out.drain()
        finally:
            server_out.close()
        return False


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        sink.write(data)
        await sink.drain()
