"""The gate of one claimed shard: pages become record batches, and every record gets its number.

Sequence numbers grow within a shard but say nothing of what lies between two of them, so nobody can see from
them that a record is missing. Two things are checked instead: reading begins with the very record that was
read last, and where that is gone, what followed it must have been committed before it could go as well. A reader that
has fallen behind for about as long as records are kept begins anew behind every page, for the same reason.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import Gap, SourceError, UnexpectedPosition
from streamproc.leases import Found, LeaseStore, Mark, Report
from streamproc.model import Partition, RecordBatch
from streamproc.sources.kinesis_client import KinesisError, Shard
from streamproc.sources.kinesis_polling import Pages, persistently
from streamproc.sources.kinesis_records import Page, runs

log = structlog.get_logger(__name__)

#: Seconds. A record is not counted on until the last moment of its retention.
_MARGIN = 300.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the readers of a source share.

    ``room``: whether more may be fetched. ``arrived`` is set whenever there is something to hand out or to
    raise; ``news`` when there is something that the ledger is to hear before the next heartbeat is due.
    ``kept`` says for how many seconds the stream keeps records, which can change while they are read.
    """

    store: LeaseStore
    room: Callable[[], bool]
    arrived: asyncio.Event
    news: asyncio.Event
    kept: Callable[[], float]


