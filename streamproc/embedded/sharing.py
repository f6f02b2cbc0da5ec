"""One server, several local processes: who starts it, who joins it, who turns off the light.

A server's folder holds two files that are only ever locked: ``start.lock`` is held while a process starts,
joins or leaves, ``users.lock`` is held *shared* for as long as a process uses the server. The kernel drops
both when a process dies, however it dies, so there is no list of users that could go stale.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SharedUse:
    """This process's use of the server in ``directory`` (created when missing)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._start_lock = directory / "start.lock"
        self._users_lock = directory / "users.lock"
        self._users_fd: int | None = None

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the folder's start lock; another process that starts or stops the server waits."""
        fd = os.open(self._start_lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def join(self) -> None:
        """Count this process among the users. Call while :meth:`exclusively` is held."""
        self._users_fd = os.open(self._users_lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._users_fd, fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Stop using it; true when nobody else does. Call while :meth:`exclusively` is held."""
        if self._users_fd is None:
            return False
        try:
            fcntl.flock(self._users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(self._users_fd)
            self._users_fd = None
