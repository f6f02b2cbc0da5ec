"""Which ranges are processed again beside the live stream, and how far each replay is.

A replay has a *namespace*: a stream name of its own, under which it claims, commits and keeps its tables like
any stream. What ties it to the live stream are the rows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from streamproc.database import Database
from streamproc.errors import ConfigError, LedgerError, Mistake
from streamproc.ledger.compaction import LOCK_COMPACTION
from streamproc.ledger.replay_spans import Span, parameters
from streamproc.model import Partition

#: The year 9999, after every event: nothing in the range was accepted, by live or by the replay.
_NEVER = 253_402_300_799_000_000

#: The longest name PostgreSQL keeps whole; the namespace is a schema's.
_LONGEST = 63

_COLUMNS = """
    SELECT stream, name, namespace, state, fingerprint, asked, operator, created_at, completed_at, promoted_at,
           since_us
    FROM streamproc.replays
"""

_RANGES = """
    SELECT g.source, g.partition, g.after, g.through, g.clock_us, g.carried, p.position, p.clock_us
    FROM streamproc.replay_ranges AS g
    LEFT JOIN streamproc.partitions AS p
           ON p.stream = %(namespace)s AND (p.source, p.partition) = (g.source, g.partition)
    WHERE g.stream = %(stream)s AND g.name = %(name)s
    ORDER BY g.source, g.partition
"""

_CREATE = """
    INSERT INTO streamproc.replays (stream, name, namespace, state, fingerprint, asked, operator, created_at)
    VALUES (%(stream)s, %(name)s, %(namespace)s, 'running', %(fingerprint)s, %(asked)s, %(operator)s,
            clock_timestamp())
    ON CONFLICT DO NOTHING
"""

#: The live clock at the beginning of a range: what the objects before it say.
_CREATE_RANGES = """
    INSERT INTO streamproc.replay_ranges (stream, name, source, partition, after, through, clock_us)
    SELECT %(stream)s, %(name)s, source, partition, after, through, (
        SELECT max(o.clock_us) FROM streamproc.objects AS o
        WHERE o.stream = %(stream)s AND o.kind = 'events' AND o.state = 'committed'
          AND (o.source, o.partition) = (wanted.source, wanted.partition) AND o.through <= wanted.after)
    FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(afters)s::numeric[], %(throughs)s::numeric[])
         AS wanted (source, partition, after, through)
"""

#: Objects that lie in a range and outside of it: a compaction has merged commits over its end.
_MERGED = """
    SELECT count(*) FROM streamproc.objects AS o JOIN streamproc.replay_ranges AS g
        ON (g.source, g.partition) = (o.source, o.partition)
    WHERE o.stream = %(stream)s AND o.state = 'committed' AND g.stream = %(stream)s AND g.name = %(name)s
      AND o.through > g.after AND coalesce(o.after, -1) < g.through
      AND NOT (coalesce(o.after, -1) >= g.after AND o.through <= g.through)
"""

#: Its own partitions stand where its range begins; the first claim finds them there.
_CREATE_PARTITIONS = """
    INSERT INTO streamproc.partitions
        (stream, source, partition, position, fence, token, clock_us, claimed_at, updated_at)
    SELECT %(namespace)s, source, partition, after, 0, gen_random_uuid(), clock_us, clock_timestamp(),
           clock_timestamp()
    FROM streamproc.replay_ranges
    WHERE stream = %(stream)s AND name = %(name)s AND through > after
"""

#: The partition's clock where its range begins, and the oldest event that live or the replay has in it.
_BEGINNINGS = """
    SELECT g.clock_us, min(o.min_time_us) FROM streamproc.replay_ranges AS g
    LEFT JOIN streamproc.objects AS o
           ON o.stream IN (%(stream)s, %(namespace)s) AND o.kind = 'events' AND o.state = 'committed'
          AND (o.source, o.partition) = (g.source, g.partition)
          AND o.through > g.after AND o.through <= g.through
    WHERE g.stream = %(stream)s AND g.name = %(name)s AND g.through > g.after
    GROUP BY g.source, g.partition, g.clock_us
