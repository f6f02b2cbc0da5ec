"""PostgreSQL from a wheel: shared by local processes, stopped by the last of them, data kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from streamproc.embedded.postgres import start_postgres
from streamproc.errors import DependencyError

USER = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from streamproc.embedded.postgres import start_postgres
server = start_postgres(Path(sys.argv[1]))
print(server.url, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data folder for the module: making one takes a second."""
    folder = tmp_path_factory.mktemp("postgres")
    start_postgres(folder, durable=False).stop()
    yield folder
    assert not (folder / "data" / "postmaster.pid").exists(), "a test left the server running"


def another_process(directory: Path, **environment: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def one(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def test_its_database_exists_and_it_listens_on_no_network_port(directory: Path) -> None:
    with start_postgres(directory) as server:
        assert one(server.url, "SELECT current_database()") == "streamproc"
        assert one(server.url, "SELECT current_setting('listen_addresses')") == ""
        assert one(server.url, "SELECT current_setting('server_encoding')") == "UTF8"


def test_data_outlives_a_restart_and_a_second_database_is_made_on_demand(directory: Path) -> None:
    with start_postgres(directory, database="it's") as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert one(server.url, "SELECT current_database()") == "it's"
    with start_postgres(directory, database="it's") as server:
        assert one(server.url, "SELECT answer FROM kept") == 42


def test_the_last_user_out_stops_it(directory: Path) -> None:
    first = start_postgres(directory)
    second = start_postgres(directory)
    first.stop()
    first.stop()
    assert one(second.url, "SELECT 1") == 1
    second.stop()
    with pytest.raises(psycopg.OperationalError):
        one(second.url, "SELECT 1")


def test_it_outlives_a_killed_user_while_another_uses_it(directory: Path) -> None:
    process, url = another_process(directory)
    with start_postgres(directory) as server:
        assert server.url == url
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        assert one(url, "SELECT 1") == 1
    with pytest.raises(psycopg.OperationalError):
        one(url, "SELECT 1")


def test_when_every_user_was_killed_the_next_one_joins_what_is_left(directory: Path) -> None:
    process, url = another_process(directory)
    started = one(url, "SELECT pg_postmaster_start_time()")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    with start_postgres(directory) as server:
        assert one(server.url, "SELECT pg_postmaster_start_time()") == started


def test_the_pid_file_of_a_dead_server_whose_pid_was_given_away_is_no_obstacle(directory: Path) -> None:
    with start_postgres(directory) as server:
        pid_file = (directory / "data" / "postmaster.pid").read_text()
        url = server.url
    ours = "\n".join([str(os.getpid()), *pid_file.splitlines()[1:], ""])
    (directory / "data" / "postmaster.pid").write_text(ours)
    with start_postgres(directory) as server:
        assert server.url == url
        assert one(server.url, "SELECT 1") == 1


def test_without_a_runtime_directory_it_starts_without_a_warning(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    process, url = another_process(directory)
    assert url.startswith("postgresql://"), "warnings are errors in the other process"
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with start_postgres(deep, durable=False) as server:
        assert one(server.url, "SELECT 1") == 1


def test_not_durable_means_without_fsync(directory: Path) -> None:
    with start_postgres(directory, durable=False) as server:
        assert one(server.url, "SELECT current_setting('fsync')") == "off"


def test_a_path_that_cannot_be_handed_to_the_server_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(DependencyError, match="letters, digits"):
        start_postgres(tmp_path / "two words")
    assert not (tmp_path / "two words").exists()


def test_a_server_that_does_not_start_is_reported_with_its_log(tmp_path: Path, directory: Path) -> None:
    settings = directory / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "\nshared_buffers = nonsense\n")
    try:
        with pytest.raises(
            DependencyError, match=r"did not start: pg_ctl ended with exit code 1 \(see .*/data/log"
        ):
            start_postgres(directory)
    finally:
        settings.write_text(good)
    with start_postgres(directory) as server:
        assert one(server.url, "SELECT 1") == 1


def test_a_folder_of_another_major_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(DependencyError, match="found version 12"):
        start_postgres(tmp_path)
