"""The values the ledger's tests are made of."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from streamproc.model import (
    Advance,
    Claim,
    Counts,
    EpochRecord,
    Partition,
    PlannedObject,
    WrittenObject,
)

P0, P1, P2 = (Partition("clicks", str(number)) for number in range(3))


def advance(claim: Claim, through: int, **counts: int) -> Advance:
    """The claim's partition from where it stands through ``through``; all records accepted unless said."""
    first = -1 if claim.position is None else claim.position
    counts = counts or {"records": through - first, "accepted": through - first}
    return Advance(claim, claim.position, through, through * 1000, Counts(**counts))


def planned(part: Advance, kind: str = "events", rows: int | None = None) -> PlannedObject:
    """An object for all rows of ``part`` of that kind."""
    count = part.counts.accepted if kind == "events" else part.counts.rejected
    return PlannedObject(
        key=f"{kind}/{part.claim.partition.id}-{uuid.uuid4().hex}.parquet",
        kind=kind,
        partition=part.claim.partition,
        after=part.after,
        through=part.through,
        rows=count if rows is None else rows,
        min_time_us=part.clock_us,
        max_time_us=part.clock_us,
        clock_us=part.clock_us,
    )


def written(*plans: PlannedObject) -> tuple[WrittenObject, ...]:
    return tuple(WrittenObject(plan, 1000, "0" * 64) for plan in plans)


def record(*advances: Advance, objects: tuple[WrittenObject, ...] = (), **late: int) -> EpochRecord:
    return EpochRecord(uuid.uuid4(), datetime.now(UTC), advances, objects, late, {"decode": 0.5})


async def nothing(conn: Any) -> None:
    """An epoch without tables."""
