"""Where a source begins that is read from its newest records on: decided once, for all its partitions together.

Were it decided with each claim, a partition would begin somewhere else whenever it changes hands before its first
commit, and one that the source gets later would begin wherever it happened to be when somebody saw it.

Every function runs in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection

from streamproc.model import Partition

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('streamproc origins ' || %(stream)s, 0))"

#: A position that was set by hand before anything was read decides about its own partition only.
_DECIDED = """
    SELECT FROM streamproc.partitions AS p
    WHERE p.stream = %(stream)s AND p.source = %(source)s AND p.position IS NOT NULL
      AND (p.records > 0 OR NOT EXISTS (
          SELECT FROM streamproc.position_changes AS c
          WHERE (c.stream, c.source, c.partition) = (p.stream, p.source, p.partition)
            AND c.from_position IS NULL))
    LIMIT 1
"""

#: In the order in which claims lock rows. Those that nobody has claimed get theirs, too.
_BEGIN = """
    INSERT INTO streamproc.partitions AS p
        (stream, source, partition, position, log, fence, token, claimed_at, updated_at)
    SELECT %(stream)s, %(source)s, partition, position, %(log)s::text, 0, gen_random_uuid(),
           clock_timestamp(), clock_timestamp()
    FROM unnest(%(partitions)s::text[], %(positions)s::numeric[]) AS newest (partition, position)
    ORDER BY partition COLLATE "C"
    ON CONFLICT (stream, source, partition) DO UPDATE
        SET position = excluded.position, log = excluded.log, updated_at = excluded.updated_at
        WHERE p.position IS NULL
"""

_NOTED = """
    SELECT partition, position FROM streamproc.partitions
    WHERE stream = %(stream)s AND source = %(source)s AND partition = ANY(%(partitions)s)
"""


async def begun(
    conn: AsyncConnection[Any], stream: str, partitions: Sequence[Partition]
) -> dict[Partition, int | None] | None:
    """Where these, of one source, stand; ``None`` while it is not decided where it begins."""
    [source] = {partition.source for partition in partitions}
    names: dict[str, object] = {
        "stream": stream,
        "source": source,
        "partitions": [partition.id for partition in partitions],
    }
    if await (await conn.execute(_DECIDED, names)).fetchone() is None:
        return None
    return await _noted(conn, names, partitions)


async def begin_behind(
    conn: AsyncConnection[Any], stream: str, newest: Mapping[Partition, int], log: str | None
) -> dict[Partition, int | None]:
    """Note ``newest`` as positions, of ``log``, where it is not decided yet where their source begins.

    ``newest``: of all partitions of one source. Returns the position that each has now; ``None``: it came later.
    """
    [source] = {partition.source for partition in newest}
    names: dict[str, object] = {
        "stream": stream,
        "source": source,
        "partitions": [partition.id for partition in newest],
        "positions": list(newest.values()),
        "log": log,
    }
    await conn.execute(_LOCK, names)
    if await (await conn.execute(_DECIDED, names)).fetchone() is None:
        await conn.execute(_BEGIN, names)
    return await _noted(conn, names, list(newest))


async def _noted(
    conn: AsyncConnection[Any], names: dict[str, object], partitions: Sequence[Partition]
) -> dict[Partition, int | None]:
    rows = await (await conn.execute(_NOTED, names)).fetchall()
    noted = {number: None if position is None else int(position) for number, position in rows}
    return {partition: noted.get(partition.id) for partition in partitions}
