"""The pipeline as the page *Pipeline* shows it: what the ledger says, and how far the source is ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from psycopg import sql

from streamproc.dashboard.reading import Question, Reader, Seen
from streamproc.ledger import EpochSummary, Ledger, ObjectTotal, PartitionStatus
from streamproc.model import Partition
from streamproc.sinks.warehouse import WarehouseStatus
from streamproc.sources.kafka_positions import Span
from streamproc.topology import Topology

#: How far back the charts go, and the width of a bar.
SPAN, BIN = timedelta(minutes=15), timedelta(seconds=10)
#: Epochs that are listed.
EPOCHS = 8

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)

# now(), not clock_timestamp(): an index can be asked for what stays the same during a statement only.

#: Records by outcome, and how long an epoch's oldest record and its newest event waited for the commit.
_BINS = """
    SELECT date_bin(%(bin)s, e.committed_at, 'epoch'::timestamptz),
           sum(r.accepted)::bigint, sum(r.filtered)::bigint, sum(r.rejected)::bigint, sum(r.duplicate)::bigint,
           max(extract(epoch FROM e.committed_at - e.started_at))::float8, max(e.committed_at)
    FROM streamproc.epochs AS e JOIN streamproc.epoch_ranges AS r ON r.epoch = e.id
    WHERE e.stream = %(stream)s AND e.committed_at >= now() - %(span)s
    GROUP BY 1 ORDER BY 1
"""

#: From the newest event of an epoch to its commit. Producers whose clocks are ahead make it negative: 0 then. An epoch
#: notes its objects before itself: those that came later in their place, merged ones, are not its own.
_FRESHNESS = """
    SELECT date_bin(%(bin)s, committed_at, 'epoch'::timestamptz),
           max(greatest(extract(epoch FROM committed_at) - newest / 1000000.0, 0))::float8
    FROM (SELECT e.committed_at, max(o.max_time_us) AS newest
          FROM streamproc.epochs AS e
          JOIN streamproc.objects AS o ON o.epoch = e.id AND o.committed_at <= e.committed_at
          WHERE e.stream = %(stream)s AND e.committed_at >= now() - %(span)s
            AND o.stream = %(stream)s AND o.kind = 'events' AND o.max_time_us IS NOT NULL
            AND (o.state = 'committed' AND o.committed_at >= now() - %(span)s
                 OR o.state = 'superseded' AND o.superseded_at >= now() - %(span)s)
          GROUP BY e.id) AS epochs
    GROUP BY 1 ORDER BY 1
"""

_REPLAYS = """
    SELECT r.name, r.state, r.asked, r.operator, r.created_at,
           sum(greatest(least(coalesce(p.position, g.after), g.through) - g.after, 0))::bigint,
           sum(g.through - g.after)::bigint
    FROM streamproc.replays AS r
    LEFT JOIN streamproc.replay_ranges AS g USING (stream, name)
    LEFT JOIN streamproc.partitions AS p
           ON p.stream = r.namespace AND (p.source, p.partition) = (g.source, g.partition)
    WHERE r.stream = %(stream)s AND r.state <> 'promoted'
    GROUP BY 1, 2, 3, 4, 5 ORDER BY r.created_at
