"""Nothing is in the repository that should not be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.documents import ROOT

SECRETS = {
    "AWS access key": re.compile(r"\b(AKIA|ASIA)(?!IOSFODNN7EXAMPLE)[0-9A-Z]{16}\b"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=]{20}"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36}\b"),
}


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_secret_is_committed() -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.name}: {what}" for what, pattern in SECRETS.items() if pattern.search(text)]
    assert found == []


def test_no_data_and_no_build_product_is_committed() -> None:
    products = {".parquet", ".pyc", ".mmdb", ".gz", ".whl", ".so", ".db", ".pickle", ".jar"}
    assert [str(path.relative_to(ROOT)) for path in tracked() if path.suffix in products] == []


def test_every_committed_file_is_small() -> None:
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked() if p.stat().st_size > 500_000}
    assert large == {}


def test_nothing_is_left_to_do() -> None:
    """A marker of unfinished work belongs into the tracker."""
    marker = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in tracked()
        if path.suffix in {".py", ".toml", ".md", ".sql", ".yml"} and path != Path(__file__)
        for line in path.read_text(encoding="utf-8").splitlines()
        if marker.search(line)
    ]
    assert found == []


def test_polars_reads_bytes_and_no_file_objects() -> None:
    """It keeps an integer for each file object that it has read: megabytes a day, where there are thousands."""
    reads = re.compile(r"pl\.(?:read|scan)_(?:parquet|csv|ndjson)\w*\b[^\n]*BytesIO")
    sources = [p for p in tracked() if p.suffix == ".py" and p.is_relative_to(ROOT / "streamproc")]
    assert [str(path.relative_to(ROOT)) for path in sources if reads.search(path.read_text("utf-8"))] == []


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert all(f"\n   {section}. " in text for section in range(1, 10))
    assert "APPENDIX: How to apply the Apache License to your work" in text
