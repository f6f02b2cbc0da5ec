"""Logs of a source, as one worker sees them: which there are, who reads which, and which are done."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from streamproc.database import Database
from streamproc.log_objects import PACKED, LogEnd, LogEntry, LogTotals, Period, TakenLog

#: The partition that stands for all that are compacted.
FINISHED = "finished"

#: A log that was there keeps its row: only size, time and place of a file may change. Those that are as they were are
#: looked up first, one by one: ON CONFLICT locks the row that it finds, changed or not, which writes it, and every
#: listing has all logs that there ever were.
_FOUND = """
    INSERT INTO streamproc.logs AS l (stream, source, partition, place, version, size, modified_ms, found_at)
    SELECT %(stream)s, %(source)s, partition, place, version, size, modified, clock_timestamp()
    FROM unnest(%(ids)s::text[], %(places)s::text[], %(versions)s::text[], %(sizes)s::bigint[],
                %(modified)s::bigint[]) AS seen (partition, place, version, size, modified)
    WHERE NOT EXISTS (
        SELECT FROM streamproc.logs AS k
        WHERE k.stream = %(stream)s AND k.source = %(source)s AND k.partition = seen.partition
          AND (k.place, k.version, k.size) = (seen.place, seen.version, seen.size) OFFSET 0)
    ORDER BY partition COLLATE "C"
    ON CONFLICT (stream, source, partition) DO UPDATE
        SET place = excluded.place, version = excluded.version, size = excluded.size,
            modified_ms = excluded.modified_ms
        WHERE (l.place, l.version, l.size) IS DISTINCT FROM (excluded.place, excluded.version, excluded.size)
    RETURNING done_size IS NULL OR done_size < size
"""

_OPEN = """
    stream = %(stream)s AND source = %(source)s AND (done_size IS NULL OR done_size < size)
    AND modified_ms >= COALESCE(%(since)s, modified_ms) AND modified_ms < COALESCE(%(until)s, modified_ms + 1)
"""

#: One whose row was folded gets one again: where it stood, so that ranges do not overlap, and with its clock, so that
#: its recent ids are known. What was counted by then stays where it was added.
_TAKE = f"""
    WITH free AS (
        SELECT partition, compacted FROM streamproc.logs
        WHERE {_OPEN} AND (holder IS NULL OR expires_at <= clock_timestamp())
          AND (%(only)s::text[] IS NULL OR partition = ANY(%(only)s))
        ORDER BY modified_ms, partition LIMIT %(most)s FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE streamproc.logs AS l
        SET holder = %(worker)s, expires_at = clock_timestamp() + make_interval(secs => %(timeout)s), compacted = false
        FROM free WHERE l.stream = %(stream)s AND l.source = %(source)s AND l.partition = free.partition
        RETURNING l.partition, place, version, size, modified_ms, done_size, done_position, done_offset,
                  free.compacted AS folded
    ), unfolded AS (
        INSERT INTO streamproc.partitions AS p
            (stream, source, partition, position, fence, token, clock_us, claimed_at, updated_at)
        SELECT %(stream)s, %(source)s, partition, NULLIF(done_position, -1), 0, gen_random_uuid(),
               (SELECT max(o.clock_us) FROM streamproc.objects AS o
                WHERE o.stream = %(stream)s AND o.source = %(source)s AND o.partition = taken.partition
                  AND o.state = 'committed' AND o.kind = 'events'),
               clock_timestamp(), clock_timestamp()
        FROM taken WHERE folded ORDER BY partition COLLATE "C"
        ON CONFLICT (stream, source, partition) DO UPDATE
            SET position = excluded.position, clock_us = excluded.clock_us WHERE p.position IS NULL
    )
    SELECT partition, place, version, size, modified_ms, done_size, done_position, done_offset FROM taken
"""  # noqa: S608 - put together from constants

_UNFINISHED = f"""
    SELECT partition FROM streamproc.logs WHERE {_OPEN} AND partition = ANY(%(only)s)
