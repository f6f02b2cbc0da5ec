"""Where analysts query events with SQL: a copy of the lake's committed ``events`` objects.

A backend keeps its own list of what it loaded, in the same transaction as the rows, and that list alone
decides what is loaded: the ledger may be another database and is never asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlsplit

import polars as pl

from streamproc.errors import ConfigError, Mistake
from streamproc.model import CommittedObject
from streamproc.settings.redshift import SCHEMES
from streamproc.sinks.object_store import ObjectStore
from streamproc.topology import FieldType, Topology


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load added."""

    objects: int = 0
    rows: int = 0

    def __add__(self, other: LoadReport) -> LoadReport:
        return LoadReport(self.objects + other.objects, self.rows + other.rows)


@dataclass(frozen=True, slots=True)
class WarehouseStatus:
    """What the stream's loads add up to; ``loaded_at`` is the newest, UTC, ``None`` before the first.

    ``quarantined``: objects that could not be loaded and were put aside.
    """

    objects: int
    rows: int
    loaded_at: datetime | None
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class TableLayout:
    """How a stream's table is laid out, where a backend lets one choose.

    ``json``: columns whose texts are JSON. ``sort_key``: columns by which rows are kept in order, the first
    one first. ``dist_key``: column by which rows are spread over the machines; ``None`` leaves it to them.
    """

    json: frozenset[str] = frozenset()
    sort_key: tuple[str, ...] = ("event_time",)
    dist_key: str | None = None


def layout_of(page: Topology) -> TableLayout:
    """The layout that a topic page asks for."""
    json = frozenset(field.name for field in page.contract.fields if field.type is FieldType.JSON)
    return TableLayout(json, page.sinks.sort_key or TableLayout().sort_key, page.sinks.dist_key)


class Warehouse(Protocol):
    """One stream's table of events.

    Backends that read the lake themselves (a manifest COPY) take the objects' URLs from the store, others
    its bytes; both know the row count and the size of every object.
    """

    async def open(self) -> None:
        """Connect. Raises :class:`DependencyError` when it does not answer."""

    async def close(self) -> None:
        """Disconnect. Calling it again does nothing."""

    async def ensure(self, columns: Mapping[str, pl.DataType]) -> None:
        """Create the table and the loads table, add columns the table lacks.

        Raises :class:`ConfigError` when a column is there with another type.
        """

    async def missing(self, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` that are not loaded."""

    async def load(
        self, objects: Sequence[CommittedObject], store: ObjectStore, instead: Collection[str] = ()
    ) -> LoadReport:
        """Load, in one transaction, those of the objects that are not loaded.

        ``instead``: keys of objects that were made of others, and alone have rows of their positions. The rows that
        were loaded with those others are deleted in the same transaction, and count as its own: what is noted and
        reported of it is how many more it has. So it is not where the table has more rows there than came with them.

        It locks the loads table first, so that of two loaders with the same objects the second finds them
        loaded. Raises :class:`Inconsistent` when an object cannot be loaded or does not hold the rows the ledger
        says, :class:`MissingObject` when the store has one no more, and :class:`DependencyError`. Nothing was kept
        then; where the latter leaves in doubt whether the transaction was committed, :meth:`missing` says so.

        A backend that bounds transactions may need several for many objects; each of them holds whole objects
        and their notes, so that what was kept is never loaded again.
        """

    async def status(self) -> WarehouseStatus:
        """What was loaded so far."""


class Rows(NamedTuple):
    """Rows of the partition ``source_partition`` at the positions ``(after, through]``."""

    source_partition: str
    after: int
    through: int


class Quarantined(NamedTuple):
    """An object that was put aside: its key, why, and when (UTC)."""

    key: str
    problem: str
    since: datetime


@runtime_checkable
class Quarantines(Protocol):
    """A warehouse that can put an object aside which it cannot load, so that the others go on."""

    async def quarantine(self, committed: CommittedObject, problem: str) -> None:
        """Note the object with its ``problem``; it is not missing any more. Nothing if it is loaded by now."""

    async def quarantined(self) -> list[Quarantined]:
        """What was put aside, oldest first."""

    async def release(self) -> None:
        """Forget the notes: the objects are missing again."""


@runtime_checkable
class Swaps(Protocol):
    """A warehouse in which a replay's rows can take the place of the stream's."""

    async def adopt(self, replay: str, rows: Sequence[Rows], superseded: Sequence[str]) -> bool:
        """Put what was loaded for the stream ``replay`` in the place of ``rows``, in one transaction.

        The objects ``superseded`` (keys) count as loaded from then on, without rows: a loader that still
        finds them in its list leaves them alone. The replay's own table goes, or stays for :meth:`remove` where
        others may be reading it. False when that was done already, or there is no such table; nothing was changed then.
        """

    async def remove(self) -> None:
        """Drop the stream's table and forget its loads; fine when there is neither.

        Raises :class:`DependencyError` when somebody keeps the table in use; nothing was changed then.
        """


@runtime_checkable
class Merges(Protocol):
    """A warehouse whose rows stay when the lake's objects they came from are merged."""

    async def merged(self, keys: Sequence[str]) -> None:
        """Count these objects as loaded, without rows: all of theirs came with objects loaded before.

        They may never be listed, when the compaction fails afterwards. Calling it again does nothing.
        """


@runtime_checkable
class Erases(Merges, Protocol):
    """A warehouse from which a visitor's rows can be taken."""

    async def erase(self, columns: Sequence[str], values: Sequence[str], *, dry: bool = False) -> int:
        """Delete the rows in which one of ``columns`` is one of ``values``, in one transaction; returns how many.

        ``dry`` only counts them.
        """


def needed_by(warehouse: Warehouse) -> Callable[[Sequence[str]], Awaitable[set[str]]]:
    """What tells which of some objects (by key) the warehouse has still to get: those it has not loaded, and those it
    has put aside, which :meth:`Warehouse.missing` leaves out. Of their rows the lake has the only copy.
    """

    async def needed(keys: Sequence[str]) -> set[str]:
        found = await warehouse.missing(keys)
        if isinstance(warehouse, Quarantines):
            # Afterwards: one that was missing may have been put aside meanwhile.
            found |= {each.key for each in await warehouse.quarantined()} & set(keys)
        return found

    return needed


def warehouse_of(page: Topology, url: str | None) -> Warehouse | None:
    """The one that the page's events are loaded into, see :func:`open_warehouse`; ``None`` where they are in none."""
    return (
        open_warehouse(url, page.name, layout_of(page)) if url is not None and page.sinks.warehouse else None
    )


def open_warehouse(url: str, stream: str, layout: TableLayout | None = None) -> Warehouse | None:
    """The warehouse behind ``postgresql://...``, ``redshift-data://...`` or ``redshift://...``; ``None`` for ``none``.

    Call its ``open()`` before use. ``layout`` is for tables that are created or loaded. Raises
    :class:`ConfigError` for any other URL.
    """
    scheme = urlsplit(url).scheme
    if url == "none":
        return None
    if scheme in {"postgresql", "postgres"}:
        from streamproc.sinks.warehouse_postgres import PostgresWarehouse  # noqa: PLC0415 - loaded when used

        return PostgresWarehouse(url, stream)
    if scheme in SCHEMES:
        from streamproc.sinks.warehouse_redshift import open_redshift  # noqa: PLC0415 - loaded when used

        return open_redshift(url, stream, layout or TableLayout())
    fix = "Write none, postgresql://user@host/database, or as docs/redshift.md says"
    raise ConfigError([Mistake("warehouse", "is not one we know", fix)])
