"""Which shards of a stream are ours: heartbeats, the board of leases, and the moves that follow from it.

Heartbeats go on whatever a claim or a drain waits for: those are moves, and a move runs in a task of its own,
one at a time. Nor do they wait for Kinesis: the stream is listed in a task of its own as well, and what wants a newer
list waits for it while the leases are renewed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import DependencyError, Gap, Inconsistent, SourceError
from streamproc.failpoints import failpoint
from streamproc.leases import Board, LeaseStore, Report, ShardInfo, balance
from streamproc.model import Partition
from streamproc.sources import Listener, Outage
from streamproc.sources.kinesis_client import KinesisClient, Shard
from streamproc.sources.kinesis_polling import Pace, Pages, Polling, persistently
from streamproc.sources.kinesis_reader import ShardReader, Surroundings
from streamproc.sources.kinesis_records import ALL_KEYS

if TYPE_CHECKING:
    from streamproc.sources.kinesis_fanout import Consumer

log = structlog.get_logger(__name__)

#: Seconds between two looks at the list of shards while nothing tells of a change.
_LIST_EVERY = 30.0

#: Seconds between two times that marks are thinned out. That looks at all there are, one a minute and shard for as long
#: as the stream keeps records: a week of two hundred shards is two million.
_THIN_EVERY = 600.0

#: Heartbeats within the time for which a lease holds.
_BEATS = 3


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream that was never read begins: ``earliest``, ``latest``, or ``timestamp`` (``since_ms``)."""

    at: str = "earliest"
    since_ms: int | None = None


