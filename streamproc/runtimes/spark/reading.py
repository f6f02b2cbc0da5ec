"""The first tasks of a job: logs in, files of the lake and deltas of the tables out.

A log is one partition, as for a worker: its rows in order, its own clock, its own recent ids. So what is a duplicate
and what is late is decided here as a worker decides it, by the same code. An object or file is read by one task from
end to end: packed ones cannot be begun in the middle, and a clock has to see its rows in order.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from streamproc.epoch import Epoch
from streamproc.errors import DependencyError
from streamproc.log_objects import LogEnd, LogEntry, TakenLog
from streamproc.model import Claim, Partition, RecordBatch
from streamproc.partition_epoch import PartitionEpoch
from streamproc.progress import PartitionProgress, RecentIds
from streamproc.runtimes.spark import exchange
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.lake_reading import LakeWork, read_lake
from streamproc.runtimes.spark.setup import Setup
from streamproc.sinks.lake import Lake
from streamproc.sources.log_reader import LogReader
from streamproc.sources.logs import how_to_read, open_log_store

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes read ahead of the transform by a task.
_PREFETCH = 16 << 20

#: Times that a read that failed is tried again, some minutes together, before Spark is told that the task failed.
_PATIENCE = 20

#: Longest wait for a reader that says nothing, seconds.
_LOOK = 1.0


class LogWork(NamedTuple):
    """A log to be read behind ``position``, where it is claimed.

    ``clock_us`` and ``recent``: of a log that was read in part, its clock, and the keys of the objects whose event ids
    are still remembered.
    """

    taken: TakenLog
    position: int | None
    clock_us: int | None
    recent: tuple[str, ...]

    def as_json(self) -> str:
        """For the way to the executor."""
        return json.dumps(self)

    @classmethod
    def of(cls, text: str) -> LogWork:
        """The reverse of :meth:`as_json`."""
        (entry, end), position, clock, recent = json.loads(text)
        taken = TakenLog(LogEntry(*entry), None if end is None else LogEnd(*end))
        return cls(taken, position, clock, tuple(recent))


def reader(setup: Setup) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """For ``mapInArrow``, over rows with a work each: all of a Spark partition are folded together."""

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        works = [work_of(text) for batch in batches for text in batch.column("work").to_pylist()]
        yield from exchange.batches(read_all(setup, works))

    return read


def work_of(text: str) -> LogWork | LakeWork:
    """What :meth:`LogWork.as_json` or :meth:`LakeWork.as_json` wrote."""
    told = json.loads(text)
    return LakeWork(**told) if isinstance(told, dict) else LogWork.of(text)


def read_all(setup: Setup, works: Sequence[LogWork | LakeWork]) -> Iterator[Piece]:
    """What comes of these works, which are logs or a share of the lake."""
    yield from read_logs(setup, [work for work in works if isinstance(work, LogWork)])
    for work in works:
        if isinstance(work, LakeWork):
            yield from read_lake(setup, work)


def read_logs(setup: Setup, works: Sequence[LogWork]) -> Iterator[Piece]:
    """What comes of these logs. Files leave as soon as they are made: memory follows distinct keys, not rows."""
    if not works:
        return
    with asyncio.Runner() as runner:
        task = _Task(setup)
        found = task.pieces(works)

        async def one() -> Piece | None:
            return await anext(found, None)

        try:
            while (piece := runner.run(one())) is not None:
                yield piece
        finally:
            runner.run(found.aclose())


class _Task:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._page = setup.topology()
        self._transform = setup.transform()
        self._folds = setup.folds()
        self._logs = open_log_store(setup.logs)
        self._store = setup.open_store()
        self._lake = Lake(self._store, self._page) if self._page.sinks.lake else None
        self._epoch = Epoch(self._page, self._folds, self._lake)
        self._numbers: dict[str, int] = {}
        self._waited = 0

    async def pieces(self, works: Sequence[LogWork]) -> AsyncGenerator[Piece]:
        await self._logs.open()
        try:
            ends: dict[str, LogEnd] = {}
            for work in works:
                async for piece in self._read(work, ends):
                    yield piece
        finally:
            await self._logs.close()
        self._epoch.encode()
        for piece in self._files():
            yield piece
        for name, delta in self._epoch.seal().items():
            if len(delta):
                for piece in exchange.split(name, self._folds[name], delta, self._setup.buckets):
                    yield piece
        yield Piece("late", "", about=json.dumps(self._epoch.late))
        shares = {partition.id: share for partition, share in self._epoch.partitions.items()}
        for id_, end in ends.items():
            yield Piece("log", id_, about=json.dumps({"end": end, "read": _told(shares.get(id_))}))

    async def _read(self, work: LogWork, ends: dict[str, LogEnd]) -> AsyncIterator[Piece]:
        id_ = work.taken.entry.id
        partition = Partition(str(self._setup.logs), id_)
        # Who may commit is the driver's to know: here a claim says where to go on, no more.
        claim = Claim(partition, 0, "", work.position, work.clock_us)
        progress = {
            partition: PartitionProgress(claim, work.position, work.clock_us, await self._recent(work))
        }
        arrived = asyncio.Event()
        log = LogReader(
            partition,
            work.taken,
            work.position,
            how_to_read(
                self._setup.logs,
                self._page.contract,
                self._logs,
                room=lambda: log.queued_bytes < _PREFETCH,
                arrived=arrived,
                waiting=self._waiting,
            ),
        )
        log.start()
        try:
            async for batches in _gathered(log, arrived, self._setup.batch_records):
                self._epoch.fold(batches, self._transform(batches), progress)
                for piece in self._files():
                    yield piece
        finally:
            await log.stop()
        assert log.end is not None
        ends[id_] = log.end

    def _waiting(self, error: DependencyError, failing: float) -> None:
        self._waited += 1
        if self._waited > _PATIENCE:
            raise error

    async def _recent(self, work: LogWork) -> RecentIds | None:
        duplicates = self._page.contract.duplicates
        if duplicates is None:
            return None
        recent = RecentIds(duplicates.horizon)
        if work.recent and self._lake is not None:
            await self._store.open()
            try:
                seen = await self._lake.read(work.recent, ["position", duplicates.field, "event_time"])
            finally:
                await self._store.close()
            recent.rebuild(seen.sort("position"), duplicates.field)
        return recent

    def _files(self) -> Iterator[Piece]:
        """The files that are made, one after the other; the epoch lets them go."""
        for partition, share in self._epoch.partitions.items():
            files, share.files = share.files, []
            for file in files:
                number = self._numbers[partition.id] = self._numbers.get(partition.id, -1) + 1
                about = {
                    "kind": file.kind,
                    "folder": file.folder,
                    "rows": file.rows,
                    "min_time_us": file.min_time_us,
                    "max_time_us": file.max_time_us,
                }
                yield Piece("file", partition.id, number, json.dumps(about), file.body)


async def _gathered(log: LogReader, arrived: asyncio.Event, records: int) -> AsyncIterator[list[RecordBatch]]:
    """The log's batches, about so many records at a time."""
    held: list[RecordBatch] = []
    while True:
        arrived.clear()
        while (batch := log.next()) is not None:
            held.append(batch)
            if sum(map(len, held)) >= records:
                log.go_on()
                yield held
                held = []
        log.go_on()
        if (failure := log.failure) is not None:
            raise failure
        if log.end is not None:
            break
        try:
            async with asyncio.timeout(_LOOK):
                await arrived.wait()
        except TimeoutError:  # a reader that failed says nothing
            pass
    if held:
        yield held


def _told(share: PartitionEpoch | None) -> dict[str, Any] | None:
    """What became of a log's records; ``None``: it had none."""
    if share is None:
        return None
    return {
        "after": share.after,
        "through": share.through,
        "clock_us": share.clock_us,
        "counts": asdict(share.counts),
    }
