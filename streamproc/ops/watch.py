"""Noticing that a worker is stuck or waits, and ending a process that cannot notice anything any more."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)
Key = TypeVar("Key")

#: What a process ends with whose event loop has stopped: EX_SOFTWARE of sysexits.h.
EXIT_CODE = 70


class StuckWatch:
    """Finds partitions whose position does not move though there is something to read.

    ``after``: seconds for which that must have been so.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._since: dict[object, tuple[int | None, float]] = {}

    def look(
        self, now: float, committed: Mapping[Key, int | None], newest: Mapping[Key, int]
    ) -> dict[Key, float]:
        """The stuck partitions and for how many seconds they have been so.

        ``now``: seconds of a monotonic clock. ``committed``: positions of the claimed partitions; a
        partition that is not in it is forgotten. ``newest``: last position the source has.
        """
        since: dict[object, tuple[int | None, float]] = {}
        stuck: dict[Key, float] = {}
        for key, position in committed.items():
            end = newest.get(key)
            behind = end is not None and end >= 0 and (position is None or position < end)
            before = self._since.get(key)
            if not behind or before is None or before[0] != position:
                since[key] = (position, now)
                continue
            since[key] = before
            if now - before[1] >= self._after:
                stuck[key] = now - before[1]
        self._since = since
        return stuck


class Failures:
    """Tells something that is away from what fails now and then, where many ask it, each for itself.

    It is away when somebody's attempts have failed for ``lasting`` seconds, and until none of those failed for
    ``pause``: an attempt and the wait for the next one take less.
    """

    def __init__(self, lasting: float, pause: float) -> None:
        self._lasting = lasting
        self._pause = pause
        self._last = float("-inf")
        self._what = ""

    def note(self, now: float, failing: float, what: str) -> None:
        """``what`` failed, as it has for ``failing`` seconds; ``now``: seconds of a monotonic clock."""
        if failing >= self._lasting:
            self._last, self._what = now, what

    def end(self) -> None:
        """It has answered."""
        self._last = float("-inf")

    def away(self, now: float) -> str | None:
        """What is away."""
        return self._what if now - self._last <= self._pause else None


class LoopWatchdog:
    """Ends the process when its event loop does not turn, so that whoever runs it starts it again.

    Python cannot interrupt a call that never returns, and a loop that waits for one answers no signal and no
    health check. A thread looks every ``every`` seconds whether the loop has turned since; after ``misses``
    times without, it prints every thread's stack and exits with :data:`EXIT_CODE`. Nothing is lost: what
    was not committed is read again. Looks are counted, not seconds: a process that was stopped or a machine
    that slept has missed one look, however long that took.
    """

    def __init__(self, every: float = 5.0, misses: int = 24, end: Callable[[], None] | None = None) -> None:
        self._every = every
        self._misses = misses
        self._end = end or _exit
        self._turned = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Watch the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer. Calling it again does nothing."""
        self._stopping.set()

    def _watch(self) -> None:
        missed = 0
        while not self._stopping.wait(self._every):
            missed = 0 if self._turned else missed + 1
            if missed >= self._misses:
                self._end()
                return
            if self._turned:
                self._turned = False
                self._ask()

    def _ask(self) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # closed: the process is ending by itself
            self._stopping.set()

    def _answer(self) -> None:
        self._turned = True


def _exit() -> None:
    log.critical(
        "event_loop_stuck", why="it has not turned for two minutes; the stacks of all threads follow"
    )
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    os._exit(EXIT_CODE)
