"""Ranges of positions in whole commits of a stream. A promotion swaps commits, because an object of the lake
belongs to one; and a commit may span several partitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.model import Partition

#: Whole commits: those that touch the range, and everything else that was committed with them. An object that a
#: compaction made holds several, and is swapped as a whole too.
_TOUCHED = """
    WITH b AS (
        SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[],
                             %(throughs)s::numeric[]) AS b (source, partition, after, through)
    ), touched AS (
        SELECT r.source, r.partition, r.after, r.through
        FROM streamproc.epoch_ranges AS r WHERE r.epoch IN (
            SELECT t.epoch FROM streamproc.epoch_ranges AS t
            JOIN b ON (t.source, t.partition) = (b.source, b.partition)
                  AND t.through > b.after AND coalesce(t.after, -1) < b.through
            JOIN streamproc.epochs AS e ON e.id = t.epoch AND e.stream = %(stream)s)
        UNION ALL
        SELECT o.source, o.partition, o.after, o.through FROM streamproc.objects AS o
        JOIN b ON (o.source, o.partition) = (b.source, b.partition)
              AND o.through > b.after AND coalesce(o.after, -1) < b.through
        WHERE o.stream = %(stream)s AND o.state = 'committed'
    )
    SELECT source, partition, min(coalesce(after, -1)), max(through)
    FROM touched GROUP BY source, partition ORDER BY source, partition
"""

#: Commits that touch the range and reach out of it at its beginning: how far they go, by partition.
_REACHING_OUT = """
    WITH b AS (
        SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[],
                             %(throughs)s::numeric[]) AS b (source, partition, after, through)
    ), touched AS (
        SELECT DISTINCT t.epoch FROM streamproc.epoch_ranges AS t
        JOIN b ON (t.source, t.partition) = (b.source, b.partition)
              AND t.through > b.after AND coalesce(t.after, -1) < b.through
        JOIN streamproc.epochs AS e ON e.id = t.epoch AND e.stream = %(stream)s
    ), out AS (
        SELECT DISTINCT r.epoch FROM streamproc.epoch_ranges AS r JOIN touched USING (epoch)
        LEFT JOIN b ON (r.source, r.partition) = (b.source, b.partition)
        WHERE b.source IS NULL OR coalesce(r.after, -1) < b.after
    )
    SELECT source, partition, max(through) FROM (
        SELECT r.source, r.partition, r.through FROM streamproc.epoch_ranges AS r JOIN out USING (epoch)
        UNION ALL
        SELECT o.source, o.partition, o.through FROM streamproc.objects AS o
        JOIN b ON (o.source, o.partition) = (b.source, b.partition)
              AND o.through > b.after AND coalesce(o.after, -1) < b.after
        WHERE o.stream = %(stream)s AND o.state = 'committed'
    ) AS reaching GROUP BY source, partition ORDER BY source, partition
"""

#: Objects of the range whose commit the ledger has forgotten: what they counted cannot be taken back.
_FORGOTTEN = """
    SELECT count(*) FROM streamproc.objects AS o
    JOIN unnest(%(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[], %(throughs)s::numeric[])
         AS b (source, partition, after, through)
      ON (o.source, o.partition) = (b.source, b.partition)
     AND o.through > b.after AND coalesce(o.after, -1) < b.through
    WHERE o.stream = %(stream)s AND o.state = 'committed'
      AND NOT EXISTS (SELECT FROM streamproc.epochs AS e WHERE e.id = o.epoch)
"""


class Span(NamedTuple):
    """Positions ``(after, through]`` of a partition; -1 comes before the first."""

    after: int
    through: int

    @property
    def empty(self) -> bool:
        """Whether it holds no position."""
        return self.through <= self.after


async def widened(database: Database, stream: str, spans: Mapping[Partition, Span]) -> dict[Partition, Span]:
    """The least range of whole commits that holds ``spans``.

    A promotion swaps commits, because an object of the lake belongs to one; and a commit may span
    several partitions.
    """
    wide = {partition: span for partition, span in spans.items() if not span.empty}
    async with database.connection("look for commits") as conn:
        while wide:
            before = dict(wide)
            for partition, after, through in await _rows(conn, _TOUCHED, stream, wide):
                mine = wide.get(partition, Span(after, through))
                wide[partition] = Span(min(mine.after, after), max(mine.through, through))
            if wide == before:
                break
    return {**spans, **wide}


async def narrowed(database: Database, stream: str, spans: Mapping[Partition, Span]) -> dict[Partition, Span]:
    """``spans`` without the commits that begin before them: the topic no longer has all their records."""
    narrow = dict(spans)
    async with database.connection("look for commits") as conn:
        while wanted := {partition: span for partition, span in narrow.items() if not span.empty}:
            before = dict(narrow)
            for partition, through in await _rows(conn, _REACHING_OUT, stream, wanted):
                if partition in narrow:
                    mine = narrow[partition]
                    narrow[partition] = Span(max(mine.after, through), max(mine.through, mine.after, through))
            if narrow == before:
                break
    return narrow


async def forgotten(database: Database, stream: str, spans: Mapping[Partition, Span]) -> int:
    """Objects in the range whose commit is no longer in the ledger's history."""
    async with database.connection("look for commits") as conn:
        cursor = await conn.execute(_FORGOTTEN, {"stream": stream, **parameters(spans)})
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _rows(
    conn: AsyncConnection[Any], query: str, stream: str, spans: Mapping[Partition, Span]
) -> list[tuple[Any, ...]]:
    cursor = await conn.execute(query.encode(), {"stream": stream, **parameters(spans)})
    return [
        (Partition(source, number), *map(int, positions))
        for source, number, *positions in await cursor.fetchall()
    ]


def parameters(spans: Mapping[Partition, Span]) -> dict[str, object]:
    """The spans as parameters of a query."""
    return {
        "sources": [partition.source for partition in spans],
        "partitions": [partition.id for partition in spans],
        "afters": [span.after for span in spans.values()],
        "throughs": [span.through for span in spans.values()],
    }
