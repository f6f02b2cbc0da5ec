"""Which rejects were sent again, and what became of it.

A reject is *claimed* in a transaction of its own before its record is sent, and sent only by whoever
claimed it. So it is sent at most once, by any number of redrives, at once or one after the other, and
whatever crashes in between. The price is paid at a crash: what was claimed and not confirmed may or may not
have been sent, and is left alone from then on.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from streamproc.database import Database
from streamproc.errors import LedgerError
from streamproc.model import Partition

_WANTED = "unnest(%(sources)s::text[], %(partitions)s::text[], %(positions)s::numeric[])"

_CLAIM = f"""
    INSERT INTO streamproc.redrives (stream, source, partition, position, worker, claimed_at)
    SELECT %(stream)s, source, partition, position, %(worker)s, clock_timestamp()
    FROM {_WANTED} AS wanted (source, partition, position)
    WHERE NOT EXISTS (
        SELECT FROM streamproc.replays AS r JOIN streamproc.replay_ranges AS g USING (stream, name)
        WHERE r.stream = %(stream)s AND (r.state = 'promoting' OR r.promoted_at > %(begun)s)
          AND (g.source, g.partition) = (wanted.source, wanted.partition)
          AND wanted.position > g.after AND wanted.position <= g.through)
    ORDER BY source COLLATE "C", partition COLLATE "C", position
    ON CONFLICT (stream, source, partition, position) DO NOTHING
    RETURNING source, partition, position
"""  # noqa: S608 - put together from constants

#: Shared by redrives, and taken alone by a promotion when it looks at what was redriven.
LOCK_REDRIVES = "SELECT pg_advisory_xact_lock{}(hashtextextended('streamproc redrives ' || %(stream)s, 0))"

_LONG_AGO = datetime.min.replace(tzinfo=UTC)

_CONFIRM = """
    UPDATE streamproc.redrives AS r SET sent_at = clock_timestamp(), sent_as = sent.copy
    FROM unnest(%(sources)s::text[], %(partitions)s::text[], %(positions)s::numeric[], %(copies)s::numeric[])
         AS sent (source, partition, position, copy)
    WHERE r.stream = %(stream)s AND r.worker = %(worker)s AND r.sent_at IS NULL
      AND (r.source, r.partition, r.position) = (sent.source, sent.partition, sent.position)
"""

_GIVE_BACK = f"""
    DELETE FROM streamproc.redrives
    WHERE stream = %(stream)s AND worker = %(worker)s AND sent_at IS NULL
      AND (source, partition, position) IN (SELECT * FROM {_WANTED})
"""  # noqa: S608 - put together from constants

_STATES = f"""
    SELECT wanted.source, wanted.partition, wanted.position, r.position IS NOT NULL, r.sent_at IS NOT NULL
    FROM {_WANTED} AS wanted (source, partition, position)
    LEFT JOIN streamproc.redrives AS r ON r.stream = %(stream)s
        AND (r.source, r.partition, r.position) = (wanted.source, wanted.partition, wanted.position)
    WHERE r.position IS NOT NULL OR EXISTS (
        SELECT FROM streamproc.redrives AS c WHERE c.stream = %(stream)s
        AND (c.source, c.partition, c.sent_as) = (wanted.source, wanted.partition, wanted.position))
"""  # noqa: S608 - put together from constants


class Coordinate(NamedTuple):
    """One record of a source."""

    partition: Partition
    position: int


class RedriveState(enum.StrEnum):
    """What is known of a reject's redrive.

    ``copy``: the reject is itself what a redrive sent, and was rejected again.
    """

    SENT = "sent"
    UNCONFIRMED = "unconfirmed"
    COPY = "copy"


class Redrives:
    """One stream's redrives. ``worker`` names this run; no other run may confirm or give back its claims."""

    def __init__(self, database: Database, stream: str, worker: str) -> None:
        self._database = database
        self._names: dict[str, object] = {"stream": stream, "worker": worker, "begun": _LONG_AGO}

    async def begin(self) -> None:
        """To be called before the rejects are listed: what is promoted later, the list does not know.

        Raises :class:`LedgerError` while a replay is being promoted.
        """
        async with self._database.connection("begin a redrive") as conn:
            cursor = await conn.execute(
                "SELECT clock_timestamp(), (SELECT min(name) FROM streamproc.replays"
                " WHERE stream = %(stream)s AND state = 'promoting')",
                self._names,
            )
            row = await cursor.fetchone()
        assert row is not None
        if row[1] is not None:
            raise LedgerError(
                f"replay {row[1]} is being promoted: finish that first (streamproc replay promote {row[1]})"
            )
        self._names["begun"] = row[0]

    async def claim(self, records: Collection[Coordinate]) -> set[Coordinate]:
        """Those of the records that nobody claimed before, and that are now ours to send.

        Records of a range that a replay was put in the place of since :meth:`begin` are left out: they may
        be rejects no more.
        """
        async with self._database.transaction("claim rejects for a redrive") as conn:
            await conn.execute(LOCK_REDRIVES.format("_shared").encode(), self._names)
            cursor = await conn.execute(_CLAIM, self._parameters(records))
            return {_coordinate(*row) for row in await cursor.fetchall()}

    async def confirm(self, sent: Mapping[Coordinate, int | None]) -> None:
        """Note that claimed records were sent, each with the position of its copy, if that is known."""
        async with self._database.transaction("confirm redriven rejects") as conn:
            await conn.execute(_CONFIRM, {**self._parameters(sent), "copies": list(sent.values())})

    async def give_back(self, refused: Collection[Coordinate]) -> None:
        """Forget claims of records that were certainly not sent: a later redrive may try them again."""
        async with self._database.transaction("give back refused rejects") as conn:
            await conn.execute(_GIVE_BACK, self._parameters(refused))

    async def sent(self, partition: Partition) -> frozenset[int]:
        """Positions of the partition's records that were sent again, or may have been."""
        async with self._database.connection("look up redrives") as conn:
            cursor = await conn.execute(
                "SELECT position FROM streamproc.redrives"
                " WHERE stream = %s AND source = %s AND partition = %s",
                [self._names["stream"], partition.source, partition.id],
            )
            return frozenset(int(position) for (position,) in await cursor.fetchall())

    async def states(self, records: Collection[Coordinate]) -> dict[Coordinate, RedriveState]:
        """What is known of these records; those that no redrive has to do with are left out."""
        async with self._database.connection("look up redrives") as conn:
            cursor = await conn.execute(_STATES, self._parameters(records))
            return {
                _coordinate(source, number, position): _state(claimed=claimed, sent=sent)
                for source, number, position, claimed, sent in await cursor.fetchall()
            }

    def _parameters(self, records: Iterable[Coordinate]) -> dict[str, Any]:
        ordered = list(records)
        return {
            **self._names,
            "sources": [record.partition.source for record in ordered],
            "partitions": [record.partition.id for record in ordered],
            "positions": [record.position for record in ordered],
        }


def _coordinate(source: str, number: str, position: Any) -> Coordinate:
    return Coordinate(Partition(source, number), int(position))


def _state(*, claimed: bool, sent: bool) -> RedriveState:
    if not claimed:
        return RedriveState.COPY
    return RedriveState.SENT if sent else RedriveState.UNCONFIRMED
