"""Claiming partitions, giving them back, and checking that they are still ours.

All of it locks partition rows sorted by (source, partition), so two workers can wait for each other but
never in a circle. Every function runs in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from streamproc.errors import Fenced, Inconsistent
from streamproc.model import Claim, Partition

_CLAIM = """
    INSERT INTO streamproc.partitions AS p
        (stream, source, partition, fence, token, owner, claimed_at, updated_at)
    SELECT %(stream)s, source, partition, 1, gen_random_uuid(), %(worker)s,
           clock_timestamp(), clock_timestamp()
    FROM unnest(%(sources)s::text[], %(partitions)s::text[]) AS wanted (source, partition)
    ORDER BY source COLLATE "C", partition COLLATE "C"
    ON CONFLICT (stream, source, partition) DO UPDATE
        SET fence = p.fence + 1, token = gen_random_uuid(), owner = %(worker)s, claimed_at = clock_timestamp()
    RETURNING source, partition, fence, token, position, clock_us
"""

_ABANDON = """
    UPDATE streamproc.objects SET state = 'abandoned', abandoned_at = clock_timestamp()
    WHERE stream = %(stream)s AND state = 'intended'
      AND (source, partition) IN (SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[]))
"""

_LOCK = """
    SELECT source, partition, fence, token, position FROM streamproc.partitions
    WHERE stream = %(stream)s
      AND (source, partition) IN (SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[]))
    ORDER BY source, partition
"""

_NOTE_LOG = """
    UPDATE streamproc.partitions AS p SET log = %(log)s
    FROM unnest(%(sources)s::text[], %(partitions)s::text[]) AS wanted (source, partition)
    WHERE p.stream = %(stream)s AND p.source = wanted.source AND p.partition = wanted.partition
      AND (p.log IS NULL OR p.position IS NULL)
"""

_LOGS = """
    SELECT source, partition, log FROM streamproc.partitions
    WHERE stream = %(stream)s
      AND (source, partition) IN (SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[]))
"""

_RELEASE = """
    UPDATE streamproc.partitions SET owner = NULL, token = gen_random_uuid()
    WHERE stream = %(stream)s
      AND (source, partition) IN (SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[]))
"""


class LockedPartition(NamedTuple):
    """A partition row as it stands while we hold its lock."""

    fence: int
    token: str
    position: int | None

    def held_by(self, claim: Claim) -> bool:
        """Whether ``claim`` is the newest one."""
        return self.fence == claim.fence and self.token == claim.token


async def claim(
    conn: AsyncConnection[Any], stream: str, worker: str, partitions: Collection[Partition]
) -> dict[Partition, Claim]:
    """Take the partitions from whoever has them and abandon what was intended for them.

    A transaction of the former owner that holds the row lock is waited for: it commits and we see its
    position, or it does not and never will.
    """
    names = _names(stream, partitions)
    cursor = await conn.execute(_CLAIM, {**names, "worker": worker})
    claims = {
        Partition(source, number): Claim(
            Partition(source, number),
            fence,
            str(token),
            None if position is None else int(position),
            clock_us,
        )
        for source, number, fence, token, position, clock_us in await cursor.fetchall()
    }
    if claims.keys() != set(partitions):
        raise Inconsistent(f"claimed {len(claims)} of {len(set(partitions))} partitions")
    await conn.execute(_ABANDON, names)
    return claims


async def note_log(
    conn: AsyncConnection[Any], stream: str, claims: Collection[Claim], log: str
) -> dict[Partition, str]:
    """Note ``log`` for those that have no position in another one; returns what is noted for each.

    Not for those that somebody has claimed since: nothing else can be written for them either.
    """
    mine = {claim.partition: claim for claim in claims}
    rows = await lock(conn, stream, mine, shared=False)
    held = [partition for partition, row in rows.items() if row.held_by(mine[partition])]
    await conn.execute(_NOTE_LOG, {**_names(stream, held), "log": log})
    cursor = await conn.execute(_LOGS, _names(stream, mine))
    return {Partition(source, number): noted for source, number, noted in await cursor.fetchall() if noted}


async def release(conn: AsyncConnection[Any], stream: str, claims: Iterable[Claim]) -> int:
    """Give up those that are still ours; their claims are worth nothing afterwards. Returns how many."""
    held = {claim.partition: claim for claim in claims}
    rows = await lock(conn, stream, held, shared=False)
    ours = [partition for partition, row in rows.items() if row.held_by(held[partition])]
    if ours:
        names = _names(stream, ours)
        await conn.execute(_RELEASE, names)
        await conn.execute(_ABANDON, names)
    return len(ours)


async def lock(
    conn: AsyncConnection[Any], stream: str, partitions: Collection[Partition], *, shared: bool
) -> dict[Partition, LockedPartition]:
    """Lock the rows of the partitions, those that exist, until the end of the transaction.

    ``shared`` keeps claims and commits out but lets others share.
    """
    query = _LOCK + ("FOR SHARE" if shared else "FOR UPDATE")
    cursor = await conn.execute(query, _names(stream, partitions))
    return {
        Partition(source, number): LockedPartition(
            fence, str(token), None if position is None else int(position)
        )
        for source, number, fence, token, position in await cursor.fetchall()
    }


def refuse_fenced(rows: Mapping[Partition, LockedPartition], claims: Iterable[Claim]) -> None:
    """Raise :class:`Fenced` unless each claim is the newest of its partition."""
    for mine in sorted(claims, key=lambda claim: claim.partition):
        row = rows.get(mine.partition)
        if row is None:
            raise Inconsistent(f"{mine.partition} is not in the ledger although it was claimed")
        if not row.held_by(mine):
            raise Fenced(f"{mine.partition} was claimed again (fence {row.fence}, ours is {mine.fence})")


def _names(stream: str, partitions: Collection[Partition]) -> dict[str, object]:
    """Parameters naming the partitions, each once."""
    ordered = sorted(set(partitions))
    return {
        "stream": stream,
        "sources": [partition.source for partition in ordered],
        "partitions": [partition.id for partition in ordered],
    }