"""


class Bin(NamedTuple):
    """Ten seconds of commits. ``seconds``: the longest from an epoch's first record to its commit.

    ``newest``: the last commit of them.
    """

    start: datetime
    accepted: int
    filtered: int
    rejected: int
    duplicate: int
    seconds: float
    newest: datetime

    @property
    def records(self) -> int:
        """All of them."""
        return self.accepted + self.filtered + self.rejected + self.duplicate


class Replay(NamedTuple):
    """A replay that was not promoted yet: ``done`` of ``records``."""

    name: str
    state: str
    asked: str
    operator: str
    created_at: datetime
    done: int
    records: int


@dataclass(frozen=True, slots=True)
class Ends:
    """How far the source is ahead of the ledger.

    ``spans``: what can be read of each partition (Kafka), ``behind``: seconds by partition (Kinesis).
    ``problem``: why it is not known.
    """

    spans: Mapping[Partition, Span]
    behind: Mapping[Partition, float]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """A partition. ``lag`` in records, ``behind`` in seconds, ``None`` where unknown."""

    status: PartitionStatus
    lag: int | None
    behind: float | None
    watermark: datetime | None


@dataclass(frozen=True, slots=True)
class PipelineSnapshot:
    """The page at one moment, ``asked_at`` on the database's clock.

    ``warehouse``: ``None`` when there is none; a text says why nothing is known of it. ``late`` and ``objects`` are
    ``None`` when they could not be counted, which a note explains.
    """

    asked_at: datetime
    partitions: Sequence[PartitionRow]
    bins: Sequence[Bin]
    freshness: Sequence[tuple[datetime, float]]
    epochs: Sequence[EpochSummary]
    late: Mapping[str, int] | None
    objects: Sequence[ObjectTotal] | None
    warehouse: WarehouseStatus | str | None
    replays: Sequence[Replay]
    notes: Sequence[str]


class PipelineView:
    """Reads one stream's ledger.

    ``ledger`` is open. ``ends`` asks the source, ``totals`` (of the lake's objects), ``late`` and ``warehouse``
    what is slow to count: they keep their answers for a while.
    """

    def __init__(
        self,
        topology: Topology,
        reader: Reader,
        *,
        ends: Callable[[], Awaitable[Ends]],
        totals: Callable[[], Awaitable[Seen[Sequence[ObjectTotal]]]],
        late: Callable[[], Awaitable[Seen[Mapping[str, int]]]],
        warehouse: Callable[[], Awaitable[WarehouseStatus | str | None]],
    ) -> None:
        self.topology = topology
        self._reader = reader
        self._ledger = ledger_over(reader, topology.name)
        self._ends = ends
        self._totals = totals
        self._late = late
        self._warehouse = warehouse

    async def look(self) -> PipelineSnapshot:
        """Ask everything, at once. Raises :class:`DependencyError` and :class:`LedgerError`."""
        await self._reader.connect()
        (
            (statuses, shards, epochs),
            (bins, freshness, replays, clock),
            (ends, objects, late, warehouse),
        ) = await asyncio.gather(
            asyncio.gather(self._ledger.status(), self._ledger.shards(), self._ledger.epochs(limit=EPOCHS)),
            asyncio.gather(
                self._ask(sql.SQL(_BINS), "count commits"),
                self._ask(sql.SQL(_FRESHNESS), "measure freshness"),
                self._ask(sql.SQL(_REPLAYS), "look for replays"),
                self._ask(sql.SQL("SELECT clock_timestamp()"), "read the clock"),
            ),
            asyncio.gather(self._ends(), self._totals(), self._late(), self._warehouse()),
        )
        behind = {
            partition: 0.0 if shard.finished else shard.behind_ms / 1000
            for partition, shard in shards.items()
            if shard.finished or shard.behind_ms is not None
        }
        notes = [] if ends.problem is None or behind else [ends.problem]
        for what, problem in (("The lake's objects", objects.problem), ("Late events", late.problem)):
            if problem is not None:
                notes.append(f"{what} could not be counted: {problem}")
        return PipelineSnapshot(
            clock[0][0],
            [self._row(status, ends, behind) for status in statuses],
            [Bin(*row) for row in bins],
            [(moment, seconds) for moment, seconds in freshness],
            epochs,
            late.value,
            objects.value,
            warehouse,
            [Replay(*row) for row in replays],
            notes,
        )

    def _row(self, status: PartitionStatus, ends: Ends, behind: Mapping[Partition, float]) -> PartitionRow:
        span = ends.spans.get(status.partition)
        waiting = None if span is None else lag(status.position, span)
        watermark = None
        if status.clock_us is not None:
            microseconds = status.clock_us - self.topology.contract.event_time.disorder
            watermark = _EPOCH + timedelta(microseconds=microseconds)
        return PartitionRow(status, waiting, behind.get(status.partition), watermark)

    async def _ask(self, statement: sql.SQL, doing: str) -> Sequence[tuple[Any, ...]]:
        parameters = {"stream": self.topology.name, "span": SPAN, "bin": BIN}
        return (await self._reader.ask(Question(statement.format(), parameters, doing))).rows


def rate(bins: Sequence[Bin], now: datetime) -> float | None:
    """Records a second: from commit to commit over the last minute, or between the last two where they are rarer.

    ``None`` after the first one; 0 when the next is long overdue.
    """
    if not bins:
        return 0.0
    *before, last = bins
    if not before:
        return None
    since = next((each for each in reversed(before) if each.newest <= now - _MINUTE), before[0])
    span = last.newest - since.newest
    if now - last.newest > max(_MINUTE, 2 * span):
        return 0.0
    return sum(each.records for each in bins if each.start > since.start) / span.total_seconds()


def lag(position: int | None, span: Span) -> int:
    """Records of a partition that can be read and are not committed; what is gone from it does not wait."""
    return max(0, span.last - max(-1 if position is None else position, span.first - 1))


def ledger_over(reader: Reader, stream: str) -> Ledger:
    """A ledger that reads through the dashboard's own read-only connections."""
    ledger = Ledger("", stream, "dashboard")
    ledger.database = reader.database
    return ledger