class ShardReader:
    """Reads one shard behind a committed position, in a task of its own, and queues what it finds.

    ``position``: committed through here; ``None``: nothing ever was. ``found``: the mark to count from.
    """

    def __init__(
        self,
        partition: Partition,
        shard: Shard,
        position: int | None,
        found: Found,
        *,
        pages: Pages,
        around: Surroundings,
    ) -> None:
        self.partition = partition
        #: Number of the last record fetched, and of the last one handed out.
        self.fetched = self.handed_out = found.mark.position if position is None else position
        self.queued_bytes = 0
        self.paused = False
        self.behind_ms: int | None = None
        #: Position of the shard's last record, once it is read to its end.
        self.last_position: int | None = None
        self.error: SourceError | None = None
        self.failure: Exception | None = None
        self._shard = shard
        self._pages = pages
        self._around = around
        self._where = found.mark
        self._skip = self.fetched - found.mark.position
        #: Whether it has been further than at the oldest records there are, where a first reader may begin.
        self._ahead = not found.mark.inclusive or self._skip > 0
        #: When the record to begin with arrived, on the loop's clock, as far as that is known.
        self._arrived_at: float | None = None
        if found.age is not None:
            self._arrived_at = asyncio.get_running_loop().time() - found.age
        #: When all that had arrived was read, on the loop's clock, and the position that was.
        self._complete_at: float | None = None
        self._complete_position = self.fetched
        if found.complete_for is not None:
            self._complete_at = asyncio.get_running_loop().time() - found.complete_for
        self._queue: deque[tuple[RecordBatch, int]] = deque()
        self._mark: Mark | None = None
        self._go = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- for the source ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name=f"read {self.partition}")

    async def stop(self) -> None:
        """Read no more; what is queued is gone."""
        self._queue.clear()
        self.queued_bytes = 0
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def go_on(self) -> None:
        """There may be room again."""
        self._go.set()

    def next(self) -> RecordBatch | None:
        """The next record batch, ``None`` when nothing is waiting. Raises what ended the reading."""
        if self._queue:
            batch, sequence = self._queue.popleft()
            self.queued_bytes -= batch.size
            self.handed_out = batch.through
            self._mark = Mark(batch.through, sequence, arrived_ms=batch.received_ms)
            return batch
        if self.failure is not None:
            raise self.failure
        if self.error is not None:
            raise self.error
        return None

    def report(self, lease: int, committed: int | None) -> Report:
        """What to tell with the next heartbeat; ``committed``: through here, by the last commit we saw."""
        complete_for = None
        if self._complete_at is not None and self._complete_position <= (
            -1 if committed is None else committed
        ):
            complete_for = asyncio.get_running_loop().time() - self._complete_at
        return Report(lease, self._mark, self.behind_ms, complete_for, self.last_position)

    def reported(self, report: Report) -> None:
        """The ledger has it: the same mark need not be told again."""
        if self._mark == report.mark:
            self._mark = None

    # -- reading -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._read()
        except SourceError as error:
            self.error = error
        except Exception as error:  # of the ledger, or a mistake of ours: next() raises it
            self.failure = error
        self._around.arrived.set()

    async def _read(self) -> None:
        while self.last_position is None:
            await self._until_room()
            begun = False  # whether the first record of these pages is the one that has to be
            try:
                async with aclosing(self._pages.pages(self._where)) as pages:
                    async for page in pages:
                        asked = asyncio.get_running_loop().time()
                        fresh = page
                        if not begun:
                            fresh, begun = await self._begin(page)
                        self._take(fresh)
                        self._note(page, asked, begun=begun)
                        await self._until_room()
                        if len(fresh) and page.behind_ms and self._falls_off():
                            break  # what follows could go unnoticed: it has to come behind this record
            except KinesisError as error:  # of those that waiting does not cure
                self._lost(f"the stream does not have this shard any more ({error.problem})")
                hint = "if the stream has forgotten it: streamproc offsets set --accept-gap to latest ends it"
                raise SourceError(f"{self.partition}: cannot be read: {error.problem}; {hint}") from error

    async def _until_room(self) -> None:
        end_if_cancelled()
        while self.paused or not self._around.room():
            self._go.clear()
            await self._go.wait()

    def _falls_off(self) -> bool:
        """Whether the record read last may be gone before the next page comes, which would not say so.

        An iterator, and a subscription, lasts five minutes: what comes by it follows a record that is kept for longer.
        Not where the shard is begun at its oldest record, until it has got away from there.
        """
        assert self._arrived_at is not None, "of the record read last"
        age = asyncio.get_running_loop().time() - self._arrived_at
        kept = age + _MARGIN <= self._around.kept()
        self._ahead = self._ahead or kept
        return self._ahead and not kept

    async def _begin(self, page: Page) -> tuple[Page, bool]:
        """The page without what was read before, and whether that has been decided."""
        end = page.iterator is None or page.behind_ms == 0
        if not len(page):
            if end and self._where.sequence is not None:
                why = f"of sequence number {self._where.sequence} and after it nothing is kept"
                self._lost(why, everything=True)
                return page, True
            return page, False
        first = int(page.sequences[0])
        if self._where.sequence is None:  # the origin is decided by whoever gets there first
            settle = partial(self._around.store.settle, self._shard.info.id, self._where.position, first)
            self._where = await persistently(settle, self._pages.pace)
        if first == self._where.sequence:
            return (page if self._where.inclusive else page.since(1)), True
        self._lost(f"record {self._where.sequence} is gone, the oldest kept is {first}")
        return page, True

    def _lost(self, how: str, *, everything: bool = False) -> None:
        """The place to begin at is gone. Raises :class:`Gap` unless nothing can have gone with it.

        ``everything``: so is all that was behind it. Raises :class:`UnexpectedPosition` when the record is too
        young to be gone.
        """
        now, kept = asyncio.get_running_loop().time(), self._around.kept()
        if self._arrived_at is not None and now - self._arrived_at + _MARGIN < kept:
            raise UnexpectedPosition(
                f"{self.partition}: everything through position {self.fetched} is read; {how}, though it is kept "
                f"for {kept / 3600:.0f} hours: the stream was made anew"
            )
        complete = self._complete_at is not None and now - self._complete_at + _MARGIN < kept
        if complete and (everything or not self._skip):
            self._skip = 0
            return
        raise Gap(
            f"{self.partition}: everything through position {self.fetched} is read; {how}, and records that "
            "followed it may be gone too; to go on without them: streamproc offsets set --accept-gap"
        )

    def _take(self, page: Page) -> None:
        for run in runs(page, self._shard.keys):
            values = run.values
            if self._skip:  # the mark was made before the position
                values, self._skip = values[self._skip :], max(0, self._skip - len(values))
                if not values:
                    continue
            after, self.fetched = self.fetched, self.fetched + len(values)
            size = sum(map(len, values))
            batch = RecordBatch(
                self.partition,
                after,
                self.fetched,
                values,
                range(after + 1, self.fetched + 1),
                received_ms=run.arrived_ms,
                size=size,
            )
            self._queue.append((batch, run.sequence))
            self.queued_bytes += size
        if len(page):
            self._where = Mark(self.fetched - self._skip, int(page.sequences[-1]))
            age = max(0.0, time.time() - float(page.arrivals[-1]))
            self._arrived_at = asyncio.get_running_loop().time() - age
            self._around.arrived.set()

    def _note(self, page: Page, asked: float, *, begun: bool) -> None:
        if self.behind_ms is None:  # a report of the stream's lag has a hole until the ledger knows
            self._around.news.set()
        self.behind_ms = page.behind_ms
        ended = page.iterator is None
        if (ended or page.behind_ms == 0) and (begun or self._where.sequence is None):
            if self._skip:
                raise UnexpectedPosition(
                    f"{self.partition}: committed through {self.fetched}, but the shard ends "
                    f"{self._skip} records before it: the stream was made anew, or lost records"
                )
            self._complete_position, self._complete_at = self.fetched, asked
        if ended:
            self.last_position = self.fetched
            self._around.news.set()
