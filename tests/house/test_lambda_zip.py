"""The function's zip: what is in it follows from the lock, it is the same each time, and it runs on its own."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.house.documents import ROOT
from tests.runtimes.lambda_events import click, firehose_event, kafka_event

DOCKERFILE = (ROOT / "deploy" / "lambda" / "Dockerfile").read_text().replace("\\\n", " ")


def _builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_zip", ROOT / "deploy" / "lambda" / "build_zip.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_zip"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build_zip = _builder()
LOCKED = list(build_zip.read_lock((ROOT / "requirements.lock").read_text()))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_each_package_is_there_once_and_those_of_other_parts_are_not(architecture: str, python: str) -> None:
    packages = build_zip.needed(LOCKED, build_zip.Target(architecture, python))
    names = [package.name for package in packages]
    assert len(names) == len(set(names))
    assert {"polars", "polars-runtime-32", "psycopg-binary", "aiobotocore", "botocore", "numpy"} <= set(names)
    assert not set(names) & build_zip.NOT_NEEDED.keys()
    assert not {"mode-streaming", "pygments", "lxml", "boto3"} & set(names), "what only those need"
    assert all(package.hashes for package in packages)


def test_the_lock_is_read_as_pip_reads_it() -> None:
    pinned = re.findall(
        r"^([A-Za-z0-9._-]+==[^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    assert [package.requirement for package in LOCKED] == pinned
    assert sum(len(package.hashes) for package in LOCKED) == (ROOT / "requirements.lock").read_text().count(
        "--hash="
    )


def test_what_is_left_out_has_to_be_in_the_lock() -> None:
    without = [package for package in LOCKED if package.name != "aiokafka"]
    with pytest.raises(SystemExit, match="aiokafka"):
        build_zip.needed(without, build_zip.Target("arm64", "3.12"))


def test_a_library_without_its_symbols_can_still_be_loaded(tmp_path: Path) -> None:
    from numpy.linalg import _umath_linalg

    whole = Path(_umath_linalg.__file__).read_bytes()
    small = build_zip.loaded(whole)
    assert len(small) < len(whole)
    (tmp_path / "small.so").write_bytes(small)
    libraries = next(Path(np.__file__).parent.parent.glob("numpy.libs"), None)
    assert libraries is None or libraries.is_dir()
    assert ctypes.CDLL(str(tmp_path / "small.so"), mode=os.RTLD_LAZY) is not None
    assert build_zip.loaded(b"no library at all") == b"no library at all"


def test_the_same_files_give_the_same_zip(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "b.py").write_text("B = 1\n")
        (tmp_path / name / "a.py").write_text("A = 1\n")
        os.utime(tmp_path / name / "a.py", (len(name) * 1e8, 0))
        assert build_zip.write_zip(tmp_path / name, tmp_path / f"{name}.zip") == 12
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist() == ["a.py", "inside/b.py"]


def test_what_a_deployment_has_of_its_own_lies_beside_the_packages(tmp_path: Path) -> None:
    """Whatever its name: only the packages are made smaller."""
    task, pages = tmp_path / "task", tmp_path / "topics"
    (task / "streamproc").mkdir(parents=True)
    (pages / "tests" / "__pycache__").mkdir(parents=True)
    (pages / "clicks.toml").write_text("[stream]\n")
    (pages / "tests" / "own.py").write_text("OWN = 1\n")
    (pages / "tests" / "__pycache__" / "own.cpython-312.pyc").write_bytes(b"")
    (tmp_path / "rds-ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    build_zip.include([tmp_path / "rds-ca.pem", pages], task)
    found = {str(path.relative_to(task)) for path in task.rglob("*") if path.is_file()}
    assert found == {"rds-ca.pem", "topics/clicks.toml", "topics/tests/own.py"}
    assert (task / "rds-ca.pem").read_bytes() == (tmp_path / "rds-ca.pem").read_bytes()


def test_a_package_is_not_covered_by_what_a_deployment_brings(tmp_path: Path) -> None:
    (tmp_path / "task" / "streamproc").mkdir(parents=True)
    (tmp_path / "streamproc").mkdir()
    with pytest.raises(SystemExit, match="give it another name"):
        build_zip.include([tmp_path / "streamproc"], tmp_path / "task")


def test_what_is_to_be_included_is_looked_for_before_anything_is_downloaded(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "deploy" / "lambda" / "build_zip.py", "--output", tmp_path / "built"]
    command += ["--include", "rds-ca.pme"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--include rds-ca.pme: there is no such file or folder" in done.stderr
    assert not (tmp_path / "built").exists()


def test_the_image_is_made_of_the_zips_files_and_calls_the_handler() -> None:
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    (command,) = re.findall(r"^CMD (.+)$", final, re.MULTILINE)
    (handler,) = json.loads(command)
    module, _, name = handler.rpartition(".")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert re.search(rf"^{name} = ", source, re.MULTILINE)
    assert "RUN" not in final
    ignored = (ROOT / "deploy" / "lambda" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        assert {f"!{name}" for name in line.split()[:-1]} <= set(ignored)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_zip_runs_in_a_bare_interpreter(tmp_path: Path, postgres: str) -> None:
    """Built as for Lambda, for this machine's processor and Python; nothing but the zip's folder is on the path.

    Firehose's trigger needs no server, Kafka's the ledger: with it the native libraries are all loaded.
    """
    architecture = {"x86_64": "x86_64", "aarch64": "arm64"}[os.uname().machine]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, ROOT / "deploy" / "lambda" / "build_zip.py", "--output", tmp_path / "built"]
    subprocess.run([*command, "--architecture", architecture, "--python", python], check=True)
    (zipped,) = (tmp_path / "built").glob("*.zip")
    task = tmp_path / "task"
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(task)
        size = sum(member.file_size for member in archive.infolist())
    assert size <= 250 * 1024 * 1024
    program = """if True:
        import json, sys
        sys.path.insert(0, sys.argv[1])
        from streamproc.runtimes.aws_lambda.entry import handler

        class Context:
            def get_remaining_time_in_millis(self):
                return 120_000

        print(json.dumps([handler(event, Context()) for event in json.load(sys.stdin)]))
        import streamproc.runtimes.aws_lambda.objects
        loaded = {name.partition(".")[0] for name in sys.modules}
        outside = [m.__file__ for m in sys.modules.values() if "site-packages" in (getattr(m, "__file__", "") or "")]
        assert not loaded & {"faust", "aiokafka", "click", "rich"} and not outside, (loaded, outside)
    """
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "clicks.toml").write_text(PAGE)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program, task],
        input=json.dumps([firehose_event([click(1), b"{"]), kafka_event("clicks", {0: [(0, click(0))]})]),
        env={
            "STREAMPROC_TOPICS": str(pages),
            "STREAMPROC_LEDGER": postgres,
            "STREAMPROC_LAKE": (tmp_path / "lake").as_uri(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    transformed, committed = json.loads(done.stdout)
    assert [record["result"] for record in transformed["records"]] == ["Ok", "ProcessingFailed"]
    assert committed == {"batchItemFailures": []}
    assert len(list((tmp_path / "lake").rglob("*.parquet"))) == 1


PAGE = """
[stream]
name = "clicks"
[contract]
decoder = "json"
[contract.fields]
id = { type = "string", required = true }
kind = { type = "string", required = true }
at = { type = "integer", required = true }
[contract.event_time]
field = "at"
format = "ms"
[tables.kinds]
window = { kind = "tumbling", size = "1m" }
by = ["kind"]
measures.ids = { kind = "approx_distinct", column = "id" }
[sinks]
warehouse = false
"""
