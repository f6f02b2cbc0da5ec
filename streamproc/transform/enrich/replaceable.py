"""A file of the user's that may be replaced while the worker runs.

It is read again when its modification time, size or inode changes, once for each state. One that was written within the
last second waits: ``cp new.csv prices.csv`` writes in place, and half of a file may look like a whole one. A file that
cannot be used is reported in the log and in :attr:`Replaceable.problem`, and what was read before stays in use.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

_log = structlog.get_logger(__name__)

#: A file has to be older, in seconds. Times that lie further ahead are those of another clock: they say nothing.
_SETTLED = 1.0

Content = TypeVar("Content")


class Replaceable(Generic[Content]):
    """What ``read`` makes of the file as it is now. Several threads may ask at once.

    ``unusable``: what ``read`` raises of a file that cannot be used; the first time, it and OSError are raised here.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[Path], Content],
        unusable: tuple[type[Exception], ...],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.problem: str | None = None
        self._path = path
        self._read = read
        self._unusable = unusable
        self._clock = clock
        self._lock = threading.Lock()
        #: Of the file that was read last, whether it could be used or not; ``None``: it was not there.
        self._state: tuple[float, int, int] | None = self._look()
        self._content = read(path)

    def __call__(self) -> Content:
        """The content; the same object as before while the file is the same."""
        with self._lock:
            try:
                state = self._look()
                if state != self._state and abs(self._clock() - state[0]) >= _SETTLED:
                    self._state = state
                    self._content = self._read(self._path)
                    self.problem = None
            except OSError as error:
                self._state = None
                self._kept(error)
            except self._unusable as error:
                self._kept(error)
            return self._content

    def _look(self) -> tuple[float, int, int]:
        stat = self._path.stat()
        return stat.st_mtime, stat.st_size, stat.st_ino

    def _kept(self, error: Exception) -> None:
        problem = str(error)
        if problem != self.problem:  # a file that is gone is looked for with every batch
            _log.warning("file kept as it was before", file=str(self._path), problem=problem)
        self.problem = problem
