"""The worker's port: what containers, load balancers, Prometheus and people ask a worker over HTTP.

``GET /livez``: 200 while the event loop turns. ``GET /readyz``: 200 when every endpoint is connected and
partitions can be processed, else 503 with the reason. ``GET /api/v1/status``: the same facts and those of
every partition, always with 200. These answer JSON. ``GET /metrics``: Prometheus or OpenMetrics text, as the
``Accept`` header says.

Nothing here changes anything, and nothing asks a database: each answers from what the process knows. What gives
data joins as a :class:`Part`: see :mod:`streamproc.ops.tables` and :mod:`streamproc.ops.changes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
from aiohttp import web

from streamproc.ops.access import Access
from streamproc.redaction import Secret

log = structlog.get_logger(__name__)

#: Returns why the worker is not ready, or ``None``, and facts to show beside it.
Probe = Callable[[], tuple[str | None, Mapping[str, object]]]
#: Everything the process knows of its work, as JSON.
Status = Callable[[], Mapping[str, object]]
#: The metrics in the format that an ``Accept`` header asks for, and its content type.
Render = Callable[[str], tuple[bytes, str]]

#: Seconds that answers under way have to end when the port closes; streams are told to end before.
_CLOSING = 2.0


class Part(Protocol):
    """Something that gives data on the port."""

    def add_routes(self, app: web.Application, access: Access) -> None:
        """Serve it, each handler behind ``access``."""

    async def close(self) -> None:
        """End what is under way."""


class HealthServer:
    """The worker's port. ``port`` 0 takes any free one; :attr:`address` says which."""

    def __init__(
        self,
        host: str,
        port: int,
        probe: Probe,
        status: Status | None = None,
        render: Render | None = None,
        *,
        parts: Sequence[Part] = (),
        token: Secret | None = None,
    ) -> None:
        """Without ``status`` or ``render`` their addresses are not served. ``token``: what the ``parts`` ask for."""
        self._parts = parts
        self._access = Access(host, token)
        self._host = host
        self._port = port
        self._probe = probe
        self._status = status
        self._render = render
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen. Raises ``OSError`` when the address is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        if self._status is not None:
            app.router.add_get("/api/v1/status", self._state)
        if self._render is not None:
            app.router.add_get("/metrics", self._metrics)
        for part in self._parts:
            part.add_routes(app, self._access)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=_CLOSING,
            handler_cancellation=True,  # who has gone away needs no answer, and a listener no place
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"
        log.info("health_listening", address=self.address)

    async def stop(self) -> None:
        """Stop listening. Calling it again does nothing."""
        for part in self._parts:
            await part.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _: web.Request) -> web.Response:
        reason, facts = self._probe()
        body = {"ready": reason is None, "reason": reason, **facts}
        return web.json_response(body, status=200 if reason is None else 503)

    async def _state(self, _: web.Request) -> web.Response:
        assert self._status is not None
        return web.json_response(self._status())

    async def _metrics(self, request: web.Request) -> web.Response:
        assert self._render is not None
        body, content_type = self._render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})
