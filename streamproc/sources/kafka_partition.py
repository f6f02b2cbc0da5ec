"""The gate of one claimed partition: Kafka's record batches become ours, no position unaccounted for."""

from __future__ import annotations

import time
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cramjam
from aiokafka.errors import CorruptRecordException, KafkaError

from streamproc.errors import SourceError, UnexpectedPosition
from streamproc.model import Partition, RecordBatch
from streamproc.packed import Packed
from streamproc.sources import Outage
from streamproc.sources.kafka_fetch import Fetched, Stored
from streamproc.sources.kafka_origin import origin_of
from streamproc.sources.kafka_walk import packed_values, walked

#: What checksum, codecs and record parsing raise on bytes that are not what they should be. The checksum is
#: the producer's, so a faulty one can send a batch that passes it and still cannot be unpacked.
_UNREADABLE = (KafkaError, cramjam.DecompressionError, zlib.error, OSError, EOFError, ValueError, IndexError)

_Unpacked = tuple[Sequence[bytes | None], Sequence[int], int]

_NO_COPIES: Mapping[int, int] = {}


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
        "ask_again",
        "outage",
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
        #: For how long the broker has given nothing that waiting may bring back, and when it is asked again, on the
        #: monotonic clock.
        self.outage = Outage()
        self.ask_again = 0.0
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
            stored, visible = fetched.next()
            batch = stored.batch
            if not fetched:
                self._fetched.popleft()
                self.queued_bytes -= fetched.size
            if batch.next_offset - 1 <= self.seen:
                continue
            if visible:
                return self._read(stored)
            self._expect(batch.base_offset)
            self.seen = batch.next_offset - 1
            self._skipped_ms = batch.max_timestamp
        if self.seen > self.after:
            return self._hand_out(self.seen, [], [], self._skipped_ms)
        if self._end is not None:
            raise self._end
        return None

    def _read(self, stored: Stored) -> RecordBatch:
        batch = stored.batch
        through: int = batch.next_offset - 1
        try:
            redriven: dict[int, int] = {}
            values, positions, newest_ms = self._unpack(stored, redriven)
        except _UNREADABLE as error:
            raise SourceError(
                f"{self.partition}: the record batch that ends at offset {through} cannot be read: {error!r}"
            ) from error
        base = positions[0] if batch.producer_id is None and positions else batch.base_offset
        self._expect(base)
        if not self._compacted and len(values) != through - base + 1:
            raise UnexpectedPosition(
                f"{self.partition}: {len(values)} records for the offsets {base} to {through}, "
                "and the topic is not compacted"
            )
        if base <= self.seen:  # the fetch began inside this batch
            first = bisect_right(positions, self.seen)
            values, positions = values[first:], positions[first:]
        return self._hand_out(through, values, positions, newest_ms, redriven)

    def _unpack(self, stored: Stored, redriven: dict[int, int]) -> _Unpacked:
        """Values, positions, and the newest timestamp in milliseconds (-1 for none); fills ``redriven``."""
        batch = stored.batch
        if not batch.validate_crc():
            raise CorruptRecordException("wrong checksum")
        if (packed := packed_values(stored)) is not None:
            return packed, range(batch.base_offset, batch.next_offset), batch.max_timestamp
        if batch.producer_id is None:  # Kafka before 0.11: offsets and timestamps are the records' own
            records = list(batch)
            newest_ms = max((record.timestamp or -1 for record in records), default=-1)
            return [record.value for record in records], [record.offset for record in records], newest_ms
        try:
            return self._listed(batch, batch, redriven)
        except (CorruptRecordException, UnicodeDecodeError):
            redriven.clear()  # it may be the name of a header, and nothing else
            return self._listed(batch, walked(stored), redriven)

    def _listed(self, batch: Any, records: Iterable[Any], redriven: dict[int, int]) -> _Unpacked:
        if self._compacted:
            read = list(records)
            values = [self._value(record, redriven) for record in read]
            if len(values) != batch.last_offset_delta + 1:
                return values, [record.offset for record in read], batch.max_timestamp
        else:
            # Holding on to the records costs half as much again.
            values = [
                record.value if not record.headers else self._value(record, redriven) for record in records
            ]
        return values, range(batch.base_offset, batch.next_offset), batch.max_timestamp

    def _value(self, record: Any, redriven: dict[int, int]) -> bytes | None:
        origin = origin_of(record.headers, self.partition, record.offset)
        if origin is not None:
            redriven[record.offset] = origin
        value: bytes | None = record.value
        return value

    def _expect(self, base: int) -> None:
        if base > self.seen + 1 and not self._compacted:
            raise UnexpectedPosition(
                f"{self.partition}: offset {base} came after {self.seen}; the records between them are gone, "
                "and the topic is not compacted"
            )

    def _hand_out(
        self,
        through: int,
        values: Sequence[bytes | None],
        positions: Sequence[int],
        newest_ms: int,
        redriven: Mapping[int, int] = _NO_COPIES,
    ) -> RecordBatch:
        batch = RecordBatch(
            self.partition,
            self.after,
            through,
            values,
            positions,
            # Producers may leave the timestamp out (-1); then the best that is known is that it is there now.
            received_ms=newest_ms if newest_ms >= 0 else int(time.time() * 1000),
            size=values.size if isinstance(values, Packed) else sum(map(len, filter(None, values))),
            redriven=redriven,
        )
        self.after = self.seen = through
        return batch
