"""Merging Parquet files of the lake into one, row group by row group, without holding more than a few of them.

As a program (``python -m streamproc.sinks.merging``) it merges as it is told on standard input, see :func:`serve`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

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


def merge_parts(parts: Sequence[tuple[int, Path]], rows: int, target: Path) -> None:
    """:func:`merge` files in the order of their positions, each with the position through which its commit goes.

    A commit can have several files of one folder, whose names say nothing.
    """
    begins = first_positions([file for _, file in parts])
    ordered = sorted(
        ((through, begin, file) for (through, file), begin in zip(parts, begins, strict=True)),
        key=lambda each: each[:2],
    )
    merge([file for *_, file in ordered], rows, target)


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


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """:func:`merge_parts` as each line of ``requests`` says: a JSON object of its arguments.

    A line of ``answers`` for each: ``{}`` when it is done, else what was ``inconsistent``, or why it ``failed``.
    """
    for line in requests:
        asked = json.loads(line)
        answer: dict[str, str] = {}
        try:
            merge_parts(
                [(through, Path(file)) for through, file in asked["parts"]],
                asked["rows"],
                Path(asked["target"]),
            )
        except Inconsistent as error:
            answer["inconsistent"] = str(error)
        except (OSError, pl.exceptions.PolarsError) as error:
            answer["failed"] = str(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)  # the stream comes first
    serve(sys.stdin, sys.stdout)
