"""Places where logs lie: one small protocol for buckets and folders, and how to reach one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from streamproc.errors import SourceError
from streamproc.log_objects import LogEntry, Period
from streamproc.model import Partition
from streamproc.redaction import Url
from streamproc.sources.log_unpack import Caps


class LogGone(SourceError):
    """The content that a listing showed is not there any more: deleted, or something else is in its place."""


class LogBytes(NamedTuple):
    """Some bytes of a log. ``modified_ms``: when it was changed last, Unix time, and they were all there by then."""

    data: bytes
    modified_ms: int


class LogStore(Protocol):
    """A place with logs. Every method raises :class:`DependencyError` when it does not answer."""

    async def open(self) -> None:
        """Connect, and see that the place is there."""

    async def close(self) -> None:
        """Disconnect."""

    def listing(self) -> AsyncIterator[list[LogEntry]]:
        """Everything there is, some entries at a time."""

    def read(self, entry: LogEntry, offset: int) -> AsyncIterator[LogBytes]:
        """The bytes from an offset on. Raises :class:`LogGone` when they are not those of the entry."""


@dataclass(frozen=True, slots=True)
class LogConnection:
    """How to reach logs: ``s3://bucket/prefix`` or ``file:///folder``.

    ``queue``: URL of the SQS queue with the bucket's notifications. ``list_every``: seconds between two
    listings. ``once``: end when everything is read that the first listing shows, of ``period``. ``below``: of a
    bucket only what lies below the prefix, as in a folder, not all whose keys begin so. ``url`` has no slash at its
    end for that: logs are known by it.
    """

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    queue: str | None = None
    list_every: float = 300.0
    caps: Caps = field(default_factory=Caps)
    once: bool = False
    period: Period = field(default_factory=Period)
    below: bool = False

    @classmethod
    def of(cls, broker: Url, **how: Any) -> Self:
        """The connection that the setting ``broker`` describes; ``how``: other fields than ``url`` and ``below``."""
        url = broker.reveal()
        return cls(url.rstrip("/"), below=url.endswith("/"), **how)

    def __str__(self) -> str:
        return self.url

    @property
    def folder(self) -> bool:
        """Whether the logs are files, which may grow, and not objects, which do not."""
        return self.url.startswith("file:")

    @property
    def embedded(self) -> bool:
        """Never: it is no server."""
        return False

    def partition(self, topic: str, shard: int | str) -> Partition:
        """The log with this id."""
        return Partition(self.url, str(shard))

    def serves(self, partition_id: str) -> bool:
        """Always: what a log was is in its id."""
        return True


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def log_id(place: str, *content: str) -> str:
    """A partition's id: the end of the place's name, for people, and a hash of what tells contents apart."""
    digest = hashlib.blake2b("\0".join(content).encode(), digest_size=10).hexdigest()
    name = _UNSAFE.sub("_", place.rpartition("/")[2])[-60:]
    return f"{name}-{digest}" if name else digest
