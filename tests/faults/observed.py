"""What a run's ledger says, asked from outside."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
from aiokafka.structs import ConsumerRecord

Records = dict[tuple[str, int], ConsumerRecord]


class Observed:
    """Questions to the database ``db``. Partitions are called as the ledger calls them."""

    db: psycopg.Connection

    def committed(self) -> int:
        """Records committed."""
        row = self.db.execute("select coalesce(sum(records), 0) from streamproc.partitions").fetchone()
        return int(row[0])

    def position(self, partition: str) -> int:
        """Of a partition as the ledger calls it; -1 when nothing was committed."""
        row = self.db.execute(
            "select position from streamproc.partitions where partition = %s", [partition]
        ).fetchone()
        return -1 if row is None or row[0] is None else int(row[0])

    def partitions_known(self) -> list[str]:
        """As the ledger calls them."""
        return [p for (p,) in self.db.execute("select partition from streamproc.partitions").fetchall()]

    def claimed_since(self, at: float, worker: str) -> set[str]:
        """Partitions that others than ``worker`` claimed after ``at`` (Unix time)."""
        rows = self.db.execute(
            "select distinct partition from audit.claims where at > %s and owner <> %s",
            [datetime.fromtimestamp(at, UTC), worker],
        )
        return {partition for (partition,) in rows}

    def owned_by(self, worker: str) -> set[str]:
        """Partitions this worker holds."""
        rows = self.db.execute("select partition from streamproc.partitions where owner = %s", [worker])
        return {partition for (partition,) in rows}

    def progressed_since(self, at: float) -> dict[str, float]:
        """Seconds from ``at`` (Unix time) to the first commit after it, for each partition that had one."""
        rows = self.db.execute(
            "select partition, extract(epoch from min(committed_at))::float8 from streamproc.epochs as e"
            " join streamproc.epoch_ranges as r on r.epoch = e.id where committed_at > %s group by partition",
            [datetime.fromtimestamp(at, UTC)],
        )
        return {partition: first - at for partition, first in rows}

    def in_flight(self, topic: Records, at: float) -> int:
        """Records that were in the topic at ``at`` (Unix time) and committed later."""
        first: dict[str, int] = {}
        rows = self.db.execute(
            "select partition, min(coalesce(after, -1)) from streamproc.epochs as e"
            " join streamproc.epoch_ranges as r on r.epoch = e.id where committed_at > %s group by partition",
            [datetime.fromtimestamp(at, UTC)],
        )
        first = {partition: int(after) for partition, after in rows}
        return sum(
            1
            for (partition, offset), record in topic.items()
            if record.timestamp < at * 1000 and offset > first.get(partition, 2**62)
        )
