"""What live has around the ranges of a replay to come: clocks, and what the lake no longer has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamproc.database import Database
from streamproc.ledger.replay_spans import Span, parameters
from streamproc.model import Partition

#: Of each partition with a range: its clock where the range begins (what the objects before it say), the oldest event
#: that live has in the range, and how many events live has accepted before it.
_BEGINNINGS = """
    SELECT (SELECT max(o.clock_us) FROM streamproc.objects AS o
            WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed'
              AND (o.source, o.partition) = (b.source, b.partition) AND o.through <= b.after),
           (SELECT min(o.min_time_us) FROM streamproc.objects AS o
            WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed'
              AND (o.source, o.partition) = (b.source, b.partition)
              AND o.through > b.after AND coalesce(o.after, -1) < b.through),
           p.accepted - (SELECT coalesce(sum(r.accepted), 0) FROM streamproc.epoch_ranges AS r
                         JOIN streamproc.epochs AS e ON e.id = r.epoch AND e.stream = %(stream)s
                         WHERE (r.source, r.partition) = (b.source, b.partition) AND r.through > b.after)
    FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[], %(throughs)s::numeric[])
         AS b (source, partition, after, through)
    JOIN streamproc.partitions AS p
      ON p.stream = %(stream)s AND (p.source, p.partition) = (b.source, b.partition)
    WHERE b.through > b.after
"""

#: The least clock of the partitions; events that live has accepted outside the ranges, less those that the lake has;
#: the clock at which the oldest commit ended that the lake still has objects of. A commit of late events alone has old
#: ones, and a clock like those around it.
_NOW = """
    WITH b AS (
        SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[],
                             %(throughs)s::numeric[]) AS b (source, partition, after, through)
    )
    SELECT (SELECT min(p.clock_us) FROM streamproc.partitions AS p JOIN b USING (source, partition)
            WHERE p.stream = %(stream)s),
           (SELECT coalesce(sum(p.accepted), 0) FROM streamproc.partitions AS p WHERE p.stream = %(stream)s)
           - (SELECT coalesce(sum(r.accepted), 0) FROM streamproc.epoch_ranges AS r
              JOIN streamproc.epochs AS e ON e.id = r.epoch AND e.stream = %(stream)s
              JOIN b ON (r.source, r.partition) = (b.source, b.partition)
                    AND r.through > b.after AND r.through <= b.through)
           - (SELECT coalesce(sum(o.rows), 0) FROM streamproc.objects AS o
              LEFT JOIN b ON (o.source, o.partition) = (b.source, b.partition)
              WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed'
                AND (b.source IS NULL OR o.through <= b.after OR coalesce(o.after, -1) >= b.through)),
           (SELECT min(greatest(o.clock_us, o.max_time_us)) FROM streamproc.objects AS o
            WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed')
"""


@dataclass(frozen=True, slots=True)
class Edges:
    """What is around the ranges. Times are Unix microseconds.

    ``since_us``: from which event time on tables would be rebuilt, as :meth:`Replays.complete` says when it is done; 0
    when the lake has nothing left to tell it, ``None`` when nothing of the ranges was accepted. ``clock_us``: the least
    clock of their partitions now. ``missing``: events outside the ranges that were accepted and are not in the lake.
    ``left_us``: whatever ``retention.events`` has been, those that have expired are older than this; ``None`` when the
    lake has nothing left. An object that was held back from expiring, and a log that was read only when others had
    expired, put it further back than it is.
    """

    since_us: int | None
    clock_us: int | None
    missing: int
    left_us: int | None


async def edges(database: Database, stream: str, spans: Mapping[Partition, Span], patience: int) -> Edges:
    """The edges of ``spans``; ``patience`` as in :meth:`Replays.complete`."""
    names = {"stream": stream, **parameters(spans)}
    async with database.connection("look around the range") as conn:
        beginnings = await (await conn.execute(_BEGINNINGS, names)).fetchall()
        row = await (await conn.execute(_NOW, names)).fetchone()
    assert row is not None
    found = [
        clock - patience if clock is not None else 0 if before > 0 else oldest
        for clock, oldest, before in beginnings
    ]
    since = min((each for each in found if each is not None), default=None)
    return Edges(since, row[0], int(row[1]), row[2])
