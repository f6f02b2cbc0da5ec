"""Objects in S3 or anything that speaks its protocol: ``s3://bucket/prefix``.

Credentials, region and endpoint come from the standard AWS environment (variables, profile, container or
instance role); :class:`StoreSettings` may name endpoint and region.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

from aiobotocore.session import get_session

from streamproc.errors import DependencyError, MissingObject
from streamproc.s3_client import s3_config, speaking
from streamproc.sinks.object_store import Listed, Stored, StoreSettings, check_key

#: What to look at, by error code.
_HINTS = {
    "AccessDenied": "the role needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket here",
    "NoSuchBucket": "create the bucket; the service does not",
}

#: Objects a listing asks for at once; S3 gives no more than this.
_PAGE = 1000

_MISSING = {"NoSuchKey", "404", "NotFound"}


class S3Store:
    """A prefix in a bucket. Each put carries the SHA-256 of the bytes, which S3 checks and keeps."""

    def __init__(self, bucket: str, prefix: str, settings: StoreSettings) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: Any = None

    def __repr__(self) -> str:
        return f"S3Store({self._place('')})"

    async def open(self) -> None:
        """Connect, and see that the bucket is there."""
        if self._client is not None:
            return
        async with AsyncExitStack() as opening:  # closed where the bucket is not there: the next has to ask
            with self._speaking("open", ""):
                client = await opening.enter_async_context(
                    get_session().create_client(
                        "s3",
                        region_name=self._settings.region,
                        endpoint_url=self._settings.endpoint_url,
                        config=s3_config(
                            self._settings.endpoint_url,
                            attempts=self._settings.attempts,
                            connections=self._settings.connections,
                        ),
                    )
                )
                await client.head_bucket(Bucket=self._bucket)
            self._stack.push_async_callback(opening.pop_all().aclose)
            self._client = client

    async def close(self) -> None:
        """Close the connections. Calling it again does nothing."""
        self._client = None
        await self._stack.aclose()

    async def put(self, key: str, body: bytes) -> Stored:
        """One PUT; S3 refuses it when the bytes that arrive are others than were sent."""
        digest = await asyncio.to_thread(hashlib.sha256, body)
        with self._speaking("put", check_key(key)):
            await self._connected().put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=body,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
            )
        return Stored(key, len(body), digest.hexdigest())

    async def get(self, key: str) -> bytes:
        """The whole object; botocore checks the bytes against the stored checksum."""
        with self._speaking("get", check_key(key)):
            response = await self._connected().get_object(
                Bucket=self._bucket, Key=self._prefix + key, ChecksumMode="ENABLED"
            )
            async with response["Body"] as stream:
                body: bytes = await stream.read()
        return body

    async def tail(self, key: str, size: int) -> bytes:
        """One ranged GET, without a checksum: S3 has none of a part."""
        with self._speaking("get", check_key(key)):
            response = await self._connected().get_object(
                Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes=-{size}"
            )
            async with response["Body"] as stream:
                body: bytes = await stream.read()
        return body

    async def head(self, key: str) -> Listed | None:
        """Size by a HEAD request."""
        try:
            with self._speaking("head", check_key(key)):
                found = await self._connected().head_object(Bucket=self._bucket, Key=self._prefix + key)
        except MissingObject:
            return None
        return Listed(key, found["ContentLength"])

    async def delete(self, key: str) -> None:
        """One DELETE; in a versioned bucket it leaves a delete marker."""
        with self._speaking("delete", check_key(key)):
            await self._connected().delete_object(Bucket=self._bucket, Key=self._prefix + key)

    async def list(self, prefix: str = "") -> AsyncIterator[Listed]:
        """Page by page; S3 sorts by key."""
        with self._speaking("list", prefix):
            pages = self._connected().get_paginator("list_objects_v2")
            async for page in pages.paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, PaginationConfig={"PageSize": _PAGE}
            ):
                for found in page.get("Contents", ()):
                    yield Listed(found["Key"].removeprefix(self._prefix), found["Size"])

    def url(self, key: str) -> str:
        """``s3://bucket/prefix/key``."""
        return self._place(check_key(key))

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _connected(self) -> Any:
        if self._client is None:
            raise DependencyError(self._place(""), "not connected", "call open() first")
        return self._client

    def _speaking(self, operation: str, key: str) -> AbstractContextManager[None]:
        """Turn the client's exceptions into this project's."""
        place = self._place(key)

        def refused(code: str, message: str) -> Exception | None:
            if code not in _MISSING:
                return None
            if key:
                return MissingObject(place, f"{operation}: no such object")
            problem = f"{operation}: NoSuchBucket {message}".rstrip()
            return DependencyError(place, problem, _HINTS["NoSuchBucket"])

        return speaking(place, operation, _HINTS, refused)
