"""Where in a shard the positions are: a sparse index from positions to sequence numbers.

Positions of a source without numbers of its own are running numbers of the records of a shard. A *mark* says
where the record after a position is; the rest is found by counting on from there. The origin, the mark at
position -1, is made before the first record is handed out, so everybody counts from the same record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.errors import Inconsistent
from streamproc.leases import Found, Mark
from streamproc.model import Partition

#: The database's clock, Unix milliseconds.
NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

#: A mark says the same whoever makes it, so one that is there already has to be equal.
_MARK = """
    INSERT INTO streamproc.shard_marks AS m
        (stream, source, partition, position, sequence, inclusive, arrived_ms, marked_at)
    SELECT %(stream)s, %(source)s, partition, position, sequence, inclusive, arrived_ms, clock_timestamp()
    FROM unnest(%(shards)s::text[], %(positions)s::numeric[], %(sequences)s::numeric[], %(inclusive)s::bool[],
                %(arrived)s::bigint[])
         AS made (partition, position, sequence, inclusive, arrived_ms)
    ON CONFLICT (stream, source, partition, position) DO UPDATE SET marked_at = m.marked_at
    WHERE m.sequence = excluded.sequence AND m.inclusive = excluded.inclusive
"""

_FIND = """
    SELECT m.position, m.sequence, m.inclusive, m.since_ms, m.arrived_ms,
           extract(epoch FROM clock_timestamp())::float8 - m.arrived_ms / 1000.0::float8,
           extract(epoch FROM clock_timestamp() - s.complete_at)::float8
    FROM streamproc.shard_marks AS m JOIN streamproc.shards AS s USING (stream, source, partition)
    WHERE m.stream = %(stream)s AND m.source = %(source)s AND m.partition = %(shard)s
      AND m.position <= %(position)s
    ORDER BY m.position DESC LIMIT 1
"""

_NEWEST = """
    SELECT position, sequence, inclusive, since_ms, arrived_ms FROM streamproc.shard_marks
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(shard)s
    ORDER BY position DESC LIMIT 1
"""

_OLDEST = """
    SELECT min(position) FROM streamproc.shard_marks
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(shard)s
"""

_FURTHEST = """
    SELECT max(sequence) FROM streamproc.shard_marks
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(shard)s
"""

_BEFORE = """
    SELECT position, sequence, inclusive, since_ms, arrived_ms FROM streamproc.shard_marks
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(shard)s
      AND (sequence < %(sequence)s OR sequence = %(sequence)s AND inclusive)
    ORDER BY position DESC LIMIT 1
"""

_COMPLETE = """
    UPDATE streamproc.shards
    SET complete_at = clock_timestamp() - make_interval(secs => %(ago)s)
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(shard)s
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


class Marks:
    """The marks of one source of a stream. Every method raises :class:`DependencyError`."""

    def __init__(self, database: Database, stream: str, source: str) -> None:
        self.source = source
        self._database = database
        self._names: dict[str, object] = {"stream": stream, "source": source}

    async def find(self, shard: str, position: int | None) -> Found:
        """The newest mark at or before the position; ``None``: the origin."""
        names = {**self._names, "shard": shard, "position": -1 if position is None else position}
        async with self._database.connection("find a position") as conn:
            row = await (await conn.execute(_FIND, names)).fetchone()
        if row is None:
            raise Inconsistent(f"{Partition(self.source, shard)}: no mark leads to position {position}")
        *mark, age, complete_for = row
        return Found(_mark(*mark), age, complete_for)

    async def newest(self, shard: str) -> Mark | None:
        """The mark with the highest position, ``None`` for a shard that nobody knows."""
        return await self._one_mark(_NEWEST, {"shard": shard})

    async def oldest(self, shard: str) -> int | None:
        """The lowest position to which a mark leads; ``None`` for a shard that nobody knows."""
        return await self._one_number(_OLDEST, shard)

    async def furthest(self, shard: str) -> int | None:
        """The highest sequence number of a mark: records beyond it were not read when it was made."""
        return await self._one_number(_FURTHEST, shard)

    async def before(self, shard: str, sequence: int) -> Mark | None:
        """The newest mark from which the record ``sequence`` is reached; ``None``: none is that old."""
        return await self._one_mark(_BEFORE, {"shard": shard, "sequence": sequence})

    async def now_ms(self) -> int:
        """The database's clock, Unix milliseconds."""
        async with self._database.connection("ask for the time") as conn:
            row = await (await conn.execute(f"SELECT {NOW_MS}".encode())).fetchone()
        assert row is not None
        return int(row[0])

    async def settle(self, shard: str, position: int, sequence: int) -> Mark:
        """Bind the mark at ``position`` to the record that was found there; returns what it is bound to.

        Another worker may have been first. Before this, no record behind the mark may be handed out.
        """
        await self._change(
            "settle a mark", _SETTLE, {"shard": shard, "position": position, "sequence": sequence}
        )
        return (await self.find(shard, position)).mark

    async def complete(self, shard: str, ago: float) -> None:
        """Note that everything is committed that had arrived in the shard so many seconds ago."""
        await self._change("note a complete shard", _COMPLETE, {"shard": shard, "ago": ago})

    async def thin(self, kept: float) -> None:
        """Forget marks that are not needed; ``kept``: seconds for which the source keeps its records."""
        async with self._database.connection("thin out the marks") as conn:
            await self._thin(conn, kept)

    async def _thin(self, conn: AsyncConnection[Any], kept: float) -> None:
        await conn.execute(_THIN, {**self._names, "kept": kept})

    async def add(self, conn: AsyncConnection[Any], marks: Mapping[str, Mark]) -> None:
        """Note these marks of shards whose leases are ours, in the caller's transaction.

        Raises :class:`Inconsistent` when one contradicts one that is there: records were counted
        differently, and positions would mean other records than before.
        """
        if not marks:
            return
        names = {
            **self._names,
            "shards": list(marks),
            "positions": [mark.position for mark in marks.values()],
            "sequences": [mark.sequence for mark in marks.values()],
            "inclusive": [mark.inclusive for mark in marks.values()],
            "arrived": [mark.arrived_ms for mark in marks.values()],
        }
        if (await conn.execute(_MARK, names)).rowcount != len(marks):
            raise Inconsistent(f"{self.source}: records of a shard were counted differently before: {marks}")

    async def _one_number(self, query: str, shard: str) -> int | None:
        async with self._database.connection("look for a mark") as conn:
            row = await (await conn.execute(query.encode(), {**self._names, "shard": shard})).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    async def _one_mark(self, query: str, names: Mapping[str, object]) -> Mark | None:
        async with self._database.connection("look for a mark") as conn:
            row = await (await conn.execute(query.encode(), {**self._names, **names})).fetchone()
        return None if row is None else _mark(*row)

    async def _change(self, doing: str, query: str, names: Mapping[str, object]) -> None:
        async with self._database.connection(doing) as conn:
            await conn.execute(query.encode(), {**self._names, **names})


def _mark(position: Any, sequence: Any, *rest: Any) -> Mark:
    return Mark(int(position), None if sequence is None else int(sequence), *rest)
