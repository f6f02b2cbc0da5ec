"""Positions set by hand, and the note that is kept of each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from streamproc.errors import LedgerError
from streamproc.leases import Mark
from streamproc.ledger import claims as claiming
from streamproc.model import Partition

_SET_POSITION = """
    UPDATE streamproc.partitions
    SET position = %(position)s, log = NULL, owner = NULL, updated_at = clock_timestamp()
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(partition)s
"""

_NOTE_CHANGE = """
    INSERT INTO streamproc.position_changes
        (stream, source, partition, changed_at, from_position, to_position, worker, note)
    VALUES (%(stream)s, %(source)s, %(partition)s, clock_timestamp(), %(before)s, %(position)s, %(worker)s,
            %(note)s)
"""

_FREE = """
    UPDATE streamproc.shards SET holder = NULL, wanted_by = NULL, lease = lease + 1,
        last_position = CASE WHEN %(ended)s THEN %(position)s::numeric END
    WHERE stream = %(stream)s AND source = %(source)s AND partition = %(partition)s
"""

_ADD_MARK = """
    INSERT INTO streamproc.shard_marks
        (stream, source, partition, position, sequence, inclusive, since_ms, marked_at)
    SELECT %(stream)s, %(source)s, %(partition)s, %(position)s, %(sequence)s, %(inclusive)s, %(since_ms)s,
           clock_timestamp()
    WHERE NOT EXISTS (
        SELECT FROM streamproc.shard_marks
        WHERE stream = %(stream)s AND source = %(source)s AND partition = %(partition)s
          AND position >= %(position)s)
"""

_CHANGES = """
    SELECT source, partition, changed_at, from_position, to_position, worker, note
    FROM streamproc.position_changes WHERE stream = %s ORDER BY changed_at, source, partition
"""


@dataclass(frozen=True, slots=True)
class NewPosition:
    """What an operator wants a partition's position to be, and what they accept for it.

    ``position``: committed through here; ``None`` is the beginning. ``accept_gap``: the records between
    the old and the new position are never read. ``accept_repeat``: those between the new and the old one are
    read again, and stand twice in the lake and the tables. ``note`` says why. ``mark``: where in a shard the
    record after ``position`` is, if the position is a new one, beyond all that are known. ``ended``: of a shard
    that the stream has forgotten; it is at its end there, and what was made from it can begin.
    """

    partition: Partition
    position: int | None
    accept_gap: bool = False
    accept_repeat: bool = False
    note: str = ""
    mark: Mark | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class PositionChange:
    """A position that was set: ``(before, after]`` was skipped, or ``(after, before]`` is read again."""

    partition: Partition
    changed_at: datetime
    before: int | None
    after: int | None
    worker: str
    note: str


async def set_position(conn: AsyncConnection[Any], stream: str, worker: str, new: NewPosition) -> int | None:
    """Set the position and note it; returns the one before. The owner, if any, is fenced off.

    The position is one of the log that the next owner finds.

    Raises :class:`LedgerError` when the change loses or repeats records and that was not accepted.
    """
    partition = new.partition
    before = (await claiming.claim(conn, stream, worker, [partition]))[partition].position
    await _refuse_promoting(conn, stream)  # under the row lock that a promotion takes before it begins
    old, wanted = (-1 if position is None else position for position in (before, new.position))
    if wanted > old and not new.accept_gap:
        raise LedgerError(
            f"{partition}: from {before} to {new.position} would skip records; accept the gap to do it"
        )
    if wanted < old and not new.accept_repeat:
        raise LedgerError(
            f"{partition}: from {before} back to {new.position} would count records twice; "
            "accept the repetition to do it"
        )
    names: dict[str, object] = {
        "stream": stream,
        "source": partition.source,
        "partition": partition.id,
        "before": before,
        "position": new.position,
        "ended": new.ended,
        "worker": worker,
        "note": new.note,
    }
    await _free_shard(conn, names, new.mark)
    await conn.execute(_SET_POSITION, names)
    await conn.execute(_NOTE_CHANGE, names)
    return before


async def _free_shard(conn: AsyncConnection[Any], names: dict[str, object], mark: Mark | None) -> None:
    """Take the shard's lease from its holder, whose counting ends here, and add the mark."""
    await conn.execute(_FREE, names)
    if mark is None:
        return
    asked = {**names, "sequence": mark.sequence, "inclusive": mark.inclusive, "since_ms": mark.since_ms}
    if (await conn.execute(_ADD_MARK, asked)).rowcount != 1:
        raise LedgerError(f"{names['partition']}: its reader has got further meanwhile; try again")


async def _refuse_promoting(conn: AsyncConnection[Any], stream: str) -> None:
    cursor = await conn.execute(
        "SELECT name FROM streamproc.replays WHERE stream = %s AND state = 'promoting' FOR SHARE", [stream]
    )
    if (row := await cursor.fetchone()) is not None:
        raise LedgerError(
            f"replay {row[0]} is being promoted: finish that first (streamproc replay promote {row[0]})"
        )


async def position_changes(conn: AsyncConnection[Any], stream: str) -> list[PositionChange]:
    """All of them, oldest first."""
    rows = await (await conn.execute(_CHANGES, [stream])).fetchall()
    return [
        PositionChange(Partition(source, number), changed_at, _integer(before), _integer(after), worker, note)
        for source, number, changed_at, before, after, worker, note in rows
    ]


def _integer(position: Any) -> int | None:
    return None if position is None else int(position)
