"""Which logs of a place are ours: finding them, taking some from the ledger, and letting go of those that are done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import DependencyError
from streamproc.log_objects import LogLedger, TakenLog
from streamproc.model import Partition
from streamproc.sources import Listener, Outage
from streamproc.sources.log_reader import LogReader, Reading
from streamproc.sources.log_store import LogConnection

log = structlog.get_logger(__name__)

#: Logs read at the same time by one worker, and those it holds until their last records are committed.
_READING, _HELD = 16, 256

#: Seconds between two looks at what there is to do, and how many there are within a lease.
_LOOK = 1.0
_BEATS = 3

#: Seconds between two compactions, and for which an object has been done by then, or a file, which may grow.
_COMPACT_EVERY, _COMPACT_OBJECTS, _COMPACT_FILES = 600.0, 3_600.0, 86_400.0


class LogSharing:
    """A worker's part in sharing the logs of a place. ``how``: how its readers read."""

    def __init__(
        self, connection: LogConnection, listener: Listener, ledger: LogLedger, how: Reading
    ) -> None:
        self.readers: dict[str, LogReader] = {}
        #: Set when the first listing is in the ledger.
        self.listed = asyncio.Event()
        #: Set when everything is read and committed, of a connection that ends (``once``).
        self.finished = asyncio.Event()
        #: Set to have a look now.
        self.hurry = asyncio.Event()
        self.failure: Exception | None = None
        #: How often logs were taken.
        self.rebalances = 0
        self._connection = connection
        self._listener = listener
        self._ledger = ledger
        self._how = how
        self._store = how.store
        self._committed: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Look for logs and take some, from now on. A failure is left in :attr:`failure`."""
        loops = [("find logs", self._find), ("share logs", self._share)]
        if self._connection.queue is not None and not self._connection.once:
            loops.append(("follow notifications", self._follow))
        self._tasks = [asyncio.create_task(self._guarded(loop()), name=name) for name, loop in loops]

    async def end(self) -> None:
        """Let go of everything. Nobody is asked to commit: drain first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        try:
            await self._finish()
            await self._ledger.release(self.readers)
        except DependencyError as error:  # then they expire
            log.warning("leases_not_released", on=error.what, problem=error.problem)
        await self._forget(list(self.readers))

    async def again(self) -> None:
        """Let go of everything and take it again, from what is committed."""
        held = list(self.readers)
        await self._forget(held)
        await self._ledger.release(held)
        self.hurry.set()

    def committed(self, partition: Partition, through: int) -> None:
        """That is in the ledger. It decides when a log is done."""
        if partition.id in self._committed:
            self._committed[partition.id] = through
        self.hurry.set()

    async def _guarded(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except Exception as error:  # raised by next(): nothing else waits for this task
            self.failure = error
            self._how.arrived.set()

    async def _find(self) -> None:
        """List, again and again: whatever no notification told of is found here."""
        outage = Outage()
        while True:
            end_if_cancelled()  # here and below: what is asked may be answered although the asking was given up
            try:
                new = 0
                async for entries in self._store.listing():
                    new += await self._ledger.found(
                        [entry for entry in entries if entry.modified_ms in self._connection.period]
                    )
                if new:
                    log.info("logs_found", place=str(self._connection), logs=new)
                    self.hurry.set()
                self.listed.set()
                outage.over()
                end_if_cancelled()
                if self._connection.once:
                    return
                await asyncio.sleep(self._connection.list_every)
            except DependencyError as error:
                end_if_cancelled(error)
                self._how.waiting(error, outage.failed())
                await asyncio.sleep(_LOOK)

    async def _follow(self) -> None:
        """Note what the queue tells of."""
        from streamproc.sources.log_bucket import Bucket  # noqa: PLC0415 - Amazon's client takes a second
        from streamproc.sources.log_queue import Queue  # noqa: PLC0415 - see above

        assert isinstance(self._store, Bucket) and self._connection.queue is not None
        outage = Outage()
        async with Queue(self._connection, self._store) as queue:
            while True:
                end_if_cancelled()
                try:
                    entries, receipts = await queue.receive()
                    if await self._ledger.found(entries):
                        self.hurry.set()
                    await queue.delete(receipts)  # only now: they are in the ledger
                    outage.over()
                except DependencyError as error:
                    end_if_cancelled(error)
                    self._how.waiting(error, outage.failed())
                    await asyncio.sleep(_LOOK)

    async def _share(self) -> None:
        """Renew the leases, let go of what is done, take more."""
        loop = asyncio.get_running_loop()
        renewed = compacted = loop.time()
        outage = Outage()
        while True:
            end_if_cancelled()
            try:
                if loop.time() - renewed > self._ledger.timeout / _BEATS:
                    await self._renew()
                    renewed = loop.time()
                if loop.time() - compacted > _COMPACT_EVERY:
                    await self._ledger.compact(
                        _COMPACT_FILES if self._connection.folder else _COMPACT_OBJECTS
                    )
                    compacted = loop.time()
                listed = self.listed.is_set()
                await self._finish()
                if not await self._take() and listed and self._connection.once:
                    await self._look_whether_all_is_done()
                outage.over()
            except DependencyError as error:
                end_if_cancelled(error)
                self._how.waiting(error, outage.failed())
            try:
                async with asyncio.timeout(_LOOK):
                    await self.hurry.wait()
            except TimeoutError:
                pass
            self.hurry.clear()

    async def _renew(self) -> None:
        """Forget what others have taken: its next commit would be refused anyway."""
        ours = await self._ledger.renew(self.readers)
        lost = {id_: reader.partition for id_, reader in self.readers.items() if id_ not in ours}
        await self._forget(list(lost))
        # Of which all is committed, that is; what is not stays until its commit is refused.
        await self._listener.finished(list(lost.values()))

    async def _take(self) -> bool:
        """Take more logs when fewer are being read than may be; whether any are held."""
        reading = sum(reader.end is None for reader in self.readers.values())
        most = min(_READING - reading, _HELD - len(self.readers))
        if most > 0 and self._how.room():
            taken = await self._ledger.take(most, self._connection.period)
            # What we hold has grown meanwhile: it is finished first.
            await self._open([one for one in taken if one.entry.id not in self.readers])
        return bool(self.readers)

    async def _open(self, taken: Sequence[TakenLog]) -> None:
        """Claim these logs and begin to read behind what is committed."""
        if not taken:
            return
        self.rebalances += 1
        partitions = {one.entry.id: Partition(str(self._connection), one.entry.id) for one in taken}
        positions = await self._listener.assigned(list(partitions.values()))
        # A claim can come so late that another worker has finished the log and its position is compacted away.
        # Asked after the claim, nobody else can commit any more: what is still ours is not done.
        ours = await self._ledger.renew(partitions)
        await self._listener.finished([partitions[id_] for id_ in partitions if id_ not in ours])
        for one in taken:
            id_, partition = one.entry.id, partitions[one.entry.id]
            if id_ not in ours:
                continue
            position = positions[partition]
            self.readers[id_] = reader = LogReader(partition, one, position, self._how)
            self._committed[id_] = reader.handed_out  # as yet
            reader.start()
        log.info("logs_taken", logs=[one.entry.place for one in taken if one.entry.id in ours][:10])

    async def _finish(self) -> None:
        """Note what is read and committed to its end."""
        ends = {
            id_: reader.end
            for id_, reader in self.readers.items()
            if reader.end is not None
            and not reader.has_records
            and self._committed[id_] >= reader.end.position
        }
        if ends:
            await self._ledger.finish(ends)
            await self._listener.finished([self.readers[id_].partition for id_ in ends])
            await self._forget(list(ends))
            self.hurry.set()
        for reader in self.readers.values():
            if (error := reader.failure) is not None:
                raise error

    async def _look_whether_all_is_done(self) -> None:
        totals = await self._ledger.totals(self._connection.period)
        if totals.done == totals.logs:
            self.finished.set()

    async def _forget(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self._committed.pop(id_, None)
            await self.readers.pop(id_).stop()
