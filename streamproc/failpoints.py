"""Named points at which a test can make this process fail. Off unless a test arms them.

``STREAMPROC_FAILPOINTS`` is read once, when this module is imported: ``point=action`` or
``point=action@hit``, several separated by ``;``. ``put.first=kill@3`` kills the process when it has put an
epoch's first object for the third time. Each firing is a JSON line in the file that
``STREAMPROC_FAILPOINTS_LOG`` names, written before the action. A point fires once in a process's life.

Without the variable, which is always outside of tests, :func:`failpoint` and :func:`failpoint_when_waiting`
are empty functions: some 30 ns each, a few dozen times per epoch and never per record.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from streamproc.errors import ConfigError, DependencyError, Mistake

#: Where, in the order of a worker's life. ``commit.sent``: COMMIT is on its way and not answered.
Point = Literal[
    "claim.before",
    "claim.after",
    "seek.done",
    "intend.before",
    "intend.after",
    "put.first",
    "put.middle",
    "put.last",
    "commit.fenced",
    "commit.merged",
    "commit.sent",
    "commit.acknowledged",
    "tell",
    "sweep.delete",
    "load.locked",
    "load.copied",
    "load.committed",
    "compact.intended",
    "compact.put",
    "compact.noted",
    "compact.replaced",
    "erase.noted",
    "erase.put",
    "erase.lake",
    "erase.warehouse",
]

#: What. ``kill`` and ``stop``: SIGKILL and SIGSTOP to this process. ``raise``: an exception that nobody
#: expects. ``unavailable``: :class:`DependencyError`, as if the other side did not answer. ``cancel``: the task.
Action = Literal["kill", "stop", "raise", "unavailable", "cancel"]

POINTS: tuple[Point, ...] = get_args(Point)
ACTIONS: tuple[Action, ...] = get_args(Action)

VARIABLE = "STREAMPROC_FAILPOINTS"


class FailpointError(Exception):
    """Raised by the action ``raise``; not one of this project's errors, as a defect's would not be."""


@dataclass(slots=True)
class _Armed:
    action: Action
    hit: int


class Failpoints:
    """The armed points of this process. ``log``: a file to append to, or ``None``."""

    def __init__(self, armed: str, log: str | None) -> None:
        """Raises :class:`ConfigError` with every point, action or hit in ``armed`` that there is not."""
        self.arm(armed)
        self._log = log
        self._uncommitted: Callable[[], int] = int
        self._worker = os.environ.get("STREAMPROC_WORKER", "")

    def arm(self, armed: str) -> None:
        """Arm these in place of those that are; hits count from now. Raises :class:`ConfigError`."""
        self._armed = _parse(armed)
        self._hits: Counter[str] = Counter()

    def watch(self, uncommitted: Callable[[], int]) -> None:
        """Have ``uncommitted()``, the records in flight, noted with each firing."""
        self._uncommitted = uncommitted

    def hit(self, point: Point) -> None:
        """The process is at ``point``, in the task that is to be cancelled if it comes to that."""
        if (action := self._due(point)) is not None:
            self._act(point, action, asyncio.current_task())

    def hit_when_waiting(self, point: Point) -> None:
        """The process is at ``point`` once the current task waits. ``raise`` cannot be done there."""
        if (action := self._due(point)) is not None:
            asyncio.get_running_loop().call_soon(self._act, point, action, asyncio.current_task())

    def _due(self, point: Point) -> Action | None:
        armed = self._armed.get(point)
        self._hits[point] += 1
        return armed.action if armed is not None and self._hits[point] == armed.hit else None

    def _act(self, point: Point, action: Action, task: asyncio.Task[Any] | None) -> None:
        self._note(point, action)
        if action in {"kill", "stop"}:
            os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        elif action == "cancel" and task is not None:
            task.cancel(f"failpoint {point}")
        elif action == "unavailable":
            raise DependencyError(f"failpoint {point}", "does not answer")
        else:
            raise FailpointError(point)

    def _note(self, point: Point, action: Action) -> None:
        if self._log is None:
            return
        line = {
            "point": point,
            "action": action,
            "hit": self._hits[point],
            "uncommitted": self._uncommitted(),
            "worker": self._worker,
            "pid": os.getpid(),
            "at": time.time(),
        }
        with open(self._log, "a", encoding="utf-8") as file:  # noqa: PTH123 - one short append, then the end
            file.write(json.dumps(line) + "\n")


def _parse(armed: str) -> dict[str, _Armed]:
    points: dict[str, _Armed] = {}
    mistakes = []
    for text in filter(None, armed.split(";")):
        point, _, what = text.partition("=")
        action, _, hit = what.partition("@")
        if point not in POINTS:
            mistakes.append(Mistake(VARIABLE, f"no point {point!r}", f"There are: {', '.join(POINTS)}"))
        elif action not in ACTIONS:
            mistakes.append(Mistake(VARIABLE, f"no action {action!r}", f"There are: {', '.join(ACTIONS)}"))
        elif not (hit or "1").isdecimal() or int(hit or 1) < 1:
            mistakes.append(Mistake(VARIABLE, f"no hit {hit!r}", "Write a number from 1"))
        else:
            points[point] = _Armed(action, int(hit or 1))
    if mistakes:
        raise ConfigError(mistakes)
    return points


def _nothing(point: Point) -> None:
    """Nothing is armed."""


def _watch_nothing(uncommitted: Callable[[], int]) -> None:
    """Nothing is armed."""


#: What is armed in this process, or ``None``.
armed: str | None = os.environ.get(VARIABLE) or None

#: The process is at a point.
failpoint: Callable[[Point], None] = _nothing
#: The process is at a point as soon as what is awaited next has been sent on its way.
failpoint_when_waiting: Callable[[Point], None] = _nothing
#: Have the number of records in flight noted with each firing.
watch: Callable[[Callable[[], int]], None] = _watch_nothing

if armed is not None:
    _failpoints = Failpoints(armed, os.environ.get(f"{VARIABLE}_LOG"))
    failpoint, failpoint_when_waiting = _failpoints.hit, _failpoints.hit_when_waiting
    watch = _failpoints.watch
