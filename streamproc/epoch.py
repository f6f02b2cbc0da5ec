"""An epoch being filled: what one commit will say happened.

Pure: it takes transformed record batches, drops duplicates and folds the tables. Nothing here
touches a broker, a database or a file. The pipeline calls :meth:`Epoch.fold` from its compute thread,
reads the sums from the event loop and lends a thread that makes files while the next batches are folded.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from itertools import groupby

import polars as pl

from streamproc.errors import Inconsistent
from streamproc.model import (
    Counts,
    EncodedRows,
    EpochRecord,
    Partition,
    RecordBatch,
    Transformed,
    WrittenObject,
)
from streamproc.partition_epoch import Encoder, PartitionEpoch
from streamproc.progress import Arrivals, PartitionProgress
from streamproc.strings import apart
from streamproc.tables.fold import Delta, Partial, TableFold
from streamproc.tables.hyperloglog import with_coupons
from streamproc.topology import Topology

#: Events that wait to be folded into the tables together. A fold of one table costs a millisecond whatever
#: its size: a hundred thousand events at once take half the time per event of 25,000.
FOLD_AT = 100_000

#: Partials of a table are merged once this many have gathered, so memory follows the number of
#: distinct keys and not the number of events.
_COMPACT_AT = 3


#: Events of a partition that become a file together, and events of all partitions that wait for that at most. A row of
#: the shipped page takes 700 bytes as columns and 60 as Parquet: files made while the epoch fills keep it small. Four
#: partitions that fill evenly get files of 30,000 rows.
FILE_ROWS = 60_000
_MOST_HELD_ROWS = 120_000

#: A slice keeps the whole frame that it is of. The rows held get a frame of their own when those frames have this many
#: times their events, and :data:`_MOST_HELD_ROWS` besides: some partition then has few events, and no file for long.
#: Where all have as many, frames go before.
_MOST_KEPT = 3

#: Files-to-be that the encoding thread may be behind: each is a copy of its rows.
_MOST_BEHIND = 2

#: Bytes of rejected records that wait at most.
_MOST_HELD_REJECTS = 32 * 1024 * 1024


class Epoch:
    """The records between two commits of a worker.

    ``encoder`` is ``None`` when no sink wants the rows themselves; the tables are folded either way.
    ``encoding``: where files are made while the epoch fills; ``None``: in the thread that folds.
    """

    def __init__(
        self,
        topology: Topology,
        folds: Mapping[str, TableFold],
        encoder: Encoder | None = None,
        encoding: Executor | None = None,
    ) -> None:
        self.id = uuid.uuid4()
        self.started_at = datetime.now(UTC)
        #: As :attr:`started_at`, on the clock of :attr:`intervals`.
        self.begun = time.perf_counter()
        self._started = time.monotonic()
        self.partitions: dict[Partition, PartitionEpoch] = {}
        self.late: dict[str, int] = dict.fromkeys(folds, 0)
        self.records = 0
        self.seconds: dict[str, float] = {"transform": 0.0, "fold": 0.0, "encode": 0.0}
        #: When each stage began first and ended last, by ``time.perf_counter``; and of what is done batch by batch,
        #: how long each took.
        self.intervals: dict[str, tuple[float, float]] = {}
        self.batches: dict[str, list[float]] = {"transform": [], "fold": []}
        #: Rejects by reason, and records dropped by filter.
        self.reasons: dict[str, int] = {}
        self.filtered_by: dict[str, int] = {}
        self.oldest_received_ms: int | None = None
        self._topology = topology
        self._folds = folds
        self._encoder = encoder
        self._encoding = encoding
        self._behind: deque[Future[list[EncodedRows]]] = deque()
        self._held_rejects = 0
        self._accepted = 0
        self._partials: dict[str, list[Partial]] = {name: [] for name in folds}
        self._unfolded: list[pl.DataFrame] = []

    def fold(
        self,
        batches: Sequence[RecordBatch],
        out: Transformed,
        progress: Mapping[Partition, PartitionProgress],
    ) -> None:
        """Add ``out``, which is what became of ``batches``.

        Batches of one partition stand together, in order. Raises :class:`Inconsistent` if a record went
        missing between its batch and its outcome.
        """
        begin = time.perf_counter()
        disorder = self._topology.contract.event_time.disorder
        duplicates = self._topology.contract.duplicates
        id_column = duplicates.field if duplicates else None
        rejects = (
            dict(out.rejects.partition_by("source_partition", as_dict=True).items())
            if len(out.rejects)
            else {}
        )
        arrivals = Arrivals(out.events, id_column)
        kept: list[tuple[PartitionEpoch, int]] = []
        row = 0
        for partition, group in groupby(batches, key=lambda batch: batch.partition):
            mine = list(group)
            share = self._share(progress[partition], mine)
            counts = out.counts.get(partition.id, Counts())
            dropped = share.progress.decide(arrivals, slice(row, row + counts.accepted), disorder)
            row += counts.accepted
            kept.append((share, counts.accepted - dropped))
            share.counts.add(
                Counts(
                    records=sum(map(len, mine)),
                    accepted=counts.accepted - dropped,
                    filtered=counts.filtered,
                    rejected=counts.rejected,
                    duplicate=dropped,
                )
            )
            share.clock_us = share.progress.clock_us
            if not share.counts.balanced:
                raise Inconsistent(
                    f"{partition}: {share.counts} does not add up; the batch is kept uncommitted"
                )
            if self._encoder is not None and (refused := rejects.get((partition.id,))) is not None:
                share.rejects.append(refused)
                self._held_rejects += int(refused["original"].bin.size().sum())
        if row != out.events.height:
            raise Inconsistent(f"the transform returned {out.events.height} events and counted {row}")
        accepted, watermark = arrivals.accepted()
        if self._folds and len(accepted):
            self._unfolded.append(accepted.with_columns(watermark))
        if self._encoder is not None:
            row = 0
            for share, rows in kept:
                if rows:
                    share.since = share.since if share.events else self._accepted
                    share.events.append(accepted.slice(row, rows))
                row += rows
            self._accepted += row
        if sum(rows.height for rows in self._unfolded) >= FOLD_AT:
            self._fold_tables()
        self.records += sum(map(len, batches))
        self._note(batches, out)
        self.spent("fold", begin)
        if self._encoder is not None:
            self._encode_full(self._encoder)

    def spent(self, stage: str, begin: float) -> float:
        """Add what has passed since ``begin`` to a stage; returns now. Both by ``time.perf_counter``."""
        end = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + end - begin
        self.intervals[stage] = (self.intervals.get(stage, (begin,))[0], end)
        if stage in self.batches:
            self.batches[stage].append(end - begin)
        return end

    def _note(self, batches: Sequence[RecordBatch], out: Transformed) -> None:
        if len(out.rejects):
            for reason, number in out.rejects["reason"].value_counts().iter_rows():
                self.reasons[reason] = self.reasons.get(reason, 0) + number
        for name, number in out.filtered_by.items():
            self.filtered_by[name] = self.filtered_by.get(name, 0) + number
        received = [batch.received_ms for batch in batches if len(batch)]
        if received:
            oldest = min(received)
            self.oldest_received_ms = min(self.oldest_received_ms or oldest, oldest)

    def _share(self, progress: PartitionProgress, batches: list[RecordBatch]) -> PartitionEpoch:
        through = batches[-1].through
        share = self.partitions.get(progress.claim.partition)
        if share is None:
            share = PartitionEpoch(progress, progress.taken, through, progress.clock_us)
            self.partitions[progress.claim.partition] = share
        share.through = progress.taken = through
        return share

    def _fold_tables(self) -> None:
        if not self._unfolded:
            return
        events, self._unfolded = pl.concat(self._unfolded), []
        events = with_coupons(events, {column for fold in self._folds.values() for column in fold.hashed})
        for name, fold in self._folds.items():
            partial, late = fold.partial(events)
            self.late[name] += late
            partials = self._partials[name]
            partials.append(partial)
            if len(partials) >= _COMPACT_AT:
                self._partials[name] = [fold.merge(partials)]

    def _encode_full(self, encoder: Encoder) -> None:
        """Make files of the partitions that hold enough for one, and of the largest while all hold too much."""
        held = {partition: share.held_rows for partition, share in self.partitions.items()}
        total = sum(held.values())
        for partition in sorted(held, key=lambda partition: -held[partition]):
            if held[partition] < FILE_ROWS and total < _MOST_HELD_ROWS:
                break
            share = self.partitions[partition]
            share.under_way.append(self._submit(encoder, share.take_events()))
            total -= held[partition]
        self._let_go_of_frames(total)
        if self._held_rejects >= _MOST_HELD_REJECTS:
            for share in self.partitions.values():
                share.encode_rejects(encoder)
            self._held_rejects = 0

    def _let_go_of_frames(self, held: int) -> None:
        """Copy the rows that are ``held``, all partitions' together, when they are few of those that they keep."""
        shares = [share for share in self.partitions.values() if share.events]
        kept = self._accepted - min((share.since for share in shares), default=self._accepted)
        if kept < _MOST_HELD_ROWS + _MOST_KEPT * held:
            return
        rows = pl.concat([events for share in shares for events in share.events], rechunk=True)
        rows = rows.with_columns(apart(pl.col(pl.String)))
        row = 0
        for share in shares:
            share.events, share.since = [rows.slice(row, share.held_rows)], self._accepted - held
            row += share.held_rows

    def _submit(self, encoder: Encoder, events: pl.DataFrame) -> Future[list[EncodedRows]]:
        def encode() -> list[EncodedRows]:
            begin = time.perf_counter()
            files = encoder.encode_events(events)
            self.spent("encode", begin)
            return files

        if self._encoding is None:
            done: Future[list[EncodedRows]] = Future()
            done.set_result(encode())
            return done
        while len(self._behind) >= _MOST_BEHIND:  # so folding waits, and memory stays what it is
            self._behind.popleft().result()
        self._behind.append(self._encoding.submit(encode))
        return self._behind[-1]

    def encode(self) -> None:
        """Make files of all rows that are in none yet, and wait for those under way.

        Raises what the encoder raised for any of them.
        """
        if self._encoder is not None:
            for share in self.partitions.values():
                share.collect()
            begin = time.perf_counter()
            for share in self.partitions.values():
                share.encode(self._encoder)
            self.spent("encode", begin)

    def seal(self) -> dict[str, Delta]:
        """Each table's delta of this epoch, keyed by table name, ready to be merged into the summaries.

        :attr:`late` is complete after this.
        """
        begin = time.perf_counter()
        self._fold_tables()
        deltas = {}
        for name, fold in self._folds.items():
            if partials := self._partials.pop(name):  # each is let go as soon as its table is sealed
                deltas[name] = fold.seal(fold.merge(partials))
        self.spent("seal", begin)
        return deltas

    def record(self, objects: Sequence[WrittenObject]) -> EpochRecord:
        """What the ledger is to keep of this epoch, its objects being written."""
        return EpochRecord(
            id=self.id,
            started_at=self.started_at,
            advances=[share.advance() for share in self.partitions.values()],
            objects=objects,
            late=self.late,
            seconds=dict(self.seconds),
        )

    @property
    def counts(self) -> Counts:
        """The sums over the partitions."""
        total = Counts()
        for share in self.partitions.values():
            total.add(share.counts)
        return total

    @property
    def age(self) -> float:
        """Seconds since the epoch began."""
        return time.monotonic() - self._started
