"""The worker's port: what containers, load balancers, Prometheus and people ask a worker over HTTP.

``GET /livez``: 200 while the event loop turns. ``GET /readyz``: 200 when every endpoint is connected and
partitions can be processed, else 503 with the reason. ``GET /api/v1/status``: the same facts and those of
every partition, always with 200. These answer JSON. ``GET /metrics``: Prometheus or OpenMetrics text, as the
``Accept`` header says.

Nothing here changes anything, and nothing asks a database: each answers from what the process knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
from aiohttp import web

log = structlog.get_logger(__name__)

#: Returns why the worker is not ready, or ``None``, and facts to show beside it.
Probe = Callable[[], tuple[str | None, Mapping[str, object]]]
#: Everything the process knows of its work, as JSON.
Status = Callable[[], Mapping[str, object]]
#: The metrics in the format that an ``Accept`` header asks for, and its content type.
Render = Callable[[str], tuple[bytes, str]]


class HealthServer:
    """The worker's port. ``port`` 0 takes any free one; :attr:`address` says which."""

    def __init__(
        self, host: str, port: int, probe: Probe, status: Status | None = None, render: Render | None = None
    ) -> None:
        """Without ``status`` or ``render`` their addresses are not served."""
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
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{host}:{port}"
        log.info("health_listening", address=self.address)

    async def stop(self) -> None:
        """Stop listening. Calling it again does nothing."""
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
