"""The compiled part: how it is built, how an installation gets on without it, and that it reads nothing it may not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.harness import REPOSITORY

COMPILER = shutil.which("cc")
SANITIZERS = ["libasan.so", "libubsan.so"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is needed to build and to test it."""
    for name in ("native", "streamproc", "tests", "topics"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignore)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    return subprocess.run(
        command, cwd=tree, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def wheel(tree: Path) -> Path:
    (found,) = (tree / "dist").glob("*.whl")
    return found


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_wheel_has_the_library_and_says_for_which_machines(tree: Path) -> None:
    done = build(tree)
    assert done.returncode == 0, done.stderr
    assert "-cp311-abi3-" in wheel(tree).name
    target = tree / "installed"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel(tree)), str(target)], check=True)
    said = subprocess.run(
        [sys.executable, "-c", "from streamproc import native; print(native.records.Plan(()))"],
        cwd=target,
        env=os.environ | {"STREAMPROC_NATIVE": "required"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Plan" in said.stdout


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_python_alone_and_the_build_says_so(tree: Path) -> None:
    done = build(tree, CC="/nowhere/cc")
    assert done.returncode == 0, done.stderr
    assert wheel(tree).name.endswith("-py3-none-any.whl")
    assert "without its compiled part" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_build_that_requires_the_library_fails_without_a_compiler(tree: Path) -> None:
    done = build(tree, CC="/nowhere/cc", STREAMPROC_NATIVE="required")
    assert done.returncode != 0
    assert "could not be compiled" in done.stderr + done.stdout


def test_a_wish_that_is_none_is_refused() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import streamproc.native"],
        env=os.environ | {"STREAMPROC_NATIVE": "maybe"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "it can be auto, off or required" in said.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_reads_and_writes_only_what_is_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tests once more, with a library that address and undefined-behaviour sanitizers watch."""
    libraries = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in SANITIZERS
    ]
    if sys.platform != "linux" or not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("the compiler has no sanitizers")
    monkeypatch.setenv("CFLAGS", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all")
    hook().compile_library(tree)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "tests/transform/test_scanner.py",
            "tests/sinks/test_binary_rows.py",
            "tests/tables/test_hyperloglog.py",
        ],
        cwd=tree,
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter leaks at its end
            "PYTHONPATH": str(tree),
            "STREAMPROC_NATIVE": "required",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
