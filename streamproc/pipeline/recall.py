"""The event ids that a partition's duplicates are found by, after its claim has changed hands."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import structlog

from streamproc.errors import MissingObject
from streamproc.ledger import Ledger
from streamproc.model import Partition
from streamproc.pipeline.patience import Patience
from streamproc.progress import RecentIds
from streamproc.sinks.lake import Lake
from streamproc.topology import Duplicates

log = structlog.get_logger(__name__)


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
        """Those accepted within the horizon of the partition's clock (Unix µs, ``None``: nothing yet).

        Those of objects that the store has no more are not known; the log says so.
        """
        duplicates = self._duplicates
        if duplicates is None:
            return None
        recent = RecentIds(duplicates.horizon)
        if clock_us is None or self._lake is None:
            return recent
        columns = ["position", duplicates.field, "event_time"]
        seen = await self._accepted(self._lake, partition, clock_us - duplicates.horizon, columns)
        if seen:
            recent.rebuild(pl.concat(seen).sort("position"), duplicates.field)
        return recent

    async def _accepted(
        self, lake: Lake, partition: Partition, since_us: int, columns: Sequence[str]
    ) -> list[pl.DataFrame]:
        """What is in the objects, none of them empty; one that was merged meanwhile is looked for in its new place."""
        keys = await self._listed(partition, since_us)
        while True:
            found = {key: await self._read(lake, key, columns) for key in keys}
            lost = {key for key, rows in found.items() if rows is None}
            keys = await self._listed(partition, since_us) if lost else keys
            if lost <= set(keys):
                break
        if lost:
            # Committed, so they were there: somebody has deleted them, and waiting does not bring them back.
            why = "not in the lake any more: what producers send a second time is not found out by them"
            log.error(
                "recent_ids_lost", partition=str(partition), objects=len(lost), first=min(lost), why=why
            )
        return [rows for rows in found.values() if rows is not None and len(rows)]

    async def _listed(self, partition: Partition, since_us: int) -> list[str]:
        objects = await self._until_answered(
            "claim", lambda: self._ledger.recent_objects(partition, since_us)
        )
        return [each.plan.key for each in objects]

    async def _read(self, lake: Lake, key: str, columns: Sequence[str]) -> pl.DataFrame | None:
        """The object's rows; ``None`` where the store answers that it is not there."""

        async def read() -> pl.DataFrame | None:
            try:
                return await lake.read([key], columns)
            except MissingObject:
                return None

        return await self._until_answered("recall", read)
