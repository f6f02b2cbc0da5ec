"""Makes the environment of a peer: a venv of its pinned packages, and whatever its setup commands build."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.manifest import Peer

ENVIRONMENTS = Path(__file__).parents[2] / "build" / "peers"
_SETUP_TIMEOUT_SECONDS = 1800


class Unusable(Exception):
    """This machine cannot run the peer, and why: a program is missing, or its environment could not be made."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer's venv and builds are."""

    folder: Path

    @property
    def python(self) -> Path:
        """The venv's interpreter."""
        return self.folder / "venv" / "bin" / "python"

    def filled(self, peer: Peer, words: Sequence[str]) -> list[str]:
        """``words`` of a manifest with ``{python}``, ``{peer}`` and ``{environment}`` put in."""
        folder = str(peer.folder.resolve())
        return [
            word.replace("{python}", str(self.python))
            .replace("{peer}", folder)
            .replace("{environment}", str(self.folder))
            for word in words
        ]


def prepare(peer: Peer, say: Callable[[str], None]) -> Environment:
    """The peer's environment, made if it is not there or older than its folder. Raises :class:`Unusable`."""
    missing = [program for program in peer.needs if shutil.which(program) is None]
    if missing:
        raise Unusable(f"not on PATH: {', '.join(missing)}")
    environment = Environment((ENVIRONMENTS / peer.folder.name).resolve())
    environment.folder.mkdir(parents=True, exist_ok=True)
    requirements = peer.folder / "requirements.txt"
    if requirements.exists():
        wanted = _digest([requirements]) + f" {sys.version}"
        if not _is_stamped(environment.folder / "venv.stamp", wanted):
            say(f"{peer.name}: making its venv")
            _make_venv(environment, requirements)
            _stamp(environment.folder / "venv.stamp", wanted)
    if peer.setup:
        sources = [path for path in sorted(peer.folder.rglob("*")) if path.is_file()]
        wanted = _digest(sources)
        # Of the commands, not of the peer: variants that are built by the same ones are built once.
        stamp = environment.folder / f"setup-{zlib.crc32(json.dumps(peer.setup).encode()):08x}.stamp"
        if not _is_stamped(stamp, wanted):
            for command in peer.setup:
                filled = environment.filled(peer, command)
                say(f"{peer.name}: {' '.join(filled)}")
                _run(filled, environment.folder)
            _stamp(stamp, wanted)
    return environment


def _make_venv(environment: Environment, requirements: Path) -> None:
    shutil.rmtree(environment.folder / "venv", ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(environment.folder / "venv")], environment.folder)
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        str(requirements.resolve()),
    ]
    _run([str(environment.python), *install], environment.folder)


def _run(command: list[str], folder: Path) -> None:
    # The benchmark's own venv must not show through, or a peer could import what it does not declare.
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=inherited, capture_output=True, text=True, errors="replace",
            timeout=_SETUP_TIMEOUT_SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise Unusable(f"{' '.join(command)} ended with {done.returncode}:\n{said}")


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        if "__pycache__" not in path.parts:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _is_stamped(stamp: Path, wanted: str) -> bool:
    return stamp.exists() and stamp.read_text(encoding="utf-8") == wanted


def _stamp(stamp: Path, wanted: str) -> None:
    stamp.write_text(wanted, encoding="utf-8")