class Sharing:
    """A worker's part in sharing a stream. ``room``: whether the readers may fetch more.

    :attr:`arrived` is set whenever there is something to hand out, or a :attr:`failure` to raise.
    """

    def __init__(
        self,
        client: KinesisClient,
        stream: str,
        listener: Listener,
        store: LeaseStore,
        *,
        start: Start,
        pace: Pace,
        room: Callable[[], bool],
    ) -> None:
        self.readers: dict[str, ShardReader] = {}
        self.stopped: dict[Partition, SourceError] = {}
        self.leases: dict[str, int] = {}
        self.arrived = asyncio.Event()
        self.failure: Exception | None = None
        #: How often shards came or went.
        self.rebalances = 0
        self._client = client
        self._stream = stream
        self._listener = listener
        self._store = store
        self._start = start
        self._pace = pace
        self._room = room
        self._shards: dict[str, Shard] = {}
        #: Shards that wait for a newer list, and whether one has come that was begun since.
        self._listed: dict[str, bool] = {}
        self._committed: dict[str, int] = {}
        self._kept = 0.0
        self._hurry = asyncio.Event()
        self._look = asyncio.Event()
        self._listing: asyncio.Task[None] | None = None
        self._coordinating: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._thinning: asyncio.Task[None] | None = None
        self._thin_at = 0.0
        self._consumer: Consumer | None = None

    async def begin(self) -> None:
        """Look at the shards, as long as it takes to see them, then share them from now on."""
        await persistently(self._list, self._pace)
        self._listing = asyncio.create_task(self._follow(), name="list the shards")
        self._coordinating = asyncio.create_task(self._coordinate(), name="share the shards")

    async def end(self) -> None:
        """Give up the leases. Nobody is asked to let go: drain first."""
        for task in (self._listing, self._coordinating, self._moving, self._thinning):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        self._listing = self._coordinating = self._moving = self._thinning = None
        try:
            await self._tell()
            await self._store.leave(self.leases)
        except DependencyError as error:  # then they expire
            log.warning("leases_not_released", on=error.what, problem=error.problem)
        await self._stop_reading()
        self.leases.clear()

    async def again(self) -> None:
        """Claim everything that is ours once more; returns when that is done."""
        if self._moving is not None:
            await asyncio.wait({self._moving})
        await self._stop_reading()
        await asyncio.wait({self._begin_move(self._open(list(self.leases)))})

    def committed(self, partition: Partition, through: int) -> None:
        """That is in the ledger. It decides when a shard is finished, and which of its marks are of use."""
        self._committed[partition.id] = through
        reader = self.readers.get(partition.id)
        if reader is not None and reader.last_position == through:
            self._hurry.set()  # what follows the shard can begin

    def stop(self, reader: ShardReader, error: SourceError) -> None:
        """Hand out nothing more of a shard; the others go on. Its lease is kept: it is nobody's fault."""
        self._stop(reader.partition, error)
        reader.paused = True

    def _stop(self, partition: Partition, error: SourceError) -> None:
        if partition not in self.stopped:
            log.error("partition_stopped", partition=str(partition), why=str(error))
            self.stopped[partition] = error

    async def _list(self) -> None:
        """Learn of new shards."""
        wanted = list(self._listed)
        summary = await self._client.summary(self._stream)
        self._kept = float(summary.kept)
        self._shards = await self._client.shards(self._stream)
        listed = [shard.info for shard in self._shards.values()]
        if await self._store.found(listed, self._start.at, self._start.since_ms):
            log.info("shards_found", stream=self._stream, shards=len(listed))
        self._listed |= {shard: True for shard in wanted if shard in self._listed}

    async def _follow(self) -> None:
        """List the stream, now and then and when shards wait for it. A failure is raised by :meth:`next`."""
        while True:
            try:
                async with asyncio.timeout(_LIST_EVERY):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await persistently(self._list, self._pace)
            except Exception as error:  # raised by next(): nothing else waits for this task
                self._fail(error)
                return
            end_if_cancelled()
            self._begin_thinning()
            if self._listed:
                self._hurry.set()

    async def _coordinate(self) -> None:
        """Heartbeat, look at the board, move; again and again. A failure is raised by :meth:`next`."""
        outage = Outage()
        while True:
            end_if_cancelled()
            try:
                again = await self._decide(await self._tell())
                outage.over()
                if again:
                    continue
            except DependencyError as error:
                end_if_cancelled(error)
                log.warning("waiting", on=error.what, problem=error.problem, hint=error.hint)
                if self._pace.waiting is not None:
                    self._pace.waiting(error, outage.failed())
            except Exception as error:  # raised by next(): nothing else waits for this task
                self._fail(error)
                return
            try:
                async with asyncio.timeout(self._store.timeout / _BEATS):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()

    def _begin_thinning(self) -> None:
        """Forget old marks, now and then, and beside the heartbeats: there may be many."""
        now = asyncio.get_running_loop().time()
        if now >= self._thin_at and (self._thinning is None or self._thinning.done()):
            self._thin_at = now + _THIN_EVERY
            self._thinning = asyncio.create_task(self._thin(), name="thin out the marks")

    async def _thin(self) -> None:
        try:
            await self._store.thin(self._kept)
        except DependencyError as error:  # they are forgotten another time; what is away, the heartbeat tells
            log.warning("marks_not_thinned", on=error.what, problem=error.problem)
        except Exception as error:  # raised by next(): nothing else waits for this task
            self._fail(error)

    async def _tell(self) -> Board:
        reports = {
            shard: reader.report(self.leases[shard], self._committed.get(shard))
            for shard, reader in self.readers.items()
            if shard in self.leases
        }
        opening = {shard: Report(lease) for shard, lease in self.leases.items() if shard not in reports}
        board = await self._store.beat(reports | opening)
        for shard, report in reports.items():
            if (reader := self.readers.get(shard)) is not None:
                reader.reported(report)
        return board

    async def _decide(self, board: Board) -> bool:
        """One step towards what the board should look like; whether to look again at once."""
        held = board.held_by(self._store.worker)
        rows = {shard.id: shard for shard in board.shards}
        ended = [shard for shard in self.leases if shard in held and rows[shard].finished]
        new = [shard for shard in held if shard not in self.leases]
        self._await_list([*ended, *(shard for shard in new if shard not in self._shards)])
        if self._moving is not None and not self._moving.done():
            return False
        # Not before the shards that were made from them are in the ledger.
        if finished := [shard for shard in ended if self._listed[shard]]:
            await self._finish(finished)
            return True
        lost = [shard for shard, lease in self.leases.items() if held.get(shard) != lease]
        asked = [shard for shard in self.leases if shard not in lost and rows[shard].wanted_by is not None]
        if lost or asked:
            self._begin_move(self._give_up(lost, asked))
        # One whose keys are not known yet is not begun, nor is its lease renewed: who knows them may have it.
        elif known := [shard for shard in new if self._listed.get(shard, True)]:
            self.leases |= {shard: held[shard] for shard in known}
            self._begin_move(self._open(known))
        else:
            move = balance(board, self._store.worker)
            if move.take:
                await self._store.take(move.take)
                return True
            if move.ask:
                await self._store.ask(move.ask)
        return False

    def _await_list(self, shards: Collection[str]) -> None:
        """Have the stream listed for these, and forget whoever waited for it before and does not any more."""
        listed = {shard: self._listed.get(shard, False) for shard in shards}
        if not listed.keys() <= self._listed.keys():
            self._look.set()
        self._listed = listed

    async def _finish(self, shards: Collection[str]) -> None:
        """Let go of shards that are committed to their ends."""
        log.info("shards_finished", shards=sorted(shards))
        partitions = [Partition(self._stream, shard) for shard in shards]
        for partition in partitions:
            self.stopped.pop(partition, None)
            if (reader := self.readers.pop(partition.id, None)) is not None:
                await reader.stop()
        # First: a shard whose lease cannot be handed over is opened again, with a claim that has to stay.
        await self._listener.finished(partitions)
        await self._store.hand_over({shard: self.leases.pop(shard) for shard in shards})

    def _begin_move(self, move: Coroutine[None, None, None]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await move
            except Exception as error:  # raised by next(): nothing else waits for this task
                self._fail(error)
            self._hurry.set()

        self._moving = asyncio.create_task(guarded(), name="move shards")
        return self._moving

    async def _give_up(self, lost: Collection[str], asked: Collection[str]) -> None:
        """Let the listener finish everything, hand over what was asked for, and go on with the rest.

        All shards are drained, as Kafka's eager rebalance does: the listener's buffers hold them together.
        """
        log.info("shards_going", lost=sorted(lost), asked=sorted(asked))
        partitions = [Partition(self._stream, shard) for shard in self.leases]
        for reader in self.readers.values():
            reader.paused = True
        await self._listener.revoked(partitions)
        try:
            await self._tell()  # the marks of what was handed out last
            await self._store.hand_over({shard: self.leases[shard] for shard in asked})
        except DependencyError as error:  # then they expire
            log.warning("leases_not_released", on=error.what, problem=error.problem)
        await self._stop_reading()
        for shard in (*lost, *asked):
            self.leases.pop(shard, None)
        if self.leases:
            await self._open(list(self.leases))

    async def _open(self, shards: Sequence[str]) -> None:
        """Claim these shards and begin to read behind what is committed."""
        self.rebalances += 1
        partitions = {shard: Partition(self._stream, shard) for shard in sorted(shards)}
        positions = await self._listener.assigned(list(partitions.values()))
        around = Surroundings(self._store, self._room, self.arrived, self._hurry, lambda: self._kept)
        for shard, partition in partitions.items():
            position = positions[partition]
            try:
                found = await persistently(partial(self._store.find, shard, position), self._pace)
            except Inconsistent as error:  # set by hand, and older than what was kept until now
                gap = Gap(f"{error}: it is too old; streamproc offsets set gives the shard one that is known")
                self._stop(partition, gap)
                continue
            pages = self._pages(shard)
            # One that is not listed any more will say so itself, when it is asked for records.
            listed = self._shards.get(shard, Shard(ShardInfo(shard), ALL_KEYS, closed=True))
            reader = ShardReader(partition, listed, position, found, pages=pages, around=around)
            if position is not None:
                self._committed[shard] = position
            self.readers[shard] = reader
            reader.start()
        failpoint("seek.done")
        log.info("claimed", partitions=[str(partition) for partition in partitions.values()])

    def _pages(self, shard: str) -> Pages:
        polling = Polling(self._client, self._stream, shard, self._pace)
        if (name := self._pace.fan_out) is None:
            return polling
        from streamproc.sources.kinesis_fanout import Consumer, Subscribing  # noqa: PLC0415 - an extra

        if self._consumer is None:
            self._consumer = Consumer(self._client, self._stream, name)
        return Subscribing(self._consumer, shard, polling)

    async def _stop_reading(self) -> None:
        readers = list(self.readers.values())
        self.readers.clear()
        self.stopped.clear()
        for reader in readers:
            await reader.stop()

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.arrived.set()
