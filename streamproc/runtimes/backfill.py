"""Logs that lie in a place already, read to their ends by one worker, once.

It is the worker of ``streamproc run`` with a source that ends: the same tables, lake and ledger. What it has
committed is done; started again, or beside others, it goes on with the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from streamproc.errors import DependencyError
from streamproc.ledger.logs import Logs
from streamproc.log_objects import LogTotals, Period
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.service import signals, spare_the_collector
from streamproc.runtimes.worker import Worker
from streamproc.settings import Settings
from streamproc.sources.log_store import LogConnection
from streamproc.sources.logs import LogSource, open_log_store
from streamproc.topology import Topology

#: Seconds between two looks at how far it is.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """How far it is. ``totals``: of all logs of the period, whoever read them; the rest is of this run.

    ``seconds``: from the first record to the last commit.
    """

    totals: LogTotals
    records: int
    accepted: int
    filtered: int
    rejected: int
    duplicate: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every log is read to its end."""
        return self.totals.done == self.totals.logs

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds else 0.0


async def backfill(
    settings: Settings, page: Topology, folder: Path, period: Period, tell: Callable[[BackfillReport], None]
) -> BackfillReport:
    """Read the logs of ``settings.broker`` that were changed in the period; returns what was done.

    ``folder``: where the page is. Ends early, with what is committed, on SIGTERM and SIGINT. Raises
    :class:`DependencyError` when the place does not answer, and what stopped the worker.
    """
    spare_the_collector()
    ending = asyncio.Event()
    with signals(ending):
        async with Endpoints(settings) as endpoints:
            assert isinstance(endpoints.broker, LogConnection)
            endpoints.broker = replace(endpoints.broker, once=True, period=period)
            await _look_at(endpoints.broker)
            worker = Worker(settings, page, endpoints, pages=folder)
            running = asyncio.create_task(worker.run(ending))
            while not running.done():
                await asyncio.wait({running}, timeout=_LOOK)
                if isinstance(worker.source, LogSource) and not running.done():
                    if worker.source.finished.is_set():
                        ending.set()
                    with suppress(DependencyError):  # the worker waits for the ledger, and says so
                        tell(await _report(worker, endpoints.broker))
            running.result()
            await worker.upkeep.finish()
            await worker.ledger.open()
            try:
                return await _report(worker, endpoints.broker)
            finally:
                await worker.ledger.close()


async def _look_at(connection: LogConnection) -> None:
    store = open_log_store(connection)
    try:
        await store.open()
    finally:
        await store.close()


async def _report(worker: Worker, connection: LogConnection) -> BackfillReport:
    stats = worker.pipeline.stats
    logs = Logs(worker.ledger.database, worker.topology.name, str(connection), worker.settings.worker, 0)
    now = stats.last_commit_at or time.monotonic()
    return BackfillReport(
        await logs.totals(connection.period),
        stats.records,
        stats.accepted,
        stats.filtered,
        stats.rejected,
        stats.duplicate,
        max(now - stats.first_taken_at, 0.0) if stats.first_taken_at else 0.0,
    )
