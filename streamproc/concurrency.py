"""Doing a few things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def end_if_cancelled(error: Exception | None = None) -> None:
    """Raise :class:`asyncio.CancelledError` when the running task was cancelled; ``error`` is what it met.

    A query that is given up for a cancellation can fail instead, or come to its end all the same. Whoever
    does things again and again has to ask, or nobody can end it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from error
