"""What Spark carries from task to task: rows of one fixed schema with whole frames in them.

Spark never looks into a frame, so no type is translated twice and a table of any page travels in the same columns.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import pyarrow as pa

if TYPE_CHECKING:
    from streamproc.tables.fold import Delta, TableFold

#: The columns of a :class:`Piece`, as Spark says it.
SCHEMA = "kind string, name string, bucket int, about string, payload binary"

_ARROW = pa.schema(
    [
        ("kind", pa.string()),
        ("name", pa.string()),
        ("bucket", pa.int32()),
        ("about", pa.string()),
        ("payload", pa.binary()),
    ]
)


class Piece(NamedTuple):
    """One row between tasks.

    ``kind``: ``log`` (what became of a log), ``late`` (events too late, by table), ``file`` (an object of the lake to
    be put), ``rows`` and ``events`` (of the delta of the table ``name``), ``put`` (an object that was put).
    ``bucket``: which task unites it; of a file, its number in the log. ``about``: JSON. ``payload``: a frame as an
    Arrow stream, or a file's bytes.
    """

    kind: str
    name: str
    bucket: int = 0
    about: str = "{}"
    payload: bytes = b""

    @property
    def told(self) -> Any:
        """``about``, read."""
        return json.loads(self.about)


def pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[Piece]:
    """The rows that Spark hands to a task."""
    for batch in batches:
        for row in batch.to_pylist():
            yield Piece(**row)


def batches(rows: Iterable[Piece]) -> Iterator[pa.RecordBatch]:
    """The rows that a task hands to Spark: one a batch, for a payload can have megabytes."""
    for row in rows:
        yield pa.RecordBatch.from_pylist([row._asdict()], schema=_ARROW)


def packed(frame: pl.DataFrame) -> bytes:
    """A frame as an Arrow stream."""
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, compression="lz4")
    return buffer.getvalue()


def unpacked(payload: bytes) -> pl.DataFrame:
    """The reverse of :func:`packed`."""
    return pl.read_ipc_stream(io.BytesIO(payload))


def split(name: str, fold: TableFold, delta: Delta, count: int) -> Iterator[Piece]:
    """A delta cut into ``count`` buckets by its key. Of sessions only the events: pieces are made of them anew."""
    kind, frame = ("rows", delta.rows) if delta.events is None else ("events", delta.events)
    bucket = buckets(frame.select(fold.key), count)
    for (number,), rows in (
        frame.with_columns(bucket).partition_by("__bucket", as_dict=True, include_key=False).items()
    ):
        yield Piece(kind, name, int(str(number)), payload=packed(rows))


def buckets(keys: pl.DataFrame, count: int) -> pl.Series:
    """The bucket of each key: a CRC-32 of its text, the same on every machine, as polars' own hash need not be."""
    text = keys.select(pl.concat_str(pl.all().cast(pl.String).fill_null("\0"), separator="\1").alias("text"))
    known = text.unique()
    numbers = [zlib.crc32(key.encode()) % count for key in known["text"].to_list()]
    known = known.with_columns(pl.Series("__bucket", numbers, dtype=pl.Int32))
    return text.join(known, on="text", how="left", maintain_order="left")["__bucket"]
