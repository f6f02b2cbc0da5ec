"""Shards of a source without groups of its own: who reads which.

A lease decides who tries. What keeps two workers from committing the same records is the fence of the claim.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.leases import Board, Report, ShardInfo, ShardRow
from streamproc.ledger.shard_marks import NOW_MS, Marks

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('streamproc shards ' || %(stream)s, 0))"

_KNOWN = "SELECT partition FROM streamproc.shards WHERE stream = %(stream)s AND source = %(source)s"

_ADD = """
    INSERT INTO streamproc.shards (stream, source, partition, parents, found_at)
    SELECT %(stream)s, %(source)s, shard, string_to_array(parents, ','), clock_timestamp()
    FROM unnest(%(shards)s::text[], %(parents)s::text[]) AS found (shard, parents)
"""

_ORIGINS = f"""
    INSERT INTO streamproc.shard_marks (stream, source, partition, position, inclusive, since_ms, marked_at)
    SELECT %(stream)s, %(source)s, shard, -1, true,
           CASE %(start)s WHEN 'latest' THEN {NOW_MS} ELSE %(since_ms)s END, clock_timestamp()
    FROM unnest(%(shards)s::text[]) AS found (shard)
    ON CONFLICT DO NOTHING
"""  # noqa: S608 - put together from constants

_MEMBER = """
    INSERT INTO streamproc.members (stream, worker, seen_at) VALUES (%(stream)s, %(worker)s, clock_timestamp())
    ON CONFLICT (stream, worker) DO UPDATE SET seen_at = excluded.seen_at
"""

_RENEW = """
    UPDATE streamproc.shards AS s
    SET expires_at = clock_timestamp() + make_interval(secs => %(timeout)s),
        behind_ms = COALESCE(told.behind_ms, s.behind_ms),
        complete_at = COALESCE(clock_timestamp() - make_interval(secs => told.complete_for), s.complete_at),
        last_position = COALESCE(s.last_position, told.last_position)
    FROM unnest(%(shards)s::text[], %(leases)s::bigint[], %(behind)s::bigint[], %(complete)s::float8[],
                %(last)s::numeric[]) AS told (partition, lease, behind_ms, complete_for, last_position)
    WHERE s.stream = %(stream)s AND s.source = %(source)s AND s.partition = told.partition
      AND s.holder = %(worker)s AND s.lease = told.lease
    RETURNING s.partition
"""

#: Parents that the ledger does not know are gone from the stream: nothing of them can be read any more. Those
#: not finished are put into a hash table, and the position of one that has an end is looked up by its key, whatever the
#: planner believes: shards stay in the table for as long as the stream is read, and every worker asks all the time.
_BOARD = """
    WITH shards AS (
        SELECT s.*, s.last_position IS NOT NULL AND s.last_position <= COALESCE((
            SELECT p.position FROM streamproc.partitions AS p
            WHERE (p.stream, p.source, p.partition) = (s.stream, s.source, s.partition)), -1) AS finished
        FROM streamproc.shards AS s
        WHERE s.stream = %(stream)s AND s.source = %(source)s
    )
    SELECT partition,
           NOT COALESCE((SELECT bool_or(parent IN (SELECT partition FROM shards WHERE NOT finished))
                         FROM unnest(parents) AS named (parent)), false),
           finished, CASE WHEN expires_at > clock_timestamp() THEN holder END, lease, wanted_by
    FROM shards ORDER BY partition
"""

_LIVING = """
    SELECT worker FROM streamproc.members
    WHERE stream = %(stream)s AND seen_at > clock_timestamp() - make_interval(secs => %(timeout)s)
"""

_TAKE = """
    UPDATE streamproc.shards
    SET holder = %(worker)s, lease = lease + 1, wanted_by = NULL,
        expires_at = clock_timestamp() + make_interval(secs => %(timeout)s)
    WHERE stream = %(stream)s AND source = %(source)s AND partition = ANY(%(shards)s)
      AND (holder IS NULL OR expires_at <= clock_timestamp())
"""

_ASK = """
    UPDATE streamproc.shards SET wanted_by = %(worker)s
    WHERE stream = %(stream)s AND source = %(source)s AND partition = ANY(%(shards)s)
      AND holder <> %(worker)s AND wanted_by IS NULL
"""

#: To whoever asked for it, if they still live; the next holder's lease begins now.
_HAND_OVER = """
    UPDATE streamproc.shards AS s
    SET holder = (SELECT worker FROM streamproc.members AS m
                  WHERE m.stream = s.stream AND m.worker = s.wanted_by
                    AND m.seen_at > clock_timestamp() - make_interval(secs => %(timeout)s)),
        lease = s.lease + 1, wanted_by = NULL,
        expires_at = clock_timestamp() + make_interval(secs => %(timeout)s)
    FROM unnest(%(shards)s::text[], %(leases)s::bigint[]) AS mine (partition, lease)
    WHERE s.stream = %(stream)s AND s.source = %(source)s AND s.partition = mine.partition
      AND s.holder = %(worker)s AND s.lease = mine.lease
