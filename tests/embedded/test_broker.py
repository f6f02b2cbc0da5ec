"""The broker from a wheel: shared by local processes, gone with the last of them, new at each start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamproc.embedded.broker import answers_kafka, start_broker
from streamproc.errors import DependencyError

USER = """
import sys
from pathlib import Path
from streamproc.embedded.broker import start_broker
broker = start_broker(Path(sys.argv[1]))
print(broker.bootstrap, broker.incarnation, flush=True)
sys.stdin.read()
broker.stop()
"""


def another_process(directory: Path) -> tuple[subprocess.Popen[str], str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    bootstrap, incarnation = process.stdout.readline().split()
    return process, bootstrap, incarnation


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def test_it_answers_as_soon_as_it_is_started_and_not_after_it_is_stopped(tmp_path: Path) -> None:
    with start_broker(tmp_path) as broker:
        assert answers_kafka(broker.bootstrap)
    assert not answers_kafka(broker.bootstrap)


def test_a_second_user_joins_and_the_last_one_out_stops_it(tmp_path: Path) -> None:
    first = start_broker(tmp_path)
    second = start_broker(tmp_path)
    assert (second.bootstrap, second.incarnation) == (first.bootstrap, first.incarnation)
    first.stop()
    first.stop()
    assert answers_kafka(second.bootstrap)
    second.stop()
    assert not answers_kafka(second.bootstrap)


def test_a_restart_is_a_new_incarnation(tmp_path: Path) -> None:
    with start_broker(tmp_path) as broker:
        before = broker.incarnation
    with start_broker(tmp_path) as broker:
        assert broker.incarnation != before


def test_it_outlives_the_process_that_started_it_while_another_uses_it(tmp_path: Path) -> None:
    starter, bootstrap, incarnation = another_process(tmp_path)
    with start_broker(tmp_path) as broker:
        assert (broker.bootstrap, broker.incarnation) == (bootstrap, incarnation)
        starter.send_signal(signal.SIGKILL)
        ended(starter)
        assert answers_kafka(bootstrap)
    assert not answers_kafka(bootstrap)


def test_it_is_gone_when_its_only_user_was_killed(tmp_path: Path) -> None:
    user, bootstrap, incarnation = another_process(tmp_path)
    assert answers_kafka(bootstrap)
    user.send_signal(signal.SIGKILL)
    ended(user)
    assert within(10, lambda: not answers_kafka(bootstrap))
    with start_broker(tmp_path) as broker:
        assert broker.incarnation != incarnation


def test_processes_that_start_it_at_the_same_moment_share_it(tmp_path: Path) -> None:
    users: list[tuple[subprocess.Popen[str], str, str]] = []
    threads = [threading.Thread(target=lambda: users.append(another_process(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(bootstrap, incarnation) for _, bootstrap, incarnation in users}) == 1
    for process, _, _ in users:
        ended(process)
    assert not answers_kafka(users[0][1])


def test_an_endpoint_file_cut_short_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "endpoint.json").write_text('{"bootstrap": "127.0')
    with start_broker(tmp_path) as broker:
        assert answers_kafka(broker.bootstrap)


def test_something_else_on_the_port_of_a_dead_broker_is_not_taken_for_it(tmp_path: Path) -> None:
    with start_broker(tmp_path) as broker:
        before = broker.incarnation
    other = start_broker(tmp_path / "other")
    try:
        endpoint = tmp_path / "endpoint.json"
        endpoint.write_text(f'{{"bootstrap": "{other.bootstrap}", "incarnation": "{before}"}}')
        with start_broker(tmp_path) as broker:
            assert broker.bootstrap != other.bootstrap
            assert broker.incarnation != before
    finally:
        other.stop()


def test_a_binary_that_does_not_run_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "broken"
    binary.write_text("#!/bin/sh\necho no such broker >&2; exit 1\n")
    binary.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(binary))
    with pytest.raises(DependencyError, match="embedded broker: ended as soon as it was started"):
        start_broker(tmp_path)
    assert "no such broker" in (tmp_path / "broker.log").read_text()
    monkeypatch.delenv("CALF_TANSU_BIN")
    with start_broker(tmp_path) as broker:
        assert answers_kafka(broker.bootstrap)


def test_a_missing_binary_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", str(tmp_path / "nowhere"))
    with pytest.raises(DependencyError, match="has no binary"):
        start_broker(tmp_path)


def test_a_server_that_speaks_something_else_is_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert not answers_kafka(f"127.0.0.1:{port}")
        thread.join()


def test_nothing_of_the_environment_reaches_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_ENGINE", "nonsense://")
    monkeypatch.setenv("SCHEMA_REGISTRY", "file:///nowhere")
    with start_broker(tmp_path) as broker:
        assert answers_kafka(broker.bootstrap)


def test_the_lock_files_are_private(tmp_path: Path) -> None:
    with start_broker(tmp_path):
        modes = {f.name: f.stat().st_mode & 0o777 for f in tmp_path.glob("*.lock")}
    assert modes == dict.fromkeys(["start.lock", "users.lock", "alive.lock"], 0o600 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
