"""Merging the files of an hour: in order, whole, and without a thread for each of them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from streamproc.errors import Inconsistent
from streamproc.sinks.lake import encode
from streamproc.sinks.merging import first_positions, merge

FILES = 150

_MERGE = """
import os, pathlib, sys
from streamproc.sinks.merging import first_positions, merge
folder = pathlib.Path(sys.argv[1])
files = sorted(folder.glob("*.parquet"))
first_positions(files)
merge(files, 10 * len(files), folder / "merged")
print(len(os.listdir("/proc/self/task")))
"""


def write(folder: Path, name: str, positions: range, **more: object) -> Path:
    frame = pl.DataFrame({"position": positions, **more})
    path = folder / f"{name}.parquet"
    path.write_bytes(encode(frame, frame.schema))
    return path


def test_first_positions_are_those_of_the_files_given_in_any_order(tmp_path: Path) -> None:
    begins = random.Random(4).sample(range(0, 10_000, 10), 20)
    files = [write(tmp_path, str(begin), range(begin, begin + 10)) for begin in begins]
    assert first_positions(files) == begins


def test_rows_stand_one_file_after_the_other_and_a_missing_column_is_null(tmp_path: Path) -> None:
    files = [write(tmp_path, "a", range(3)), write(tmp_path, "b", range(3, 5), later=["x", "y"])]
    merge(files, 5, tmp_path / "merged")
    assert pl.read_parquet(tmp_path / "merged").to_dict(as_series=False) == {
        "position": [0, 1, 2, 3, 4],
        "later": [None, None, None, "x", "y"],
    }
    with pytest.raises(Inconsistent, match="2 objects hold 5 rows, 6 in the ledger"):
        merge(files, 6, tmp_path / "merged")


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_files_of_an_hour_do_not_take_a_thread_each(tmp_path: Path) -> None:
    """A worker merges beside its work, and what polars has started it keeps."""
    for number in range(FILES):
        write(tmp_path, f"{number:04}", range(10 * number, 10 * number + 10))
    command = [sys.executable, "-c", _MERGE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < FILES / 2
