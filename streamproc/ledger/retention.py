"""Letting go of what a topic page no longer wants: objects beyond their time, old history.

Expired objects become ``superseded``, as merged ones do: no list names them from then on, and the sweep deletes them
a day later, for readers that hold an older list. While a replay is open nothing expires: it may still count on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from streamproc.database import Database
from streamproc.ledger.compaction import LOCK_COMPACTION, open_replays

_PAGE = 1_000

#: Unix microseconds.
_NOW_US = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

_EXPIRED = """
    SELECT key FROM streamproc.objects
    WHERE stream = %(stream)s AND kind = %(kind)s AND state = 'committed'
      AND COALESCE(max_time_us, -1) BETWEEN 0 AND %(before)s AND key > %(last)s
      AND (%(kind)s <> 'rejects' OR committed_at < to_timestamp(%(before)s / 1e6))
      AND (%(recent)s::bigint IS NULL OR COALESCE(clock_us, -1) < %(recent)s
           OR committed_at < to_timestamp(%(before)s / 1e6))
      AND (%(kind)s <> 'events' OR NOT EXISTS (
          SELECT FROM streamproc.outbox AS n WHERE n.stream = %(stream)s AND n.kind = 'events'
          AND n.payload = convert_to(objects.key, 'UTF8')))
    ORDER BY key LIMIT %(page)s
"""

_EXPIRE = """
    UPDATE streamproc.objects SET state = 'superseded', superseded_at = clock_timestamp()
    WHERE stream = %(stream)s AND state = 'committed' AND key = ANY(%(keys)s)
"""

#: Whoever publishes a note has it locked.
_FORGET_NOTES = """
    DELETE FROM streamproc.outbox WHERE id IN (
        SELECT id FROM streamproc.outbox
        WHERE stream = %(stream)s AND created_at < clock_timestamp() - %(age)s
          AND (kind = ANY(%(kinds)s) OR kind = 'rows' AND NOT table_name = ANY(%(tables)s))
        FOR UPDATE SKIP LOCKED)
"""

#: Rows of objects that are gone are of no use; a week of them shows what was swept lately. now() can be looked up in an
#: index, clock_timestamp() cannot.
_FORGET_SWEPT = """
    DELETE FROM streamproc.objects
    WHERE stream = %(stream)s AND state = 'swept' AND swept_at < now() - %(age)s
"""

#: A replay tells by them which records were sent again, as long as the topic has those, and so does its promotion;
#: a redrive, as long as there are the rejects, and those of their copies.
_FORGET_REDRIVES = """
    DELETE FROM streamproc.redrives AS r
    WHERE r.stream = %(stream)s AND r.claimed_at < clock_timestamp() - %(age)s
      AND NOT EXISTS (SELECT FROM streamproc.replays WHERE stream = %(stream)s AND state <> 'promoted')
      AND NOT EXISTS (
          SELECT FROM streamproc.objects AS o
          WHERE o.stream = r.stream AND o.kind = 'rejects' AND o.state = 'committed'
            AND (o.source, o.partition) = (r.source, r.partition)
            AND (r.position > coalesce(o.after, -1) AND r.position <= o.through
                 OR r.sent_as > coalesce(o.after, -1) AND r.sent_as <= o.through))
"""

#: How long rows of swept objects stay.
SWEPT = timedelta(days=7)

#: How long what nobody publishes any more stays noted: while workers are replaced one by one, those with the other page
#: may publish it. Its objects are neither merged nor let go of meanwhile.
UNPUBLISHED = timedelta(days=1)


async def expire_objects(
    database: Database,
    stream: str,
    kind: str,
    before_us: int,
    needed: Callable[[Sequence[str]], Awaitable[set[str]]] | None = None,
    *,
    recent_us: int | None = None,
) -> int:
    """Supersede the objects of ``kind`` whose newest row is older than ``before_us``; returns how many.

    Rejects also have to have been committed before: those of a log were received when it was last changed, which
    may be years before anybody read it.

    Events have to be published, where the page says so.

    ``needed``: which of some keys somebody still wants (the warehouse has not loaded them, or has put them aside).
    ``recent_us``: the objects of commits that ended at this clock or later stay, however old their events are: a worker
    that claims the partition reads the ids in them. Not for longer than others: a clock may be years ahead.
    """
    names: dict[str, object] = {"stream": stream, "kind": kind, "before": before_us - 1, "page": _PAGE}
    names["recent"] = recent_us
    last, expired = "", 0
    while True:
        async with database.connection("look for expired objects") as conn:
            rows = await (await conn.execute(_EXPIRED, {**names, "last": last})).fetchall()
        keys = [key for (key,) in rows]
        if not keys:
            return expired
        last = keys[-1]
        wanted = set() if needed is None else await needed(keys)
        async with database.transaction("expire objects") as conn:
            await conn.execute(LOCK_COMPACTION, names)
            if await open_replays(conn, stream):
                return expired
            gone = [key for key in keys if key not in wanted]
            expired += (await conn.execute(_EXPIRE, {**names, "keys": gone})).rowcount


async def expire_rejects(database: Database, stream: str, kept_us: int) -> int:
    """Supersede the objects of rejects that were received and committed so many microseconds ago; returns how many.

    The database's clock says when that was: a worker's that is ahead would let go of all of them.
    """
    async with database.connection("ask for the time") as conn:
        row = await (await conn.execute(_NOW_US)).fetchone()
    assert row is not None
    return await expire_objects(database, stream, "rejects", row[0] - kept_us)


async def forget_swept(database: Database, stream: str, age: timedelta = SWEPT) -> int:
    """Delete the rows of objects that were swept more than ``age`` ago; returns how many."""
    async with database.transaction("forget swept objects") as conn:
        return (await conn.execute(_FORGET_SWEPT, {"stream": stream, "age": age})).rowcount


async def forget_notes(
    database: Database,
    stream: str,
    kinds: Sequence[str],
    tables: Sequence[str],
    age: timedelta = UNPUBLISHED,
) -> int:
    """Delete what was noted for publication more than ``age`` ago, of the ``kinds`` that nobody publishes any more, and
    of rows of all but these ``tables``.

    Returns how many notes there were.
    """
    async with database.transaction("forget what is not published any more") as conn:
        names = {"stream": stream, "kinds": list(kinds), "tables": list(tables), "age": age}
        return (await conn.execute(_FORGET_NOTES, names)).rowcount


async def forget_redrives(database: Database, stream: str, age: timedelta) -> int:
    """Delete what is noted of rejects that were sent again more than ``age`` ago; returns how many.

    What is noted of a reject that is still there stays, or it could be sent again; so does all while a replay is open.
    """
    async with database.transaction("forget redrives") as conn:
        return (await conn.execute(_FORGET_REDRIVES, {"stream": stream, "age": age})).rowcount
