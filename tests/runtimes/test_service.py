"""Several streams in one process: what becomes of the others when one of them fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamproc.errors import Inconsistent
from streamproc.runtimes.service import _run_all


class Stream:
    """A worker as far as the service knows it: it works until it is told to end, or fails when it is told to."""

    def __init__(self, name: str) -> None:
        self.topology = SimpleNamespace(name=name)
        self.failing = asyncio.Event()
        #: Lines of the log, and what they were when this one ended.
        self.logs: Any = []
        self.said: list[tuple[str, ...]] = []

    async def run(self, ending: asyncio.Event) -> None:
        waiting = [asyncio.create_task(ending.wait()), asyncio.create_task(self.failing.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        self.said = [(line["event"], line["stream"], line["error"], line["why"]) for line in self.logs]
        if self.failing.is_set():
            raise Inconsistent(f"{self.topology.name} does not add up")


async def test_a_stream_that_fails_is_named_before_the_others_are_told_to_end() -> None:
    failed, other = Stream("clicks"), Stream("orders")
    streams: Any = [failed, other]
    with capture_logs() as other.logs:
        failed.failing.set()
        with pytest.raises(Inconsistent, match="clicks does not add up"):
            await _run_all(streams, asyncio.Event())
    assert other.said == [("stream_failed", "clicks", "Inconsistent", "clicks does not add up")]


async def test_a_stream_that_fails_alone_is_told_of_once() -> None:
    alone: Any = Stream("clicks")
    alone.failing.set()
    with capture_logs() as logs, pytest.raises(Inconsistent):
        await _run_all([alone], asyncio.Event())
    assert logs == []
