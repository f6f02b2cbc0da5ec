"""Logs under a prefix of an S3 bucket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

import structlog
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from streamproc import s3_client
from streamproc.log_objects import LogEntry
from streamproc.s3_client import error_code, s3_config
from streamproc.sources.log_store import LogBytes, LogConnection, LogGone, log_id

log = structlog.get_logger(__name__)

#: Bytes read at once.
_CHUNK = 1 << 20

#: Requests until a store counts as away: what comes then is our own waiting.
_ATTEMPTS = 6

_HINTS = {
    "AccessDenied": "the role needs s3:ListBucket and s3:GetObject here",
    "NoSuchBucket": "is the name right?",
}

#: What a request for an archived object is refused with.
_NOT_RESTORED = "InvalidObjectState"

_GONE = frozenset({"NoSuchKey", "404", "PreconditionFailed", "412", _NOT_RESTORED})

#: Classes whose objects have to be restored before they can be read.
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

#: Seconds for which a listing passes over an object that was found to be archived though its class does not say so.
_LEFT_ALONE = 86_400.0

#: Versions cannot be looked at: without the right to, or on a server that has none.
_NO_VERSIONS = frozenset({"AccessDenied", "MethodNotAllowed", "NotImplemented"})


class LogArchived(LogGone):
    """The content is there, and cannot be read until it is restored."""


class Bucket:
    """A :class:`~streamproc.sources.log_store.LogStore` for ``s3://bucket/prefix``.

    A content is told by key and ETag: listings and notifications both have those, and a version id only some have.
    Of a bucket that keeps versions, a content that was written over before it was read is found by its ETag.
    """

    def __init__(self, connection: LogConnection) -> None:
        self.name, _, self.prefix = connection.url.removeprefix("s3://").partition("/")
        if connection.below:
            self.prefix += "/"
        self._connection = connection
        self._stack = AsyncExitStack()
        self._client: Any = None
        #: When each was found to be archived, of those that a listing does not tell.
        self._archived: dict[str, float] = {}
        self._passed_over = 0
        #: Keys that are no text to the ledger's database, and were told of.
        self._unreadable: set[str] = set()

    async def open(self) -> None:
        """Connect, and see that the bucket is there."""
        if self._client is None:
            with speaking(self._connection.url, "open"):
                self._client = await self._stack.enter_async_context(
                    get_session().create_client(
                        "s3",
                        region_name=self._connection.region,
                        endpoint_url=self._connection.endpoint_url,
                        config=s3_config(self._connection.endpoint_url, attempts=_ATTEMPTS, connections=64),
                    )
                )
        with speaking(self._connection.url, "list"):
            await self._client.list_objects_v2(Bucket=self.name, Prefix=self.prefix, MaxKeys=1)

    async def close(self) -> None:
        """Disconnect."""
        self._client = None
        await self._stack.aclose()

    async def listing(self) -> AsyncIterator[list[LogEntry]]:
        """Page by page, a thousand each. Folders' own objects, empty ones and archived ones are no logs."""
        archived = 0
        old = time.monotonic() - _LEFT_ALONE
        self._archived = {id_: at for id_, at in self._archived.items() if at > old}
        with speaking(self._connection.url, "list"):
            pages = self._client.get_paginator("list_objects_v2")
            async for page in pages.paginate(
                Bucket=self.name, Prefix=self.prefix, OptionalObjectAttributes=["RestoreStatus"]
            ):
                logs = []
                for found in page.get("Contents", ()):
                    changed = int(found["LastModified"].timestamp() * 1000)
                    entry = self.entry(found["Key"], found["ETag"], found["Size"], changed)
                    if entry is None:
                        continue
                    if _is_restored(found):
                        self._archived.pop(entry.id, None)
                    if is_archived(found) or entry.id in self._archived:
                        archived += 1
                    else:
                        logs.append(entry)
                yield logs
        if archived != self._passed_over:
            log.warning("logs_archived", place=self._connection.url, logs=archived, hint="restore them")
            self._passed_over = archived

    def entry(self, key: str, etag: str, size: int, modified_ms: int) -> LogEntry | None:
        """An object of the bucket as a log; ``None`` where it is none, or not under the prefix."""
        if not key.startswith(self.prefix) or key.endswith("/") or not size:
            return None
        if "\0" in key:  # S3 takes it
            if key not in self._unreadable:
                self._unreadable.add(key)
                log.warning("log_name_unreadable", log=repr(key), hint="its key holds U+0000: rename it")
            return None
        etag = etag.strip('"')
        return LogEntry(log_id(key, key, etag), key, etag, size, modified_ms)

    async def read(self, entry: LogEntry, offset: int) -> AsyncIterator[LogBytes]:
        """The object's bytes from an offset on, as long as the entry's content is the object or a version of it."""
        if offset >= entry.size:
            return
        try:
            with speaking(self._place(entry), "get"):
                async with await self._body(entry, offset) as body:
                    while chunk := await body.read(_CHUNK):
                        yield LogBytes(chunk, entry.modified_ms)
        except LogArchived:
            self._archived[entry.id] = time.monotonic()
            raise

    async def _body(self, entry: LogEntry, offset: int) -> Any:
        """The content with the entry's ETag, also when it was written over since in a bucket that keeps versions."""
        wanted = {"Bucket": self.name, "Key": entry.place, "Range": f"bytes={offset}-"}
        archived: ClientError | None = None
        try:
            answer = await self._client.get_object(IfMatch=f'"{entry.version}"', **wanted)
            if answer["ETag"].strip('"') == entry.version:
                return answer["Body"]
            answer["Body"].close()  # a server that does not know If-Match
        except ClientError as error:
            if error_code(error) not in _GONE:
                raise
            archived = error if error_code(error) == _NOT_RESTORED else None
        version = await self._version(entry)
        if version is None:
            if archived is not None:
                raise archived
            raise LogGone(f"{self._place(entry)}: there is another content now, or none")
        return (await self._client.get_object(VersionId=version, **wanted))["Body"]

    async def _version(self, entry: LogEntry) -> str | None:
        """The id of an object's version with the entry's ETag."""
        pages = self._client.get_paginator("list_object_versions")
        try:
            async for page in pages.paginate(Bucket=self.name, Prefix=entry.place):
                for found in page.get("Versions", ()):
                    if found["Key"] != entry.place:  # those of the key itself come first
                        return None
                    if found["ETag"].strip('"') == entry.version:
                        return str(found["VersionId"])
        except ClientError as error:
            if error_code(error) not in _NO_VERSIONS:
                raise
            log.warning("versions_not_listed", place=self._place(entry), why=error_code(error))
        return None

    def _place(self, entry: LogEntry) -> str:
        return f"s3://{self.name}/{entry.place}"


def is_archived(found: Mapping[str, Any]) -> bool:
    """Whether a listed object has to be restored before it can be read, and is not."""
    return found.get("StorageClass") in _ARCHIVES and not _is_restored(found)


def _is_restored(found: Mapping[str, Any]) -> bool:
    return "RestoreExpiryDate" in found.get("RestoreStatus", {})


def speaking(place: str, operation: str) -> AbstractContextManager[None]:
    """Turn the client's exceptions into ours."""

    def gone(code: str, _: str) -> Exception | None:
        if code == _NOT_RESTORED:
            return LogArchived(f"{place}: {operation}: it is archived, and not restored")
        return LogGone(f"{place}: {operation}: {code}") if code in _GONE else None

    return s3_client.speaking(place, operation, _HINTS, gone)
