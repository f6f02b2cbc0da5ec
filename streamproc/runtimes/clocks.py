"""How far the event time of a stream has come, by what is committed: what expires goes by it."""

from __future__ import annotations

from collections.abc import Callable

from streamproc.ledger import Ledger
from streamproc.model import Partition
from streamproc.topology import Topology


async def slowest(ledger: Ledger, goes_on: Callable[[Partition], bool]) -> int | None:
    """The clock of the partition that is behind all others, of those that can get events.

    ``goes_on``: whether a partition can, so far as the ledger does not know it: shards that were split or merged
    cannot, and are left out. Unix microseconds; ``None`` before the first event.
    """
    shards = await ledger.shards()
    over = {partition for partition, shard in shards.items() if shard.followed}
    return min(
        (
            status.clock_us
            for status in await ledger.status()
            if status.clock_us is not None and status.partition not in over and goes_on(status.partition)
        ),
        default=None,
    )


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


async def without_broker(ledger: Ledger, page: Topology) -> int | None:
    """The clock of a stream, for a process that does not read it: of its topic, or of logs where it has only those.

    It may be behind that of the workers (an embedded broker's former lives still count), never before it.
    """
    clock = await slowest(ledger, lambda partition: partition.source == page.topic.name)
    return clock if clock is not None else await newest(ledger, lambda partition: "://" in partition.source)
