"""What the demo says at its end can be typed as it stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamproc.cli.demo_screen import this_program


def program(folder: Path, name: str = "streamproc") -> Path:
    folder.mkdir(parents=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return folder


def test_a_program_on_the_path_is_called_by_its_name(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(program(tmp_path / "path"))])
    assert this_program() == "streamproc"


def test_one_below_the_working_directory_is_called_from_there(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "path")  # another one
    monkeypatch.setattr(sys, "argv", [str(program(here / ".venv" / "bin"))])
    assert this_program() == ".venv/bin/streamproc"


def test_one_elsewhere_is_called_by_its_whole_path_which_is_quoted(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = program(tmp_path / "some where")
    monkeypatch.setattr(sys, "argv", [str(elsewhere)])
    assert this_program() == f"'{elsewhere}'"


def test_a_module_is_called_as_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/lib/streamproc/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(here / "venv" / "python"))
    assert this_program() == "venv/python -m streamproc"
