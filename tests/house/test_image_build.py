"""The image's installation, step by step as the Dockerfile writes it, without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.documents import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
BUILD_STAGE = DOCKERFILE[: DOCKERFILE.rindex("\nFROM ")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_build_stage_gives_an_environment_that_runs(tmp_path: Path) -> None:
    """Its COPY and RUN lines, in order, with the container's paths moved under a temporary folder."""
    source, prefix = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "PIP_NO_CACHE_DIR": "1"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    for instruction, arguments in re.findall(r"^(COPY|RUN) (.+)$", BUILD_STAGE, re.MULTILINE):
        if instruction == "COPY":
            *names, _ = arguments.split()
            for name in names:
                _copy(ROOT / name, source / name)
        else:
            command = arguments.replace("/opt/", f"{prefix}/").replace(
                "python -m venv", f"{sys.executable} -m venv"
            )
            done = subprocess.run(
                ["sh", "-ec", command],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    installed = prefix / "streamproc" / "bin" / "streamproc"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments: str, stdin: str = "") -> str:
        command = [installed, *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, input=stdin, capture_output=True, text=True, check=True
        ).stdout

    assert "Commands:" in run("--help")
    # The shipped pages are in the wheel: there is no topics folder here.
    event = run("generate", "--events", "1", "--seed", "1")
    assert run("transform", "clickstream", stdin=event).count("\n") == 1


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
