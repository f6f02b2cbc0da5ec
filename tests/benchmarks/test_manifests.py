"""Peers are what the contract in benchmarks/peers/README.md says, and their environments are made once."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks.comparison import environment
from benchmarks.comparison.environment import Environment, Unusable
from benchmarks.comparison.manifest import PEERS, BadManifest, Peer, read_peer, read_peers

MANIFEST = """
title = "A peer"
docs = "https://example.com"
command = ["{python}", "{peer}/run.py", "--data={environment}"]
[workloads.w1]
events = 100
"""


def written(folder: Path, text: str, name: str = "peer.toml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def peer(folder: Path, more: str = "") -> Peer:
    return read_peer(written(folder, more + MANIFEST))


@pytest.fixture(autouse=True)
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path / "environments")
    return tmp_path / "environments"


def test_every_peer_of_the_project_has_a_manifest_that_can_be_read() -> None:
    peers = read_peers()
    assert {"faust", "quix", "bytewax", "confluent-orjson", "confluent-msgspec", "pathway"} <= {
        p.name for p in peers
    }
    assert [p.name for p in peers if not p.workloads] == []
    assert [p.name for p in peers for part in p.workloads.values() if part.events < 1] == []


@pytest.mark.parametrize("file", sorted(PEERS.glob("*/requirements.txt")), ids=lambda file: file.parent.name)
def test_what_a_peer_installs_is_pinned_and_hashed(file: Path) -> None:
    packages = [line for line in file.read_text().splitlines() if re.match(r"[a-z0-9]", line)]
    assert packages and all("==" in line for line in packages)
    assert file.read_text().count("--hash=sha256:") >= len(packages)


def test_a_variant_is_a_contestant_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "engine", MANIFEST)
    written(tmp_path / "engine", MANIFEST, "peer-fast.toml")
    assert [p.name for p in read_peers(tmp_path)] == ["engine-fast", "engine"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speed = 3\n", "speed"),
        ('broker = "redpanda"\n', "redpanda"),
        ('needs = "java"\n', "needs"),
        ("[workloads.w9]\nevents = 1\n", "w9"),
        ("no TOML", "peer.toml"),
    ],
)
def test_a_manifest_with_a_mistake_is_refused_by_name(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        read_peer(written(tmp_path / "engine", line + MANIFEST))


def test_words_in_braces_are_places(tmp_path: Path) -> None:
    of = peer(tmp_path / "engine")
    made = Environment(tmp_path / "made")
    assert made.filled(of, of.command) == [
        str(tmp_path / "made/venv/bin/python"),
        str(tmp_path / "engine/run.py"),
        f"--data={tmp_path / 'made'}",
    ]


def test_a_peer_whose_program_is_missing_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="no-such-program"):
        environment.prepare(peer(tmp_path / "engine", 'needs = ["no-such-program"]\n'), print)


def test_setup_runs_once_and_again_when_a_file_of_the_folder_has_changed(tmp_path: Path) -> None:
    script = "import pathlib; pathlib.Path('runs').open('a').write('x')"
    of = peer(tmp_path / "engine", f'setup = [["{sys.executable}", "-c", "{script}"]]\n')
    for _ in range(2):
        made = environment.prepare(of, print)
    assert (made.folder / "runs").read_text() == "x"
    (tmp_path / "engine" / "run.py").write_text("print()")
    environment.prepare(of, print)
    assert (made.folder / "runs").read_text() == "xx"


def test_variants_with_the_same_setup_are_built_once(tmp_path: Path) -> None:
    script = "import pathlib; pathlib.Path('runs').open('a').write('x')"
    text = f'setup = [["{sys.executable}", "-c", "{script}"]]\n' + MANIFEST
    for name in ("peer-one.toml", "peer-two.toml"):
        written(tmp_path / "engine", text, name)
    made = [environment.prepare(of, print) for of in read_peers(tmp_path)]
    assert (made[0].folder / "runs").read_text() == "x"


def test_a_setup_that_fails_makes_the_peer_unusable_and_is_tried_again(tmp_path: Path) -> None:
    of = peer(
        tmp_path / "engine", f'setup = [["{sys.executable}", "-c", "raise SystemExit(\'no network\')"]]\n'
    )
    for _ in range(2):
        with pytest.raises(Unusable, match="no network"):
            environment.prepare(of, print)
