"""A turn of compaction in a process of its own.

A turn lists thousands of objects, fetches them and looks into them. Beside the stream each left some megabytes: heaps
that had grown between what stays, names that Python remembers. Here all of it goes back, and the stream comes first.

:func:`serve` is the other side: an :class:`Order` on standard input, an :class:`Answer` on standard output. It ends
with the process that has started it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from streamproc.errors import DependencyError, StreamprocError
from streamproc.ledger import Ledger
from streamproc.ops.logging import configure_logging
from streamproc.runtimes.compaction import CompactionReport, Compactor, Unmergeable
from streamproc.runtimes.merging_process import started
from streamproc.settings import Settings
from streamproc.sinks.object_store import lake_store
from streamproc.sinks.warehouse import warehouse_of
from streamproc.topology import Topology

#: The other side. Not ``-m``: pickle knows the classes here by the module's name, which that would take away.
PROGRAM = (sys.executable, "-c", f"from {__name__} import serve; serve()")

#: What the kernel adds to how much memory a process holds, of a thousand, to find out which one it ends.
_OOM_SCORE = Path("/proc/self/oom_score_adj")

_WHAT = "the process that compacts"


@dataclass(frozen=True, slots=True)
class Order:
    """What to compact, and on what. ``ledger``, ``warehouse``: conninfo, the latter ``None`` where there is none.

    ``unmergeable``: as the last answer had it.
    """

    page: Topology
    settings: Settings
    ledger: str
    warehouse: str | None
    unmergeable: Unmergeable


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it. ``failed``: what stopped it, in words; what was compacted by then stays so."""

    report: CompactionReport | None
    unmergeable: Unmergeable
    failed: str | None = None


class NotCompacted(StreamprocError):
    """What stopped a turn, in the words of the process that it was in."""


async def compact_apart(order: Order) -> Answer:
    """One turn, to its end; cancelling it ends the process.

    Raises :class:`DependencyError` when the process cannot be started, or has come to an end of its own.
    """
    try:
        process = await started(*PROGRAM)
    except OSError as error:  # there are as many processes as may be, or no memory for another
        raise DependencyError(_WHAT, f"cannot be started: {error}", "the next turn tries again") from error
    assert process.stdin is not None and process.stdout is not None
    try:
        asked = pickle.dumps(order)
        with suppress(ConnectionError):  # it is no more: the answer is missing too
            process.stdin.write(b"%d\n" % len(asked) + asked)
            await process.stdin.drain()
        answered = await process.stdout.read()
    finally:
        if process.returncode is None and not process.stdout.at_eof():
            process.kill()  # whatever is stopped where, the next turn goes on
        process.stdin.close()
        code = await process.wait()
    if code:
        raise DependencyError(_WHAT, f"ended with {code}", "its log says why; -9: was there memory enough?")
    answer: Answer = pickle.loads(answered)  # noqa: S301 - of our own program
    return answer


async def compacted(order: Order) -> Answer:
    """The turn itself."""
    page, settings = order.page, order.settings
    try:
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(Ledger(order.ledger, page.name, settings.worker))
            store = lake_store(settings)
            stack.push_async_callback(store.close)
            await store.open()
            warehouse = warehouse_of(page, order.warehouse)
            if warehouse is not None:
                stack.push_async_callback(warehouse.close)
                await warehouse.open()
            compactor = Compactor(page, ledger, store, warehouse, unmergeable=order.unmergeable)
            return Answer(await compactor.compact(), order.unmergeable)
    except StreamprocError as error:
        return Answer(None, order.unmergeable, str(error))


def serve() -> None:
    """Take the order, and answer it."""
    if hasattr(os, "nice"):
        os.nice(10)  # the stream comes first
    with suppress(OSError):  # not Linux
        # Where memory runs out the kernel ends this, and what it starts: else the largest, and that is the worker.
        _OOM_SCORE.write_text("1000")
    size = int(sys.stdin.buffer.readline() or b"0")
    order: Order = pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301 - of our own program
    threading.Thread(target=_end_with_the_other_side, daemon=True).start()
    configure_logging(order.settings.log)
    sys.stdout.buffer.write(pickle.dumps(asyncio.run(compacted(order))))
    sys.stdout.buffer.flush()
    os._exit(0)  # the interpreter's own end would wait for standard input, which the thread reads


def _end_with_the_other_side() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
