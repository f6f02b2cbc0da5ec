"""Several transforms at once, one per thread.

A transform remembers answers between batches and is for one thread at a time, so each thread has its own.
polars leaves the interpreter's lock while it works, which is most of the time. The transform is pure, so it
does not matter which thread takes which batch; whoever folds the results keeps them in order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from streamproc.model import RecordBatch, Transformed
from streamproc.transform import Transform

#: More would compete with the fold and the commit for cores, and each remembers answers of its own.
MOST_THREADS = 2


class TransformPool:
    """Runs transforms made by ``make``; the first is made at once, so that its mistakes are told at once."""

    def __init__(self, make: Callable[[], Transform], threads: int | None = None) -> None:
        self._make = make
        self._spare = [make()]
        self._own = threading.local()
        count = threads or min(MOST_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="transform")

    def submit(self, batches: Sequence[RecordBatch]) -> Future[Transformed]:
        """Transform these batches on some thread."""
        return self._threads.submit(self._run, batches)

    def close(self) -> None:
        """Finish what is under way and end the threads."""
        self._threads.shutdown(wait=True)

    def _run(self, batches: Sequence[RecordBatch]) -> Transformed:
        transform: Transform | None = getattr(self._own, "transform", None)
        if transform is None:
            transform = self._own.transform = self._spare.pop() if self._spare else self._make()
        return transform(batches)
