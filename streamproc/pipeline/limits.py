"""When an epoch is due, what a pipeline has done so far, and who may want to hear of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from streamproc.tables.fold import Delta

#: An epoch is this many times older when it is committed, as long as more is waiting than can be taken. Nobody waits
#: for what is that late, and a row of a table that several epochs touch is written by each: the shipped page costs
#: PostgreSQL and the client of it a third less an event in epochs of 600,000 records than in those of 200,000.
_PATIENCE = 5


#: Records that trickle in are gathered for that part of the flush interval, and that many seconds at most. They are
#: committed together anyway, and Kafka answers as soon as it has anything: at 10,000 records a second a fold for every
#: few took half a processor, and gathered they take a seventh.
_LINGER, _MOST_LINGER = 0.1, 0.25


@dataclass(frozen=True, slots=True)
class Limits:
    """When an epoch is committed, whichever comes first: seconds, records, bytes of record values.

    ``fold_records``: about how many records go through the transform at once when that many are waiting.
    A fold costs some 15 ms whatever its size, so small record batches are folded together. A source that keeps
    giving so many has more than can be taken: then the flush interval is longer, see :meth:`interval`.
    """

    flush_interval: float = 5.0
    fold_records: int = 25_000
    max_records: int = 600_000
    max_bytes: int = 384 * 1024 * 1024
    drain_deadline: float = 30.0

    @property
    def linger(self) -> float:
        """Seconds that fewer than :attr:`fold_records` wait for others to go through the transform with."""
        return min(_MOST_LINGER, self.flush_interval * _LINGER)

    def interval(self, behind: bool) -> float:
        """The flush interval; ``behind``: more is waiting than can be taken."""
        return self.flush_interval * (_PATIENCE if behind else 1)


@dataclass(slots=True)
class Stats:
    """Running totals of this process, for status and health.

    ``seconds``: by stage of work. ``waiting``: by whoever waits the step (``claim``, ``recall``, ``intend``, ``put``
    or ``commit``) and what it waits for. ``last_commit``: Unix time; ``..._at``: monotonic clock. ``fences``: times
    another worker had claimed what this one held.
    """

    epochs: int = 0
    records: int = 0
    accepted: int = 0
    filtered: int = 0
    rejected: int = 0
    duplicate: int = 0
    fences: int = 0
    late: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    waiting: dict[object, tuple[str, str]] = field(default_factory=dict)
    last_commit: float | None = None
    first_taken_at: float = 0.0
    last_commit_at: float = 0.0

    @property
    def waiting_for(self) -> str | None:
        """What does not answer, if anything."""
        return next((what for _, what in self.waiting.values()), None)

    @property
    def waiting_steps(self) -> set[str]:
        """Which steps wait."""
        return {step for step, _ in self.waiting.values()}


class Watcher(Protocol):
    """Somebody who may want to know which rows of the tables a commit has changed."""

    @property
    def wanted(self) -> bool:
        """Whether it wants to know now."""

    async def committed(self, epoch: uuid.UUID, deltas: Mapping[str, Delta]) -> None:
        """These deltas, by table, are in the tables; must not raise."""
