"""Scripts and styles, compressed once.

NiceGUI's assets come to 2.3 MB, and compressing them for each viewer who has none yet took the server 115 ms of CPU, in
which no page is built. Their addresses carry the version, so an answer that may be cached for ever is kept.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Of all kept bodies together.
MOST_BYTES = 32 * 1024 * 1024

#: Types that are worth it.
_TEXT = ("text/", "application/javascript", "application/json", "image/svg+xml")


@dataclass(slots=True)
class _Answer:
    """What the app sends: where it starts, and the body's parts."""

    start: Message = field(default_factory=dict)
    body: bytes = b""

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    @property
    def lasting(self) -> bool:
        """Whether it is the same for everybody and for ever, and worth compressing."""
        headers = Headers(raw=self.start["headers"])
        return (
            self.start["status"] == 200
            and "immutable" in headers.get("cache-control", "")
            and "content-encoding" not in headers
            and headers.get("content-type", "").startswith(_TEXT)
        )


class Compressed:
    """ASGI middleware: answers of ``app`` under ``prefix`` that never change are sent compressed, and kept so."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._kept: dict[str, _Answer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what is kept, or hand on."""
        if not self._concerns(scope):
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        answer = self._kept.get(path)
        if answer is None:
            answer = await self._ask(scope, receive)
            if answer.lasting:
                answer = await asyncio.to_thread(_compressed, answer)
                if sum(len(each.body) for each in self._kept.values()) + len(answer.body) <= MOST_BYTES:
                    self._kept[path] = answer
        await send({**answer.start, "headers": list(answer.start["headers"])})
        await send({"type": "http.response.body", "body": answer.body})

    def _concerns(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(self._prefix):
            return False
        headers = Headers(scope=scope)
        return (
            "gzip" in headers.get("accept-encoding", "")
            and "range" not in headers
            and "if-none-match" not in headers
            and "if-modified-since" not in headers
            and not scope["query_string"]
        )

    async def _ask(self, scope: Scope, receive: Receive) -> _Answer:
        """The app's answer, not compressed."""
        plain: MutableMapping[str, Any] = {**scope, "headers": list(scope["headers"])}
        del MutableHeaders(scope=plain)["accept-encoding"]
        answer = _Answer()
        await self._app(plain, receive, answer.take)
        return answer


def _compressed(answer: _Answer) -> _Answer:
    body = gzip.compress(answer.body, 9, mtime=0)
    start = {**answer.start, "headers": list(answer.start["headers"])}
    headers = MutableHeaders(raw=start["headers"])
    headers["content-encoding"] = "gzip"
    headers["content-length"] = str(len(body))
    headers.add_vary_header("accept-encoding")
    return _Answer(start, body)
