"""Waiting for what does not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
import structlog

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
        try:
            async for attempt in stamina.retry_context(
                on=DependencyError, attempts=None, timeout=None, wait_initial=0.2, wait_max=15.0
            ):
                with attempt:
                    try:
                        return await act()
                    except DependencyError as error:
                        self.stats.waiting[me] = step, error.what
                        log.warning(
                            "waiting", step=step, on=error.what, problem=error.problem, attempt=attempt.num
                        )
                        raise
            raise AssertionError("stamina gave up though told not to")
        finally:
            self.stats.waiting.pop(me, None)  # also when it is given up: nobody waits any more
