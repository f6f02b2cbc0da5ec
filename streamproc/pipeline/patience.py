"""Waiting for what does not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from streamproc.concurrency import until_answered
from streamproc.errors import DependencyError
from streamproc.pipeline.limits import Stats

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Patience:
    """Tries a step again until it is answered, and notes in ``stats`` what is waited for meanwhile."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    async def until_answered(self, step: str, act: Callable[[], Awaitable[T]]) -> T:
        """Try until it works or fails for a reason that waiting does not cure."""
        me = object()

        def tell(error: DependencyError, attempt: int) -> None:
            self.stats.waiting[me] = step, error.what
            log.warning("waiting", step=step, on=error.what, problem=error.problem, attempt=attempt)

        try:
            return await until_answered(act, tell)
        finally:
            self.stats.waiting.pop(me, None)  # also when it is given up: nobody waits any more
