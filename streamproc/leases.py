"""Shards shared among the workers of a stream: the values, and the decision who takes which. Pure.

A lease only decides who tries. What keeps two workers from committing the same records is the fence of the
claim (:mod:`streamproc.ledger.claims`), so nothing here has to be exact and no clock has to be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Mark(NamedTuple):
    """Where in a shard the record after ``position`` is found. Enough of them find every record again.

    Reading begins at ``sequence`` (with the record itself if ``inclusive``, else behind it); without one, at
    the first record that arrived at ``since_ms`` (Unix milliseconds) or later; without that, at the oldest
    record there is. ``arrived_ms``: when the record with that sequence number did, where that is known.
    """

    position: int
    sequence: int | None = None
    inclusive: bool = False
    since_ms: int | None = None
    arrived_ms: int | None = None


class ShardInfo(NamedTuple):
    """A shard as the stream lists it. ``parents``: of those, the ones the stream still lists."""

    id: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A shard as the ledger has it. ``ready``: its parents are finished; ``finished``: committed to its end.

    ``holder``: who has an unexpired lease. ``wanted_by``: who has asked the holder for it.
    """

    id: str
    ready: bool
    finished: bool
    holder: str | None = None
    lease: int = 0
    wanted_by: str | None = None

    @property
    def open(self) -> bool:
        """Whether there is something to do in it now."""
        return self.ready and not self.finished


@dataclass(frozen=True, slots=True)
class Board:
    """Everything a worker sees when it looks at the leases. ``workers`` are those that live."""

    shards: Sequence[ShardRow]
    workers: frozenset[str]

    def held_by(self, worker: str) -> dict[str, int]:
        """The worker's shards and lease numbers."""
        return {shard.id: shard.lease for shard in self.shards if shard.holder == worker}


@dataclass(frozen=True, slots=True)
class Report:
    """What a holder tells with its heartbeat about one shard.

    ``lease``: its number; the rest is not kept if another has it. ``mark``: a record handed out lately.
    ``behind_ms``: the stream's MillisBehindLatest. ``complete_for``: seconds since everything that had
    arrived was read and committed, ``None`` if that is not so. ``last_position``: of a shard read to its end.
    """

    lease: int
    mark: Mark | None = None
    behind_ms: int | None = None
    complete_for: float | None = None
    last_position: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Where to begin reading. ``age``: seconds since the record of the mark arrived.

    ``complete_for``: seconds since everything that had arrived was committed. Both ``None`` when not known.
    """

    mark: Mark
    age: float | None
    complete_for: float | None


class LeaseStore(Protocol):
    """Where the workers of a stream meet: :class:`streamproc.ledger.shards.Shards`, which see."""

    @property
    def worker(self) -> str:
        """Who we are on the board."""

    @property
    def timeout(self) -> float:
        """Seconds for which a lease holds after a heartbeat."""

    async def found(self, listed: Sequence[ShardInfo], start: str, since_ms: int | None) -> int:
        """Note new shards."""

    async def beat(self, reports: Mapping[str, Report]) -> Board:
        """Renew the leases."""

    async def take(self, shards: Collection[str]) -> None:
        """Take free shards."""

    async def ask(self, shards: Collection[str]) -> None:
        """Ask their holders for shards."""

    async def hand_over(self, leases: Mapping[str, int]) -> None:
        """Give shards up."""

    async def leave(self, leases: Mapping[str, int]) -> None:
        """Give everything up."""

    async def find(self, shard: str, position: int | None) -> Found:
        """The newest mark at or before a position."""

    async def settle(self, shard: str, position: int, sequence: int) -> Mark:
        """Bind a mark to a record."""

    async def thin(self, kept: float) -> None:
        """Forget marks that are not needed."""


@dataclass(slots=True)
class Move:
    """What a worker should do next. ``take``: free shards; ``ask``: shards to ask their holders for."""

    take: list[str] = field(default_factory=list)
    ask: list[str] = field(default_factory=list)


def balance(board: Board, me: str) -> Move:
    """Take free shards up to a fair share, then ask the richest for one while that evens things out.

    A fair share is ⌈open shards / workers⌉. Asking stops where a move would not bring the two closer: in the
    end no two workers differ by more than one shard.
    """
    workers = board.workers | {me}
    todo = [shard for shard in board.shards if shard.open]
    share = -(-len(todo) // len(workers))
    # What will be, once everything that is asked for was handed over.
    future = Counter(
        shard.wanted_by if shard.wanted_by in workers else shard.holder for shard in todo if shard.holder
    )
    move = Move()
    for shard in todo:
        if shard.holder is None and future[me] < share:
            move.take.append(shard.id)
            future[me] += 1
    free = sum(1 for shard in todo if shard.holder is None) - len(move.take)
    if free:  # somebody will take those; then there is something to even out
        return move
    others = workers - {me}
    while others:
        richest = max(sorted(others), key=lambda worker: future[worker])
        wanted = next(
            (s.id for s in todo if s.holder == richest and s.wanted_by is None and s.id not in move.ask), None
        )
        if wanted is None or future[richest] - future[me] < 2:
            break
        move.ask.append(wanted)
        future[richest] -= 1
        future[me] += 1
    return move
