"""What the ledger tells an operator: where partitions stand, what epochs did."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from streamproc.model import Counts, Partition

_STATUS = """
    SELECT source, partition, position, owner, fence, clock_us, claimed_at, updated_at,
           records, accepted, filtered, rejected, duplicate
    FROM streamproc.partitions WHERE stream = %s ORDER BY source, partition
"""

#: Shards stay for ever, so none is compared with all others. Two sources can have shards of one name.
_SHARDS = """
    WITH shards AS (
        SELECT s.*, COALESCE(s.last_position <= COALESCE(p.position, -1), false) AS finished, p.clock_us
        FROM streamproc.shards AS s LEFT JOIN streamproc.partitions AS p USING (stream, source, partition)
        WHERE s.stream = %s
    ), made AS (
        SELECT child.source, named.parent, bool_and(child.finished OR child.clock_us IS NOT NULL) AS begun
        FROM shards AS child CROSS JOIN unnest(child.parents) AS named (parent)
        GROUP BY child.source, named.parent
    )
    SELECT s.source, s.partition, s.finished,
           s.finished AND COALESCE(made.begun, s.expires_at < clock_timestamp() - interval '1 hour', false),
           CASE WHEN s.expires_at > clock_timestamp() THEN s.behind_ms END,
           (SELECT max(m.position) FROM streamproc.shard_marks AS m
            WHERE (m.stream, m.source, m.partition) = (s.stream, s.source, s.partition))
    FROM shards AS s LEFT JOIN made ON made.source = s.source AND made.parent = s.partition
"""

_EPOCHS = """
    SELECT e.id, e.worker, e.started_at, e.committed_at, e.late, e.seconds,
           r.source, r.partition, r.after, r.through,
           r.records, r.accepted, r.filtered, r.rejected, r.duplicate
    FROM (SELECT * FROM streamproc.epochs
          WHERE stream = %(stream)s AND (%(since)s::timestamptz IS NULL OR committed_at >= %(since)s)
          ORDER BY committed_at DESC, id LIMIT %(limit)s) AS e
    JOIN streamproc.epoch_ranges AS r ON r.epoch = e.id
    ORDER BY e.committed_at DESC, e.id, r.source, r.partition
"""

_LATE = """
    SELECT table_name, sum(events)::bigint FROM (
        SELECT table_name, events FROM streamproc.late_totals WHERE stream = %(stream)s
        UNION ALL
        SELECT late.key, late.value::bigint FROM streamproc.epochs AS e, jsonb_each_text(e.late) AS late
        WHERE e.stream = %(stream)s AND e.late <> '{}'
    ) AS counted GROUP BY table_name ORDER BY table_name
"""

#: One statement, so an epoch is counted in ``late_totals`` exactly when it is gone from ``epochs``. The promotion of an
#: open replay takes back what the commits of its range have counted: it needs to find them. By now(), not
#: clock_timestamp(): an index can be asked for what stays the same during a statement only.
_FORGET_EPOCHS = """
    WITH gone AS (
        DELETE FROM streamproc.epochs WHERE stream = %(stream)s AND committed_at < now() - %(age)s
        AND NOT EXISTS (SELECT FROM streamproc.replays WHERE stream = %(stream)s AND state <> 'promoted')
        RETURNING late
    ), counted AS (
        INSERT INTO streamproc.late_totals AS t (stream, table_name, events)
        SELECT %(stream)s, late.key, sum(late.value::bigint) FROM gone, jsonb_each_text(gone.late) AS late
        GROUP BY late.key ORDER BY late.key
        ON CONFLICT (stream, table_name) DO UPDATE SET events = t.events + excluded.events
    )
    SELECT count(*) FROM gone
"""

_FORGET_SWEPT = """
    DELETE FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'swept' AND swept_at < now() - %(age)s
"""


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Where one partition stands. ``owner`` is ``None`` when it was released; times are UTC.

    ``clock_us``: newest accepted event time, Unix microseconds. ``counts``: of everything ever committed.
    """

    partition: Partition
    position: int | None
    owner: str | None
    fence: int
    clock_us: int | None
    claimed_at: datetime
    updated_at: datetime
    counts: Counts


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard. ``finished``: closed, and committed to its end: nothing of it can come any more.

    ``followed``: finished, and of the shards made from it each has had events, or is finished too. Until then
    events can come that are as old as its newest. Of one without such shards nobody has held the lease for an hour:
    they would have been listed by now.
    ``behind_ms``: how far the records read last were behind the newest, ``None`` when nobody reads it.
    ``newest``: the newest position of which it is known where it is.
    """

    finished: bool
    followed: bool
    behind_ms: int | None
    newest: int


@dataclass(frozen=True, slots=True)
class EpochRange:
    """One partition's part of a past epoch: ``(after, through]`` and what became of its records."""

    partition: Partition
    after: int | None
    through: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class EpochSummary:
    """A past epoch. ``late``: events by table, of those that had any; ``seconds``: by stage."""

    id: uuid.UUID
    worker: str
    started_at: datetime
    committed_at: datetime
    ranges: Sequence[EpochRange]
    late: Mapping[str, int]
    seconds: Mapping[str, float]


async def status(conn: AsyncConnection[Any], stream: str) -> list[PartitionStatus]:
    """All partitions ever claimed, sorted."""
    rows = await (await conn.execute(_STATUS, [stream])).fetchall()
    return [
        PartitionStatus(
            Partition(source, number),
            _position(position),
            owner,
            fence,
            clock_us,
            claimed_at,
            updated_at,
            Counts(*counts),
        )
        for source, number, position, owner, fence, clock_us, claimed_at, updated_at, *counts in rows
    ]


async def shards(conn: AsyncConnection[Any], stream: str) -> dict[Partition, ShardStatus]:
    """Every shard ever found."""
    rows = await (await conn.execute(_SHARDS, [stream])).fetchall()
    return {
        Partition(source, shard): ShardStatus(finished, followed, behind_ms, int(newest))
        for source, shard, finished, followed, behind_ms, newest in rows
    }


async def epochs(
    conn: AsyncConnection[Any], stream: str, since: datetime | None, limit: int
) -> list[EpochSummary]:
    """The newest epochs first."""
    rows = await (await conn.execute(_EPOCHS, {"stream": stream, "since": since, "limit": limit})).fetchall()
    found: dict[uuid.UUID, EpochSummary] = {}
    ranges: dict[uuid.UUID, list[EpochRange]] = {}
    for (
        number,
        worker,
        started_at,
        committed_at,
        late,
        seconds,
        source,
        partition,
        after,
        through,
        *counts,
    ) in rows:
        mine = ranges.setdefault(number, [])
        found.setdefault(number, EpochSummary(number, worker, started_at, committed_at, mine, late, seconds))
        mine.append(EpochRange(Partition(source, partition), _position(after), int(through), Counts(*counts)))
    return list(found.values())


async def late(conn: AsyncConnection[Any], stream: str) -> dict[str, int]:
    """Late events by table, of all time."""
    return dict(await (await conn.execute(_LATE, {"stream": stream})).fetchall())


async def forget(conn: AsyncConnection[Any], stream: str, age: timedelta) -> int:
    """Delete epochs and swept objects older than ``age``; totals stay, and so do epochs while a replay is open.

    Returns the number of epochs.
    """
    row = await (await conn.execute(_FORGET_EPOCHS, {"stream": stream, "age": age})).fetchone()
    await conn.execute(_FORGET_SWEPT, {"stream": stream, "age": age})
    return int(row[0]) if row else 0


def _position(value: Any) -> int | None:
    return None if value is None else int(value)