"""

_COUNTS = """
    SELECT coalesce(sum(r.records), 0), coalesce(sum(r.accepted), 0), coalesce(sum(r.filtered), 0),
           coalesce(sum(r.rejected), 0), coalesce(sum(r.duplicate), 0)
    FROM streamproc.epoch_ranges AS r
    JOIN streamproc.epochs AS e ON e.id = r.epoch AND e.stream = %(of)s
    JOIN streamproc.replay_ranges AS g ON (g.source, g.partition) = (r.source, r.partition)
    WHERE g.stream = %(stream)s AND g.name = %(name)s
      AND r.through > g.after AND r.through <= g.through
"""


@dataclass(frozen=True, slots=True)
class ReplayRange:
    """One partition of a replay.

    ``clock_us``: the live clock where the range begins. ``carried``: see
    :mod:`streamproc.runtimes.replay.carry`. ``position`` and ``end_clock_us``: how far the replay itself is.
    """

    span: Span
    clock_us: int | None = None
    carried: int | None = None
    position: int | None = None
    end_clock_us: int | None = None

    @property
    def done(self) -> bool:
        """Whether everything of it is processed."""
        return self.span.empty or (self.position is not None and self.position >= self.span.through)

    @property
    def left(self) -> int:
        """Positions still to process."""
        if self.span.empty:
            return 0
        position = self.span.after if self.position is None else self.position
        return max(0, self.span.through - position)


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay of ``stream`` under the stream name ``namespace``. Times are UTC.

    ``state``: ``running``, ``complete`` (everything is processed; it may be compared and promoted),
    ``promoting`` (begun, to be finished), ``promoted``. ``asked``: the range in the operator's words.
    """

    stream: str
    name: str
    namespace: str
    state: str
    fingerprint: str
    asked: str
    operator: str
    created_at: datetime
    completed_at: datetime | None
    promoted_at: datetime | None
    since_us: int | None
    ranges: Mapping[Partition, ReplayRange]

    @property
    def processed(self) -> bool:
        """Whether every partition is processed to the end of its range."""
        return all(each.done for each in self.ranges.values())

    @property
    def positions(self) -> int:
        """How many positions the ranges hold."""
        return sum(each.span.through - each.span.after for each in self.ranges.values())

    @property
    def left(self) -> int:
        """How many of them are still to be processed."""
        return sum(each.left for each in self.ranges.values())


def namespace(stream: str, name: str) -> str:
    """The stream name of a replay. Raises :class:`ConfigError` when PostgreSQL would cut it off."""
    result = f"{stream}__replay_{name}"
    if len(result) > _LONGEST:
        fix = f"Shorten it by {len(result) - _LONGEST} characters"
        raise ConfigError([Mistake(f"--into {name}", f"{result} is too long for a schema's name", fix)])
    return result


