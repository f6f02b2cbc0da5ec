"""A Kinesis stream as a :class:`~streamproc.sources.Source`.

Kinesis has no groups: which worker reads which shard is agreed on by leases in the ledger's database
(:mod:`streamproc.leases`), and a shard is only begun when those it was split or merged from are committed to
their ends. Positions are running numbers of a shard's records, see
``docs/decisions/0011-kinesis-positions.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import structlog

from streamproc.errors import DependencyError, SourceError
from streamproc.failpoints import failpoint
from streamproc.leases import Board, LeaseStore, Report, ShardInfo, balance
from streamproc.model import Partition, RecordBatch
from streamproc.sources import Listener
from streamproc.sources.kinesis_client import KinesisClient, KinesisConnection, Shard, connected
from streamproc.sources.kinesis_polling import Pace, Polling, persistently
from streamproc.sources.kinesis_reader import ShardReader, Surroundings
from streamproc.sources.kinesis_records import ALL_KEYS

log = structlog.get_logger(__name__)

#: Seconds between two looks at the list of shards while nothing tells of a change.
_LIST_EVERY = 30.0

#: Heartbeats within the time for which a lease holds.
_BEATS = 3


@dataclass(frozen=True, slots=True)
class KinesisOptions:
    """How to consume. ``start``: ``earliest``, ``latest`` or ``timestamp`` (then ``since_ms``, Unix
    milliseconds), for a stream that was never read. ``poll_interval``: seconds between reads of a shard that
    has nothing new. ``prefetch``: fetching pauses while this many bytes are waiting.
    """

    start: str = "earliest"
    since_ms: int | None = None
    poll_interval: float = 0.5
    prefetch: int = 32 * 1024 * 1024


class KinesisSource:
    """A worker's share of a stream; see :class:`~streamproc.sources.Source` for its methods.

    ``waiting`` is called with each :class:`DependencyError` that is being waited out.
    """

    def __init__(
        self,
        connection: KinesisConnection,
        stream: str,
        options: KinesisOptions,
        listener: Listener,
        store: LeaseStore,
        *,
        waiting: Callable[[DependencyError], None] | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._options = options
        self._listener = listener
        self._store = store
        self._pace = Pace(options.poll_interval, waiting)
        self._arrived = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stack = AsyncExitStack()
        self._client: KinesisClient | None = None
        self._shards: dict[str, Shard] = {}
        self._leases: dict[str, int] = {}
        self._readers: dict[str, ShardReader] = {}
        self._committed: dict[str, int] = {}
        self._stopped: dict[Partition, SourceError] = {}
        self._coordinating: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._turn = 0
        self._kept = 0.0
        #: How often shards came or went.
        self.rebalances = 0

    async def start(self) -> None:
        """Connect and look at the shards; waits, as long as it takes, for a stream that is there."""
        self._client = await self._stack.enter_async_context(connected(self._connection))
        await persistently(self._list, self._pace)
        self._coordinating = asyncio.create_task(self._coordinate(), name="share the shards")

    async def close(self) -> None:
        """Give up the leases and disconnect. ``revoked`` is not called: drain first."""
        for task in (self._coordinating, self._moving):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        self._coordinating = self._moving = None
        if self._client is not None:
            try:
                await self._tell()
                await self._store.leave(self._leases)
            except DependencyError as error:  # then they expire
                log.warning("leases_not_released", on=error.what, problem=error.problem)
        await self._stop_reading()
        self._leases.clear()
        await self._stack.aclose()
        self._client = None

    # -- records -------------------------------------------------------------------------------------

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        """See :meth:`streamproc.sources.Source.next`. Raises what the listener or the ledger raised."""
        deadline = asyncio.get_running_loop().time() + max_wait
        while True:
            if self._failure is not None:
                error, self._failure = self._failure, None
                raise error
            self._arrived.clear()
            batches = self._hand_out(max_records)
            left = deadline - asyncio.get_running_loop().time()
            if batches or left <= 0:
                return batches
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return []

    def _hand_out(self, max_records: int) -> list[RecordBatch]:
        batches: list[RecordBatch] = []
        ready = [reader for reader in self._readers.values() if not reader.paused]
        if ready:  # who comes first gets the most: take turns
            self._turn = (self._turn + 1) % len(ready)
            ready = ready[self._turn :] + ready[: self._turn]
        left = max_records
        for index, reader in enumerate(ready):
            share, taken = left // (len(ready) - index), 0
            try:
                while taken < max(share, 1) and left > 0 and (batch := reader.next()) is not None:
                    batches.append(batch)
                    taken += len(batch)
            except SourceError as error:
                self._stop_shard(reader, error)
            left -= taken
        for reader in ready if batches else ():
            reader.go_on()
        return batches

    def _stop_shard(self, reader: ShardReader, error: SourceError) -> None:
        """Hand out nothing more of a shard; the others go on. Its lease is kept: it is nobody's fault."""
        if reader.partition not in self._stopped:
            log.error("partition_stopped", partition=str(reader.partition), why=str(error))
            self._stopped[reader.partition] = error
        reader.paused = True

    def _room(self) -> bool:
        return self.buffered_bytes < self._options.prefetch

    def pause(self, partitions: Sequence[Partition]) -> None:
        """See :meth:`streamproc.sources.Source.pause`."""
        for partition in partitions:
            if (reader := self._readers.get(partition.id)) is not None:
                reader.paused = True

    def resume(self, partitions: Sequence[Partition]) -> None:
        """See :meth:`streamproc.sources.Source.resume`."""
        for partition in partitions:
            reader = self._readers.get(partition.id)
            if reader is not None and partition not in self._stopped:
                reader.paused = False
                reader.go_on()
                self._arrived.set()

    # -- positions -----------------------------------------------------------------------------------

    async def reclaim(self) -> None:
        """See :meth:`streamproc.sources.Source.reclaim`. A failure is raised by :meth:`next`."""
        if self._moving is not None:
            await asyncio.wait({self._moving})
        await self._stop_reading()
        self._begin_move(self._open(list(self._leases)))
        assert self._moving is not None
        await asyncio.wait({self._moving})

    async def copy_commit(self, positions: Mapping[Partition, int]) -> bool:
        """Nothing to copy to. What is committed decides when a closed shard is finished, and its lag is 0."""
        for partition, through in positions.items():
            self._committed[partition.id] = through
            reader = self._readers.get(partition.id)
            if reader is not None and reader.last_position == through:
                self._hurry.set()  # its children can begin
        return True

    async def beginning_positions(self) -> dict[Partition, int]:
        """Empty: which number the oldest record has is only known once it is counted."""
        return {}

    async def end_positions(self) -> dict[Partition, int]:
        """The newest position known of our shards; one more is there where the last read was behind."""
        return {
            reader.partition: reader.fetched + (1 if reader.behind_ms else 0)
            for reader in self._readers.values()
        }

    def fetched_newest(self, partition: Partition) -> int | None:
        """The newest position fetched of a claimed shard."""
        reader = self._readers.get(partition.id)
        return None if reader is None else reader.fetched

    @property
    def assignment(self) -> frozenset[Partition]:
        """See :attr:`streamproc.sources.Source.assignment`."""
        return frozenset(Partition(self._stream, shard) for shard in self._leases)

    @property
    def stopped(self) -> Mapping[Partition, SourceError]:
        """See :attr:`streamproc.sources.Source.stopped`."""
        return dict(self._stopped)

    @property
    def lag(self) -> dict[Partition, int]:
        """Records fetched and not handed out: how many there are beyond, Kinesis does not say."""
        return {reader.partition: reader.fetched - reader.handed_out for reader in self._readers.values()}

    @property
    def behind(self) -> dict[Partition, float]:
        """See :attr:`streamproc.sources.Source.behind`: the stream's MillisBehindLatest of the last read."""
        return {
            reader.partition: reader.behind_ms / 1000
            for reader in self._readers.values()
            if reader.behind_ms is not None
        }

    @property
    def buffered_bytes(self) -> int:
        """Bytes fetched and not handed out."""
        return sum(reader.queued_bytes for reader in self._readers.values())

    # -- leases --------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """Learn of new shards."""
        assert self._client is not None
        summary = await self._client.summary(self._stream)
        self._kept = float(summary.kept)
        self._shards = await self._client.shards(self._stream)
        listed = [shard.info for shard in self._shards.values()]
        if await self._store.found(listed, self._options.start, self._options.since_ms):
            log.info("shards_found", stream=self._stream, shards=len(listed))

    async def _coordinate(self) -> None:
        """Heartbeat, look at the board, move; again and again. A failure is raised by :meth:`next`."""
        loop = asyncio.get_running_loop()
        listed = loop.time()
        while True:
            try:
                board = await self._tell()
                changed = any(shard.finished and shard.id in self._leases for shard in board.shards)
                if changed or loop.time() - listed > _LIST_EVERY:
                    await self._list()
                    await self._store.thin(self._kept)
                    listed = loop.time()
                if await self._decide(board):
                    continue
            except DependencyError as error:
                log.warning("waiting", on=error.what, problem=error.problem, hint=error.hint)
                if self._pace.waiting is not None:
                    self._pace.waiting(error)
            except Exception as error:
                self._fail(error)
                return
            try:
                async with asyncio.timeout(self._store.timeout / _BEATS):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()

    async def _tell(self) -> Board:
        reports = {
            shard: reader.report(self._leases[shard], self._committed.get(shard))
            for shard, reader in self._readers.items()
            if shard in self._leases
        }
        opening = {shard: Report(lease) for shard, lease in self._leases.items() if shard not in reports}
        board = await self._store.beat(reports | opening)
        for shard, report in reports.items():
            if (reader := self._readers.get(shard)) is not None:
                reader.reported(report)
        return board

    async def _decide(self, board: Board) -> bool:
        """One step towards what the board should look like; whether to look again at once."""
        if self._moving is not None and not self._moving.done():
            return False
        held = board.held_by(self._store.worker)
        rows = {shard.id: shard for shard in board.shards}
        finished = [shard for shard in self._leases if shard in held and rows[shard].finished]
        if finished:
            await self._finish(finished)
            return True
        lost = [shard for shard, lease in self._leases.items() if held.get(shard) != lease]
        asked = [shard for shard in self._leases if shard not in lost and rows[shard].wanted_by is not None]
        if lost or asked:
            self._begin_move(self._give_up(lost, asked))
        elif new := [shard for shard in held if shard not in self._leases]:
            if not self._shards.keys() >= set(new):
                await self._list()
            self._leases |= {shard: held[shard] for shard in new}
            self._begin_move(self._open(new))
        else:
            move = balance(board, self._store.worker)
            if move.take:
                await self._store.take(move.take)
                return True
            if move.ask:
                await self._store.ask(move.ask)
        return False

    async def _finish(self, shards: Collection[str]) -> None:
        """Let go of shards that are committed to their ends."""
        log.info("shards_finished", shards=sorted(shards))
        for shard in shards:
            if (reader := self._readers.pop(shard, None)) is not None:
                await reader.stop()
        await self._store.hand_over({shard: self._leases.pop(shard) for shard in shards})

    def _begin_move(self, move: Coroutine[None, None, None]) -> None:
        async def guarded() -> None:
            try:
                await move
            except Exception as error:
                self._fail(error)
            self._hurry.set()

        self._moving = asyncio.create_task(guarded(), name="move shards")

    async def _give_up(self, lost: Collection[str], asked: Collection[str]) -> None:
        """Let the listener finish everything, hand over what was asked for, and go on with the rest.

        All shards are drained, as Kafka's eager rebalance does: the listener's buffers hold them together.
        """
        log.info("shards_going", lost=sorted(lost), asked=sorted(asked))
        partitions = [Partition(self._stream, shard) for shard in self._leases]
        for reader in self._readers.values():
            reader.paused = True
        await self._listener.revoked(partitions)
        try:
            await self._tell()  # the marks of what was handed out last
            await self._store.hand_over({shard: self._leases[shard] for shard in asked})
        except DependencyError as error:  # then they expire
            log.warning("leases_not_released", on=error.what, problem=error.problem)
        await self._stop_reading()
        for shard in (*lost, *asked):
            self._leases.pop(shard, None)
        if self._leases:
            await self._open(list(self._leases))

    async def _open(self, shards: Sequence[str]) -> None:
        """Claim these shards and begin to read behind what is committed."""
        assert self._client is not None
        self.rebalances += 1
        partitions = {shard: Partition(self._stream, shard) for shard in sorted(shards)}
        positions = await self._listener.assigned(list(partitions.values()))
        around = Surroundings(self._store, self._room, self._arrived, self._hurry, self._kept)
        for shard, partition in partitions.items():
            position = positions[partition]
            found = await persistently(partial(self._store.find, shard, position), self._pace)
            pages = Polling(self._client, self._stream, shard, self._pace)
            # One that is not listed any more will say so itself, when it is asked for records.
            listed = self._shards.get(shard, Shard(ShardInfo(shard), ALL_KEYS, closed=True))
            reader = ShardReader(partition, listed, position, found, pages=pages, around=around)
            if position is not None:
                self._committed[shard] = position
            self._readers[shard] = reader
            reader.start()
        failpoint("seek.done")
        log.info("claimed", partitions=[str(partition) for partition in partitions.values()])

    async def _stop_reading(self) -> None:
        readers = list(self._readers.values())
        self._readers.clear()
        self._stopped.clear()
        for reader in readers:
            await reader.stop()

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._arrived.set()
