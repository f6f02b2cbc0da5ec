"""How a source that reads in tasks of its own answers :meth:`streamproc.sources.Source.next`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamproc.model import RecordBatch


async def handed_out(
    hand_out: Callable[[], list[RecordBatch]],
    arrived: asyncio.Event,
    failure: Callable[[], Exception | None],
    max_wait: float,
) -> list[RecordBatch]:
    """What ``hand_out`` gives as soon as it gives anything; empty after ``max_wait`` seconds.

    ``arrived`` is set whenever it may give something, or when there is a ``failure``, which is raised.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max_wait
    while True:
        if (error := failure()) is not None:
            raise error
        arrived.clear()
        batches = hand_out()
        left = deadline - loop.time()
        if batches or left <= 0:
            return batches
        try:
            async with asyncio.timeout(left):
                await arrived.wait()
        except TimeoutError:
            return []
