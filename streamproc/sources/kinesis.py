"""A Kinesis stream as a :class:`~streamproc.sources.Source`.

Kinesis has no groups: which worker reads which shard is agreed on by leases in the ledger's database
(:mod:`streamproc.leases`), and a shard is only begun when those it was split or merged from are committed to
their ends. Positions are running numbers of a shard's records, see
``docs/decisions/0015-kinesis-positions.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from streamproc.errors import SourceError
from streamproc.leases import LeaseStore
from streamproc.model import Partition, RecordBatch
from streamproc.sources import Listener, Waiting
from streamproc.sources.handing_out import handed_out
from streamproc.sources.kinesis_client import connected
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_polling import Pace
from streamproc.sources.kinesis_reader import ShardReader
from streamproc.sources.kinesis_sharing import Sharing, Start


@dataclass(frozen=True, slots=True)
class KinesisOptions:
    """How to consume. ``start``: ``earliest``, ``latest`` or ``timestamp`` (then ``since_ms``, Unix
    milliseconds), for a stream that was never read. ``poll_interval``: seconds between reads of a shard that
    has nothing new. ``prefetch``: fetching pauses while this many bytes are waiting. ``fan_out``: name of the
    consumer to read by with enhanced fan-out; shards are polled where that is not possible, and without a name.
    """

    start: str = "earliest"
    since_ms: int | None = None
    poll_interval: float = 0.5
    prefetch: int = 32 * 1024 * 1024
    fan_out: str | None = None


class KinesisSource:
    """A worker's share of a stream; see :class:`~streamproc.sources.Source` for its methods.

    ``waiting`` is told what is being waited out.
    """

    def __init__(
        self,
        connection: KinesisConnection,
        stream: str,
        options: KinesisOptions,
        listener: Listener,
        store: LeaseStore,
        *,
        waiting: Waiting | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._options = options
        self._listener = listener
        self._store = store
        self._waiting = waiting
        self._stack = AsyncExitStack()
        self._membership: Sharing | None = None
        self._turn = 0

    async def start(self) -> None:
        """Connect and look at the shards; waits, as long as it takes, for a stream that is there."""
        client = await self._stack.enter_async_context(connected(self._connection))
        start = Start(self._options.start, self._options.since_ms)
        sharing = Sharing(
            client,
            self._stream,
            self._listener,
            self._store,
            start=start,
            pace=Pace(self._options.poll_interval, self._waiting, self._options.fan_out),
            room=self._room,
        )
        await sharing.begin()
        self._membership = sharing

    async def close(self) -> None:
        """Give up the leases and disconnect. ``revoked`` is not called: drain first."""
        sharing, self._membership = self._membership, None
        if sharing is not None:
            await sharing.end()
        await self._stack.aclose()

    @property
    def _sharing(self) -> Sharing:
        assert self._membership is not None, "start() first"
        return self._membership

    @property
    def _readers(self) -> Mapping[str, ShardReader]:
        return {} if self._membership is None else self._membership.readers

    # -- records -------------------------------------------------------------------------------------

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        """See :meth:`streamproc.sources.Source.next`. Raises what the listener or the ledger raised."""
        hand_out = partial(self._hand_out, max_records)
        return await handed_out(hand_out, self._sharing.arrived, self._failed, max_wait)

    def _failed(self) -> Exception | None:
        """What went wrong beside the reading, once."""
        error, self._sharing.failure = self._sharing.failure, None
        return error

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
                self._sharing.stop(reader, error)
            left -= taken
        for reader in ready if batches else ():
            reader.go_on()
        return batches

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
            if reader is not None and partition not in self._sharing.stopped:
                reader.paused = False
                reader.go_on()
                self._sharing.arrived.set()

    # -- positions -----------------------------------------------------------------------------------

    async def reclaim(self) -> None:
        """See :meth:`streamproc.sources.Source.reclaim`. A failure is raised by :meth:`next`."""
        await self._sharing.again()

    async def copy_commit(self, positions: Mapping[Partition, int]) -> bool:
        """Nothing to copy to. What is committed decides when a closed shard is finished, and its lag is 0."""
        for partition, through in positions.items():
            self._sharing.committed(partition, through)
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
        return frozenset(Partition(self._stream, shard) for shard in self._sharing.leases)

    @property
    def stopped(self) -> Mapping[Partition, SourceError]:
        """See :attr:`streamproc.sources.Source.stopped`; none while it is joining."""
        return {} if self._membership is None else dict(self._membership.stopped)

    @property
    def begins(self) -> dict[Partition, int]:
        """See :attr:`streamproc.sources.Source.begins`: none, records are counted."""
        return {}

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

    @property
    def rebalances(self) -> int:
        """How often shards came or went."""
        return 0 if self._membership is None else self._membership.rebalances
