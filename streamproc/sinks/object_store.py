"""Where objects are put: one small protocol, one module per backend.

``file:///path`` (:mod:`streamproc.sinks.local`) and ``s3://bucket/prefix`` (:mod:`streamproc.sinks.s3`).
Every backend passes the same conformance suite. They raise :class:`DependencyError` naming the operation
and the object, :class:`MissingObject` when an object is not there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from streamproc.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from streamproc.settings import Settings

#: Segments of letters, digits and ``. _ = -``, none of them ``.`` or ``..``: the same in a file system,
#: in S3 and in a URL.
_KEY = re.compile(r"(?!\.{1,2}(/|$))[\w.=-]+(/(?!\.{1,2}(/|$))[\w.=-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stored:
    """An object after its put: ``size`` in bytes, ``checksum`` is the SHA-256 of its bytes in hex."""

    key: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it; ``size`` in bytes."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How a store is used.

    ``durable``: a put returns only after the bytes are on the disk (``file:`` only; S3 always is).
    ``endpoint_url`` and ``region``: S3 only, instead of what the AWS environment says.
    ``connections``: most requests under way at once. ``attempts``: tries of one request, the first included.
    """

    durable: bool = True
    endpoint_url: str | None = None
    region: str | None = None
    connections: int = 16
    attempts: int = 6

    @classmethod
    def of(cls, settings: Settings, attempts: int = 6) -> StoreSettings:
        """As the service's settings say it."""
        s3 = settings.s3
        return cls(endpoint_url=s3.endpoint_url, region=s3.region, attempts=attempts)


class ObjectStore(Protocol):
    """Objects by key. A key names one content for ever: putting it again with the same bytes is harmless."""

    async def open(self) -> None:
        """Connect, and make sure that the place exists and answers."""

    async def close(self) -> None:
        """Disconnect. Calling it again does nothing."""

    async def put(self, key: str, body: bytes) -> Stored:
        """Store ``body``, all of it or nothing: no reader ever sees a part. Retries by itself."""

    async def get(self, key: str) -> bytes:
        """The object's bytes. Raises :class:`MissingObject`."""

    async def tail(self, key: str, size: int) -> bytes:
        """The last ``size`` bytes, 1 or more; all of them when it has fewer. Raises :class:`MissingObject`."""

    async def head(self, key: str) -> Listed | None:
        """Whether the object is there, and how large."""

    async def delete(self, key: str) -> None:
        """Remove the object; fine when it is not there."""

    def list(self, prefix: str = "") -> AsyncIterator[Listed]:
        """All objects whose key begins with ``prefix``, sorted by key."""

    def url(self, key: str) -> str:
        """The object's URL, as other programs open it."""


def check_key(key: str) -> str:
    """The key, if it is safe to use; :class:`ValueError` if not (``..``, ``//``, a leading ``/``, ...)."""
    if not _KEY.fullmatch(key) or len(key) > 1024:
        raise ValueError(f"not an object key: {key!r}")
    return key


def open_store(url: str, settings: StoreSettings | None = None) -> ObjectStore:
    """The store behind ``file:///folder`` or ``s3://bucket/prefix``; call its ``open()`` before use.

    Raises :class:`ConfigError` when the URL is neither.
    """
    settings = settings or StoreSettings()
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path.startswith("/") and parts.netloc in {"", "localhost"}:
        from streamproc.sinks.local import LocalStore  # noqa: PLC0415 - a backend is loaded when it is used

        return LocalStore(url, durable=settings.durable)
    if parts.scheme == "s3" and parts.netloc and not parts.query:
        from streamproc.sinks.s3 import S3Store  # noqa: PLC0415 - aiobotocore takes 0.3 s to import

        return S3Store(parts.netloc, parts.path.strip("/"), settings)
    raise ConfigError([Mistake(url, "is not an object store", "Write file:///folder or s3://bucket/prefix")])


def lake_store(settings: Settings, attempts: int = 6) -> ObjectStore:
    """The lake's store; call its ``open()`` before use, except for :meth:`ObjectStore.url`."""
    return open_store(settings.lake.reveal(), StoreSettings.of(settings, attempts))
