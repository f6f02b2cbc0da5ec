"""A worker's heartbeats, on a board that the test fills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from streamproc.errors import DependencyError, Inconsistent
from streamproc.leases import Board, Report
from streamproc.sources import kinesis_sharing
from streamproc.sources.kinesis_polling import Pace
from streamproc.sources.kinesis_sharing import Sharing, Start


class Client:
    """A stream without shards."""

    async def summary(self, stream: str) -> SimpleNamespace:
        return SimpleNamespace(kept=86_400)

    async def shards(self, stream: str) -> dict[str, object]:
        return {}


class Store:
    """An empty board; beats are counted, and thinning does what the test says."""

    worker, timeout = "w1", 0.03

    def __init__(self, thinning: BaseException | None = None) -> None:
        self.beats = self.thinned = self.ended = 0
        self._thinning = thinning
        self._beat = asyncio.Event()

    async def found(self, *_: object) -> int:
        return 0

    async def beat(self, reports: Mapping[str, Report]) -> Board:
        self.beats += 1
        self._beat.set()
        return Board([], frozenset())

    async def leave(self, leases: Mapping[str, int]) -> None:
        pass

    async def thin(self, kept: float) -> None:
        """Hangs, or fails."""
        self.thinned += 1
        try:
            if self._thinning is not None:
                raise self._thinning
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def until(self, beats: int) -> None:
        async with asyncio.timeout(20):
            while self.beats < beats:
                self._beat.clear()
                await self._beat.wait()


@asynccontextmanager
async def sharing(
    store: Store, monkeypatch: pytest.MonkeyPatch, thin_every: float = -1.0
) -> AsyncIterator[Sharing]:
    """It lists, and may thin, with each heartbeat."""
    monkeypatch.setattr(kinesis_sharing, "_LIST_EVERY", -1.0)
    monkeypatch.setattr(kinesis_sharing, "_THIN_EVERY", thin_every)
    one = Sharing(Client(), "s", None, store, start=Start(), pace=Pace(), room=lambda: True)  # type: ignore[arg-type]  # as much of them as is called
    await one.begin()
    yield one
    await one.end()


async def test_marks_that_take_long_to_thin_out_keep_no_heartbeat_waiting(monkeypatch):
    store = Store()
    async with sharing(store, monkeypatch) as one:
        await store.until(beats=5)
        assert (store.thinned, store.ended, one.failure) == (1, 0, None)
    assert store.ended == 1, "it ends with the worker"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(DependencyError("PostgreSQL", "is away"), False), (Inconsistent("a mistake of ours"), True)],
)
async def test_marks_that_cannot_be_thinned_out_are_tried_again_unless_waiting_does_not_cure_it(
    monkeypatch, error, raised
):
    store = Store(error)
    async with sharing(store, monkeypatch) as one:
        await store.until(beats=5)
        assert store.thinned > 1
        assert (one.failure is error) == raised


async def test_marks_are_thinned_out_now_and_then_and_not_whenever_shards_are_listed(monkeypatch):
    store = Store(DependencyError("PostgreSQL", "is away"))
    async with sharing(store, monkeypatch, thin_every=600.0):
        await store.until(beats=5)
        assert store.thinned == 1
