"""Deleting what was intended and never committed, and what was superseded.

A dead worker's put can still land minutes later, so every abandoned object is deleted twice. ``abandoned``
is final (a commit takes ``intended`` objects only), so several sweepers at once do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from streamproc.concurrency import each
from streamproc.database import Database
from streamproc.failpoints import failpoint

_PAGE = 500
_PARALLEL = 16

#: Intents that can no longer be committed although no claim came along to abandon them: the epoch was
#: planned again by the same owner, under other keys. So too where the partition has no row (any more): that of a log
#: which is done was folded, and nobody claims it again.
_ABANDON_ORPHANS = """
    UPDATE streamproc.objects AS o SET state = 'abandoned', abandoned_at = %(now)s
    WHERE o.stream = %(stream)s AND o.state = 'intended' AND o.intended_at <= %(orphans)s
      AND NOT EXISTS (
          SELECT FROM streamproc.partitions AS p
          WHERE p.stream = o.stream AND p.source = o.source AND p.partition = o.partition
            AND p.fence = o.fence AND p.owner IS NOT NULL AND (p.position IS NULL OR p.position < o.through))
"""

_DUE = """
    SELECT key, deleted_at IS NOT NULL FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'abandoned'
      AND abandoned_at <= CASE WHEN deleted_at IS NULL THEN %(first)s ELSE %(again)s END
    ORDER BY abandoned_at, key LIMIT %(page)s
"""

#: What a promotion replaced. It was written long ago: no put can bring it back, so it is deleted once.
_SUPERSEDED = """
    SELECT key FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'superseded' AND superseded_at <= %(superseded)s
    ORDER BY superseded_at, key LIMIT %(page)s
"""

_SWEPT = """
    UPDATE streamproc.objects SET state = 'swept', deleted_at = %(now)s, swept_at = %(now)s
    WHERE key = ANY(%(keys)s) AND state = 'superseded'
"""

_DELETED_FIRST = """
    UPDATE streamproc.objects SET deleted_at = %(now)s
    WHERE key = ANY(%(keys)s) AND state = 'abandoned' AND deleted_at IS NULL
"""

_DELETED_AGAIN = """
    UPDATE streamproc.objects SET state = 'swept', swept_at = %(now)s
    WHERE key = ANY(%(keys)s) AND state = 'abandoned' AND deleted_at IS NOT NULL
"""


class Deletes(Protocol):
    """What the sweep needs of an object store."""

    async def delete(self, key: str) -> None:
        """Remove the object; fine when it is not there."""


@dataclass(frozen=True, slots=True)
class SweepTimes:
    """When an abandoned object is deleted, and deleted again, after it was abandoned.

    ``again`` must be longer than any put can take to land. ``orphan``: age at which an intent that can no
    longer be committed is abandoned. ``superseded``: how long readers with an older list of objects may still
    read what a promoted replay has put others in the place of.
    """

    first: timedelta = timedelta(minutes=10)
    again: timedelta = timedelta(days=1)
    orphan: timedelta = timedelta(hours=1)
    superseded: timedelta = timedelta(days=1)


async def sweep(
    database: Database, stream: str, store: Deletes, times: SweepTimes, now: datetime | None
) -> int:
    """Delete what is due at ``now`` (the database's clock); returns the number of deletions.

    Raises :class:`DependencyError` when the store refuses; what was deleted and not noted is deleted again
    next time.
    """
    if now is None:
        async with database.connection("sweep") as conn:
            row = await (await conn.execute("SELECT clock_timestamp()")).fetchone()
            assert row is not None
            now = row[0]
    names = {"stream": stream, "now": now, "orphans": now - times.orphan}
    names |= {"first": now - times.first, "again": now - times.again, "page": _PAGE}
    names["superseded"] = now - times.superseded
    async with database.transaction("sweep") as conn:
        await conn.execute(_ABANDON_ORPHANS, names)
    deletions = 0
    while due := await _due(database, names):
        await each(store.delete, [key for key, _ in due], at_once=_PARALLEL)
        failpoint("sweep.delete")
        async with database.transaction("sweep") as conn:
            first = [key for key, deleted_before in due if not deleted_before]
            again = [key for key, deleted_before in due if deleted_before]
            await conn.execute(_DELETED_FIRST, {"now": now, "keys": first})
            await conn.execute(_DELETED_AGAIN, {"now": now, "keys": again})
        deletions += len(due)
    while keys := await _superseded(database, names):
        await each(store.delete, keys, at_once=_PARALLEL)
        async with database.transaction("sweep") as conn:
            await conn.execute(_SWEPT, {"now": now, "keys": keys})
        deletions += len(keys)
    return deletions


async def _superseded(database: Database, names: dict[str, object]) -> list[str]:
    async with database.connection("sweep") as conn:
        return [key for (key,) in await (await conn.execute(_SUPERSEDED, names)).fetchall()]


async def _due(database: Database, names: dict[str, object]) -> list[tuple[str, bool]]:
    async with database.connection("sweep") as conn:
        return [(key, before) for key, before in await (await conn.execute(_DUE, names)).fetchall()]
