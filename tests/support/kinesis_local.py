"""A Kinesis server that nobody here wrote: ``kinesis-local`` of npm, on Node 18 or newer.

It is installed once, into ``~/.cache/streamproc/kinesis-local-VERSION`` (``STREAMPROC_KINESIS_CACHE`` puts
the cache elsewhere). ``python -m tests.support.kinesis_local`` does only that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from tests.support import downloads
from tests.support.apache_kafka import _DIE_WITH_US, free_ports

VERSION = "0.6.2"
_INTEGRITY = "sha512-mFlmksPMQP/A3nT22N2E8WzUbJcbEdxkCnhNCx2lHj20CW4vzuVH8zn5ByRg5LS5es8tvnx2mY1DpbZ5kw9PPQ=="

#: Resharding takes seconds on Amazon's servers; here only as long as it takes to notice that it is not done.
_SHORT = "20ms"
_CHANGES = (
    "CREATE_STREAM",
    "DELETE_STREAM",
    "MERGE_SHARDS",
    "SPLIT_SHARD",
    "UPDATE_SHARD_COUNT",
    "REGISTER_STREAM_CONSUMER",
)

_START_DEADLINE = 60.0


class KinesisUnavailable(Exception):
    """This machine cannot run kinesis-local; the message says what is missing."""


def kinesis_local() -> Path:
    """The folder of the installed package, filled by npm when it is not there yet."""
    node = shutil.which("node")
    if node is None:
        raise KinesisUnavailable("no node on the PATH (18 or newer is needed)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if (release := re.match(r"v(\d+)", version)) is None or int(release[1]) < 18:
        raise KinesisUnavailable(f"node is {version.strip()}; 18 or newer is needed")
    folder = downloads.kept(f"kinesis-local-{VERSION}", "STREAMPROC_KINESIS_CACHE", _install)
    return folder / "node_modules" / "kinesis-local"


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise KinesisUnavailable("kinesis-local is not there and there is no npm on the PATH to install it")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", f"kinesis-local@{VERSION}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KinesisUnavailable(f"npm could not install kinesis-local {VERSION}: {done.stderr[-2000:]}")
    if _INTEGRITY not in (folder / "package-lock.json").read_text():
        raise KinesisUnavailable(f"npm installed another kinesis-local {VERSION} than was tested")


class KinesisLocal:
    """One server with its streams in memory. ``url``: its plain endpoint."""

    def __init__(self, directory: Path) -> None:
        self._package = kinesis_local()
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self._tls_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "kinesis-local.log"
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the AWS SDKs need; the server takes any keys."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start it and wait until it answers."""
        environment = {
            **os.environ,
            "KINESIS_MOCK_PLAIN_PORT": str(self.port),
            "KINESIS_MOCK_TLS_PORT": str(self._tls_port),
            "SHARD_LIMIT": "500",
            **{f"{change}_DURATION": _SHORT for change in _CHANGES},
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_DIE_WITH_US, "node", "main.js"],
                cwd=self._package,
                env=environment,
                stdout=log,
                stderr=log,
                # Linux shares the processor among sessions: what all wait for gets as much as all others together.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_DEADLINE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"kinesis-local did not start: {self.log.read_text()[-4000:]}")
            time.sleep(0.05)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=1):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def stop(self) -> None:
        """End it; its streams are gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


if __name__ == "__main__":
    print(kinesis_local())
    sys.exit(0)
