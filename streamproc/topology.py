"""A topic page (``topics/*.toml``) as frozen values: the contract, the enrichments, the tables, the sinks.

:func:`streamproc.topic_pages.load_page` builds these and reports every mistake with its path; what is here
is valid by construction, so nothing downstream checks it again. All durations are integer microseconds, as
event time is.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class FieldType(enum.Enum):
    """Type of a contract field: its JSON form, its polars type, its PostgreSQL type.

    ``json`` keeps any JSON value as its text.
    """

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    JSON = "json"

    @property
    def polars(self) -> pl.DataType:
        """The type of the field's column."""
        return {
            FieldType.STRING: pl.String(),
            FieldType.INTEGER: pl.Int64(),
            FieldType.NUMBER: pl.Float64(),
            FieldType.BOOLEAN: pl.Boolean(),
            FieldType.JSON: pl.String(),
        }[self]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the contract: JSON path → column.

    ``path``: keys from the top of the record, ``("context", "page", "url")``. ``max_length`` (characters,
    strings only): a longer value makes a reject, or is cut when ``truncate`` is set.
    """

    name: str
    path: tuple[str, ...]
    type: FieldType = FieldType.STRING
    required: bool = False
    max_length: int | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class EventTime:
    """Where event time is: ``field`` of the contract in ``format`` ``s``, ``ms``, ``us`` or ``iso8601``.

    It becomes the column ``event_time`` (``Datetime("us", "UTC")``); when the field has another name it
    keeps its own column too. ``future_skew``: an event further than this ahead of its record's broker
    timestamp is a reject. ``disorder``: how far behind the newest event time the watermark stays. ``max_age``: an event
    further than this behind its record's timestamp is a reject; ``None`` takes it however old it is.
    """

    field: str
    format: str = "ms"
    future_skew: int = 10 * MINUTE
    disorder: int = 30 * SECOND
    max_age: int | None = None


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Within a partition, an event whose ``field`` was seen less than ``horizon`` ago is dropped.

    "Ago" is on the partition's clock (newest accepted event time so far): an event is a duplicate when
    the clock as of the last accepted one of the same id, itself included, was within ``horizon`` of the clock
    now. One whose ``field`` is null never is.
    """

    field: str
    horizon: int = 10 * MINUTE


@dataclass(frozen=True, slots=True)
class Contract:
    """What a record of the stream looks like.

    ``decoder``: ``json``, or a format of web-server logs, whose fields are fixed (see
    :mod:`streamproc.transform.weblog_formats`); ``log_format``: what some of those are told. ``duplicate_keys``:
    ``reject`` records in which a contract key stands twice, or take the ``first``. ``max_record_bytes``: a
    larger record is a reject. ``site``: scheme and host (``https://example.com``) of the paths in log lines; of
    no use to ``json``.
    """

    fields: tuple[Field, ...]
    event_time: EventTime
    key: str | None = None
    duplicates: Duplicates | None = None
    decoder: str = "json"
    duplicate_keys: str = "reject"
    max_record_bytes: int = 1_048_576
    site: str | None = None
    log_format: str | None = None


@dataclass(frozen=True, slots=True)
class Topic:
    """The Kafka topic behind a stream. ``retention`` in microseconds, ``None`` keeps for ever.

    ``append_time``: a new one gets the broker's clock as its records' timestamps, and not their producers'.
    """

    name: str
    partitions: int = 4
    replication: int = 1
    retention: int | None = 7 * DAY
    append_time: bool = True


@dataclass(frozen=True, slots=True)
class Filter:
    """Rows for which the SQL expression ``drop`` is true are dropped and counted under ``name``."""

    name: str
    drop: str


