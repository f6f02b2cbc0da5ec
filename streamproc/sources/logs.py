"""Logs in a bucket or a folder as a :class:`~streamproc.sources.Source`: each log is one partition with an end.

Workers find logs by listing, and by notifications where there is a queue, and note them in the ledger; from
there each takes some, oldest first. See ``docs/decisions/0017-logs-are-partitions-with-an-end.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import DependencyError, SourceError
from streamproc.log_objects import LogLedger
from streamproc.model import Partition, RecordBatch
from streamproc.sources import Listener, Outage, Waiting
from streamproc.sources.handing_out import handed_out
from streamproc.sources.log_reader import Reading
from streamproc.sources.log_sharing import LogSharing
from streamproc.sources.log_store import LogConnection, LogStore
from streamproc.topology import Contract
from streamproc.transform.weblog_cloudfront import STANDARD_FIELDS

#: Bytes read and not handed out: reading pauses there.
_PREFETCH = 64 << 20


class LogSource:
    """A worker's share of the logs of a place; see :class:`~streamproc.sources.Source` for its methods.

    ``waiting`` is told what is being waited out.
    """

    def __init__(
        self,
        connection: LogConnection,
        contract: Contract,
        listener: Listener,
        ledger: LogLedger,
        *,
        waiting: Waiting | None = None,
    ) -> None:
        self._waiting: Waiting = waiting or (lambda error, failing: None)
        self._store = open_log_store(connection)
        self._arrived = asyncio.Event()
        self._turn = 0
        how = how_to_read(
            connection,
            contract,
            self._store,
            room=lambda: self.buffered_bytes < _PREFETCH,
            arrived=self._arrived,
            waiting=self._waiting,
        )
        self._sharing = LogSharing(connection, listener, ledger, how)

    async def start(self) -> None:
        """Connect and begin to look for logs; waits for a place that is not there yet."""
        delay, outage = 0.5, Outage()
        while True:
            try:
                await self._store.open()
                break
            except DependencyError as error:
                end_if_cancelled(error)
                self._waiting(error, outage.failed())
                await asyncio.sleep(delay)
                delay = min(delay * 2, 15.0)
        self._sharing.begin()

    async def close(self) -> None:
        """Let go of everything and disconnect. ``revoked`` is not called: drain first."""
        await self._sharing.end()
        await self._store.close()

    @property
    def finished(self) -> asyncio.Event:
        """Set when everything is read and committed, of a connection that ends (``once``)."""
        return self._sharing.finished

    @property
    def rebalances(self) -> int:
        """How often logs were taken."""
        return self._sharing.rebalances

    # -- records -------------------------------------------------------------------------------------

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        """See :meth:`streamproc.sources.Source.next`. Raises what the listener or the ledger raised."""
        hand_out = partial(self._hand_out, max_records)
        return await handed_out(hand_out, self._arrived, self._failed, max_wait)

    def _failed(self) -> Exception | None:
        """What went wrong beside the reading, once."""
        error, self._sharing.failure = self._sharing.failure, None
        return error

    def _hand_out(self, max_records: int) -> list[RecordBatch]:
        ready = [
            reader for reader in self._sharing.readers.values() if reader.has_records and not reader.paused
        ]
        if not ready:
            if any(reader.end is not None for reader in self._sharing.readers.values()):
                self._sharing.hurry.set()
            return []
        self._turn = (self._turn + 1) % len(ready)  # who comes first gets the most: take turns
        batches: list[RecordBatch] = []
        left = max_records
        for reader in ready[self._turn :] + ready[: self._turn]:
            while left > 0 and (batch := reader.next()) is not None:
                batches.append(batch)
                left -= len(batch)
        for reader in self._sharing.readers.values():
            reader.go_on()
        return batches

    def pause(self, partitions: Sequence[Partition]) -> None:
        """See :meth:`streamproc.sources.Source.pause`."""
        self._set_paused(partitions, paused=True)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """See :meth:`streamproc.sources.Source.resume`."""
        self._set_paused(partitions, paused=False)
        self._arrived.set()

    def _set_paused(self, partitions: Sequence[Partition], *, paused: bool) -> None:
        for partition in partitions:
            if (reader := self._sharing.readers.get(partition.id)) is not None:
                reader.paused = paused

    # -- positions -----------------------------------------------------------------------------------

    async def reclaim(self) -> None:
        """See :meth:`streamproc.sources.Source.reclaim`: everything is let go of and taken again."""
        await self._sharing.again()

    async def copy_commit(self, positions: Mapping[Partition, int]) -> bool:
        """Nothing to copy to. What is committed decides when a log is done."""
        for partition, through in positions.items():
            self._sharing.committed(partition, through)
        return True

    async def beginning_positions(self) -> dict[Partition, int]:
        """The first row of each log."""
        return dict.fromkeys(self.assignment, 0)

    async def end_positions(self) -> dict[Partition, int]:
        """The newest row read of our logs."""
        return {reader.partition: reader.newest for reader in self._sharing.readers.values()}

    def fetched_newest(self, partition: Partition) -> int | None:
        """The newest row read of a log."""
        reader = self._sharing.readers.get(partition.id)
        return None if reader is None else reader.newest

    @property
    def assignment(self) -> frozenset[Partition]:
        """The logs that are ours now."""
        return frozenset(reader.partition for reader in self._sharing.readers.values())

    @property
    def stopped(self) -> Mapping[Partition, SourceError]:
        """Nothing ever: a log that cannot be read on ends with a reject."""
        return {}

    @property
    def begins(self) -> dict[Partition, int]:
        """See :attr:`streamproc.sources.Source.begins`: none, a log is read from its first row."""
        return {}

    @property
    def lag(self) -> dict[Partition, int]:
        """Rows read and not handed out."""
        return {
            reader.partition: reader.newest - reader.handed_out for reader in self._sharing.readers.values()
        }

    @property
    def behind(self) -> dict[Partition, float]:
        """Nothing: logs do not say."""
        return {}

    @property
    def buffered_bytes(self) -> int:
        """Bytes read and not handed out."""
        return sum(reader.queued_bytes for reader in self._sharing.readers.values())


def how_to_read(
    connection: LogConnection,
    contract: Contract,
    store: LogStore,
    *,
    room: Callable[[], bool],
    arrived: asyncio.Event,
    waiting: Waiting,
) -> Reading:
    """How logs of that contract are read there."""
    cloudfront = contract.decoder == "cloudfront"
    return Reading(
        store=store,
        caps=connection.caps,
        max_line=contract.max_record_bytes,
        headers=cloudfront,
        fields=(contract.log_format or STANDARD_FIELDS) if cloudfront else None,
        growing=connection.folder,
        room=room,
        arrived=arrived,
        waiting=waiting,
    )


def open_log_store(connection: LogConnection) -> LogStore:
    """The place of a connection."""
    if connection.folder:
        from streamproc.sources.log_folder import Folder  # noqa: PLC0415 - each loads only what it needs

        return Folder(connection)
    from streamproc.sources.log_bucket import Bucket  # noqa: PLC0415 - Amazon's client takes a second

    return Bucket(connection)
