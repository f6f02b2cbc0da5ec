"""Reading the list of committed objects: by event time, by commit time, by a partition's clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from streamproc.database import Database
from streamproc.model import CommittedObject, Partition, PlannedObject
from streamproc.topology import HOUR

#: Objects read at once. Paging is by key, not by an open cursor: a reader may take as long as it likes.
PAGE = 1000

#: And where the newest come first. More, because each page is compared with a warehouse, which may take seconds to
#: answer.
NEWEST_PAGE = 5000

_COLUMNS = """
    SELECT key, kind, source, partition, after, through, rows, min_time_us, max_time_us, clock_us,
           size, checksum, committed_at
    FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'committed' AND kind = %(kind)s
"""

_BY_EVENT_TIME = (
    _COLUMNS
    + """
      AND COALESCE(max_time_us, -1) >= %(since)s
      AND (%(until)s::bigint IS NULL OR min_time_us < %(until)s)
    ORDER BY COALESCE(max_time_us, -1), key
"""
)

_BY_COMMIT = (
    _COLUMNS
    + """
      AND (committed_at, key) > (%(last)s, %(last_key)s)
    ORDER BY committed_at, key LIMIT %(page)s
"""
)

_NEWEST_FIRST = (
    _COLUMNS
    + """
      AND (committed_at, key) < (%(last)s, %(last_key)s)
    ORDER BY committed_at DESC, key DESC LIMIT %(page)s
"""
)

_BY_CLOCK = (
    _COLUMNS
    + """
      AND source = %(source)s AND partition = %(partition)s AND clock_us >= %(since)s
    ORDER BY through, key
"""
)

#: An object holds events of one hour: its newest says which, and an index has them by that.
_UNSHARED = """
    SELECT given.key
    FROM unnest(%(keys)s::text[], %(partitions)s::text[], %(afters)s::numeric[], %(throughs)s::numeric[],
                %(hours)s::bigint[]) AS given (key, partition, after, through, hour)
    WHERE NOT EXISTS (
        SELECT FROM streamproc.objects AS o
        WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed'
          AND COALESCE(o.max_time_us, -1) >= given.hour AND COALESCE(o.max_time_us, -1) < given.hour + %(length)s
          AND o.partition = given.partition AND o.key <> given.key
          AND o.through > given.after AND COALESCE(o.after, -1) < given.through)
"""


class ObjectTotal(NamedTuple):
    """Objects of one kind and state; ``bytes`` counts those whose size is known."""

    kind: str
    state: str
    objects: int
    rows: int
    bytes: int


async def by_event_time(
    database: Database, stream: str, kind: str, since_us: int | None, until_us: int | None
) -> AsyncIterator[CommittedObject]:
    """Objects that may hold rows in ``[since_us, until_us)``, by their newest event time.

    One statement, row by row: read in pages, the list could name objects and, further on, the one that a
    compaction has put in their place meanwhile. Holds a connection until the reader is done.
    """
    since = -(2**63) if since_us is None else since_us
    names = {"stream": stream, "kind": kind, "since": since, "until": until_us}
    async with database.connection("list objects") as conn, conn.cursor() as cursor:
        async for row in cursor.stream(_BY_EVENT_TIME.encode(), names):
            yield committed_object(row)


def by_commit(
    database: Database, stream: str, kind: str, since: datetime | None
) -> AsyncGenerator[list[CommittedObject]]:
    """Pages of objects by commit time, from ``since``.

    Commit times are taken inside the transactions, so an object can appear behind one already seen.
    """
    first = since or datetime.min.replace(tzinfo=UTC)
    return _pages(database, _BY_COMMIT, stream, kind, first, size=PAGE)


def newest_first(database: Database, stream: str, kind: str) -> AsyncGenerator[list[CommittedObject]]:
    """Pages of objects by commit time, the other way round."""
    return _pages(database, _NEWEST_FIRST, stream, kind, datetime.max.replace(tzinfo=UTC), size=NEWEST_PAGE)


async def _pages(
    database: Database, query: str, stream: str, kind: str, last: datetime, *, size: int
) -> AsyncGenerator[list[CommittedObject]]:
    last_key = ""
    while True:
        names = {"stream": stream, "kind": kind, "last": last, "last_key": last_key}
        page = await _fetch(database, query, {**names, "page": size})
        if page:
            yield page
        if len(page) < size:
            return
        last, last_key = page[-1].committed_at, page[-1].plan.key


async def by_clock(
    database: Database, stream: str, partition: Partition, since_clock_us: int
) -> list[CommittedObject]:
    """The partition's ``events`` objects with events accepted at ``since_clock_us`` or later, in order."""
    return await _fetch(
        database,
        _BY_CLOCK,
        {
            "stream": stream,
            "kind": "events",
            "source": partition.source,
            "partition": partition.id,
            "since": since_clock_us,
        },
    )


async def unshared(database: Database, stream: str, plans: Sequence[PlannedObject]) -> set[str]:
    """Keys of those ``events`` objects of whose positions and hour no other committed object has any.

    Others have some when a position was set back, or when partitions of two sources have the same id.
    """
    timed = [(plan, plan.max_time_us) for plan in plans if plan.max_time_us is not None]
    names = {
        "stream": stream,
        "keys": [plan.key for plan, _ in timed],
        "partitions": [plan.partition.id for plan, _ in timed],
        "afters": [-1 if plan.after is None else plan.after for plan, _ in timed],
        "throughs": [plan.through for plan, _ in timed],
        "hours": [newest // HOUR * HOUR for _, newest in timed],
        "length": HOUR,
    }
    async with database.connection("look for objects of the same positions") as conn:
        return {key for (key,) in await (await conn.execute(_UNSHARED, names)).fetchall()}


async def totals(database: Database, stream: str) -> list[ObjectTotal]:
    """Objects, rows and bytes by kind and state. Reads the whole list."""
    async with database.connection("count objects") as conn:
        cursor = await conn.execute(
            "SELECT kind, state, count(*), sum(rows)::bigint, COALESCE(sum(size), 0)::bigint"
            " FROM streamproc.objects WHERE stream = %s GROUP BY kind, state ORDER BY kind, state",
            [stream],
        )
        return [ObjectTotal(*row) for row in await cursor.fetchall()]


async def _fetch(database: Database, query: str, names: dict[str, object]) -> list[CommittedObject]:
    async with database.connection("list objects") as conn:
        cursor = await conn.execute(query.encode(), names)
        return [committed_object(row) for row in await cursor.fetchall()]


def committed_object(row: Iterable[Any]) -> CommittedObject:
    """The object of a row of key, kind, source, partition, after, through, rows, min_time_us, max_time_us, clock_us,
    size, checksum and committed_at.
    """
    key, kind, source, partition, after, through, *times, size, checksum, committed_at = row
    rows, min_time_us, max_time_us, clock_us = times
    plan = PlannedObject(
        key=key,
        kind=kind,
        partition=Partition(source, partition),
        after=None if after is None else int(after),
        through=int(through),
        rows=rows,
        min_time_us=min_time_us,
        max_time_us=max_time_us,
        clock_us=clock_us,
    )
    return CommittedObject(plan, size, checksum, committed_at)
