"""The arithmetic every epoch must satisfy before it is offered to the database. Pure."""

from __future__ import annotations

from collections import Counter

from streamproc.errors import Inconsistent
from streamproc.model import Advance, EpochRecord, Partition

#: Which count of a partition the rows of an object kind add up to.
_COUNT_OF_KIND = {"events": "accepted", "rejects": "rejected"}


def verify(epoch: EpochRecord) -> None:
    """Raise :class:`Inconsistent` unless the epoch accounts for every record and every row.

    Per partition: it advances, once; records in = accepted + filtered + rejected + duplicate; there are
    no more records than positions; its objects lie inside its range. Over its objects: when any object of
    a kind is written, the rows of that kind are all of the accepted (``events``) or rejected records.
    """
    advances = {advance.claim.partition: advance for advance in epoch.advances}
    if len(advances) != len(epoch.advances):
        raise Inconsistent(f"epoch {epoch.id} advances a partition twice")
    if len({written.plan.key for written in epoch.objects}) != len(epoch.objects):
        raise Inconsistent(f"epoch {epoch.id} writes an object twice")
    for advance in epoch.advances:
        _verify_advance(advance)
    _verify_objects(epoch, advances)


def _verify_advance(advance: Advance) -> None:
    partition, counts = advance.claim.partition, advance.counts
    if advance.after is not None and advance.through <= advance.after:
        raise Inconsistent(f"{partition} does not advance: ({advance.after}, {advance.through}]")
    if not counts.balanced:
        raise Inconsistent(f"{partition}: records in and out differ: {counts}")
    if min(counts.records, counts.accepted, counts.filtered, counts.rejected, counts.duplicate) < 0:
        raise Inconsistent(f"{partition}: a count is negative: {counts}")
    if advance.after is not None and counts.records > advance.through - advance.after:
        raise Inconsistent(
            f"{partition}: {counts.records} records in ({advance.after}, {advance.through}], "
            "which has fewer positions"
        )


def _verify_objects(epoch: EpochRecord, advances: dict[Partition, Advance]) -> None:
    rows: Counter[tuple[Partition, str]] = Counter()
    for written in epoch.objects:
        plan = written.plan
        advance = advances.get(plan.partition)
        if advance is None:
            raise Inconsistent(f"{plan.key}: its partition {plan.partition} is not in the epoch")
        if (plan.after, plan.through) != (advance.after, advance.through):
            raise Inconsistent(
                f"{plan.key}: covers ({plan.after}, {plan.through}], "
                f"the epoch ({advance.after}, {advance.through}]"
            )
        rows[plan.partition, plan.kind] += plan.rows
    for kind in {written.plan.kind for written in epoch.objects}:
        for partition, advance in advances.items():
            expected = getattr(advance.counts, _COUNT_OF_KIND[kind])
            if rows[partition, kind] != expected:
                raise Inconsistent(
                    f"{partition}: {rows[partition, kind]} rows in {kind} objects, "
                    f"{expected} {_COUNT_OF_KIND[kind]} records"
                )
