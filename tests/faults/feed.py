"""Produces records at a steady rate while a run goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from aiokafka import AIOKafkaProducer

from tests.faults.records import Keyed

#: Records a second, and how many are there when the workers begin.
RATE = 120
BACKLOG = 600

#: Seconds of the feed that it may be ahead of what is committed: on a machine that is slow it waits.
_LEAD = 20

#: Seconds between two sends. What a worker costs is by the batch at such rates: 0.4 of a core for batches every
#: 50 ms, a fourth of a core at one a second.
_TICK = 1.0


@dataclass
class Feed:
    """``records`` with their keys, sent to ``topic`` in order."""

    broker: str
    topic: str
    records: list[Keyed]
    #: How many the broker acknowledged.
    sent: int = 0
    #: Records a second; may be changed while it feeds.
    rate: float = RATE
    #: Records at once as it begins and each time it goes on, beyond those that are there.
    backlog: int = BACKLOG
    #: Seconds between two sends.
    tick: float = _TICK
    #: Records that may be sent beyond those committed, for a feed that nobody is to commit.
    ahead: int = 0
    #: Whether all records are sent though nobody stopped it: what follows is not under way any more.
    at_end: bool = False
    _producer: AIOKafkaProducer | None = None
    _task: asyncio.Task[None] | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, committed: Callable[[], int]) -> None:
        """Some records at once, then ``rate`` a second until :meth:`stop`. ``committed``: records so far."""
        await self.connect()
        self._stopping.clear()
        self._task = asyncio.create_task(self._run(committed))

    async def connect(self) -> None:
        """Be ready to :meth:`send`."""
        self._producer = AIOKafkaProducer(bootstrap_servers=self.broker, linger_ms=5, compression_type="lz4")
        await self._producer.start()

    async def send(self, records: Sequence[Keyed]) -> None:
        """Returns when the broker has acknowledged them."""
        assert self._producer is not None, "connect() first"
        pending = [await self._producer.send(self.topic, value, key=key) for key, value in records]
        await asyncio.gather(*pending)

    async def disconnect(self) -> None:
        """After the last."""
        if self._producer is not None:
            await self._producer.stop()

    async def _run(self, committed: Callable[[], int]) -> None:
        due, before = float(self.sent + self.backlog), time.monotonic()
        try:
            while self.sent < len(self.records):
                now = time.monotonic()
                due, before = due + self.rate * (now - before), now
                with suppress(psycopg.Error):  # the database may be the fault
                    due = min(due, committed() + self.ahead + self.backlog + _LEAD * self.rate)
                due = max(due, self.sent)
                upto = min(len(self.records), int(due))
                await self.send(self.records[self.sent : upto])
                self.sent = upto
                if self._stopping.is_set():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self.tick)
            self.at_end = True
        finally:
            await self.disconnect()

    async def stop(self) -> None:
        """Send what is due, and no more."""
        self._stopping.set()
        if self._task is not None:
            await self._task
            self._task = None

    def rewind(self) -> None:
        """Begin from the first record again, for another topic that nobody is to commit."""
        self.ahead, self.sent = len(self.records), 0
