"""One object in the place of the many that a run of commits wrote: the ledger's part.

A compaction takes a *run* of commits of one partition and makes of it what a single commit over all of its
positions would have left: at most one object of each kind and folder, all with the range of the run. So whatever
is true of commits stays true: objects of one partition with different ranges do not overlap, and the events of a
range are in the objects that have it.

The objects to come are intended before they are written, as a worker's are, and abandoned as a worker's are: by
the next claim of the partition, or by the sweep, an hour later. In one transaction they become committed and
their sources ``superseded``; it fails when a source is not committed any more. So two compactors, or a compactor
and a promotion, can be at work on the same objects, and one of them wins.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace as replaced
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.errors import LedgerError
from streamproc.ledger.commit import intended_by_row
from streamproc.ledger.objects import committed_object
from streamproc.model import CommittedObject, Partition, PlannedObject, WrittenObject
from streamproc.topology import HOUR

#: Commits listed at once.
_PAGE = 5_000

#: A replay takes it when it is noted: none begins while a compaction is being committed.
LOCK_COMPACTION = "SELECT pg_advisory_xact_lock(hashtextextended('streamproc compaction ' || %(stream)s, 0))"

#: What the objects of one range add up to. The hour of a commit is the one its partition's clock was in when it
#: was done; it is over when no event can come that is a duplicate of one of its own, or is not late.
_COMMITS = """
    SELECT o.source, o.partition, o.after, o.through, max(o.clock_us), count(*), sum(o.size)::bigint,
           sum(o.rows)::bigint,
           max(o.committed_at) < clock_timestamp() - %(quiet)s::interval
               OR (max(o.clock_us) / %(hour)s + 1) * %(hour)s + %(patience)s <= max(p.clock_us),
           CASE WHEN EXISTS (SELECT FROM streamproc.outbox WHERE stream = %(stream)s AND kind = 'events')
                THEN array_agg(o.key) END
    FROM streamproc.objects AS o JOIN streamproc.partitions AS p USING (stream, source, partition)
    WHERE o.stream = %(stream)s AND o.state = 'committed'
      AND (o.source, o.partition, o.through) > (%(source)s, %(partition)s, %(last)s)
    GROUP BY o.source, o.partition, o.through, o.after
    ORDER BY o.source, o.partition, o.through, o.after LIMIT %(page)s
"""

#: Where the array is known when this is planned, each note is looked up in a hash of it. A join is planned for the
#: single commit that a page is taken for, and compares thousands of them with hundreds of thousands of notes.
_HELD = """
    SELECT payload FROM streamproc.outbox
    WHERE stream = %(stream)s AND kind = 'events' AND payload = ANY(%(keys)s)
"""

_SOURCES = """
    SELECT key, kind, source, partition, after, through, rows, min_time_us, max_time_us, clock_us,
           size, checksum, committed_at, epoch, fence
    FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'committed' AND source = %(source)s AND partition = %(partition)s
      AND coalesce(after, -1) >= %(after)s AND through <= %(through)s
    ORDER BY through, key
"""

#: By their objects: a log that is read to its end has no row of its own any more when it is folded.
_PARTITIONS = """
    SELECT DISTINCT source, partition FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'committed'
"""

_OPEN_REPLAYS = (
    "SELECT name FROM streamproc.replays WHERE stream = %(stream)s AND state <> 'promoted' ORDER BY name"
)

#: The partition's row is locked too, as promotions and commits do: everything is before this or after it.
_LOCK_PARTITION = """
    SELECT FROM streamproc.partitions
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(partition)s FOR UPDATE
"""

#: Whether anything else of the partition has come to lie in the range: a position was set back.
_OTHERS = """
    SELECT count(*) FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'committed' AND source = %(source)s AND partition = %(partition)s
      AND through > %(after)s AND coalesce(after, -1) < %(through)s AND key <> ALL(%(sources)s)
"""

_SUPERSEDE = """
    UPDATE streamproc.objects SET state = 'superseded', superseded_at = clock_timestamp()
    WHERE stream = %(stream)s AND key = ANY(%(sources)s) AND state = 'committed'
