"""The second tasks of a job: the deltas of a table, folded apart, become one for each bucket of keys.

States are merged by the algebra of :mod:`streamproc.tables.measures` and sketches united as the commit of a worker does
it. Sessions are made here, of the events of a visitor from all logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import polars as pl

from streamproc.runtimes.spark import exchange
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.setup import Setup
from streamproc.tables.fold import Delta, TableFold

if TYPE_CHECKING:
    import pyarrow as pa


def uniter(setup: Setup) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """For ``mapInArrow``, over pieces of tables; those of one table and bucket come to one task."""

    def unite_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from exchange.batches(unite(setup.folds(), exchange.pieces(batches)))

    return unite_all


def unite(folds: dict[str, TableFold], pieces: Iterable[Piece]) -> Iterator[Piece]:
    """One delta for each table and bucket: its rows and, of sessions, the events they came from."""
    found: dict[tuple[str, int], list[Piece]] = {}
    for piece in pieces:
        found.setdefault((piece.name, piece.bucket), []).append(piece)
    while found:  # what is united is let go
        (name, bucket), mine = found.popitem()
        delta = folds[name].unite([_delta(piece) for piece in mine])
        yield Piece("rows", name, bucket, payload=exchange.packed(delta.rows))
        if delta.events is not None:
            yield Piece("events", name, bucket, payload=exchange.packed(delta.events))


def _delta(piece: Piece) -> Delta:
    frame = exchange.unpacked(piece.payload)
    if piece.kind == "rows":
        return Delta(frame)
    return Delta(pl.DataFrame(), frame)


def together(folds: dict[str, TableFold], pieces: Iterable[Piece]) -> dict[str, Delta]:
    """The deltas of all buckets, which have no key in common, as the summaries take them."""
    rows: dict[str, dict[int, pl.DataFrame]] = {}
    events: dict[str, dict[int, pl.DataFrame]] = {}
    for piece in pieces:
        place = rows if piece.kind == "rows" else events
        place.setdefault(piece.name, {})[piece.bucket] = exchange.unpacked(piece.payload)
    deltas = {}
    for name, by_bucket in rows.items():
        if name not in events:
            deltas[name] = Delta(pl.concat(by_bucket.values()).sort(folds[name].key))
            continue
        # Pieces are numbered in each bucket from 0.
        first, numbered, behind = 0, [], []
        for bucket, sessions in by_bucket.items():
            shifted = (pl.col("__piece") + first).cast(pl.UInt32)
            numbered.append(sessions.with_columns(shifted))
            behind.append(events[name][bucket].with_columns(shifted))
            first += sessions.height
        deltas[name] = Delta(pl.concat(numbered), pl.concat(behind))
    return deltas