"""  # noqa: S608 - put together from constants

_RENEW = """
    UPDATE streamproc.logs SET expires_at = clock_timestamp() + make_interval(secs => %(timeout)s)
    WHERE stream = %(stream)s AND source = %(source)s AND partition = ANY(%(ids)s) AND holder = %(worker)s
      AND (done_size IS NULL OR done_size < size)
    RETURNING partition
"""

_FINISH = """
    WITH done AS (
        UPDATE streamproc.logs AS l
        SET done_size = ended.size, done_position = ended.position, done_offset = ended.at,
            size = CASE WHEN ended.gone THEN ended.size ELSE GREATEST(l.size, ended.size) END,
            done_at = clock_timestamp(), holder = NULL, expires_at = NULL
        FROM unnest(%(ids)s::text[], %(sizes)s::bigint[], %(positions)s::numeric[], %(offsets)s::bigint[],
                    %(gone)s::bool[]) AS ended (partition, size, position, at, gone)
        WHERE l.stream = %(stream)s AND l.source = %(source)s AND l.partition = ended.partition
          AND l.holder = %(worker)s
        RETURNING l.partition
    )
    UPDATE streamproc.partitions AS p SET owner = NULL FROM done
    WHERE p.stream = %(stream)s AND p.source = %(source)s AND p.partition = done.partition
"""

_RELEASE = """
    UPDATE streamproc.logs SET holder = NULL, expires_at = NULL
    WHERE stream = %(stream)s AND source = %(source)s AND partition = ANY(%(ids)s) AND holder = %(worker)s
"""

_TOTALS = f"""
    SELECT count(*), count(*) FILTER (WHERE done_size >= size), COALESCE(sum(size %% {PACKED}), 0),
           COALESCE(sum(size %% {PACKED}) FILTER (WHERE done_size >= size), 0)
    FROM streamproc.logs
    WHERE stream = %(stream)s AND source = %(source)s
      AND modified_ms >= COALESCE(%(since)s, modified_ms) AND modified_ms < COALESCE(%(until)s, modified_ms + 1)
"""  # noqa: S608 - put together from constants

#: Whoever claims a partition after this finds it done and leaves it alone; see sources/logs.py. The row's time is that
#: of the last commit, as in every other: one that was only claimed has none.
_COMPACT = """
    WITH old AS (
        SELECT partition FROM streamproc.logs
        WHERE stream = %(stream)s AND source = %(source)s AND NOT compacted
          AND done_at < clock_timestamp() - make_interval(secs => %(older)s) AND done_size >= size
        ORDER BY partition LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM streamproc.partitions AS p USING old
        WHERE p.stream = %(stream)s AND p.source = %(source)s AND p.partition = old.partition
        RETURNING p.clock_us, p.records, p.accepted, p.filtered, p.rejected, p.duplicate, p.updated_at
    ), summed AS (
        INSERT INTO streamproc.partitions AS f
            (stream, source, partition, fence, token, clock_us, records, accepted, filtered, rejected, duplicate,
             claimed_at, updated_at)
        SELECT %(stream)s, %(source)s, %(finished)s, 0, gen_random_uuid(), max(clock_us), sum(records),
               sum(accepted), sum(filtered), sum(rejected), sum(duplicate), clock_timestamp(),
               COALESCE(max(updated_at) FILTER (WHERE records > 0), max(updated_at))
        FROM gone HAVING count(*) > 0
        ON CONFLICT (stream, source, partition) DO UPDATE
            SET clock_us = GREATEST(f.clock_us, excluded.clock_us), records = f.records + excluded.records,
                accepted = f.accepted + excluded.accepted, filtered = f.filtered + excluded.filtered,
                rejected = f.rejected + excluded.rejected, duplicate = f.duplicate + excluded.duplicate,
                updated_at = CASE WHEN excluded.records > 0 THEN GREATEST(f.updated_at, excluded.updated_at)
                                  ELSE f.updated_at END
    )
    UPDATE streamproc.logs AS l SET compacted = true FROM old
    WHERE l.stream = %(stream)s AND l.source = %(source)s AND l.partition = old.partition
