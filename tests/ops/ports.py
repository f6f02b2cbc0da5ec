"""A worker's port in the test's own loop, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from streamproc.ops.health import HealthServer, Part
from streamproc.redaction import Secret


@asynccontextmanager
async def port(
    *parts: Part, host: str = "127.0.0.1", token: str | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose requests go to a port with these parts."""
    secret = None if token is None else Secret(token)
    server = HealthServer(host, 0, lambda: (None, {}), parts=parts, token=secret)
    await server.start()
    reached = server.address.replace("0.0.0.0", "127.0.0.1")
    async with aiohttp.ClientSession(reached, timeout=aiohttp.ClientTimeout(30)) as session:
        yield session
        await server.stop()
