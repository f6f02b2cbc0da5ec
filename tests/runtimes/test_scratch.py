"""Folders for files on the way: there for the block, and removed later where a process was killed in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamproc.runtimes.scratch import scratch_folder

PREFIX = "streamproc-compact-"

#: Holds a folder with a file until it is killed.
HOLDER = f"""
import sys
from streamproc.runtimes.scratch import scratch_folder
with scratch_folder({PREFIX!r}) as folder:
    (folder / "0.parquet").write_bytes(b"PAR1")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield process
        process.kill()


def grow_old(folder: Path) -> Path:
    os.utime(folder, (0, 0))
    return folder


def test_a_folder_of_a_killed_process_goes_with_the_next_and_one_in_use_stays(
    place: Path, holder: subprocess.Popen[str]
) -> None:
    assert holder.stdout is not None
    theirs = grow_old(Path(holder.stdout.readline().strip()))
    with scratch_folder(PREFIX) as ours:
        assert sorted(place.iterdir()) == sorted([theirs, ours])
    assert list(place.iterdir()) == [theirs], "it is locked, however old"
    holder.kill()
    holder.wait()
    with scratch_folder(PREFIX) as ours:
        assert list(place.iterdir()) == [ours]
    assert list(place.iterdir()) == []


def test_what_is_young_or_nothing_of_ours_stays(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    young = place / f"{PREFIX}young"
    young.mkdir()
    other = place / "streamproc-check-old"
    other.mkdir()
    grow_old(other)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "kept").touch()
    grow_old(elsewhere)
    (place / f"{PREFIX}link").symlink_to(elsewhere)
    file = place / f"{PREFIX}file"
    file.touch()
    grow_old(file)
    with scratch_folder(PREFIX):
        pass
    assert {each.name for each in place.iterdir()} == {
        young.name,
        other.name,
        f"{PREFIX}link",
        file.name,
    }
    assert (elsewhere / "kept").exists()


def test_a_place_without_locks_will_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(fd: int, operation: int) -> None:
        raise OSError(9, os.strerror(9))

    monkeypatch.setattr("streamproc.runtimes.scratch.fcntl.flock", none)
    with scratch_folder(PREFIX) as other:
        grow_old(other)
        with scratch_folder(PREFIX) as ours:
            assert sorted(place.iterdir()) == sorted([other, ours])
