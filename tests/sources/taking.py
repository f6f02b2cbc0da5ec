"""A worker that takes records and commits them when it is told to, straight in the ledger."""

from __future__ import annotations

from streamproc.ledger import Ledger
from streamproc.model import RecordBatch
from streamproc.sources import Source


class Taking:
    """``batches``: everything taken and not dropped."""

    ledger: Ledger
    source: Source
    batches: list[RecordBatch]
    _uncommitted: list[RecordBatch]

    async def take(self, max_wait: float = 0.2, max_records: int = 1000) -> list[RecordBatch]:
        batches = await self.source.next(max_records, max_wait)
        self.batches += batches
        self._uncommitted += batches
        return batches

    async def commit(self) -> None:
        """Set the positions behind everything taken, as the pipeline's commit does."""
        ends = {batch.partition: batch.through for batch in self._uncommitted}
        self._uncommitted.clear()
        async with self.ledger.database.connection("commit") as conn:
            for partition, through in ends.items():
                await conn.execute(
                    "UPDATE streamproc.partitions SET position = %s WHERE (stream, source, partition) = (%s, %s, %s)",
                    [through, self.ledger.stream, partition.source, partition.id],
                )
        await self.source.copy_commit(ends)

    def drop(self) -> None:
        """Forget what is not committed, as a crash does."""
        for batch in self._uncommitted:
            self.batches.remove(batch)
        self._uncommitted.clear()
