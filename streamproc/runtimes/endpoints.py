"""The servers a process talks to: those it starts itself when they are embedded, the others as named.

None of them has to be there at the start: a worker waits and says for which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.embedded.broker import EmbeddedBroker, start_broker
from streamproc.embedded.postgres import EmbeddedPostgres, start_postgres
from streamproc.errors import DependencyError
from streamproc.settings import Settings
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.opening import Connection, connection_of

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Endpoints:
    """Resolved endpoints. Use as an async context manager: embedded servers live as long as the block.

    ``ledger``: conninfo. ``warehouse``: conninfo, or ``None`` when there is none. ``broker``: how to
    connect, and which life of an embedded broker it is.
    """

    settings: Settings
    needs_broker: bool = True
    ledger: str = ""
    warehouse: str | None = None
    broker: Connection | None = None
    _postgres: EmbeddedPostgres | None = None
    _embedded_broker: EmbeddedBroker | None = None

    async def __aenter__(self) -> Self:
        settings = self.settings
        await asyncio.gather(self._start_postgres(), self._start_broker())
        self.ledger = self._postgres.url if self._postgres is not None else settings.ledger.reveal()
        if settings.warehouse.embedded:
            self.warehouse = self.ledger  # a schema beside the ledger, wherever that is
        elif settings.warehouse.scheme != "none":
            self.warehouse = settings.warehouse.reveal()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._embedded_broker, self._postgres):
            if server is not None:
                await asyncio.to_thread(server.stop)

    async def _start_postgres(self) -> None:
        if self.settings.ledger.embedded:
            self._postgres = await asyncio.to_thread(start_postgres, self.settings.data_dir / "postgres")

    async def _start_broker(self) -> None:
        settings = self.settings
        if not self.needs_broker:
            return
        if settings.broker.embedded:
            broker = await asyncio.to_thread(start_broker, settings.data_dir / "broker")
            self._embedded_broker = broker
            self.broker = KafkaConnection(broker.bootstrap, embedded=True, incarnation=broker.incarnation)
        else:
            self.broker = connection_of(settings)


async def until_there(stream: str, name: str, connect: Callable[[], Awaitable[object]]) -> None:
    """Connect a worker to what it calls ``name``; tries again, and says so, as long as it takes."""
    delay = 0.5
    while True:
        try:
            await connect()
        except DependencyError as error:
            end_if_cancelled(error)
            log.warning(
                "waiting_for_endpoint",
                stream=stream,
                endpoint=name,
                on=error.what,
                problem=error.problem,
                hint=error.hint,
            )
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 10.0)
        else:
            return
