"""The Makefile explains itself and fails in words."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.documents import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = set(re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, re.MULTILINE))

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on PATH")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_alone_lists_every_target_with_a_sentence() -> None:
    listed = dict(re.findall(r"^  make (\S+) +(\S.+)$", make().stdout, re.MULTILINE))
    assert set(listed) == PHONY


def test_the_readmes_two_commands_are_targets() -> None:
    first_block = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert first_block == "$ make demo\n$ make test\n"
    assert {"demo", "test"} <= PHONY


def test_without_a_supported_python_it_says_which_are() -> None:
    done = make("VENV=build/no-such-venv", "PYTHON=", "demo")
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13" in done.stderr


def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python3.12"
    python.write_text("#!/bin/sh\nexit 1\n")  # fails at `import venv`
    python.chmod(0o755)
    done = make("VENV=build/no-such-venv", f"PYTHON={python}", "demo")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr


def test_an_unsupported_python_is_not_chosen(tmp_path: Path) -> None:
    """Only 3.10 and a broken 3.13 on PATH: neither will do."""
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    tools = [Path(found).parent for tool in ("make", "bash") if (found := shutil.which(tool))]
    path = ":".join([str(tmp_path), *map(str, tools)])
    command = ["make", "--no-print-directory", "VENV=build/no-such-venv", "install"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": path}, check=False)
    assert done.returncode != 0
    assert "found none of them on PATH" in done.stderr
