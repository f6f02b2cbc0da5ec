"""Answers of GetRecords as columns, and the records that Amazon's producer library packs into one.

The format of packed ("aggregated") records:
https://github.com/awslabs/amazon-kinesis-producer/blob/master/aggregation-format.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np

#: What a packed record begins with; the last 16 bytes are the MD5 digest of what lies between.
_MAGIC = b"\xf3\x89\x9a\xc2"
_DIGEST = 16

#: Arrival times are rounded up to this many milliseconds, see :class:`Run`.
_ARRIVAL_STEP = 1000


class HashRange(NamedTuple):
    """The hash keys of a shard, both inclusive."""

    first: int
    last: int

    def holds(self, key: int) -> bool:
        """Whether records of this hash key belong to the shard."""
        return self.first <= key <= self.last


#: Of a shard that takes everything.
ALL_KEYS = HashRange(0, 2**128 - 1)


class _Record(msgspec.Struct, gc=False, frozen=True):
    Data: bytes  # msgspec decodes base64 while it reads
    SequenceNumber: str
    ApproximateArrivalTimestamp: float = 0.0


class _ChildShard(msgspec.Struct, frozen=True):
    ShardId: str


class _Answer(msgspec.Struct, gc=False, frozen=True):
    Records: list[_Record] = []
    NextShardIterator: str | None = None
    MillisBehindLatest: int | None = None
    ChildShards: list[_ChildShard] | None = None


class _Event(msgspec.Struct, gc=False, frozen=True):
    Records: list[_Record] = []
    ContinuationSequenceNumber: str | None = None
    MillisBehindLatest: int | None = None


_decoder = msgspec.json.Decoder(_Answer)
_event_decoder = msgspec.json.Decoder(_Event)


@dataclass(frozen=True, slots=True)
class Page:
    """What one read of a shard gave, by columns: of each record its bytes, sequence number and arrival.

    ``iterator``: where it goes on, ``None`` at the end of a closed shard. ``behind_ms``: how far the last
    record is behind the newest of the shard, milliseconds. ``size``: bytes of the records.
    """

    values: list[bytes] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    iterator: str | None = None
    behind_ms: int = 0
    size: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def since(self, row: int) -> Page:
        """The page without its first ``row`` records."""
        return self._rows(slice(row, None))

    def until(self, row: int) -> Page:
        """The page's first ``row`` records."""
        return self._rows(slice(row))

    def _rows(self, rows: slice) -> Page:
        values = self.values[rows]
        return Page(
            values,
            self.sequences[rows],
            self.arrivals[rows],
            self.iterator,
            self.behind_ms,
            sum(map(len, values)),
        )

    @property
    def packed(self) -> bool:
        """Whether a record may hold several."""
        return any(value[:4] == _MAGIC for value in self.values)


def decode_page(body: bytes) -> Page:
    """The body of an answer to GetRecords. Raises :class:`msgspec.DecodeError` if it is none."""
    answer = _decoder.decode(body)
    return _page(answer.Records, answer.NextShardIterator, answer.MillisBehindLatest)


def decode_event(body: bytes) -> Page:
    """The body of an event of SubscribeToShard. Raises :class:`msgspec.DecodeError` if it is none."""
    event = _event_decoder.decode(body)
    return _page(event.Records, event.ContinuationSequenceNumber, event.MillisBehindLatest)


def _page(records: list[_Record], following: str | None, behind_ms: int | None) -> Page:
    values = [record.Data for record in records]
    return Page(
        values,
        [record.SequenceNumber for record in records],
        [record.ApproximateArrivalTimestamp for record in records],
        following,
        behind_ms or 0,
        sum(map(len, values)),
    )


class Run(NamedTuple):
    """Records of a page that arrived in the same second, unpacked.

    ``arrived_ms``: the end of that second, Unix milliseconds. Rounded, because many records then share it,
    and by a fixed rule of the record alone: however the shard is cut into pages, a record gets the same.
    ``sequence``: that of the Kinesis record which holds the last value.
    """

    values: list[bytes]
    arrived_ms: int
    sequence: int


