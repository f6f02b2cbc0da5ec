"""Writing down what is about to be written (T1) and what happened (T2). The SQL of both.

Every function runs in the caller's transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from streamproc.errors import Inconsistent
from streamproc.ledger.claims import lock, refuse_fenced
from streamproc.model import Advance, Claim, EpochRecord, PlannedObject, WrittenObject

_INTEND = """
    INSERT INTO streamproc.objects
        (key, stream, kind, source, partition, after, through, rows, min_time_us, max_time_us, clock_us,
         epoch, fence, state, intended_at)
    SELECT key, %(stream)s, kind, source, partition, after, through, rows, min_time_us, max_time_us, clock_us,
           %(epoch)s, fence, 'intended', clock_timestamp()
    FROM unnest(%(keys)s::text[], %(kinds)s::text[], %(sources)s::text[], %(partitions)s::text[],
                %(afters)s::numeric[], %(throughs)s::numeric[], %(rows)s::bigint[],
                %(min_times)s::bigint[], %(max_times)s::bigint[], %(clocks)s::bigint[], %(fences)s::bigint[])
         AS planned (key, kind, source, partition, after, through, rows, min_time_us, max_time_us, clock_us,
                     fence)
    ON CONFLICT (key) DO NOTHING
"""

#: ``rows`` is compared, not set: what was written must be what was intended.
_COMMIT_OBJECTS = """
    UPDATE streamproc.objects AS o
    SET state = 'committed', size = written.size, checksum = written.checksum,
        committed_at = clock_timestamp()
    FROM unnest(%(keys)s::text[], %(rows)s::bigint[], %(fences)s::bigint[], %(sizes)s::bigint[],
                %(checksums)s::text[]) AS written (key, rows, fence, size, checksum)
    WHERE o.key = written.key AND o.rows = written.rows AND o.fence = written.fence
      AND o.stream = %(stream)s AND o.epoch = %(epoch)s AND o.state = 'intended'
"""

_INTENDED = """
    SELECT count(*), count(*) FILTER (WHERE key = ANY(%(keys)s))
    FROM streamproc.objects
    WHERE stream = %(stream)s AND epoch = %(epoch)s AND state = 'intended'
      AND (source, partition) IN (SELECT * FROM unnest(%(sources)s::text[], %(partitions)s::text[]))
"""

_EPOCH = """
    INSERT INTO streamproc.epochs (id, stream, worker, started_at, committed_at, late, seconds)
    VALUES (%(id)s, %(stream)s, %(worker)s, %(started_at)s, clock_timestamp(), %(late)s, %(seconds)s)
"""

_RANGES = """
    INSERT INTO streamproc.epoch_ranges
        (epoch, source, partition, after, through, records, accepted, filtered, rejected, duplicate)
    SELECT %(epoch)s, * FROM unnest(
        %(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[], %(throughs)s::numeric[],
        %(records)s::bigint[], %(accepted)s::bigint[], %(filtered)s::bigint[], %(rejected)s::bigint[],
        %(duplicate)s::bigint[])
"""

#: The conditions repeat what was checked under the lock: were the check ever wrong, so is the row count.
_ADVANCE = """
    UPDATE streamproc.partitions AS p
    SET position = done.through,
        clock_us = GREATEST(p.clock_us, done.clock_us),
        records = p.records + done.records,
        accepted = p.accepted + done.accepted,
        filtered = p.filtered + done.filtered,
        rejected = p.rejected + done.rejected,
        duplicate = p.duplicate + done.duplicate,
        updated_at = clock_timestamp()
    FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(fences)s::bigint[], %(tokens)s::uuid[],
                %(afters)s::numeric[], %(throughs)s::numeric[], %(clocks)s::bigint[], %(records)s::bigint[],
                %(accepted)s::bigint[], %(filtered)s::bigint[], %(rejected)s::bigint[],
                %(duplicate)s::bigint[])
         AS done (source, partition, fence, token, after, through, clock_us, records, accepted, filtered,
                  rejected, duplicate)
    WHERE p.stream = %(stream)s AND p.source = done.source AND p.partition = done.partition
      AND p.fence = done.fence AND p.token = done.token AND p.position IS NOT DISTINCT FROM done.after
"""


async def intend(
    conn: AsyncConnection[Any],
    stream: str,
    epoch: uuid.UUID,
    objects: Sequence[PlannedObject],
    claims: Sequence[Claim],
) -> None:
    """T1. ``claims`` are those of the objects' partitions. Doing it again changes nothing."""
    held = {claim.partition: claim for claim in claims}
    refuse_fenced(await lock(conn, stream, held, shared=True), claims)
    names = {"stream": stream, "epoch": epoch, **_plans(objects)}
    await conn.execute(_INTEND, {**names, "fences": [held[plan.partition].fence for plan in objects]})
    _, ours = await _intended(conn, names)
    if ours != len(objects):
        raise Inconsistent(f"{ours} of {len(objects)} objects of epoch {epoch} intended: a key is taken")


