"""Putting a replay in the place of what live has: the ledger's part. Runs in the caller's transaction.

All of it happens under the row locks of *all* of the stream's partitions, taken in the order that commits take
them: no commit of a live worker is half done then, and none begins before the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection

from streamproc.errors import Inconsistent, LedgerError
from streamproc.ledger import claims as claiming
from streamproc.ledger.redrives import LOCK_REDRIVES
from streamproc.ledger.replays import Replay
from streamproc.model import Partition

_LOCK_PARTITIONS = """
    SELECT source, partition, position FROM streamproc.partitions WHERE stream = %(stream)s
    ORDER BY source, partition FOR UPDATE
"""

_IN_RANGE = """
    g.stream = %(stream)s AND g.name = %(name)s AND g.through > g.after
"""

#: Each gives the name of something that has happened since the replay began, and cannot be undone by swapping.
_MEANWHILE = {
    "another replay was promoted": """
        SELECT count(*) FROM streamproc.replays
        WHERE stream = %(stream)s AND name <> %(name)s AND (promoted_at > %(since)s OR state = 'promoting')
    """,
    "a position was set by hand": """
        SELECT count(*) FROM streamproc.position_changes WHERE stream = %(stream)s AND changed_at > %(since)s
    """,
    "rejects of its range were redriven": f"""
        SELECT count(*) FROM streamproc.redrives AS r JOIN streamproc.replay_ranges AS g
            ON (g.source, g.partition) = (r.source, r.partition)
           AND r.position > g.after AND r.position <= g.through
        WHERE r.stream = %(stream)s AND r.claimed_at > %(since)s AND {_IN_RANGE}
    """,  # noqa: S608 - put together from constants
}

#: Live commits of the range. None may reach out of it, or its counts could not be taken back.
_REPLACED = f"""
    SELECT DISTINCT r.epoch FROM streamproc.epoch_ranges AS r
    JOIN streamproc.epochs AS e ON e.id = r.epoch AND e.stream = %(stream)s
    JOIN streamproc.replay_ranges AS g ON (g.source, g.partition) = (r.source, r.partition)
    WHERE {_IN_RANGE} AND r.through > g.after AND coalesce(r.after, -1) < g.through
"""  # noqa: S608 - put together from constants

_REACHING_OUT = f"""
    SELECT count(*) FROM streamproc.epoch_ranges AS r
    LEFT JOIN streamproc.replay_ranges AS g
           ON {_IN_RANGE} AND (g.source, g.partition) = (r.source, r.partition)
    WHERE r.epoch IN ({_REPLACED})
      AND (g.stream IS NULL OR r.through > g.through OR coalesce(r.after, -1) < g.after)
"""  # noqa: S608 - put together from constants

_COUNTS = """
    UPDATE streamproc.partitions AS p
    SET records = p.records + new.records, accepted = p.accepted + new.accepted,
        filtered = p.filtered + new.filtered, rejected = p.rejected + new.rejected,
        duplicate = p.duplicate + new.duplicate
    FROM (
        SELECT source, partition, sum(records) AS records, sum(accepted) AS accepted,
               sum(filtered) AS filtered, sum(rejected) AS rejected, sum(duplicate) AS duplicate
        FROM (SELECT source, partition, records, accepted, filtered, rejected, duplicate
              FROM streamproc.partitions WHERE stream = %(namespace)s
              UNION ALL
              SELECT source, partition, -records, -accepted, -filtered, -rejected, -duplicate
              FROM streamproc.epoch_ranges WHERE epoch = ANY(%(replaced)s)) AS change
        GROUP BY source, partition) AS new
    WHERE p.stream = %(stream)s AND (p.source, p.partition) = (new.source, new.partition)
"""

_SUPERSEDE = f"""
    UPDATE streamproc.objects AS o SET state = 'superseded', superseded_at = clock_timestamp()
    FROM streamproc.replay_ranges AS g
    WHERE o.stream = %(stream)s AND o.state = 'committed' AND {_IN_RANGE}
      AND (o.source, o.partition) = (g.source, g.partition)
      AND coalesce(o.after, -1) >= g.after AND o.through <= g.through
"""  # noqa: S608 - put together from constants

#: Committed now, for readers who follow the list by commit time. What was never committed goes to the sweep.
_ADOPT = """
    UPDATE streamproc.objects
    SET stream = %(stream)s,
        committed_at = CASE state WHEN 'committed' THEN clock_timestamp() ELSE committed_at END,
        abandoned_at = CASE state WHEN 'intended' THEN clock_timestamp() ELSE abandoned_at END,
        state = CASE state WHEN 'intended' THEN 'abandoned' ELSE state END
    WHERE stream = %(namespace)s
"""

_SUPERSEDED_KEYS = f"""
    SELECT o.key FROM streamproc.objects AS o JOIN streamproc.replay_ranges AS g
        ON (g.source, g.partition) = (o.source, o.partition)
    WHERE o.stream = %(stream)s AND o.state = 'committed' AND o.kind = 'events' AND {_IN_RANGE}
      AND coalesce(o.after, -1) >= g.after AND o.through <= g.through
    ORDER BY o.key
"""  # noqa: S608 - put together from constants

#: Owners are left without a claim: what they remember of clocks and recent ids is no longer so.
_FENCE = """
    UPDATE streamproc.partitions AS p SET owner = NULL, clock_us = new.clock_us
    FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(clocks)s::bigint[])
         AS new (source, partition, clock_us)
    WHERE p.stream = %(stream)s AND (p.source, p.partition) = (new.source, new.partition)
