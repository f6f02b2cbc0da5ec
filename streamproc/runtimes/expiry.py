"""What expires of a stream's lake: by how far its event time has come, and by what its warehouse still needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from streamproc.errors import Mistake
from streamproc.ledger import Ledger
from streamproc.ledger.retention import expire_objects
from streamproc.model import Partition
from streamproc.sinks.warehouse import Warehouse, needed_by
from streamproc.topology import DAY, Topology

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def clocks(ledger: Ledger, goes_on: Callable[[Partition], bool]) -> dict[Partition, int]:
    """The clocks of the partitions that can get events: the one behind all others says what has expired.

    ``goes_on``: whether a partition can, so far as the ledger does not know it: shards that were split or merged
    cannot, and are left out. Unix microseconds; nothing before the first event.
    """
    shards = await ledger.shards()
    over = {partition for partition, shard in shards.items() if shard.followed}
    return {
        status.partition: status.clock_us
        for status in await ledger.status()
        if status.clock_us is not None and status.partition not in over and goes_on(status.partition)
    }


def standing(found: Mapping[Partition, int]) -> set[Partition]:
    """The partitions with clocks so far behind the newest that they are hardly just slow."""
    newest = max(found.values(), default=0)
    return {partition for partition, clock in found.items() if newest - clock > DAY}


async def newest(ledger: Ledger, belongs: Callable[[Partition], bool]) -> int | None:
    """The clock of the log with the newest event, of those that ``belongs`` says yes to.

    Logs of any age may come, and each has a clock of its own. Unix microseconds; ``None`` before the first event.
    """
    return max(
        (
            status.clock_us
            for status in await ledger.status()
            if status.clock_us is not None and belongs(status.partition)
        ),
        default=None,
    )


async def until_now(ledger: Ledger, clock: int | None) -> int | None:
    """A stream's ``clock``, or the database's if that is behind it; Unix microseconds.

    Producers whose clocks are wrong, and logs of such machines, may bring events from years ahead. What is kept for so
    long before the newest event would all go at once.
    """
    if clock is None:
        return None
    return min(clock, (await ledger.now() - _EPOCH) // timedelta(microseconds=1))


async def without_broker(ledger: Ledger, page: Topology) -> int | None:
    """The clock of a stream, for a process that does not read it: of its topic, or of logs where it has only those.

    It may be behind that of the workers (an embedded broker's former lives still count), never before it.
    """
    found = await clocks(ledger, lambda partition: partition.source == page.topic.name)
    if found:
        return await until_now(ledger, min(found.values()))
    return await until_now(ledger, await newest(ledger, lambda partition: "://" in partition.source))


async def expire_events(
    ledger: Ledger, page: Topology, clock: int | None, warehouse: Warehouse | None
) -> int:
    """Let go of events' objects that the page keeps no longer, and the warehouse needs no more; returns how many.

    ``clock``: the stream's, Unix microseconds; ``None`` before the first event.
    """
    kept = page.retention.events
    if kept is None or clock is None:
        return 0
    before = clock - page.contract.event_time.disorder - kept
    needed = None if warehouse is None else needed_by(warehouse)
    duplicates = page.contract.duplicates
    recent = None if duplicates is None else clock - duplicates.horizon
    return await expire_objects(ledger.database, page.name, "events", before, needed, recent_us=recent)


def unknown_warehouse(page: Topology, verb: str, otherwise: str, *, known: bool) -> list[Mistake]:
    """The mistake of who would replace objects of a lake whose warehouse is loaded elsewhere; none where it is known.

    ``verb``: what is to be done where the loader runs; ``otherwise``: what would come of it here.
    """
    if known or not page.sinks.warehouse:
        return []
    problem = f"{page.name} is loaded into a warehouse, and none is set here: {otherwise}"
    fix = f"{verb} where the loader runs; without a warehouse write sinks.warehouse = false in the topic page"
    return [Mistake("warehouse", problem, fix)]
