"""A PostgreSQL connection that breaks at the worst moment: while COMMIT is on its way."""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

#: COMMIT as a simple query, at the end of the message.
_COMMIT = b"COMMIT\x00"

#: psycopg prepares what it has sent a few times; from then on only the statement's name is sent (Bind).
_PREPARE = re.compile(rb"P.{4}([^\x00]+\x00)COMMIT\x00", re.DOTALL)


class Break(enum.Enum):
    """What becomes of the COMMIT when the client's connection is cut."""

    LOST = "it never arrives; the server notices at once"
    ANSWER_LOST = "it is executed, the answer is lost"
    UNDER_WAY = "it arrives when `deliver` is called, or never when `drop` is; the server waits until then"


class BreakingProxy:
    """Stands between a client and the server; ``arm`` makes it break the next COMMIT, once."""

    def __init__(self, conninfo: str) -> None:
        self._upstream = conninfo
        self._break: Break | None = None
        self._held: tuple[bytes, asyncio.StreamWriter] | None = None
        self.broke = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    def arm(self, how: Break) -> None:
        self._break = how
        self.broke.clear()

    def disarm(self) -> None:
        """Break nothing, if nothing was broken yet."""
        self._break = None

    async def deliver(self) -> None:
        """Let the COMMIT that is under way arrive."""
        assert self._held is not None
        data, server = self._held
        server.write(data)
        await server.drain()
        server.close()

    def drop(self) -> None:
        """Lose the COMMIT that is under way; the server sees the connection end."""
        assert self._held is not None
        self._held[1].close()

    @classmethod
    @asynccontextmanager
    async def between(cls, conninfo: str) -> AsyncIterator[tuple[Self, str]]:
        """The proxy, and the conninfo to reach the server through it."""
        proxy = cls(conninfo)
        connections = set[asyncio.Task[None]]()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(proxy._serve(reader, writer))
            connections.add(task)

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            yield (
                proxy,
                make_conninfo(conninfo, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"),
            )
        finally:
            listener.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            for writer in proxy._writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in proxy._writers), return_exceptions=True)
            await listener.wait_closed()

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        host = conninfo_to_dict(self._upstream)["host"]
        server_in, server_out = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.5432")
        self._writers += [client_out, server_out]
        answers = asyncio.ensure_future(_pump(server_in, client_out))
        names: list[bytes] = []
        try:
            while data := await client_in.read(65_536):
                names += [b"\x00" + name for name in _PREPARE.findall(data)]
                commits = data.endswith(_COMMIT) or (data[:1] == b"B" and any(name in data for name in names))
                if self._break is not None and commits:
                    await self._break_now(data, client_out, server_out, answers)
                    return
                server_out.write(data)
                await server_out.drain()
        finally:
            answers.cancel()
            client_out.close()
            if self._held is None or self._held[1] is not server_out:
                server_out.close()

    async def _break_now(
        self,
        data: bytes,
        client_out: asyncio.StreamWriter,
        server_out: asyncio.StreamWriter,
        answers: asyncio.Future[None],
    ) -> None:
        how, self._break = self._break, None
        answers.cancel()
        if how is Break.ANSWER_LOST:
            server_out.write(data)
            await server_out.drain()
        elif how is Break.UNDER_WAY:
            self._held = (data, server_out)
        client_out.close()
        self.broke.set()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        sink.write(data)
        await sink.drain()
    sink.close()  # or a request to cancel a query would wait for the end of its connection
