"""A process that merges files for a compaction, and ends with it.

polars reads many files with a thread for each, and the threads, their heaps and the pages that were freed stay with the
process: 170 MiB. Here all of it goes back, merging, which has time, takes the processors only when nobody else wants
them, and a run that is too large for the machine ends nothing but this.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from streamproc.errors import DependencyError, Inconsistent

_WHAT = "the process that merges files"


class CannotMerge(DependencyError):
    """This machine could not merge some files: they may have been too many for it, and others are not."""


class MergingProcess:
    """Started with the first merge, and anew after one that it did not outlive; ended with the block. One merge at a
    time.
    """

    def __init__(self) -> None:
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()  # it is at nothing, or what it is at is not wanted any more
            await self._process.communicate()

    async def merge(self, parts: Sequence[tuple[int, Path]], rows: int, target: Path) -> None:
        """See :func:`streamproc.sinks.merging.merge_parts`.

        Raises :class:`Inconsistent`, :class:`OSError` with what was wrong with a file, and :class:`CannotMerge` when
        the process has come to an end of its own.
        """
        if self._process is None:
            self._process = await started(sys.executable, "-m", "streamproc.sinks.merging")
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        asked = {
            "parts": [(through, str(file)) for through, file in parts],
            "rows": rows,
            "target": str(target),
        }
        with suppress(ConnectionError):  # it is no more: the answer is missing too
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            code = await process.wait()
            self._process = None
            problem = f"ended with {code} before it was done"
            raise CannotMerge(_WHAT, problem, "what it wrote is in the log; -9: was there memory enough?")
        answer = json.loads(line)
        if "inconsistent" in answer:
            raise Inconsistent(answer["inconsistent"])
        if "failed" in answer:
            raise OSError(answer["failed"])


async def started(*program: str) -> Process:
    """A process that works for this one and ends with it, beside the stream."""
    return await asyncio.create_subprocess_exec(
        *program,
        stdin=PIPE,  # closed by whatever ends us: it ends then, too
        stdout=PIPE,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for us to pass on
    )