"""

_LEAVE = """
    DELETE FROM streamproc.members WHERE stream = %(stream)s AND worker = %(worker)s
"""

#: Of the transaction, so it goes with it.
_ALONE = """
    SELECT pg_try_advisory_xact_lock(
        hashtextextended('streamproc thin ' || %(stream)s || ' ' || %(source)s, 0))
"""

_FORGET_MEMBERS = """
    DELETE FROM streamproc.members
    WHERE stream = %(stream)s AND seen_at < clock_timestamp() - interval '1 day'
"""


class Shards(Marks):
    """The shards of one source of a stream, as one worker sees them.

    ``timeout``: seconds for which a lease holds after a heartbeat. Every method raises
    :class:`DependencyError` when the database does not answer.
    """

    def __init__(self, database: Database, stream: str, source: str, worker: str, timeout: float) -> None:
        super().__init__(database, stream, source)
        # Two processes of one name would take each other for themselves and read everything twice.
        self.worker = f"{worker}/{secrets.token_hex(4)}"
        self.timeout = timeout
        self._names |= {"worker": self.worker, "timeout": timeout}

    async def found(self, listed: Sequence[ShardInfo], start: str, since_ms: int | None) -> int:
        """Note the shards that are new; returns how many.

        Where they begin: those of the first listing ever at ``start`` (``earliest``, ``latest``, or
        ``timestamp`` with ``since_ms``); later ones with their first record, since they follow others.
        """
        async with self._database.transaction("note the shards") as conn:
            await conn.execute(_LOCK, self._names)
            known = {shard for (shard,) in await (await conn.execute(_KNOWN, self._names)).fetchall()}
            new = [shard for shard in listed if shard.id not in known]
            if not new:
                return 0
            names = {
                **self._names,
                "shards": [shard.id for shard in new],
                "parents": [",".join(shard.parents) for shard in new],
                "start": "earliest" if known else start,
                "since_ms": None if known else since_ms,
            }
            await conn.execute(_ADD, names)
            await conn.execute(_ORIGINS.encode(), names)
            return len(new)

    async def beat(self, reports: Mapping[str, Report]) -> Board:
        """Say that we live and hold these shards; returns how everything stands now.

        Raises :class:`Inconsistent` when a mark contradicts one that is there: records were counted
        differently, and positions would mean other records than before.
        """
        async with self._database.transaction("renew the leases") as conn:
            await conn.execute(_MEMBER, self._names)
            if reports:
                ours = await self._renew(conn, reports)
                marks = {
                    shard: r.mark for shard, r in reports.items() if r.mark is not None and shard in ours
                }
                await self.add(conn, marks)
            shards = [ShardRow(*row) for row in await (await conn.execute(_BOARD, self._names)).fetchall()]
            workers = await (await conn.execute(_LIVING, self._names)).fetchall()
        return Board(shards, frozenset(worker for (worker,) in workers))

    async def take(self, shards: Collection[str]) -> None:
        """Take those of the shards that are free now."""
        await self._change("take leases", _TAKE, {"shards": sorted(shards)})

    async def ask(self, shards: Collection[str]) -> None:
        """Ask the holders of these shards to hand them over, where nobody else has."""
        await self._change("ask for leases", _ASK, {"shards": sorted(shards)})

    async def hand_over(self, leases: Mapping[str, int]) -> None:
        """Give up our leases: to whoever asked for the shard, or to anyone."""
        names = {"shards": list(leases), "leases": list(leases.values())}
        await self._change("hand leases over", _HAND_OVER, names)

    async def leave(self, leases: Mapping[str, int]) -> None:
        """Give up everything and be counted no more."""
        await self.hand_over(leases)
        await self._change("leave", _LEAVE, {})

    async def thin(self, kept: float) -> None:
        """Forget marks that are not needed (:meth:`Marks.thin`), and workers long gone.

        All workers call it now and then: who finds another one at it leaves it to that one.
        """
        async with self._database.transaction("thin out the marks") as conn:
            row = await (await conn.execute(_ALONE, self._names)).fetchone()
            if row is not None and row[0]:
                # Workers first, then marks, as a heartbeat locks them.
                await conn.execute(_FORGET_MEMBERS, self._names)
                await self._thin(conn, kept)

    async def _renew(self, conn: AsyncConnection[Any], reports: Mapping[str, Report]) -> set[str]:
        told = list(reports.values())
        names = {
            **self._names,
            "shards": list(reports),
            "leases": [report.lease for report in told],
            "behind": [report.behind_ms for report in told],
            "complete": [report.complete_for for report in told],
            "last": [report.last_position for report in told],
        }
        return {shard for (shard,) in await (await conn.execute(_RENEW, names)).fetchall()}