def runs(page: Page, keys: HashRange) -> Iterator[Run]:
    """The page's records in order, unpacked; ``keys`` are those of the shard, see :func:`unpack`."""
    if not len(page):
        return
    milliseconds = np.asarray(page.arrivals, dtype=np.float64) * 1000
    ends = (np.ceil(milliseconds / _ARRIVAL_STEP) * _ARRIVAL_STEP).astype(np.int64)
    borders = [0, *(np.flatnonzero(ends[1:] != ends[:-1]) + 1).tolist(), len(ends)]
    for first, after in pairwise(borders):
        values, last = page.values[first:after], after - 1
        packed = [place for place, value in enumerate(values) if value[:4] == _MAGIC]
        if packed:
            values, place = _unpacked(values, packed, keys)
            last = first + place
        if values:
            yield Run(values, int(ends[first]), int(page.sequences[last]))


def _unpacked(values: list[bytes], packed: Sequence[int], keys: HashRange) -> tuple[list[bytes], int]:
    """The values with those at ``packed`` unpacked, and which of them holds the last one."""
    out: list[bytes] = []
    done, last = 0, 0
    for place in packed:
        if place > done:
            out += values[done:place]
            last = place - 1
        if inside := unpack(values[place], keys):
            out += inside
            last = place
        done = place + 1
    return out + values[done:], len(values) - 1 if done < len(values) else last


def unpack(record: bytes, keys: HashRange = ALL_KEYS) -> list[bytes]:
    """The user records packed in a Kinesis record, in order; the record itself when it is not packed.

    The producer library packs for the shards it knows. After a reshard, some may reach a shard that does not
    hold their key; it then sends those again, so they are left out here, as Amazon's consumer library does.
    Bytes that begin like a packed record and are none (wrong digest, broken inside) are taken as they are.
    """
    body = record[4:-_DIGEST]
    # MD5 is what the format prescribes; it guards against accidents, not against people.
    if (
        record[:4] != _MAGIC
        or hashlib.md5(body, usedforsecurity=False).digest() != record[len(record) - _DIGEST :]
    ):
        return [record]
    try:
        return _user_records(body, keys)
    except (IndexError, ValueError):
        return [record]


def _user_records(body: bytes, shard: HashRange) -> list[bytes]:
    """``AggregatedRecord``: partition keys (1), explicit hash keys (2), records (3)."""
    keys: list[bytes] = []
    explicit: list[bytes] = []
    records: list[bytes] = []
    for number, value in _fields(body):
        if number in {1, 2, 3}:
            if not isinstance(value, bytes):
                raise ValueError("not a message")
            (keys, explicit, records)[number - 1].append(value)
    everything = shard == ALL_KEYS
    of_key = [] if everything else [shard.holds(hash_key(key)) for key in keys]
    of_explicit = [] if everything else [shard.holds(int(key)) for key in explicit]
    out: list[bytes] = []
    for record in records:
        key, explicit_key, data = -1, -1, b""
        for number, value in _fields(record):  # Record: key index (1), explicit key index (2), data (3)
            if number == 1 and isinstance(value, int):
                key = value
            elif number == 2 and isinstance(value, int):
                explicit_key = value
            elif number == 3 and isinstance(value, bytes):
                data = value
        if key < 0:
            raise ValueError("a record without a key")
        if everything or (of_explicit[explicit_key] if explicit_key >= 0 else of_key[key]):
            out.append(data)
    return out


def hash_key(partition_key: bytes) -> int:
    """Where a partition key lies among the shards: its MD5 as a number."""
    return int.from_bytes(hashlib.md5(partition_key, usedforsecurity=False).digest())


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: varints and length-delimited ones; it has no others."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            if at + length > end:
                raise ValueError("cut off")
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            raise ValueError("a field of another kind")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number too long")


def pack(records: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Partition keys and values as one packed record, the way the producer library does."""
    keys = {key: place for place, key in enumerate(dict.fromkeys(key for key, _ in records))}
    body = b"".join(b"\x0a" + _length(key) + key for key in keys)
    for key, value in records:
        message = b"\x08" + _number(keys[key]) + b"\x1a" + _length(value) + value
        body += b"\x1a" + _length(message) + message
    return _MAGIC + body + hashlib.md5(body, usedforsecurity=False).digest()


def _length(value: bytes) -> bytes:
    return _number(len(value))


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
