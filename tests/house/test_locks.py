"""The locks install the same, verified artefacts everywhere, and the licences are those that we accept."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.documents import ROOT

LOCKS = [
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-build.lock",
    "requirements-emr.lock",
    "requirements-aws.lock",
]
PYTHONS = ["3.11", "3.12", "3.13"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: What a licence field or classifier of a runtime dependency may say.
ACCEPTED = re.compile(
    r"apache|\bmit\b|bsd|\bpsf|python software foundation|mpl|lgpl-3\.0|repoze|dual license", re.IGNORECASE
)
#: Packages whose metadata says nothing; the licence was read in the package.
SAID_ELSEWHERE = {"crawler-user-agents": "MIT", "faust-streaming": "BSD-3-Clause", "polars": "MIT"}


def locked(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Package → its requirements (one for each marker) and their hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split("--hash")[0].strip())
            hashes = re.findall(r"--hash=(\S+)", line)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_one_version_with_hashes(lock: str) -> None:
    for name, entries in locked(lock).items():
        for requirement, hashes in entries:
            assert re.fullmatch(r"==[^*]+", str(requirement.specifier)), name
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), name


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_a_python_gets_each_package_once(lock: str, python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.5"}
    for name, entries in locked(lock).items():
        chosen = [r for r, _ in entries if r.marker is None or r.marker.evaluate(environment)]
        assert len(chosen) <= 1, name


def test_the_locks_agree_on_versions() -> None:
    everything = locked("requirements-aws.lock")
    for lock in LOCKS[:-1]:
        for name, entries in locked(lock).items():
            # On which platforms a package is wanted may differ: pandas wants tzdata everywhere, others on Windows only.
            wanted = {str(requirement.specifier) for requirement, _ in entries}
            assert wanted == {str(requirement.specifier) for requirement, _ in everything[name]}, name


def test_what_pyproject_asks_for_is_locked_within_its_range() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    versions = locked("requirements.lock")
    for text in asked:
        requirement = Requirement(text)
        for entry, _ in versions[canonicalize_name(requirement.name)]:
            (pin,) = entry.specifier
            assert requirement.specifier.contains(pin.version, prereleases=True), text


def test_what_the_extras_of_a_dependency_bring_is_locked_too() -> None:
    """A lock from before an extra was added still resolves, and installs less."""
    versions = locked("requirements.lock")
    for text in PROJECT["project"]["dependencies"]:
        asked = Requirement(text)
        for extra in asked.extras:
            brought = [
                needed.name
                for needed in map(Requirement, importlib.metadata.requires(asked.name) or [])
                if needed.marker is not None
                and needed.marker.evaluate({"extra": extra})
                and not needed.marker.evaluate({"extra": ""})
            ]
            assert brought, f"{asked.name} has no extra {extra}"
            assert {canonicalize_name(name) for name in brought} <= versions.keys(), text


def test_every_runtime_dependency_has_a_licence_that_we_accept() -> None:
    refused = {}
    for name in locked("requirements.lock"):
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        said = [metadata.get("License-Expression"), (metadata.get("License") or "")[:200]]
        said += [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
        words = " ".join(filter(None, said)) or SAID_ELSEWHERE.get(name, "")
        if not ACCEPTED.search(words) and name not in SAID_ELSEWHERE:
            refused[name] = words
    assert refused == {}


def test_the_notice_names_every_dependency_under_a_weak_copyleft() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for name in locked("requirements.lock"):
        try:
            licence = importlib.metadata.metadata(name).get("License-Expression") or ""
        except importlib.metadata.PackageNotFoundError:
            continue
        if re.search(r"LGPL|MPL", licence):
            assert re.search(rf"\b{re.escape(name)}\b", notice), f"{name} ({licence})"


def test_version_is_the_same_in_pyproject_package_and_changelog() -> None:
    import streamproc

    newest = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", Path(ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == PROJECT["project"]["version"] == streamproc.__version__
