"""A backfill beside a ledger that is away for a while. Without logs, servers or a worker."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from streamproc.errors import DependencyError
from streamproc.log_objects import Period
from streamproc.runtimes import backfill as module
from streamproc.sources.log_store import LogConnection


class Source:
    """Logs that are not read to their ends yet."""

    def __init__(self) -> None:
        self.finished = asyncio.Event()


async def test_a_backfill_goes_on_when_the_ledger_does_not_say_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, looks = Source(), itertools.count(1)
    told: list[Any] = []
    unused: Any = None

    async def work(ending: asyncio.Event) -> None:
        await ending.wait()

    async def nothing(*_: object) -> None:
        pass

    async def report(*_: object) -> Any:
        look = next(looks)
        if look == 1:
            raise DependencyError("PostgreSQL", "is away")
        if look == 3:
            source.finished.set()
        return look

    @asynccontextmanager
    async def endpoints(settings: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(broker=LogConnection("file:///logs"))

    worker = SimpleNamespace(
        run=work,
        source=source,
        upkeep=SimpleNamespace(finish=nothing),
        ledger=SimpleNamespace(open=nothing, close=nothing),
    )
    monkeypatch.setattr(module, "_LOOK", 0.01)
    monkeypatch.setattr(module, "_look_at", nothing)
    monkeypatch.setattr(module, "_report", report)
    monkeypatch.setattr(module, "spare_the_collector", lambda: None)
    monkeypatch.setattr(module, "Endpoints", endpoints)
    monkeypatch.setattr(module, "LogSource", Source)
    monkeypatch.setattr(module, "Worker", lambda *_, **__: worker)
    async with asyncio.timeout(60):
        done: Any = await module.backfill(unused, unused, unused, Period(), told.append)
    assert told[:2] == [2, 3]
    assert done == told[-1] + 1
