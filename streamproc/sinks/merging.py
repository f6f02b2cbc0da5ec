"""Merging Parquet files of the lake into one, row group by row group, without holding more than a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from streamproc.errors import Inconsistent
from streamproc.sinks.lake import ROW_GROUP


def first_positions(files: Sequence[Path]) -> list[int]:
    """The position of each file's first row; rows of a file stand in the order of their positions.

    One file after the other: asked for together, polars takes a thread for each, four hundred for an hour's files, and
    keeps them for as long as it has anything to read or write.
    """
    return [
        pl.read_parquet(file, columns=["position"]).select(pl.col("position").min()).item() for file in files
    ]


def compatible(known: dict[str, pl.DataType], files: Sequence[Path]) -> bool:
    """Whether rows of ``files`` can stand in one file with ``known`` columns, which then have theirs too.

    A topic page may have gained columns; one of a name with another type cannot be merged.
    """
    mine = dict(known)
    for file in files:
        for name, dtype in pl.read_parquet_schema(file).items():
            if mine.setdefault(name, dtype) != dtype:
                return False
    known.update(mine)
    return True


def merge(files: Sequence[Path], rows: int, target: Path) -> None:
    """Write the rows of ``files``, one after the other, as ``target``; columns that a file lacks are null.

    Raises :class:`Inconsistent` when that comes to other than ``rows``.
    """
    merged = pl.concat([pl.scan_parquet(file) for file in files], how="diagonal")
    # As the lake's own files are written, see streamproc.sinks.lake.encode.
    merged.sink_parquet(
        target, compression="zstd", compression_level=1, statistics=True, row_group_size=ROW_GROUP
    )
    found = pl.scan_parquet(target).select(pl.len()).collect().item()
    if found != rows:
        raise Inconsistent(f"{len(files)} objects hold {found} rows, {rows} in the ledger")
