"""What every task of a job needs to know, and what a Python worker of Spark keeps between tasks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streamproc.errors import Inconsistent
from streamproc.sinks.object_store import ObjectStore, StoreSettings, open_store
from streamproc.sources.log_store import LogConnection
from streamproc.tables.fold import TableFold
from streamproc.topic_pages import find_pages, load_pages
from streamproc.topology import Topology
from streamproc.transform import Resources, Transform
from streamproc.transform.erased import Erased


@dataclass(frozen=True, slots=True)
class Setup:
    """How the tasks of a job work. It travels to the executors.

    ``topics``: the folder of topic pages; ``None``: as everywhere, those of the package that all machines unpack.
    ``stream``: the page; ``fingerprint``: the driver's. ``visitor_key``: see :class:`Transform`. ``buckets``: in how
    many parts tables are united. ``batch_records``: about how many records go through the transform at once.
    ``erased``: visitors to be left out, as of the claims.
    """

    topics: Path | None
    stream: str
    fingerprint: str
    visitor_key: bytes
    logs: LogConnection
    lake: str
    store: StoreSettings
    buckets: int
    batch_records: int
    erased: Erased | None = None

    def __repr__(self) -> str:
        return f"Setup({self.stream}, {self.logs})"

    def topology(self) -> Topology:
        """The page. Raises :class:`Inconsistent` when this machine has another than the driver."""
        page = _pages(self.topics).get(self.stream)
        if page is None or page.fingerprint != self.fingerprint:
            found = find_pages(self.topics)
            raise Inconsistent(
                f"{found} has not the driver's {self.stream}: all have to unpack the same package"
            )
        return page

    def transform(self) -> Transform:
        """The transform, which remembers what its enrichments have looked up."""
        self.topology()
        transform = _transform(self.topics, self.stream)
        transform.visitor_key = self.visitor_key
        transform.erased = self.erased
        return transform

    def folds(self) -> dict[str, TableFold]:
        """A fold for each table."""
        return {table.name: TableFold(table) for table in self.topology().tables}

    def open_store(self) -> ObjectStore:
        """Where the lake is; not opened yet."""
        return open_store(self.lake, self.store)


@cache
def _pages(topics: Path | None) -> dict[str, Topology]:
    return load_pages(find_pages(topics))


@cache
def _transform(topics: Path | None, stream: str) -> Transform:
    found = find_pages(topics)
    folder = found if found.is_dir() else found.parent
    return Transform(_pages(topics)[stream], Resources(os.environ, folder))
