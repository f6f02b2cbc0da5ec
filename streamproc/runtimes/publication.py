"""Publication beside the pipeline: what the outbox notes goes to Kafka, and commits never wait for it.

Every worker delivers, also what others have noted: at its start, after each of its commits, and now and then.
While it fails the notes pile up in the database, which the log and the health answer say.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.database import Database
from streamproc.errors import StreamprocError
from streamproc.runtimes.endpoints import Endpoints
from streamproc.sinks.lake import Lake
from streamproc.sinks.outbox import KINDS, Backlog, Outbox
from streamproc.sources.kafka_produce import KafkaProducer
from streamproc.sources.opening import kafka_only
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Seconds between two looks for notes that a worker which died has left.
LOOK_EVERY = 5.0

#: Seconds for which one kind of notes is published before it is the other's turn: there may be more of one than are
#: published in hours, and more may come as fast.
_TURN = 2.0

#: Seconds before the first and, at most, before later attempts after a failure.
_RETRY_FIRST, _RETRY_MOST = 0.5, 15.0

#: Longest wait at the end of a worker; what is not published by then is published by the next.
_FINISH = 5.0


class Publication:
    """Publishes one stream's notes. ``outbox`` is what the pipeline notes them in."""

    def __init__(self, topology: Topology, lake: Lake | None, endpoints: Endpoints, worker: str) -> None:
        """Raises :class:`ConfigError` like :class:`Outbox`."""
        assert endpoints.broker is not None
        # A connection of its own: a note is locked while it is published, and commits need theirs.
        self._database = Database(endpoints.ledger, f"streamproc {worker} publication", size=1)
        self._producer = KafkaProducer(kafka_only(endpoints.broker, "topics are published"))
        self._connected = False
        self._backlog = Backlog(0, 0.0)
        self._more = False
        self._problem: str | None = None
        self.outbox = Outbox(topology, self._database, lake, self._producer)

    async def run(self) -> None:
        """Until cancelled. A failure is logged and tried again, less and less often."""
        delay = _RETRY_FIRST
        await self._look()
        while True:
            end_if_cancelled()
            self.outbox.noted.clear()
            well = await self.deliver(max(_TURN, delay))
            # Where there is more it has taken as long as a wait would, also when the other kind cannot be published.
            if not self._more:
                await (self._noted() if well else asyncio.sleep(delay))
            delay = _RETRY_FIRST if well else min(delay * 2, _RETRY_MOST)

    async def deliver(self, within: float) -> bool:
        """Publish what is noted now, of each kind for ``within`` seconds; false when something could not be.

        One kind does not stop the other.
        """
        problems: list[str] = []
        self._more = False
        for kind in KINDS:
            try:
                await self._database.open()
                await self._connect()
                self._more |= await self.outbox.deliver(kind, within)
            except StreamprocError as error:
                problems.append(str(error))
                await self._disconnect()  # a producer that failed once may go on failing
        self._problem = problems[0] if problems else None
        await self._look()
        if problems:
            log.warning(
                "not_published_yet",
                why=problems,
                notes=self._backlog.notes,
                oldest_seconds=round(self._backlog.oldest, 1),
            )
        return not problems

    async def close(self) -> None:
        """Publish what the last commit noted, if that can be done soon, and disconnect."""
        try:
            async with asyncio.timeout(_FINISH):
                while await self.deliver(_TURN) and self._more:
                    pass
        except TimeoutError:
            log.warning("publication_left", notes=self._backlog.notes, to="the next worker")
        finally:
            await self._disconnect()
            await self._database.close()

    @property
    def backlog(self) -> Backlog:
        """What is not published yet, as of the last attempt."""
        return self._backlog

    @property
    def well(self) -> bool:
        """Whether the last attempt was a success."""
        return self._problem is None

    def facts(self) -> dict[str, Any]:
        """For the health answer, as of the last attempt."""
        return {
            "notes": self._backlog.notes,
            "oldest_seconds": round(self._backlog.oldest, 1),
            "problem": self._problem,
        }

    async def _noted(self) -> None:
        """Wait for a commit; not for long, because another worker may have left something."""
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await self.outbox.noted.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        """Count what is noted; without an answer that stays what it was."""
        try:
            await self._database.open()
            self._backlog = await self.outbox.backlog()
        except StreamprocError as error:
            log.debug("backlog_unknown", why=str(error))

    async def _connect(self) -> None:
        if not self._connected:
            await self._producer.start()
            self._connected = True

    async def _disconnect(self) -> None:
        if not self._connected:
            return
        self._connected = False
        stopping = asyncio.create_task(self._producer.stop())  # sends what is under way, if there is a broker
        _, unfinished = await asyncio.wait({stopping}, timeout=_FINISH)
        for task in unfinished:
            task.cancel()