"""


class Logs:
    """The logs of one source of a stream, as one worker sees them.

    ``timeout``: seconds for which a lease holds. Every method raises :class:`DependencyError` when the
    database does not answer.
    """

    def __init__(self, database: Database, stream: str, source: str, worker: str, timeout: float) -> None:
        self.source = source
        self.timeout = timeout
        # Two processes of one name would take each other for themselves and read everything twice.
        worker = f"{worker}/{secrets.token_hex(4)}"
        self._database = database
        self._names: dict[str, object] = {
            "stream": stream,
            "source": source,
            "worker": worker,
            "timeout": timeout,
        }

    async def found(self, entries: Sequence[LogEntry]) -> int:
        """Note these logs; returns how many are new or have grown."""
        distinct = {entry.id: entry for entry in entries}
        if not distinct:
            return 0
        names = {
            "ids": list(distinct),
            "places": [entry.place for entry in distinct.values()],
            "versions": [entry.version for entry in distinct.values()],
            "sizes": [entry.size for entry in distinct.values()],
            "modified": [entry.modified_ms for entry in distinct.values()],
        }
        return sum(to_read for (to_read,) in await self._ask("note logs", _FOUND, names))

    async def take(self, most: int, period: Period, only: Collection[str] | None = None) -> list[TakenLog]:
        """Take at most so many free logs of the period that have something to read, those changed first first.

        ``only``: of these.
        """
        ids = None if only is None else sorted(only)
        names = {"most": most, "since": period.since_ms, "until": period.until_ms, "only": ids}
        return [
            TakenLog(
                LogEntry(id_, place, version, size, modified),
                None if done is None else LogEnd(done, int(position), offset),
            )
            for id_, place, version, size, modified, done, position, offset in await self._ask(
                "take logs", _TAKE, names
            )
        ]

    async def unfinished(self, logs: Collection[str]) -> set[str]:
        """Those of these logs that are not read to their ends, whoever reads them."""
        names = {"only": sorted(logs), "since": None, "until": None}
        return {id_ for (id_,) in await self._ask("look at logs", _UNFINISHED, names)}

    async def renew(self, logs: Collection[str]) -> set[str]:
        """Renew these leases; returns the logs that are still ours, and not done."""
        if not logs:
            return set()
        return {id_ for (id_,) in await self._ask("renew leases", _RENEW, {"ids": sorted(logs)})}

    async def finish(self, ends: Mapping[str, LogEnd]) -> None:
        """Note those of these logs that are ours as read and committed to their ends, and let go of them."""
        names = {
            "ids": list(ends),
            "sizes": [end.size for end in ends.values()],
            "positions": [end.position for end in ends.values()],
            "offsets": [end.offset for end in ends.values()],
            "gone": [end.gone for end in ends.values()],
        }
        await self._change("finish logs", _FINISH, names)

    async def release(self, logs: Collection[str]) -> None:
        """Let go of logs that are not at their ends."""
        await self._change("release logs", _RELEASE, {"ids": sorted(logs)})

    async def totals(self, period: Period) -> LogTotals:
        """How far everything of the period is. Looks at every row: not for a hot path."""
        names = {"since": period.since_ms, "until": period.until_ms}
        [(logs, done, size, done_size)] = await self._ask("count logs", _TOTALS, names)
        return LogTotals(logs, done, int(size), int(done_size))

    async def compact(self, older: float) -> int:
        """Fold the partitions of logs that are done for ``older`` seconds into one row; returns how many.

        One that is taken again, because it grew or is there again, gets a row again. Without a lake that has no clock.
        """
        return await self._change("compact logs", _COMPACT, {"older": older, "finished": FINISHED})

    async def _ask(self, doing: str, query: str, names: Mapping[str, object]) -> list[tuple[Any, ...]]:
        async with self._database.connection(doing) as conn:
            cursor = await conn.execute(query.encode(), {**self._names, **names})
            return await cursor.fetchall()

    async def _change(self, doing: str, query: str, names: Mapping[str, object]) -> int:
        async with self._database.connection(doing) as conn:
            return (await conn.execute(query.encode(), {**self._names, **names})).rowcount