@dataclass(frozen=True, slots=True)
class Enrichment:
    """One switched-on enrichment: ``kind`` names a module of :mod:`streamproc.transform.enrich`.

    ``options`` are what that module's ``OPTIONS`` describe, already checked and defaulted.
    ``adds``: the columns it adds and their types, in order. ``name``: its own, where a page may have several.
    """

    kind: str
    options: Mapping[str, object]
    adds: Mapping[str, pl.DataType]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """``kind``: ``tumbling`` (``size``), ``hopping`` (``size``, ``hop``) or ``session`` (``key``, ``gap``, ``cap``).

    A window is ``[start, end)``, aligned to the Unix epoch. A session of one ``key`` value ends when no
    event follows within ``gap``; events ``cap`` or more after its first start a new one.
    """

    kind: str
    size: int = 0
    hop: int = 0
    key: str = ""
    gap: int = 30 * MINUTE
    cap: int = DAY


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of a table.

    ``kind``: ``count``, ``sum``, ``min``, ``max``, ``avg``, ``first``, ``last``, ``distinct`` (exact up to
    2^20 values a row, a theta sketch above), ``approx_distinct`` (HyperLogLog), ``approx_percentile``
    (KLL; ``at`` in 0..1), ``funnel`` (session windows only; ``steps``).
    ``column``: what it measures (``None`` for ``count`` and ``funnel``). ``where``: SQL, only rows for which it is
    true count. ``type``: polars type of the finished column. ``precision``: log2 of the sketch's registers
    (HyperLogLog), or KLL's k.
    ``unit`` and ``comment`` go into the column's comment.
    """

    name: str
    kind: str
    type: pl.DataType
    column: str | None = None
    where: str | None = None
    at: float | None = None
    precision: int = 12
    steps: tuple[tuple[str, str], ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Derived:
    """A column of a finished table computed from its other columns by a SQL expression over one row.

    In PostgreSQL it is a generated column, so ``sql`` keeps to what both dialects share. E.g. bounce: ``pages = 1``.
    """

    name: str
    sql: str
    type: pl.DataType
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A keyed, windowed aggregate. Rows are keyed by window and ``by`` columns (session: the window's key).

    ``by_types``: polars types of the ``by`` columns; of a session table the type of its key (none given: text).
    ``lateness``: an event whose window ended this long before the watermark is late: not folded, counted.
    ``retention``: rows of windows older than the watermark by this much are deleted; ``None`` keeps them.
    """

    name: str
    window: Window
    by: tuple[str, ...]
    by_types: tuple[pl.DataType, ...]
    measures: tuple[Measure, ...]
    derived: tuple[Derived, ...] = ()
    where: str | None = None
    lateness: int = 10 * MINUTE
    retention: int | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Sinks:
    """Which sinks a stream feeds. ``publish_*``: Kafka topics for enriched events and changed rows, or ``None``.

    ``sort_key``, ``dist_key``: columns by which a warehouse that has such keys orders and spreads the rows; none
    leaves it to the warehouse's default.
    ``compact``: workers merge the lake's small objects when their hour is over.
    """

    lake: bool = True
    warehouse: bool = True
    compact: bool = False
    publish_events: str | None = None
    publish_tables: str | None = None
    sort_key: tuple[str, ...] = ()
    dist_key: str | None = None

    @property
    def published(self) -> tuple[str, ...]:
        """The topics that are published to."""
        return tuple(topic for topic in (self.publish_events, self.publish_tables) if topic is not None)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in microseconds; ``None`` keeps them for ever. Tables have their own.

    ``events``: objects of the lake whose newest event is older than the watermark by this much are deleted.
    ``rejects``: the same for rejects, by when they were received and the clock. ``history``: commits in the ledger; a
    range whose commits are forgotten cannot be replayed.
    """

    events: int | None = None
    rejects: int | None = None
    history: int | None = 30 * DAY


@dataclass(frozen=True, slots=True)
class Topology:
    """One topic page. ``name`` is the stream's name: table schema, lake prefix, consumer group suffix.

    ``columns``: every column of an event frame after all enrichments, in order, with its polars type:
    contract fields, ``event_time``, system columns, enrichments' and derived columns.
    ``derive``: extra columns as ``(name, SQL, type)``, computed after the enrichments, each from those before.
    ``fingerprint``: SHA-256 (hex) of the page's content.
    ``erasure``: text columns that say whose an event is; a visitor's rows are found by them.
    """

    name: str
    topic: Topic
    contract: Contract
    filters: tuple[Filter, ...]
    enrichments: tuple[Enrichment, ...]
    derive: tuple[tuple[str, str, pl.DataType], ...]
    tables: tuple[Table, ...]
    sinks: Sinks
    columns: Mapping[str, pl.DataType]
    fingerprint: str = ""
    retention: Retention = Retention()
    erasure: tuple[str, ...] = ()

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The topic that is read, and those that are published to, which have its partitions and retention."""
        published = replace(self.topic, append_time=False)
        return self.topic, *(replace(published, name=name) for name in self.sinks.published)
