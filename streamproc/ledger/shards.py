"""Shards of a source without groups of its own: who reads which, and where in them positions are.

Positions of such a source are running numbers of the records of a shard. A *mark* says where the record
after a position is; the rest is found by counting on from there. The origin, the mark at position -1, is
made before the first record is handed out, so everybody counts from the same record.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.errors import Inconsistent
from streamproc.leases import Board, Found, Mark, Report, ShardInfo, ShardRow
from streamproc.model import Partition

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('streamproc shards ' || %(stream)s, 0))"

_KNOWN = "SELECT partition FROM streamproc.shards WHERE stream = %(stream)s AND source = %(source)s"

_ADD = """
    INSERT INTO streamproc.shards (stream, source, partition, parents, found_at)
    SELECT %(stream)s, %(source)s, shard, string_to_array(parents, ','), clock_timestamp()
    FROM unnest(%(shards)s::text[], %(parents)s::text[]) AS found (shard, parents)
"""

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

_ORIGINS = f"""
    INSERT INTO streamproc.shard_marks (stream, source, partition, position, inclusive, since_ms, marked_at)
    SELECT %(stream)s, %(source)s, shard, -1, true,
           CASE %(start)s WHEN 'latest' THEN {_NOW_MS} ELSE %(since_ms)s END, clock_timestamp()
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

#: A mark says the same whoever makes it, so one that is there already has to be equal.
_MARK = """
    INSERT INTO streamproc.shard_marks AS m
        (stream, source, partition, position, sequence, inclusive, marked_at)
    SELECT %(stream)s, %(source)s, partition, position, sequence, inclusive, clock_timestamp()
    FROM unnest(%(shards)s::text[], %(positions)s::numeric[], %(sequences)s::numeric[], %(inclusive)s::bool[])
         AS made (partition, position, sequence, inclusive)
    ON CONFLICT (stream, source, partition, position) DO UPDATE SET marked_at = m.marked_at
    WHERE m.sequence = excluded.sequence AND m.inclusive = excluded.inclusive
"""

#: Parents that the ledger does not know are gone from the stream: nothing of them can be read any more.
_BOARD = """
    WITH shards AS (
        SELECT s.*, COALESCE(s.last_position <= COALESCE(p.position, -1), false) AS finished
        FROM streamproc.shards AS s
        LEFT JOIN streamproc.partitions AS p
            ON (p.stream, p.source, p.partition) = (s.stream, s.source, s.partition)
        WHERE s.stream = %(stream)s AND s.source = %(source)s
    )
    SELECT partition,
           NOT EXISTS (SELECT FROM shards AS parent
                       WHERE parent.partition = ANY(shards.parents) AND NOT parent.finished),
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

_FORGET_MEMBERS = """
    DELETE FROM streamproc.members
    WHERE stream = %(stream)s AND seen_at < clock_timestamp() - interval '1 day'
"""

_FIND = """
    SELECT m.position, m.sequence, m.inclusive, m.since_ms,
           extract(epoch FROM clock_timestamp() - s.complete_at)::float8
    FROM streamproc.shard_marks AS m JOIN streamproc.shards AS s USING (stream, source, partition)
    WHERE m.stream = %(stream)s AND m.source = %(source)s AND m.partition = %(shard)s
      AND m.position <= %(position)s
    ORDER BY m.position DESC LIMIT 1
"""

_SETTLE = """
    UPDATE streamproc.shard_marks SET sequence = %(sequence)s, inclusive = true
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(shard)s AND position = %(position)s
      AND sequence IS NULL
"""

#: One mark a minute is kept of those older than an hour, and none that is beyond use: below the newest one
#: that every reader could begin at and older than any record.
_THIN = """
    DELETE FROM streamproc.shard_marks AS m
    USING (SELECT partition, position, marked_at,
                  row_number() OVER (PARTITION BY partition, date_trunc('minute', marked_at)
                                     ORDER BY position) AS place,
                  lead(position) OVER (PARTITION BY partition ORDER BY position) AS following
           FROM streamproc.shard_marks WHERE stream = %(stream)s AND source = %(source)s) AS old
    JOIN streamproc.partitions AS p
        ON p.stream = %(stream)s AND p.source = %(source)s AND p.partition = old.partition
    WHERE m.stream = %(stream)s AND m.source = %(source)s
      AND m.partition = old.partition AND m.position = old.position AND old.following <= p.position
      AND (old.marked_at < clock_timestamp() - make_interval(secs => %(kept)s)
           OR (old.place > 1 AND old.marked_at < clock_timestamp() - interval '1 hour'))
"""


class Shards:
    """The shards of one source of a stream, as one worker sees them.

    ``timeout``: seconds for which a lease holds after a heartbeat. Every method raises
    :class:`DependencyError` when the database does not answer.
    """

    def __init__(self, database: Database, stream: str, source: str, worker: str, timeout: float) -> None:
        self._database = database
        self._names: dict[str, object] = {"stream": stream, "source": source, "timeout": timeout}
        self.source = source
        # Two processes of one name would take each other for themselves and read everything twice.
        self.worker = f"{worker}/{secrets.token_hex(4)}"
        self._names["worker"] = self.worker
        self.timeout = timeout

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
                await self._mark(conn, marks)
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

    async def find(self, shard: str, position: int | None) -> Found:
        """The newest mark at or before the position; ``None``: the origin."""
        names = {**self._names, "shard": shard, "position": -1 if position is None else position}
        async with self._database.connection("find a position") as conn:
            row = await (await conn.execute(_FIND, names)).fetchone()
        if row is None:
            raise Inconsistent(f"{Partition(self.source, shard)}: no mark leads to position {position}")
        at, sequence, inclusive, since_ms, complete_for = row
        mark = Mark(int(at), None if sequence is None else int(sequence), inclusive, since_ms)
        return Found(mark, complete_for)

    async def settle(self, shard: str, position: int, sequence: int) -> Mark:
        """Bind the mark at ``position`` to the record that was found there; returns what it is bound to.

        Another worker may have been first. Before this, no record behind the mark may be handed out.
        """
        await self._change(
            "settle a mark", _SETTLE, {"shard": shard, "position": position, "sequence": sequence}
        )
        return (await self.find(shard, position)).mark

    async def thin(self, kept: float) -> None:
        """Forget marks that are not needed, and workers long gone.

        ``kept``: seconds for which the source keeps its records.
        """
        await self._change("forget workers", _FORGET_MEMBERS, {})
        await self._change("thin out the marks", _THIN, {"kept": kept})

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

    async def _mark(self, conn: AsyncConnection[Any], marks: Mapping[str, Mark]) -> None:
        if not marks:
            return
        names = {
            **self._names,
            "shards": list(marks),
            "positions": [mark.position for mark in marks.values()],
            "sequences": [mark.sequence for mark in marks.values()],
            "inclusive": [mark.inclusive for mark in marks.values()],
        }
        if (await conn.execute(_MARK, names)).rowcount != len(marks):
            raise Inconsistent(f"{self.source}: records of a shard were counted differently before: {marks}")

    async def _change(self, doing: str, query: str, names: Mapping[str, object]) -> None:
        async with self._database.connection(doing) as conn:
            await conn.execute(query.encode(), {**self._names, **names})
