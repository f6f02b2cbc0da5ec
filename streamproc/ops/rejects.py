"""Reading rejects back: from the objects that the ledger calls committed, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field

import polars as pl

from streamproc.errors import MissingObject
from streamproc.ledger import Ledger
from streamproc.model import REJECT_SCHEMA, Partition
from streamproc.sinks.object_store import ObjectStore


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rejects: those with one of ``reasons`` (all when empty), received at ``since_us`` or later.

    ``since_us``: Unix microseconds, on the clock of ``received_at``.
    """

    reasons: Collection[str] = ()
    since_us: int | None = None

    def of(self, rejects: pl.LazyFrame) -> pl.LazyFrame:
        """The selected rows."""
        if self.reasons:
            rejects = rejects.filter(pl.col("reason").is_in(list(self.reasons)))
        if self.since_us is not None:
            rejects = rejects.filter(pl.col("received_at").dt.epoch("us") >= self.since_us)
        return rejects


@dataclass(slots=True)
class Rejects:
    """The rejects of a stream. Memory holds one object at a time: what one epoch rejected of a partition.

    ``missing``: keys of committed objects that the store no longer has (somebody deleted old data); they
    are passed over.
    """

    ledger: Ledger
    store: ObjectStore
    selection: Selection = Selection()
    missing: list[str] = field(default_factory=list)

    async def pages(
        self, columns: Sequence[str] = tuple(REJECT_SCHEMA)
    ) -> AsyncIterator[tuple[str, pl.DataFrame]]:
        """Selected rows of each object (never none) with their source's name, oldest object first.

        Rows have ``columns`` of :data:`REJECT_SCHEMA` and stand in position order.
        Raises :class:`DependencyError`.
        """
        async for committed in self.ledger.manifest("rejects", self.selection.since_us):
            try:
                body = await self.store.get(committed.plan.key)
            except MissingObject:
                self.missing.append(committed.plan.key)
                continue
            rows = await asyncio.to_thread(self._read, body, columns)
            if not rows.is_empty():
                yield committed.plan.partition.source, rows

    async def count_by_reason(self) -> pl.DataFrame:
        """``reason``, ``field``, ``rejects``, ``first`` and ``last`` received; most rejects first."""
        columns = ("reason", "field", "received_at")
        measures = [
            pl.col("rejects").sum(),
            pl.col("first").min(),
            pl.col("last").max(),
        ]
        times = pl.Datetime("us", "UTC")
        counts = pl.DataFrame(
            schema={
                "reason": pl.String,
                "field": pl.String,
                "rejects": pl.Int64,
                "first": times,
                "last": times,
            }
        )
        async for _, rows in self.pages(columns):
            page = rows.select(
                "reason",
                "field",
                rejects=pl.lit(1, pl.Int64),
                first=pl.col("received_at"),
                last=pl.col("received_at"),
            )
            counts = pl.concat([counts, page]).group_by("reason", "field").agg(measures)
        return counts.sort(["rejects", "reason", "field"], descending=[True, False, False])

    def _read(self, body: bytes, columns: Sequence[str]) -> pl.DataFrame:
        return self.selection.of(pl.scan_parquet(body)).select(columns).collect()


def partition_of(source: str, row: dict[str, object]) -> Partition:
    """The partition that a row of :meth:`Rejects.pages` came from."""
    return Partition(source, str(row["source_partition"]))