class Replays:
    """The replays of one stream. Nothing here looks at a topic, a lake or a table."""

    def __init__(self, database: Database, stream: str) -> None:
        self.database = database
        self.stream = stream

    async def get(self, name: str) -> Replay | None:
        """The replay of that name, if there is one."""
        async with self.database.connection("look for the replay") as conn:
            return await get(conn, self.stream, name)

    async def still(self, replay: Replay) -> Replay:
        """The replay as it is now. Raises :class:`LedgerError` when it was discarded: one of its name is another."""
        found = await self.get(replay.name)
        if found is None or found.created_at != replay.created_at:
            raise LedgerError(f"replay {replay.name} was discarded meanwhile")
        return found

    async def all(self) -> list[Replay]:
        """All of them, oldest first."""
        async with self.database.connection("list the replays") as conn:
            cursor = await conn.execute(
                f"{_COLUMNS} WHERE stream = %s ORDER BY created_at, name", [self.stream]
            )
            return [await _replay(conn, row) for row in await cursor.fetchall()]

    async def create(
        self, name: str, fingerprint: str, asked: str, operator: str, spans: Mapping[Partition, Span]
    ) -> Replay:
        """Note a new replay. Raises :class:`LedgerError` when there is one of that name, or the
        range cuts objects.
        """
        names = {
            "stream": self.stream,
            "name": name,
            "namespace": namespace(self.stream, name),
            "fingerprint": fingerprint,
            "asked": asked,
            "operator": operator,
            **parameters(spans),
        }
        async with self.database.transaction("note the replay") as conn:
            await conn.execute(LOCK_COMPACTION, names)
            if (await conn.execute(_CREATE, names)).rowcount != 1:
                raise LedgerError(f"there is a replay {name} of {self.stream} already")
            # Of one of this name that was discarded, a worker that noticed too late may have left it.
            await conn.execute("DELETE FROM streamproc.partitions WHERE stream = %(namespace)s", names)
            await conn.execute(_CREATE_RANGES, names)
            row = await (await conn.execute(_MERGED, names)).fetchone()
            if row is None or row[0]:
                raise LedgerError(f"the lake of {self.stream} was compacted just now: ask again")
            await conn.execute(_CREATE_PARTITIONS, names)
            replay = await get(conn, self.stream, name)
        assert replay is not None
        return replay

    async def complete(self, replay: Replay, patience: int) -> Replay:
        """Note that everything is processed, and from which event time on the tables are rebuilt.

        That is ``patience`` (microseconds) before the clocks at the beginning of the ranges: what came later
        and is older was too late for every window that ends before. A partition that had no clock then
        took events of any age.
        """
        names = {"stream": self.stream, "name": replay.name, "namespace": replay.namespace}
        async with self.database.transaction("complete the replay") as conn:
            found = await get(conn, self.stream, replay.name, lock=True)
            if found is None or not found.processed:
                raise LedgerError(f"replay {replay.name} is not processed to its end")
            if found.state != "running":
                return found
            rows = await (await conn.execute(_BEGINNINGS, names)).fetchall()
            beginnings = [oldest if clock is None else clock - patience for clock, oldest in rows]
            since = min((each for each in beginnings if each is not None), default=_NEVER)
            await conn.execute(
                "UPDATE streamproc.replays SET state = 'complete', completed_at = clock_timestamp(),"
                " since_us = %(since)s WHERE stream = %(stream)s AND name = %(name)s",
                {**names, "since": since},
            )
            found = await get(conn, self.stream, replay.name)
        assert found is not None
        return found

    async def counts(self, replay: Replay) -> dict[str, dict[str, int]]:
        """What became of the range's records, in ``live`` and in the ``replay``, before it is promoted."""
        names = {"stream": self.stream, "name": replay.name}
        async with self.database.connection("count the records of the range") as conn:
            rows = {
                who: await (await conn.execute(_COUNTS, {**names, "of": of})).fetchone()
                for who, of in (("live", self.stream), ("replay", replay.namespace))
            }
        kinds = ("records", "accepted", "filtered", "rejected", "duplicate")
        return {who: dict(zip(kinds, map(int, row or ()), strict=True)) for who, row in rows.items()}


async def get(conn: AsyncConnection[Any], stream: str, name: str, *, lock: bool = False) -> Replay | None:
    """The replay of that name; ``lock``: nobody else changes it before the transaction ends."""
    query = f"{_COLUMNS} WHERE stream = %s AND name = %s {'FOR NO KEY UPDATE' if lock else ''}"
    row = await (await conn.execute(query.encode(), [stream, name])).fetchone()
    return None if row is None else await _replay(conn, row)


async def _replay(conn: AsyncConnection[Any], row: tuple[Any, ...]) -> Replay:
    names = dict(zip(("stream", "name", "namespace"), row, strict=False))
    ranges = {}
    for source, number, after, through, clock, carried, position, end_clock in await (
        await conn.execute(_RANGES, names)
    ).fetchall():
        ranges[Partition(source, number)] = ReplayRange(
            Span(int(after), int(through)),
            clock,
            None if carried is None else int(carried),
            None if position is None else int(position),
            end_clock,
        )
    (_, _, _, state, fingerprint, asked, operator, created, completed, promoted, since) = row
    return Replay(
        stream=names["stream"],
        name=names["name"],
        namespace=names["namespace"],
        state=state,
        fingerprint=fingerprint,
        asked=asked,
        operator=operator,
        created_at=created,
        completed_at=completed,
        promoted_at=promoted,
        since_us=since,
        ranges=ranges,
    )