"""

#: Its objects are nobody's any more. They go where the stream's own abandoned objects go, and with them those that its
#: workers have abandoned: no sweep looks under the name of a replay.
_ABANDON = """
    UPDATE streamproc.objects
    SET stream = %(stream)s,
        abandoned_at = CASE WHEN state IN ('intended', 'committed') THEN clock_timestamp() ELSE abandoned_at END,
        state = CASE WHEN state IN ('intended', 'committed') THEN 'abandoned' ELSE state END
    WHERE stream = %(namespace)s
"""


async def begin(conn: AsyncConnection[Any], replay: Replay) -> None:
    """Note that the promotion has begun: from here on it can only be finished.

    Raises :class:`LedgerError` when live is not where the replay ends, or something has happened meanwhile that
    a swap would undo or count twice.
    """
    names = _names(replay)
    await conn.execute(LOCK_REDRIVES.format("").encode(), names)
    await _refuse_meanwhile(conn, replay, await lock_live(conn, replay))
    await conn.execute(
        "UPDATE streamproc.replays SET state = 'promoting' WHERE stream = %(stream)s AND name = %(name)s",
        names,
    )


async def lock_live(conn: AsyncConnection[Any], replay: Replay) -> dict[Partition, int | None]:
    """Lock all of the stream's partitions; their positions."""
    cursor = await conn.execute(_LOCK_PARTITIONS, _names(replay))
    return {
        Partition(source, number): None if position is None else int(position)
        for source, number, position in await cursor.fetchall()
    }


async def now(conn: AsyncConnection[Any]) -> datetime:
    """The database's time. Under :func:`lock_live` every live commit is before it or after it."""
    row = await (await conn.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None
    return row[0].astimezone(UTC)  # type: ignore[no-any-return]  # the driver does not say what columns hold


async def superseded_keys(conn: AsyncConnection[Any], replay: Replay) -> list[str]:
    """The live ``events`` objects of the range."""
    return [key for (key,) in await (await conn.execute(_SUPERSEDED_KEYS, _names(replay))).fetchall()]


async def own_keys(conn: AsyncConnection[Any], replay: Replay) -> list[str]:
    """The replay's ``events`` objects, before they are the stream's."""
    cursor = await conn.execute(
        "SELECT key FROM streamproc.objects"
        " WHERE stream = %(namespace)s AND state = 'committed' AND kind = 'events' ORDER BY key",
        _names(replay),
    )
    return [key for (key,) in await cursor.fetchall()]


async def swap(
    conn: AsyncConnection[Any], replay: Replay, clocks: Mapping[Partition, int | None], operator: str
) -> None:
    """Objects, commits, counts and clocks; the live workers have to claim again. Under :func:`lock_live`.

    ``clocks``: of all the stream's partitions. The namespace is empty afterwards.
    """
    names = _names(replay)
    row = await (await conn.execute(_REACHING_OUT, names)).fetchone()
    if row is None or row[0]:
        raise Inconsistent(f"{row[0] if row else '?'} commits reach out of the range of replay {replay.name}")
    replaced = [epoch for (epoch,) in await (await conn.execute(_REPLACED, names)).fetchall()]
    await conn.execute(_COUNTS, {**names, "replaced": replaced})
    await conn.execute("DELETE FROM streamproc.epochs WHERE id = ANY(%s)", [replaced])
    await conn.execute("UPDATE streamproc.epochs SET stream = %(stream)s WHERE stream = %(namespace)s", names)
    await conn.execute(_SUPERSEDE, names)
    await conn.execute(_ADOPT, names)
    await claiming.claim(conn, replay.stream, operator, list(clocks))
    await conn.execute(
        _FENCE,
        {
            **names,
            "sources": [partition.source for partition in clocks],
            "partitions": [partition.id for partition in clocks],
            "clocks": list(clocks.values()),
        },
    )
    await conn.execute("DELETE FROM streamproc.partitions WHERE stream = %(namespace)s", names)
    await conn.execute(
        "UPDATE streamproc.replays SET state = 'promoted', promoted_at = clock_timestamp()"
        " WHERE stream = %(stream)s AND name = %(name)s",
        names,
    )


async def discard(conn: AsyncConnection[Any], replay: Replay) -> None:
    """Forget the replay; its objects are left to the stream's sweep."""
    names = _names(replay)
    await conn.execute(_ABANDON, names)
    await conn.execute("DELETE FROM streamproc.epochs WHERE stream = %(namespace)s", names)
    await conn.execute("DELETE FROM streamproc.partitions WHERE stream = %(namespace)s", names)
    await conn.execute("DELETE FROM streamproc.replays WHERE stream = %(stream)s AND name = %(name)s", names)


async def _refuse_meanwhile(
    conn: AsyncConnection[Any], replay: Replay, positions: Mapping[Partition, int | None]
) -> None:
    names = {**_names(replay), "since": replay.created_at}
    again = "discard it and replay again"
    for what, query in _MEANWHILE.items():
        row = await (await conn.execute(query.encode(), names)).fetchone()
        if row is None or row[0]:
            raise LedgerError(f"since replay {replay.name} began, {what}: {again}")
    for partition, each in replay.ranges.items():
        position = positions.get(partition)
        if not each.span.empty and (position is None or position < each.span.through):
            raise LedgerError(
                f"{partition}: live is committed through {position}, replay {replay.name} ends with "
                f"{each.span.through}: {again}"
            )


def _names(replay: Replay) -> dict[str, object]:
    return {"stream": replay.stream, "name": replay.name, "namespace": replay.namespace}
