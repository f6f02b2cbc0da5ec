"""The event ids that a partition's duplicates are found by, after its claim has changed hands."""

from __future__ import annotations

from streamproc.ledger import Ledger
from streamproc.model import Partition
from streamproc.pipeline.patience import Patience
from streamproc.progress import RecentIds
from streamproc.sinks.lake import Lake
from streamproc.topology import Duplicates


class Recall:
    """Reads from the lake what its last owner had in memory."""

    def __init__(
        self, ledger: Ledger, lake: Lake | None, duplicates: Duplicates | None, patience: Patience
    ) -> None:
        self._ledger = ledger
        self._lake = lake
        self._duplicates = duplicates
        self._until_answered = patience.until_answered

    async def recent_ids(self, partition: Partition, clock_us: int | None) -> RecentIds | None:
        """Those accepted within the horizon of the partition's clock (Unix µs, ``None``: nothing yet)."""
        duplicates = self._duplicates
        if duplicates is None:
            return None
        recent = RecentIds(duplicates.horizon)
        if clock_us is None or self._lake is None:
            return recent
        lake = self._lake
        objects = await self._until_answered(
            "claim", lambda: self._ledger.recent_objects(partition, clock_us - duplicates.horizon)
        )
        columns = ["position", duplicates.field, "event_time"]
        seen = await self._until_answered("claim", lambda: lake.read([o.plan.key for o in objects], columns))
        if len(seen):
            recent.rebuild(seen.sort("position"), duplicates.field)
        return recent
