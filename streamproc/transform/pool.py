"""Several batches at once, one per thread.

polars leaves the interpreter's lock while it works, which is most of the time. The transform is pure, so it
does not matter which thread takes which batch; whoever folds the results keeps them in order. All threads
share one transform, and with it what its enrichments remember.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from streamproc.model import RecordBatch, Transformed
from streamproc.transform import Transform

#: More would compete with the fold and the commit for cores.
MOST_THREADS = 2


class TransformPool:
    """Runs ``transform`` on threads of its own."""

    def __init__(self, transform: Transform, threads: int | None = None) -> None:
        self._transform = transform
        count = threads or min(MOST_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="transform")

    def submit(self, batches: Sequence[RecordBatch]) -> Future[Transformed]:
        """Transform these batches on some thread."""
        return self._threads.submit(self._transform, batches)

    def close(self) -> None:
        """Finish what is under way and end the threads."""
        self._threads.shutdown(wait=True)
