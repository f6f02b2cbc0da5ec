"""The values that travel between the parts. Frozen, no I/O, no behaviour beyond arithmetic."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import polars as pl

#: Cluster id of every embedded broker, by which one is known whose address was given as that of any Kafka.
EMBEDDED_CLUSTER = "streamproc-embedded"

#: Columns that every event frame carries beside those of its contract.
#: Names that the lake's folders take; a reader could not tell such a column from its partition.
FOLDER_COLUMNS = ("date", "hour")

#: ``source_partition``: the partition's id (Kafka: its number, as text). ``position``: Kafka offset.
#: ``received_at``: when the broker had the record batch (its newest record's timestamp), UTC.
#: ``redriven_from``: of a record that ``rejects redrive`` has sent again, the position of the reject, in the same
#: partition; null for every other.
SYSTEM_COLUMNS: dict[str, pl.DataType] = {
    "source_partition": pl.String(),
    "position": pl.Int64(),
    "received_at": pl.Datetime("us", "UTC"),
    "redriven_from": pl.Int64(),
}

#: One row per record that cannot be used. ``reason`` is a stable slug, ``field`` the contract column
#: or null, ``detail`` a sentence for a person, ``original`` the record's bytes as they arrived.
REJECT_SCHEMA: dict[str, pl.DataType] = {
    **{name: SYSTEM_COLUMNS[name] for name in ("source_partition", "position", "received_at")},
    "reason": pl.String(),
    "field": pl.String(),
    "detail": pl.String(),
    "original": pl.Binary(),
}


class Partition(NamedTuple):
    """One ordered log of a source: a Kafka partition (``id`` is its number), a shard, an object."""

    source: str
    id: str

    def __str__(self) -> str:
        return f"{self.source}/{self.id}"

    @property
    def passing(self) -> bool:
        """Whether it is one of many with an end: a log, whose source is a URL. Nobody watches a single one."""
        return "://" in self.source


class Damage(NamedTuple):
    """Why nothing can be read behind a record: a reason that a reject can carry, and a sentence for a person."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Raw records of one partition, in order.

    It covers the positions ``(after, through]``. ``positions`` names the position of each of ``values``
    (a ``range`` when they are contiguous, which is the normal case); positions of the interval that have
    no value are gaps the broker made itself (compaction, transaction markers).
    ``received_ms`` is the broker's newest timestamp in the batch, Unix milliseconds: a property of the
    stored batch, so a replay sees the same one. ``redriven``: by position, of which reject a record is the copy.
    ``damage``: the last record is where the source broke off. It is what could be read of it, and a reject.
    """

    partition: Partition
    after: int
    through: int
    values: Sequence[bytes | None]
    positions: Sequence[int]
    received_ms: int
    size: int
    redriven: Mapping[int, int] = field(default_factory=dict)
    damage: Damage | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(slots=True)
class Counts:
    """What became of the records of one partition. ``records`` is the sum of the other four."""

    records: int = 0
    accepted: int = 0
    filtered: int = 0
    rejected: int = 0
    duplicate: int = 0

    def add(self, other: Counts) -> None:
        """Add another's counts to these."""
        self.records += other.records
        self.accepted += other.accepted
        self.filtered += other.filtered
        self.rejected += other.rejected
        self.duplicate += other.duplicate

    @property
    def balanced(self) -> bool:
        """In = accepted + filtered + rejected + duplicate; anything else is a lost or invented record."""
        return self.records == self.accepted + self.filtered + self.rejected + self.duplicate


@dataclass(slots=True)
class Transformed:
    """The transform's answer for some record batches.

    ``events``: one row per record that passed, in input order, with the contract's columns,
    :data:`SYSTEM_COLUMNS` and whatever the enrichments added. ``rejects``: :data:`REJECT_SCHEMA`.
    ``counts``: by partition id; ``accepted`` counts the rows of ``events`` (duplicates not yet taken out).
    ``filtered_by``: rows dropped by each filter's name; a row that several would drop counts for the first.
    """

    events: pl.DataFrame
    rejects: pl.DataFrame
    counts: dict[str, Counts] = field(default_factory=dict)
    filtered_by: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to one partition. Every write to the ledger shows ``fence`` and ``token``.

    ``position``: committed through here, ``None`` when nothing ever was. ``clock_us``: newest accepted
    event time so far, Unix microseconds, ``None`` when there was none.
    """

    partition: Partition
    fence: int
    token: str
    position: int | None
    clock_us: int | None


@dataclass(frozen=True, slots=True)
class Advance:
    """One partition's part of an epoch: its range ``(after, through]`` and what became of it."""

    claim: Claim
    after: int | None
    through: int
    clock_us: int | None
    counts: Counts


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows of one ``kind`` (``events`` or ``rejects``) as the ``body`` of an object that goes into ``folder``.

    ``min/max_time_us``: of the rows' event times, of rejects of when they were received, Unix microseconds.
    """

    kind: str
    folder: str
    body: bytes
    rows: int
    min_time_us: int
    max_time_us: int


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """An object about to be written. ``kind`` is ``events`` or ``rejects``.

    ``after``/``through``: the positions of ``partition`` it may hold rows of; ``min/max_time_us``: event
    times in it, Unix microseconds; ``clock_us``: newest accepted event time of the partition at its end.
    """

    key: str
    kind: str
    partition: Partition
    after: int | None
    through: int
    rows: int
    min_time_us: int | None
    max_time_us: int | None
    clock_us: int | None


@dataclass(frozen=True, slots=True)
class WrittenObject:
    """A planned object after its put: ``size`` in bytes, ``checksum`` is its SHA-256 in hex."""

    plan: PlannedObject
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class CommittedObject(WrittenObject):
    """An object that belongs to the lake. ``committed_at`` is the database's time, UTC."""

    committed_at: datetime


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one commit says happened; the ledger keeps it.

    ``objects`` are all that were intended for this epoch. ``late``: events not folded, by table.
    ``seconds``: how long each stage took, by its name, for the epoch history.
    """

    id: uuid.UUID
    started_at: datetime
    advances: Sequence[Advance]
    objects: Sequence[WrittenObject] = ()
    late: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