"""

#: Rejects are kept for some time from when they were found, so theirs stays; events are listed by when their object
#: came to be.
_COMMIT = """
    UPDATE streamproc.objects AS o
    SET state = 'committed', size = written.size, checksum = written.checksum,
        committed_at = coalesce(
            (SELECT max(s.committed_at) FROM streamproc.objects AS s
             WHERE o.kind = 'rejects' AND s.stream = %(stream)s AND s.kind = 'rejects' AND s.key = ANY(%(sources)s)),
            clock_timestamp())
    FROM unnest(%(keys)s::text[], %(rows)s::bigint[], %(sizes)s::bigint[], %(checksums)s::text[])
         AS written (key, rows, size, checksum)
    WHERE o.key = written.key AND o.rows = written.rows AND o.stream = %(stream)s AND o.state = 'intended'
"""

_ABANDON = """
    UPDATE streamproc.objects SET state = 'abandoned', abandoned_at = clock_timestamp()
    WHERE stream = %(stream)s AND key = ANY(%(keys)s) AND state = 'intended'
"""


#: A note that is being published is waited for, and gone then.
_PUBLISH_INSTEAD = """
    UPDATE streamproc.outbox SET payload = convert_to(%(new)s, 'UTF8')
    WHERE stream = %(stream)s AND kind = 'events' AND payload = convert_to(%(old)s, 'UTF8')
"""

_PUBLISH_NOTHING = """
    DELETE FROM streamproc.outbox
    WHERE stream = %(stream)s AND kind = 'events' AND payload = convert_to(%(old)s, 'UTF8')
"""


class Commit(NamedTuple):
    """What one commit (or one run that was compacted) of a partition left in the lake.

    ``hour``: hours since 1970 of the partition's clock at its end, ``None`` before the first event. ``over``:
    whether that hour is. ``held``: an object of it has still to be published.
    """

    partition: Partition
    after: int | None
    through: int
    hour: int | None
    objects: int
    bytes: int
    rows: int
    over: bool
    held: bool


class Source(NamedTuple):
    """An object to be merged, and the commit and the fence it was written under."""

    committed: CommittedObject
    epoch: uuid.UUID
    fence: int


class Moved(LedgerError):
    """What was to be merged is not there as it was: a promotion, another compaction or retention came first."""


async def commits(
    database: Database, stream: str, patience_us: int, quiet_seconds: int
) -> AsyncGenerator[Commit]:
    """Every commit that has objects, by partition and position.

    An hour is over when the partition's clock is ``patience_us`` past it, or nothing came for
    ``quiet_seconds``.
    """
    source, partition, last = "", "", -1
    names = {"stream": stream, "hour": HOUR, "patience": patience_us, "page": _PAGE}
    names["quiet"] = f"{quiet_seconds} seconds"
    while True:
        async with database.connection("list what can be compacted") as conn:
            cursor = await conn.execute(
                _COMMITS, {**names, "source": source, "partition": partition, "last": last}
            )
            page = await cursor.fetchall()
            held = await _held(conn, stream, [key for *_, keys in page for key in keys or ()])
        for source, partition, after, through, clock, objects, size, rows, over, keys in page:
            yield Commit(
                Partition(source, partition),
                None if after is None else int(after),
                int(through),
                None if clock is None else clock // HOUR,
                objects,
                size,
                rows,
                bool(over),
                not held.isdisjoint(keys or ()),
            )
            last = int(through)
        if len(page) < _PAGE:
            return


async def _held(conn: AsyncConnection[Any], stream: str, keys: Sequence[str]) -> set[str]:
    """Which of the objects have still to be published."""
    if not keys:
        return set()
    names = {"stream": stream, "keys": [key.encode() for key in keys]}
    cursor = await conn.execute(_HELD, names, prepare=False)
    return {payload.decode() for (payload,) in await cursor.fetchall()}


async def sources(
    database: Database, stream: str, partition: Partition, after: int | None, through: int
) -> list[Source]:
    """The objects of a run, in the order of their positions; those of one commit in no order."""
    names: dict[str, object] = {"stream": stream, "source": partition.source, "partition": partition.id}
    positions = {"after": -1 if after is None else after, "through": through}
    async with database.connection("list what is to be compacted") as conn:
        rows = await (await conn.execute(_SOURCES, names | positions)).fetchall()
    return [_source(row) for row in rows]


async def partitions(database: Database, stream: str) -> list[Partition]:
    """The partitions that have committed objects, sorted; also those of logs that are done and folded into one row."""
    async with database.connection("list the partitions of objects") as conn:
        rows = await (await conn.execute(_PARTITIONS, {"stream": stream})).fetchall()
    return sorted(Partition(source, number) for source, number in rows)


async def open_replays(conn: AsyncConnection[Any], stream: str) -> list[str]:
    """Names of replays that are neither promoted nor discarded: they count on the objects being as they are."""
    cursor = await conn.execute(_OPEN_REPLAYS, {"stream": stream})
    return [name for (name,) in await cursor.fetchall()]


async def intend(
    conn: AsyncConnection[Any], stream: str, objects: Sequence[PlannedObject], first: Source
) -> None:
    """Note the objects about to be written, under commit and fence of the run's ``first`` source."""
    await intended_by_row(conn, stream, first.epoch, objects, [first.fence] * len(objects))


