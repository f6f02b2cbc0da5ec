"""The gate of one claimed partition: Kafka's record batches become ours, no position unaccounted for."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

from streamproc.errors import SourceError, UnexpectedPosition
from streamproc.model import Partition, RecordBatch
from streamproc.sources.kafka_fetch import Fetched


class PartitionReader:
    """Hands out one partition's fetched records, from the position after ``after`` on.

    Records at or below ``after`` are dropped. A jump in the offsets is accepted only when ``compacted``
    (the broker may then remove records from the middle); skipped control records and aborted transactions
    are no jump, their positions belong to the interval of the batch that follows them.
    """

    __slots__ = (
        "_compacted",
        "_end",
        "_fetched",
        "_skipped_ms",
        "after",
        "partition",
        "paused",
        "queued_bytes",
        "seen",
    )

    def __init__(self, partition: Partition, after: int, *, compacted: bool) -> None:
        self.partition = partition
        #: Position handed out through.
        self.after = after
        #: Position looked at through: ahead of ``after`` by what was skipped and not handed out yet.
        self.seen = after
        self.paused = False
        #: Compressed bytes that are waiting here.
        self.queued_bytes = 0
        self._compacted = compacted
        self._fetched: deque[Fetched] = deque()
        self._skipped_ms = 0
        self._end: SourceError | None = None

    @property
    def fetched_through(self) -> int:
        """Last position that is here, handed out or not."""
        return self._fetched[-1].through if self._fetched else self.seen

    def add(self, fetched: Fetched) -> None:
        """Queue what was fetched after everything that is here already."""
        if fetched:
            self._fetched.append(fetched)
            self.queued_bytes += fetched.size

    def end(self, error: SourceError) -> None:
        """Nothing can follow what is here; :meth:`next` raises ``error`` after that."""
        self._end = error

    def next(self) -> RecordBatch | None:
        """The next record batch, ``None`` when nothing is waiting.

        One without values says that the positions of its interval hold nothing to read.

        Raises :class:`UnexpectedPosition` for a jump, :class:`SourceError` for a batch that cannot be read,
        and what :meth:`end` was given.
        """
        while self._fetched:
            fetched = self._fetched[0]
            batch, visible = fetched.next()
            if not fetched:
                self._fetched.popleft()
                self.queued_bytes -= fetched.size
            if batch.next_offset - 1 <= self.seen:
                continue
            if visible:
                return self._read(batch)
            self._expect(batch.base_offset)
            self.seen = batch.next_offset - 1
            self._skipped_ms = batch.max_timestamp
        if self.seen > self.after:
            return self._hand_out(self.seen, [], [], self._skipped_ms)
        if self._end is not None:
            raise self._end
        return None

    def _read(self, batch: Any) -> RecordBatch:
        try:
            if not batch.validate_crc():
                raise SourceError(f"{self._at(batch.next_offset - 1)}: wrong checksum")
            records = list(batch)
        except (CorruptRecordException, UnsupportedCodecError) as error:
            raise SourceError(f"{self._at(batch.next_offset - 1)}: {error!r}") from error
        through = batch.next_offset - 1
        values: list[bytes | None] = [record.value for record in records]
        positions: Sequence[int]
        if batch.producer_id is None:
            # Kafka before 0.11: offsets are the records' own, and the header does not know the first.
            positions = [record.offset for record in records]
            base = positions[0] if positions else batch.next_offset
            newest_ms = max((record.timestamp or -1 for record in records), default=-1)
        else:
            base, newest_ms = batch.base_offset, batch.max_timestamp
            if len(values) == through - base + 1:
                positions = range(base, through + 1)
            else:
                positions = [record.offset for record in records]
        self._expect(base)
        if not self._compacted and len(positions) != through - base + 1:
            missing = through - base + 1 - len(positions)
            raise UnexpectedPosition(
                f"{self.partition}: {missing} of the offsets {base} to {through} are missing, "
                "and the topic is not compacted"
            )
        if base <= self.seen:  # the fetch began inside this batch
            first = bisect_right(positions, self.seen)
            values, positions = values[first:], positions[first:]
        return self._hand_out(through, values, positions, newest_ms)

    def _expect(self, base: int) -> None:
        if base > self.seen + 1 and not self._compacted:
            raise UnexpectedPosition(
                f"{self.partition}: offset {base} came after {self.seen}; the records between them are gone, "
                "and the topic is not compacted"
            )

    def _hand_out(
        self, through: int, values: list[bytes | None], positions: Sequence[int], newest_ms: int
    ) -> RecordBatch:
        batch = RecordBatch(
            self.partition,
            self.after,
            through,
            values,
            positions,
            # Producers may leave the timestamp out (-1); then the best that is known is that it is there now.
            received_ms=newest_ms if newest_ms >= 0 else int(time.time() * 1000),
            size=sum(map(len, filter(None, values))),
        )
        self.after = self.seen = through
        return batch

    def _at(self, through: int) -> str:
        return f"{self.partition}: the record batch that ends at offset {through} cannot be read"
