"""Kafka record batches made by hand, as a broker stores them."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from streamproc.sources.kafka_fetch import Fetched, KeptRecords, stored_batches

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)

_BASE_OFFSET = 0
_CRC = 17
_ATTRIBUTES = 21
_LAST_OFFSET_DELTA = 23
_MAX_TIMESTAMP = 35
_CONTROL = 0x20


def record_batch(
    base: int,
    values: Mapping[int, bytes | None] | Sequence[bytes | None],
    *,
    codec: int = NONE,
    producer: int = -1,
    transactional: bool = False,
    span: int | None = None,
    headers: Mapping[int, Sequence[tuple[str, bytes | None]]] | None = None,
) -> bytes:
    """A batch from offset ``base``; ``values`` by offset delta. ``span``: offsets it covers, when more;
    ``headers`` by offset delta."""
    by_delta = values if isinstance(values, Mapping) else dict(enumerate(values))
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer, 0, 0, 1 << 24)
    for delta, value in by_delta.items():
        builder.append(delta, 1_000 + base + delta, b"key", value, list((headers or {}).get(delta, [])))
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, _BASE_OFFSET, base)
    if span is not None:
        struct.pack_into(">i", batch, _LAST_OFFSET_DELTA, span - 1)
        struct.pack_into(">q", batch, _MAX_TIMESTAMP, 1_000 + base + span - 1)
    return _signed(batch)


def control_batch(base: int, producer: int, *, abort: bool) -> bytes:
    """The marker that ends a transaction of ``producer``."""
    builder = DefaultRecordBatchBuilder(2, NONE, 1, producer, 0, 0, 1 << 10)
    builder.append(0, 1_000 + base, struct.pack(">hh", 0, 0 if abort else 1), struct.pack(">hi", 0, 0), [])
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, _BASE_OFFSET, base)
    batch[_ATTRIBUTES + 1] |= _CONTROL
    return _signed(batch)


def corrupted(batch: bytes) -> bytes:
    """The same with the last byte changed, and the checksum of what it was."""
    return batch[:-1] + bytes([batch[-1] ^ 0xFF])


def resigned(batch: bytes) -> bytes:
    """The same with a checksum of what it is."""
    return _signed(bytearray(batch))


def fetched(*batches: bytes, aborted: Sequence[tuple[int, int]] = ()) -> Fetched:
    """The answer of one fetch; ``aborted``: producer and first offset of aborted transactions."""
    records = KeptRecords(b"".join(batches))
    return Fetched(deque(stored_batches(records)), list(aborted), records.size_in_bytes())


def _signed(batch: bytearray) -> bytes:
    struct.pack_into(">I", batch, _CRC, calc_crc32c(bytes(batch[_ATTRIBUTES:])))
    return bytes(batch)