async def replace(
    conn: AsyncConnection[Any],
    stream: str,
    sources: Sequence[Source],
    written: Sequence[WrittenObject],
    *,
    whole: bool = True,
) -> None:
    """Put ``written``, nothing perhaps, in the place of ``sources``, which stand by position.

    ``whole``: they are all there is of a run, and ``written`` has its range; otherwise the range stays.
    Raises :class:`Moved` when that is not possible any more; nothing was kept then.
    """
    plan = replaced(sources[0].committed.plan, through=sources[-1].committed.plan.through)
    names: dict[str, object] = {"stream": stream, "source": plan.partition.source}
    names |= {"partition": plan.partition.id, "through": plan.through}
    names |= {"after": -1 if plan.after is None else plan.after}
    names["sources"] = [source.committed.plan.key for source in sources]
    await conn.execute(LOCK_COMPACTION, names)
    await conn.execute(_LOCK_PARTITION, names)
    if replays := await open_replays(conn, stream):
        raise Moved(f"replay {replays[0]} has begun")
    if (await conn.execute(_SUPERSEDE, names)).rowcount != len(sources):
        raise Moved(f"{plan.partition}: objects of ({plan.after}, {plan.through}] were replaced meanwhile")
    row = await (await conn.execute(_OTHERS, names)).fetchone()
    if whole and (row is None or row[0]):
        raise Moved(f"{plan.partition}: other objects reach into ({plan.after}, {plan.through}]")
    names["keys"] = [each.plan.key for each in written]
    names["rows"] = [each.plan.rows for each in written]
    names["sizes"] = [each.size for each in written]
    names["checksums"] = [each.checksum for each in written]
    if (await conn.execute(_COMMIT, names)).rowcount != len(written):
        raise Moved(
            f"{plan.partition}: the compaction of ({plan.after}, {plan.through}] was abandoned meanwhile"
        )


async def publish_instead(conn: AsyncConnection[Any], stream: str, old: str, new: str | None) -> None:
    """Where the events of the object ``old`` have still to be published, those of ``new`` are, or none.

    Call it before :func:`replace`, which locks more.
    """
    names = {"stream": stream, "old": old, "new": new}
    await conn.execute(_PUBLISH_NOTHING if new is None else _PUBLISH_INSTEAD, names)


async def abandon(conn: AsyncConnection[Any], stream: str, keys: Sequence[str]) -> None:
    """Leave what was intended to the sweep."""
    await conn.execute(_ABANDON, {"stream": stream, "keys": list(keys)})


def _source(row: Sequence[Any]) -> Source:
    *listed, epoch, fence = row
    return Source(committed_object(listed), epoch, fence)
