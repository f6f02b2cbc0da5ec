"""Where records come from. Only this package imports aiokafka, and Kinesis' client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from streamproc.errors import DependencyError, SourceError
from streamproc.model import Partition, RecordBatch

#: Is told of each failed attempt of something that is tried until it works: why, and for how many seconds it has
#: failed by now. Once is nothing: of many readers that ask all the time, one fails now and then.
Waiting: TypeAlias = Callable[[DependencyError, float], None]


class Outage:
    """For how long something has failed that is tried again and again."""

    def __init__(self) -> None:
        self._since: float | None = None

    def failed(self) -> float:
        """It has failed again; returns the seconds since it first did."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since

    def over(self) -> None:
        """It worked."""
        self._since = None


class Listener(Protocol):
    """Who is told when partitions come and go; the pipeline.

    An exception from either method is raised by the source's :meth:`Source.next`.
    """

    async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        """These are ours now: claim them, and say through which position each is committed.

        ``None``: never committed, the source starts where it is configured to. No record of a partition is
        handed out before this returns. It is cancelled when the partitions are revoked meanwhile.
        """

    async def begun(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None] | None:
        """Where these, claimed just now, stand; ``None`` when :meth:`begin_behind` has never been called for them."""

    async def begin_behind(
        self, newest: Mapping[Partition, int], log: str | None
    ) -> Mapping[Partition, int | None]:
        """A source that nobody has read begins behind these positions, whoever reads it; returns where each stands.

        Called after :meth:`assigned`, where reading is to begin with what comes now and a position is ``None``.
        ``newest``: of all partitions that there are; ``log``: what they are positions of, if the source says that.
        ``None``: that partition came after it was decided, and is read from its first record.
        """

    async def read_from(self, partitions: Sequence[Partition], log: str) -> Mapping[Partition, str]:
        """These, claimed just now, are read from ``log``; returns which log each one's position is one of.

        Called where the source names its logs. A partition whose position is of another log is stopped.
        """

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """These are being taken away; no record of them is handed out any more.

        They go to their next owner when this returns, or when the group's rebalance timeout is over. Not
        called by :meth:`Source.close`.
        """

    async def finished(self, partitions: Sequence[Partition]) -> None:
        """These have an end, and are committed to it, or are another's by now: they can be forgotten.

        What is not committed of them stays until its commit is refused.
        """


class Source(Protocol):
    """Ordered partitions of records, shared among the workers of a group. Positions are inclusive."""

    async def start(self) -> None:
        """Connect and join the group; waits for a source that is not there yet."""

    async def close(self) -> None:
        """Leave the group and disconnect."""

    async def next(self, max_records: int, max_wait: float) -> list[RecordBatch]:
        """Some record batches, those of one partition side by side and in order.

        About ``max_records`` (a batch is not split, so the last may go over it); whatever is there as soon
        as anything is, and an empty list when nothing came within ``max_wait`` seconds. To be called from
        one task at a time.
        """

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Hand out nothing of these, and fetch no more, until they are resumed or assigned anew."""

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo :meth:`pause`."""

    async def reclaim(self) -> None:
        """Let the listener claim everything assigned again, and go on from the positions it returns."""

    async def copy_commit(self, positions: Mapping[Partition, int]) -> bool:
        """Tell the source's own bookkeeping, for lag monitors. Best effort: says whether it worked."""

    async def beginning_positions(self) -> dict[Partition, int]:
        """The oldest position each partition still has (or would give its next record)."""

    async def end_positions(self) -> dict[Partition, int]:
        """The newest position of each assigned partition that can be read; one below the oldest when empty."""

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions that the group gave this worker."""

    @property
    def stopped(self) -> Mapping[Partition, SourceError]:
        """Partitions of the assignment that cannot go on, and why."""

    @property
    def begins(self) -> Mapping[Partition, int]:
        """Behind which position reading began, of claimed partitions that nothing was ever committed of.

        Empty where positions are only known once records are counted.
        """

    @property
    def lag(self) -> dict[Partition, int]:
        """Records between what was handed out and the newest known to exist."""

    @property
    def behind(self) -> dict[Partition, float]:
        """Seconds by which the records fetched last were behind the newest, where the source says that."""

    def fetched_newest(self, partition: Partition) -> int | None:
        """The newest position known of a claimed partition as of its last fetch; ``None`` before that."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes fetched and not handed out, as they came."""

    @property
    def rebalances(self) -> int:
        """How often this worker was assigned partitions."""


class Producer(Protocol):
    """Writes records, many at a time. Connected between enter and exit."""

    async def __aenter__(self) -> Self:
        """Connect. Raises :class:`DependencyError` when nobody answers."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""

    async def send(
        self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None
    ) -> None:
        """Queue records; returns when they are on their way, or as soon as there is room for that."""

    async def flush(self) -> None:
        """Wait until everything that was sent is there. Raises :class:`DependencyError` if some is not."""
