"""The process in which a compaction merges: right, gone with its block, and nothing of it left in ours."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import psutil
import pytest

from streamproc.errors import DependencyError, Inconsistent
from streamproc.runtimes.merging_process import MergingProcess
from streamproc.sinks.lake import encode

FILES = 60


def write(folder: Path, begin: int, rows: int = 10) -> Path:
    frame = pl.DataFrame({"position": range(begin, begin + rows)})
    path = folder / f"{begin}.parquet"
    path.write_bytes(encode(frame, frame.schema))
    return path


def children() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [each for each in found if "streamproc.sinks.merging" in each.cmdline()]


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


async def test_files_are_merged_by_commit_and_position_whatever_their_order(tmp_path: Path) -> None:
    parts = [(9, write(tmp_path, 5, 5)), (19, write(tmp_path, 10)), (9, write(tmp_path, 0, 5))]
    async with MergingProcess() as merging:
        await merging.merge(parts, 20, tmp_path / "merged")
        assert pl.read_parquet(tmp_path / "merged")["position"].to_list() == list(range(20))
        with pytest.raises(Inconsistent, match="3 objects hold 20 rows, 21 in the ledger"):
            await merging.merge(parts, 21, tmp_path / "again")
        (tmp_path / "0.parquet").write_bytes(b"no Parquet")
        with pytest.raises(OSError, match=r"(?i)parquet"):
            await merging.merge(parts, 20, tmp_path / "again")
        assert len(children()) == 1, "one process for all of them"
    assert children() == []


async def test_a_process_that_is_killed_is_a_dependency_and_the_next_merge_has_another(
    tmp_path: Path,
) -> None:
    parts = [(9, write(tmp_path, 0))]
    async with MergingProcess() as merging:
        await merging.merge(parts, 10, tmp_path / "merged")
        (child,) = children()
        child.kill()
        with pytest.raises(DependencyError, match="ended with -9"):
            await merging.merge(parts, 10, tmp_path / "merged")
        await merging.merge(parts, 10, tmp_path / "again")
        assert pl.read_parquet(tmp_path / "again").height == 10
    assert children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
async def test_no_thread_of_it_is_ours(tmp_path: Path) -> None:
    parts = [(number, write(tmp_path, 10 * number)) for number in range(FILES)]
    before = threads()
    async with MergingProcess() as merging:
        await merging.merge(parts, 10 * FILES, tmp_path / "merged")
    assert threads() <= before + 4


async def test_nothing_is_started_for_nothing() -> None:
    async with MergingProcess():
        assert children() == []
