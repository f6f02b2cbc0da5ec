"""Doing a few things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import stamina

from streamproc.errors import DependencyError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: The variable by which ``streamproc run --workers N`` tells each of its processes how many they are: each tells its
#: share of the memory.
PROCESSES = "_STREAMPROC_PROCESSES"


async def each(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], *, at_once: int
) -> list[Result]:
    """``function`` of every item, at most ``at_once`` under way; the results stand in the items' order.

    The first failure cancels the others and is raised as it is, not in a group.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with slots:
            return await function(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


async def until_answered(
    act: Callable[[], Awaitable[Result]], tell: Callable[[DependencyError, int], None]
) -> Result:
    """What ``act`` returns once it does not raise :class:`DependencyError`, which waiting cures, any more.

    ``tell`` is told of each that it raises, and which attempt that was.
    """
    async for attempt in stamina.retry_context(
        on=DependencyError, attempts=None, timeout=None, wait_initial=0.2, wait_max=15.0
    ):
        with attempt:
            try:
                return await act()
            except DependencyError as error:
                tell(error, attempt.num)
                raise
    raise AssertionError("stamina gave up though told not to")


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these and wait for their ends, whatever those are."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def done_before(work: Coroutine[Any, Any, object], *endings: asyncio.Event) -> bool:
    """Whether ``work`` was done before any of ``endings`` was set; it is cancelled then. Raises what it raised."""
    doing, ended = asyncio.create_task(work), [asyncio.create_task(each.wait()) for each in endings]
    try:
        await asyncio.wait({doing, *ended}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
            return True
        return False
    finally:
        await cancelled(doing, *ended)


def end_if_cancelled(error: Exception | None = None) -> None:
    """Raise :class:`asyncio.CancelledError` when the running task was cancelled; ``error`` is what it met.

    A query that is given up for a cancellation can fail instead, or come to its end all the same. Whoever
    does things again and again has to ask, or nobody can end it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from error
