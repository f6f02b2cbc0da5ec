"""Looking at a set-up that somebody else runs, or ran: join its embedded servers, make nothing new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from streamproc.embedded.broker import join_broker
from streamproc.errors import ConfigError, Mistake
from streamproc.runtimes.endpoints import Endpoints
from streamproc.settings import Settings
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.opening import Connection, connection_of


def embedded_in(directory: Path) -> dict[str, object]:
    """Overrides of settings for a wholly embedded set-up in ``directory``, such as a demo's."""
    directory = directory.expanduser().resolve()
    return {
        "data_dir": str(directory),
        "broker": "embedded:",
        "ledger": "embedded:",
        "warehouse": "embedded:",
        "lake": (directory / "lake").as_uri(),
        "dashboard.database": "embedded:",
    }


@asynccontextmanager
async def attached(settings: Settings) -> AsyncIterator[Endpoints]:
    """Ledger and warehouse of the settings. An embedded PostgreSQL that is at rest is started meanwhile.

    Raises :class:`ConfigError` when the data folder has no database, instead of making an empty one.
    """
    if settings.ledger.embedded and not (settings.data_dir / "postgres" / "data").is_dir():
        problem = f"nothing has run in {settings.data_dir} yet"
        fix = "Name the folder with --data-dir, or run `streamproc demo` or `streamproc run` first"
        raise ConfigError([Mistake("data_dir", problem, fix)])
    async with Endpoints(settings, needs_broker=False) as endpoints:
        yield endpoints


@asynccontextmanager
async def running_broker(settings: Settings) -> AsyncIterator[Connection | None]:
    """How to connect to the settings' broker; ``None`` for an embedded one that does not run.

    It would be a new one, with nothing in it.
    """
    if not settings.broker.embedded:
        yield connection_of(settings)
        return
    broker = await asyncio.to_thread(join_broker, settings.data_dir / "broker")
    if broker is None:
        yield None
        return
    try:
        yield KafkaConnection(broker.bootstrap, embedded=True, incarnation=broker.incarnation)
    finally:
        await asyncio.to_thread(broker.stop)
