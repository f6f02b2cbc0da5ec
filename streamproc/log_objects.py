"""Log objects and files shared among the workers of a stream: the values, and where the workers meet. Pure.

A log is read from its first row to its last, once. Nobody is asked to hand one over: workers take free ones as
from a queue. As with shards, a lease decides who tries, and only the fence of the claim who may commit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol


class LogEntry(NamedTuple):
    """A log as a listing shows it. ``id``: the partition's; the same content has the same, another another.

    ``place``: key or path; ``version``: an ETag, or what else tells contents apart. ``modified_ms``: Unix time.
    """

    id: str
    place: str
    version: str
    size: int
    modified_ms: int


#: Added to the size of a packed file, in a folder where files grow: packing ends a log's growing, so it counts as
#: more than anything that the log had when it was not packed, and is looked through once for what is new.
PACKED = 1 << 48


class LogEnd(NamedTuple):
    """How far a log was read and committed when it had ``size`` bytes.

    ``position``: its last record, -1: it had none. ``offset``: of the byte after that, in a log that is not packed.
    ``gone``: there was no more to read because it is not there any more; should it be found again it is read on.
    """

    size: int
    position: int
    offset: int | None = None
    gone: bool = False


class TakenLog(NamedTuple):
    """A log that is ours to read. ``end``: of the time before, for a file that has grown since."""

    entry: LogEntry
    end: LogEnd | None


class LogTotals(NamedTuple):
    """How many logs are known, and how many of them are read to their ends; bytes of the same."""

    logs: int
    done: int
    size: int
    done_size: int


class Period(NamedTuple):
    """Logs changed in [``since_ms``, ``until_ms``), Unix milliseconds; ``None``: no bound."""

    since_ms: int | None = None
    until_ms: int | None = None

    def __contains__(self, modified_ms: object) -> bool:
        assert isinstance(modified_ms, int)
        return (self.since_ms is None or self.since_ms <= modified_ms) and (
            self.until_ms is None or modified_ms < self.until_ms
        )


class LogLedger(Protocol):
    """Where the workers of a stream meet: :class:`streamproc.ledger.logs.Logs`, which see."""

    @property
    def timeout(self) -> float:
        """Seconds for which a lease holds."""

    async def found(self, entries: Sequence[LogEntry]) -> int:
        """Note logs; returns how many are new or have grown."""

    async def take(self, most: int, period: Period) -> list[TakenLog]:
        """Take free logs that have something to read."""

    async def renew(self, logs: Collection[str]) -> set[str]:
        """Renew leases; returns those that are still ours."""

    async def finish(self, ends: Mapping[str, LogEnd]) -> None:
        """Note logs as read and committed to these ends, and let go of them."""

    async def release(self, logs: Collection[str]) -> None:
        """Let go of logs that are not at their ends."""

    async def totals(self, period: Period) -> LogTotals:
        """How far everything is."""

    async def compact(self, older: float) -> int:
        """Fold the partitions of logs that cannot change any more into one row."""
