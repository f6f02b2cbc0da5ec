"""Which of the live lake's objects a replay still has to fold: those outside its range that reach into its
tables. Every function runs in the caller's transaction or connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from streamproc.errors import LedgerError
from streamproc.ledger.replays import Replay
from streamproc.model import Partition

#: The objects of one commit of one partition, in order; ``clock_us``: the partition's clock before them, as it
#: is when the range says what the replay says.
_GROUPS = """
    WITH g AS (
        SELECT r.source, r.partition, r.after, r.through, r.carried, greatest(r.clock_us, p.clock_us) AS clock_us
        FROM streamproc.replay_ranges AS r
        LEFT JOIN streamproc.partitions AS p
               ON p.stream = %(namespace)s AND (p.source, p.partition) = (r.source, r.partition)
        WHERE r.stream = %(stream)s AND r.name = %(name)s
    ), groups AS (
        SELECT o.source, o.partition, coalesce(o.after, -1) AS after, o.through,
               array_agg(o.key ORDER BY o.key) AS keys, sum(o.rows)::bigint AS rows, max(o.max_time_us) AS newest
        FROM streamproc.objects AS o
        WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed'
        GROUP BY o.source, o.partition, coalesce(o.after, -1), o.through
    ), outside AS (
        SELECT groups.*, g.carried,
               groups.after >= coalesce(g.through, -1) AS later, g.clock_us AS end_clock_us
        FROM groups LEFT JOIN g USING (source, partition)
        WHERE groups.after >= coalesce(g.through, -1) OR groups.through <= coalesce(g.after, -1)
    ), stamped AS (
        SELECT *, greatest(
            CASE WHEN later THEN end_clock_us END,
            max(newest) OVER (PARTITION BY source, partition, later ORDER BY through
                              ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) AS clock_us
        FROM outside
    )
    SELECT source, partition, through, keys, rows, clock_us, later FROM stamped
    WHERE newest >= %(since)s AND through > coalesce(carried, -1)
    ORDER BY source, partition, through
"""

#: The clock of each partition after everything live has committed, as if the replay had been live. One of which nothing
#: is replayed keeps its own; so does one whose clock has gone on behind the range. The objects alone do not say: of one
#: with the newest event an erasure may have left nothing.
_CLOCKS = """
    SELECT p.source, p.partition, CASE WHEN r.through > r.after THEN greatest(r.clock_us, n.clock_us, (
        SELECT max(o.max_time_us) FROM streamproc.objects AS o
        WHERE o.stream = p.stream AND o.kind = 'events' AND o.state = 'committed'
          AND (o.source, o.partition) = (p.source, p.partition) AND coalesce(o.after, -1) >= r.through),
        CASE WHEN p.clock_us > (
            SELECT max(o.clock_us) FROM streamproc.objects AS o
            WHERE o.stream = p.stream AND o.state = 'committed'
              AND (o.source, o.partition) = (p.source, p.partition) AND o.through <= r.through)
        THEN p.clock_us END) ELSE p.clock_us END
    FROM streamproc.partitions AS p
    LEFT JOIN streamproc.replay_ranges AS r
           ON r.stream = p.stream AND r.name = %(name)s AND (r.source, r.partition) = (p.source, p.partition)
    LEFT JOIN streamproc.partitions AS n
           ON n.stream = %(namespace)s AND (n.source, n.partition) = (p.source, p.partition)
    WHERE p.stream = %(stream)s
"""

#: Commits that are neither in the range nor outside it: positions were set back meanwhile.
_CUT = """
    SELECT count(*) FROM streamproc.objects AS o JOIN streamproc.replay_ranges AS r
        ON r.stream = o.stream AND (r.source, r.partition) = (o.source, o.partition)
    WHERE o.stream = %(stream)s AND r.name = %(name)s AND o.state = 'committed' AND r.through > r.after
      AND o.through > r.after AND coalesce(o.after, -1) < r.through
      AND NOT (coalesce(o.after, -1) >= r.after AND o.through <= r.through)
"""

_CARRIED = """
    INSERT INTO streamproc.replay_ranges AS r (stream, name, source, partition, after, through, carried)
    VALUES (%(stream)s, %(name)s, %(source)s, %(partition)s, -1, -1, %(carried)s)
    ON CONFLICT (stream, name, source, partition) DO UPDATE SET carried = excluded.carried
    WHERE coalesce(r.carried, -1) < excluded.carried
"""


class Group(NamedTuple):
    """The objects of one live commit of one partition, outside the range: before it, or ``later``.

    ``clock_us``: before them.
    """

    partition: Partition
    through: int
    keys: Sequence[str]
    rows: int
    clock_us: int | None
    later: bool


async def groups(conn: AsyncConnection[Any], replay: Replay, since_us: int) -> list[Group]:
    """What is still to be carried, of events at ``since_us`` or later, by partition and position.

    Raises :class:`LedgerError` when live commits reach over an end of the range.
    """
    names = {"stream": replay.stream, "name": replay.name, "namespace": replay.namespace}
    row = await (await conn.execute(_CUT, names)).fetchone()
    if row is None or row[0]:
        raise LedgerError(
            f"live has committed over the end of replay {replay.name}: a position was set back. "
            "Discard it and replay again"
        )
    cursor = await conn.execute(_GROUPS, {**names, "since": since_us})
    return [
        Group(Partition(source, number), int(through), keys, rows, clock, later)
        for source, number, through, keys, rows, clock, later in await cursor.fetchall()
    ]


async def carried(conn: AsyncConnection[Any], replay: Replay, last: Group) -> None:
    """Note that everything through ``last`` is carried. Raises :class:`LedgerError` when it was already."""
    cursor = await conn.execute(
        _CARRIED,
        {
            "stream": replay.stream,
            "name": replay.name,
            "source": last.partition.source,
            "partition": last.partition.id,
            "carried": last.through,
        },
    )
    if cursor.rowcount != 1:
        raise LedgerError(f"another command is at work on replay {replay.name}")


async def clocks(conn: AsyncConnection[Any], replay: Replay) -> dict[Partition, int | None]:
    """Each live partition's clock, as it is with the replay's range in the place of live's."""
    cursor = await conn.execute(
        _CLOCKS, {"stream": replay.stream, "name": replay.name, "namespace": replay.namespace}
    )
    return {Partition(source, number): clock for source, number, clock in await cursor.fetchall()}
