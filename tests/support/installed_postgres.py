"""A PostgreSQL that is installed on this machine, started for a test session and thrown away after it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

#: PostgreSQL refuses to run as root; Debian's packages and the official image have this user.
_USER = "postgres"


class InstalledPostgres:
    """A server of the programs in ``programs`` (``…/bin``) with its data in ``directory``, on a Unix socket only."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._data = directory / "data"
        self._sockets = directory
        directory.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(directory, _USER, _USER)
            for folder in directory.parents:  # its user has to get there
                if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o111 != 0o111:
                    folder.chmod(folder.stat().st_mode | 0o111)

    def database_url(self, database: str) -> str:
        """Conninfo URL of a database of this server (which need not exist)."""
        return f"postgresql://{_USER}@/{database}?host={quote(str(self._sockets), safe='')}"

    def __enter__(self) -> Self:
        self._run("initdb", "--auth=trust", "--encoding=UTF8", f"--username={_USER}")
        options = f"-k {self._sockets} -c listen_addresses='' -c fsync=off -c max_connections=200"
        self._run(
            "pg_ctl", "--wait", "--silent", f"--options={options}", f"--log={self._sockets / 'log'}", "start"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "--wait", "--silent", "--mode=immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        root = os.geteuid() == 0
        subprocess.run(
            [self._programs / program, f"--pgdata={self._data}", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            user=pwd.getpwnam(_USER).pw_uid if root else None,
            group=pwd.getpwnam(_USER).pw_gid if root else None,
            extra_groups=[] if root else None,
            cwd="/",
        )
