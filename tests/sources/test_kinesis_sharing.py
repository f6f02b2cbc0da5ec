"""A worker's heartbeats, on a board that the test fills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from streamproc.errors import DependencyError, Inconsistent
from streamproc.leases import Board, Found, Mark, Report, ShardInfo, ShardRow
from streamproc.model import Partition
from streamproc.sources import kinesis_sharing
from streamproc.sources.kinesis_client import Shard
from streamproc.sources.kinesis_polling import Pace
from streamproc.sources.kinesis_records import ALL_KEYS, HashRange
from streamproc.sources.kinesis_sharing import Sharing, Start
from tests.sources.consuming import until

KEYS = HashRange(0, 41)


class Client:
    """A stream of these shards, which no record comes from. ``answers``: whether a list of them comes."""

    def __init__(self, *shards: str) -> None:
        self.there = list(shards)
        self.answers, self.asked = asyncio.Event(), asyncio.Event()
        self.answers.set()

    async def summary(self, stream: str) -> SimpleNamespace:
        return SimpleNamespace(kept=86_400)

    async def shards(self, stream: str) -> dict[str, Shard]:
        self.asked.set()
        there = list(self.there)
        await self.answers.wait()
        return {shard: Shard(ShardInfo(shard), KEYS, closed=False) for shard in there}

    async def iterator(self, *_: object) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    def hang(self) -> None:
        """From now on no list comes."""
        self.answers.clear()
        self.asked.clear()


class Store:
    """A board of ``rows``; beats are counted, and thinning does what the test says."""

    worker, timeout = "w1", 0.03

    def __init__(self, thinning: BaseException | None = None) -> None:
        self.beats = self.thinned = self.ended = 0
        self.rows: list[ShardRow] = []
        #: What was told to it and to the listener, in order.
        self.events: list[tuple[str, list[str]]] = []
        self._thinning = thinning
        self._beat = asyncio.Event()

    async def found(self, listed: Sequence[ShardInfo], *_: object) -> int:
        self.events.append(("found", [shard.id for shard in listed]))
        return 0

    async def beat(self, reports: Mapping[str, Report]) -> Board:
        self.beats += 1
        self._beat.set()
        return Board(self.rows, frozenset({self.worker}))

    async def find(self, shard: str, position: int | None) -> Found:
        return Found(Mark(-1), None, None)

    async def hand_over(self, leases: Mapping[str, int]) -> None:
        self.rows = [row for row in self.rows if row.id not in leases]

    async def leave(self, leases: Mapping[str, int]) -> None:
        pass

    async def assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        return dict.fromkeys(partitions)

    async def finished(self, partitions: Sequence[Partition]) -> None:
        self.events.append(("finished", [partition.id for partition in partitions]))

    def hold(self, *shards: str, finished: bool = False) -> None:
        """These are ours."""
        self.rows = [ShardRow(shard, ready=True, finished=finished, holder="w1", lease=1) for shard in shards]

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
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    client: Client | None = None,
    every: float = 0.001,
    thin_every: float = 0.0,
) -> AsyncIterator[Sharing]:
    """It lists, and may thin, between the heartbeats."""
    monkeypatch.setattr(kinesis_sharing, "_LIST_EVERY", every)
    monkeypatch.setattr(kinesis_sharing, "_THIN_EVERY", thin_every)
    one = Sharing(client or Client(), "s", store, store, start=Start(), pace=Pace(), room=lambda: True)  # type: ignore[arg-type]  # as much of them as is called
    await one.begin()
    yield one
    await one.end()


async def test_marks_that_take_long_to_thin_out_keep_no_heartbeat_waiting(monkeypatch):
    store = Store()
    async with sharing(store, monkeypatch) as one:
        await until(lambda: store.thinned > 0)
        await store.until(beats=store.beats + 5)
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
        await until(lambda: store.thinned > 1)
        assert (one.failure is error) == raised


async def test_marks_are_thinned_out_now_and_then_and_not_whenever_shards_are_listed(monkeypatch):
    store = Store(DependencyError("PostgreSQL", "is away"))
    async with sharing(store, monkeypatch, thin_every=600.0):
        await until(lambda: len(store.events) > 5)
        assert store.thinned == 1


async def test_a_list_that_does_not_come_keeps_no_heartbeat_waiting(monkeypatch):
    store, client = Store(), Client()
    async with sharing(store, monkeypatch, client) as one:
        client.hang()
        async with asyncio.timeout(20):
            await client.asked.wait()
        await store.until(beats=store.beats + 5)
        assert one.failure is None


async def test_a_shard_that_is_not_listed_yet_is_begun_with_the_next_list_and_the_others_before(monkeypatch):
    """With the keys that are its own; one that the stream has forgotten will say so itself."""
    store, client = Store(), Client("listed")
    async with sharing(store, monkeypatch, client, every=3600) as one:
        client.hang()
        client.there.append("new")
        store.hold("new", "listed", "forgotten")
        await until(lambda: set(one.readers) == {"listed"})
        await store.until(beats=store.beats + 3)
        assert set(one.leases) == {"listed"}
        client.answers.set()
        await until(lambda: len(one.readers) == 3)
        keys = {shard: reader._shard.keys for shard, reader in one.readers.items()}
        assert keys == {"listed": KEYS, "new": KEYS, "forgotten": ALL_KEYS}


async def test_a_shard_is_let_go_of_at_its_end_when_a_list_has_come_that_was_begun_since(monkeypatch):
    """An older one may lack the shards that were made from it. Until then its lease is renewed."""
    store, client = Store(), Client("parent")
    async with sharing(store, monkeypatch, client, every=3600) as one:
        store.hold("parent")
        await until(lambda: len(one.readers) == 1)
        client.hang()
        store.hold("parent", "another that a list is begun for")
        async with asyncio.timeout(20):
            await client.asked.wait()
        client.there.append("child")
        store.hold("parent", finished=True)
        await store.until(beats=store.beats + 3)
        assert "parent" in one.leases
        client.answers.set()
        await until(lambda: not one.leases)
        finished = store.events.index(("finished", ["parent"]))
        assert any(event == "found" and "child" in shards for event, shards in store.events[:finished])