async def intended_by_row(
    conn: AsyncConnection[Any],
    stream: str,
    epoch: uuid.UUID,
    objects: Sequence[PlannedObject],
    fences: Sequence[int],
) -> None:
    """Note objects that a compaction is about to write. What it replaces is committed: no claim is needed."""
    names = {"stream": stream, "epoch": epoch, **_plans(objects), "fences": list(fences)}
    if (await conn.execute(_INTEND, names)).rowcount != len(objects):
        raise Inconsistent(f"not all objects of a compaction of {stream} intended: a key is taken")


async def lock_for_commit(conn: AsyncConnection[Any], stream: str, advances: Sequence[Advance]) -> None:
    """First part of T2: take the row locks, and see that every partition is ours and where we left it."""
    rows = await lock(conn, stream, [advance.claim.partition for advance in advances], shared=False)
    refuse_fenced(rows, [advance.claim for advance in advances])
    for advance in advances:
        position = rows[advance.claim.partition].position
        if position != advance.after:
            raise Inconsistent(
                f"{advance.claim.partition} is committed through {position}, "
                f"the epoch begins after {advance.after}"
            )


async def record(conn: AsyncConnection[Any], stream: str, worker: str, epoch: EpochRecord) -> None:
    """Second part of T2: objects, epoch, ranges and positions, under the locks of :func:`lock_for_commit`."""
    fences = {advance.claim.partition: advance.claim.fence for advance in epoch.advances}
    advances = {"stream": stream, "epoch": epoch.id, **_advances(epoch.advances)}
    if epoch.objects:
        written = _written(epoch.objects)
        written["fences"] = [fences[done.plan.partition] for done in epoch.objects]
        await _expect(
            conn, _COMMIT_OBJECTS, {"stream": stream, "epoch": epoch.id, **written}, len(epoch.objects)
        )
    forgotten, _ = await _intended(conn, {**advances, "keys": []})
    if forgotten:
        raise Inconsistent(f"epoch {epoch.id} intended {forgotten} objects more than it wrote")
    await _expect(
        conn,
        _EPOCH,
        {
            "id": epoch.id,
            "stream": stream,
            "worker": worker,
            "started_at": epoch.started_at,
            "late": Jsonb({table: events for table, events in epoch.late.items() if events}),
            "seconds": Jsonb(dict(epoch.seconds)),
        },
        1,
    )
    await _expect(conn, _RANGES, advances, len(epoch.advances))
    await _expect(conn, _ADVANCE, advances, len(epoch.advances))


async def committed(conn: AsyncConnection[Any], epoch: uuid.UUID) -> bool:
    """Whether the epoch is in the ledger. Only under the locks of its partitions is that the last word."""
    cursor = await conn.execute("SELECT FROM streamproc.epochs WHERE id = %s", [epoch])
    return await cursor.fetchone() is not None


async def _expect(conn: AsyncConnection[Any], query: str, values: dict[str, object], rows: int) -> None:
    cursor = await conn.execute(query.encode(), values)
    if cursor.rowcount != rows:
        verb = " ".join(query.split()[:3])
        raise Inconsistent(f"{verb}: {cursor.rowcount} rows instead of {rows}; nothing was kept")


async def _intended(conn: AsyncConnection[Any], names: dict[str, object]) -> tuple[int, int]:
    """Objects of this epoch still intended: all, and those of ``keys``."""
    row = await (await conn.execute(_INTENDED, names)).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def _plans(objects: Iterable[PlannedObject]) -> dict[str, object]:
    plans = list(objects)
    return {
        "keys": [plan.key for plan in plans],
        "kinds": [plan.kind for plan in plans],
        "sources": [plan.partition.source for plan in plans],
        "partitions": [plan.partition.id for plan in plans],
        "afters": [plan.after for plan in plans],
        "throughs": [plan.through for plan in plans],
        "rows": [plan.rows for plan in plans],
        "min_times": [plan.min_time_us for plan in plans],
        "max_times": [plan.max_time_us for plan in plans],
        "clocks": [plan.clock_us for plan in plans],
    }


def _written(objects: Iterable[WrittenObject]) -> dict[str, object]:
    written = list(objects)
    return {
        "keys": [done.plan.key for done in written],
        "rows": [done.plan.rows for done in written],
        "sizes": [done.size for done in written],
        "checksums": [done.checksum for done in written],
    }


def _advances(advances: Collection[Advance]) -> dict[str, object]:
    return {
        "sources": [advance.claim.partition.source for advance in advances],
        "partitions": [advance.claim.partition.id for advance in advances],
        "fences": [advance.claim.fence for advance in advances],
        "tokens": [advance.claim.token for advance in advances],
        "afters": [advance.after for advance in advances],
        "throughs": [advance.through for advance in advances],
        "clocks": [advance.clock_us for advance in advances],
        "records": [advance.counts.records for advance in advances],
        "accepted": [advance.counts.accepted for advance in advances],
        "filtered": [advance.counts.filtered for advance in advances],
        "rejected": [advance.counts.rejected for advance in advances],
        "duplicate": [advance.counts.duplicate for advance in advances],
    }
