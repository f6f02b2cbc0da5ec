"""Downloads of the page *Explore*: ``/download.csv`` and ``/download.parquet``."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from streamproc.dashboard.choice import read_choice, unknown
from streamproc.dashboard.download import LARGEST, LIMIT, PIECE, TooLarge, as_csv, as_parquet
from streamproc.dashboard.explore import everything
from streamproc.dashboard.reading import explain
from streamproc.dashboard.shell import Site
from streamproc.errors import StreamprocError

#: Seconds that a download waits for the one before it, and after which it may be asked for again.
_PATIENCE, _AGAIN = 10.0, 30

#: Seconds that the viewer may take for one piece of a file.
_WRITE = 30.0

_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


class Downloads:
    """An ASGI application that answers one after the other: each may take much of the memory."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._one = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. What is not taken for half a minute is broken off."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._one.acquire()
        except TimeoutError:
            busy = "Another download is under way: try again in half a minute.\n"
            response: Response = PlainTextResponse(busy, 503, {"retry-after": str(_AGAIN)})
            await response(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            async with asyncio.timeout(_WRITE):
                await send(message)

        try:
            response = await self._response(Request(scope, receive))
            await response(scope, receive, sending)
        except (TimeoutError, ClientDisconnect):
            return  # the server closes a connection whose answer is not whole
        finally:
            self._one.release()

    async def _response(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in _TYPES:
            return PlainTextResponse("There are .csv and .parquet.\n", 404)
        stream = self._site.stream(request)
        if not stream.tables:
            return PlainTextResponse("This stream has no tables.\n", 404)
        given = dict(request.query_params)
        problem = unknown(given, stream.tables)
        if (name := given.get("stream")) not in {None, stream.topology.name}:
            problem = f"There is no stream {name!r}."
        if problem:  # whoever asks by a script would not see that it is something else, as on a page
            return PlainTextResponse(f"{problem}\n", 404)
        seen = await stream.clock.get()
        now = (seen.value.now if seen.value else None) or datetime.now(UTC)
        choice = read_choice(given, stream.tables, now)
        make = as_csv if kind == "csv" else as_parquet
        try:
            async with aclosing(stream.reader.ask_for_pieces(everything(choice, LIMIT), PIECE)) as pieces:
                body = await make(pieces)
        except StreamprocError as error:
            return PlainTextResponse(": ".join(explain(error)) + "\n", 503)
        except TooLarge:
            most = f"{LIMIT:,} rows or {LARGEST >> 20} MiB"
            return PlainTextResponse(f"More than {most}: choose a shorter range.\n", 413)
        name = f"{stream.topology.name}-{choice.table.name}.{kind}"
        headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
        return StreamingResponse(body, media_type=_TYPES[kind], headers=headers)
