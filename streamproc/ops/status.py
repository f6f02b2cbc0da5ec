"""Everything an operator asks of a stream, in one answer: positions, lag, tables, objects, epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from psycopg import AsyncConnection, sql

from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.ledger import EpochSummary, Ledger, ObjectTotal, PartitionStatus, ShardStatus
from streamproc.ledger.erasures import Erasures
from streamproc.model import Counts, Partition
from streamproc.settings.redshift import SCHEMES
from streamproc.sinks.warehouse import WarehouseStatus, open_warehouse
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_positions import Span, spans
from streamproc.sources.opening import Connection
from streamproc.topology import Topology

#: Tables with more rows than this, by PostgreSQL's own estimate, are not counted but estimated: status must
#: answer at once.
_COUNTED = 2_000_000

#: Seconds for which an answer of Redshift is kept: each is paid for, and a workgroup that is asked never goes to sleep.
_REDSHIFT = 300.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """One partition. ``status`` is ``None`` if it was never claimed, ``span`` if the broker was not asked.

    ``past``: its records were in an earlier life of the embedded broker, and nobody can read them any more.
    ``watermark``: event time up to which it is believed complete. ``lag`` is ``None`` when it cannot be
    known, also when the committed position is beyond the topic's end (the topic was made anew), and for
    sources that tell time instead: ``behind`` is how many seconds the records read last were behind the newest.
    """

    partition: Partition
    status: PartitionStatus | None
    span: Span | None
    watermark: datetime | None
    past: bool = False
    behind: float | None = None

    @property
    def lag(self) -> int | None:
        """Records that can be read and are not committed."""
        if self.past:
            return 0
        if self.span is None:
            return None
        position = self.status.position if self.status is not None else None
        if position is None:
            return self.span.last - self.span.first + 1
        return self.span.last - max(position, self.span.first - 1) if position <= self.span.last else None

    @property
    def gap(self) -> int:
        """Records after the committed position that the source no longer has; 0 is as it should be."""
        if self.span is None or self.status is None or self.status.position is None:
            return 0
        return max(0, self.span.first - 1 - self.status.position)


@dataclass(frozen=True, slots=True)
class TableReport:
    """One table. ``rows`` is an estimate if ``estimated``, ``None`` if the table is not there yet.

    ``newest_window``: start of it. ``late``: events that came too late to be folded.
    """

    name: str
    rows: int | None
    estimated: bool
    newest_window: datetime | None
    late: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """One stream. ``warehouse`` is ``None`` where there is none. ``notes``: what could not be found out.

    ``expires``: the lake lets go of events that go on counting as loaded: in time, or when a visitor is forgotten.
    """

    stream: str
    topic: str
    partitions: Sequence[PartitionReport]
    tables: Sequence[TableReport]
    objects: Sequence[ObjectTotal]
    epochs: Sequence[EpochSummary]
    warehouse: WarehouseStatus | None
    notes: Sequence[str]
    expires: bool = False

    @property
    def totals(self) -> Counts:
        """What became of all records ever committed."""
        totals = Counts()
        for partition in self.partitions:
            if partition.status is not None:
                totals.add(partition.status.counts)
        return totals

    @property
    def lake_rows(self) -> int:
        """Rows in committed ``events`` objects: what the warehouse should come to hold."""
        return sum(t.rows for t in self.objects if (t.kind, t.state) == ("events", "committed"))

    @property
    def rows_behind(self) -> int | None:
        """Rows of the lake that the warehouse lacks; ``None`` without a warehouse, and where sums do not tell."""
        return None if self.warehouse is None or self.expires else self.lake_rows - self.warehouse.rows


class StatusReader:
    """Reads the status of one stream.

    ``ledger`` is open. ``warehouse``: its conninfo, ``None`` for none. What does not answer, other than the
    ledger, becomes a note. One that is read again and again asks Redshift every five minutes. ``clock``: seconds,
    monotonic.
    """

    def __init__(
        self,
        topology: Topology,
        ledger: Ledger,
        warehouse: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topology = topology
        self._ledger = ledger
        self._erasures = Erasures(ledger.database, topology.name)
        self._warehouse = (warehouse if topology.sinks.warehouse else None) or "none"
        self._clock = clock
        self._redshift = urlsplit(self._warehouse).scheme in SCHEMES
        self._asked: tuple[float, WarehouseStatus | DependencyError | None] | None = None

    async def read(self, broker: Connection | None, *, epochs: int = 5) -> StreamReport:
        """The status now, with the newest ``epochs``. Without ``broker`` there is no lag.

        Raises :class:`DependencyError` when the ledger does not answer.
        """
        notes: list[str] = []
        topology = self._topology
        statuses = {status.partition: status for status in await self._ledger.status()}
        ends = await self._spans(broker, notes)
        shards = await self._ledger.shards()
        partitions = [
            PartitionReport(
                partition,
                status,
                ends.get(partition),
                self._watermark(status),
                past=broker is not None and not broker.serves(partition.id),
                behind=_behind(shards.get(partition)),
            )
            for partition in sorted({*statuses, *ends, *shards}, key=_numerically)
            for status in [statuses.get(partition)]
        ]
        return StreamReport(
            topology.name,
            topology.topic.name,
            partitions,
            await self._tables(),
            await self._ledger.object_totals(),
            await self._ledger.epochs(limit=epochs),
            await self._warehouse_status(notes),
            notes + [note for partition in partitions for note in _warnings(partition)],
            expires=topology.retention.events is not None or await self._erasures.any(),
        )

    def _watermark(self, status: PartitionStatus | None) -> datetime | None:
        if status is None or status.clock_us is None:
            return None
        return _time(status.clock_us - self._topology.contract.event_time.disorder)

    async def _spans(self, broker: Connection | None, notes: list[str]) -> Mapping[Partition, Span]:
        if broker is None:
            notes.append("the embedded broker is not running: end and lag are unknown")
            return {}
        if not isinstance(broker, KafkaConnection):
            return {}  # the shards tell how far behind they are
        try:
            return await spans(broker, self._topology.topic.name)
        except DependencyError as error:
            notes.append(f"end and lag are unknown: {error}")
            return {}

    async def _tables(self) -> list[TableReport]:
        late = await self._ledger.late()
        database = self._ledger.database
        reports = []
        for table in self._topology.tables:
            start = "session_start" if table.window.kind == "session" else "window_start"
            name = sql.Identifier(self._topology.name, table.name)
            rows, estimated, newest = await _size(database, name, sql.Identifier(start))
            reports.append(TableReport(table.name, rows, estimated, newest, late.get(table.name, 0)))
        return reports

    async def _warehouse_status(self, notes: list[str]) -> WarehouseStatus | None:
        now = self._clock()
        if self._asked is None or not self._redshift or now - self._asked[0] >= _REDSHIFT:
            self._asked = now, await self._ask_warehouse()
        else:
            seconds = now - self._asked[0]
            notes.append(
                f"the warehouse is as it was {seconds:.0f} s ago: Redshift is asked every {_REDSHIFT:.0f} s"
            )
        _, answer = self._asked
        if isinstance(answer, DependencyError):
            notes.append(f"the warehouse does not answer: {answer}")
            return None
        return answer

    async def _ask_warehouse(self) -> WarehouseStatus | DependencyError | None:
        warehouse = open_warehouse(self._warehouse, self._topology.name)
        if warehouse is None:
            return None
        try:
            await warehouse.open()
            return await warehouse.status()
        except DependencyError as error:
            return error
        finally:
            await warehouse.close()


async def _size(
    database: Database, table: sql.Identifier, start: sql.Identifier
) -> tuple[int | None, bool, datetime | None]:
    """Rows, whether that is an estimate, and the start of the newest window."""
    async with database.connection("count table rows") as conn:
        quoted = sql.Literal(table.as_string(conn))
        known = sql.SQL("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass({})").format(quoted)
        estimate = await _one(conn, known)
        if estimate is None:
            return None, False, None
        if estimate[0] > _COUNTED:
            newest = sql.SQL("SELECT {} FROM {} ORDER BY 1 DESC LIMIT 1").format(start, table)
            found = await _one(conn, newest)
            return estimate[0], True, found[0] if found else None
        counted = await _one(conn, sql.SQL("SELECT count(*), max({}) FROM {}").format(start, table))
        assert counted is not None, "an aggregate gives a row"
        return counted[0], False, counted[1]


async def _one(conn: AsyncConnection[Any], query: sql.Composed) -> tuple[Any, ...] | None:
    return await (await conn.execute(query)).fetchone()


def _warnings(report: PartitionReport) -> list[str]:
    status, span = report.status, report.span
    if span is None or status is None or status.position is None:
        return []
    if status.position > span.last:
        return [
            f"{report.partition}: committed through {status.position}, but the topic ends at {span.last}: "
            "was it made anew?"
        ]
    if report.gap:
        return [
            f"{report.partition}: {report.gap} records after {status.position} are gone from the topic; only "
            "`streamproc offsets set --accept-gap` goes past them"
        ]
    return []


def _behind(shard: ShardStatus | None) -> float | None:
    if shard is None:
        return None
    if shard.finished:
        return 0.0
    return None if shard.behind_ms is None else shard.behind_ms / 1000


def _numerically(partition: Partition) -> tuple[str, str, int, str]:
    incarnation, _, number = partition.id.rpartition(".")
    return partition.source, incarnation, int(number) if number.isdecimal() else -1, partition.id


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
