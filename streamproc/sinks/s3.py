"""Objects in S3 or anything that speaks its protocol: ``s3://bucket/prefix``.

Credentials, region and endpoint come from the standard AWS environment (variables, profile, container or
instance role); :class:`StoreSettings` may name endpoint and region.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import ClientError as ConnectionBroken
from botocore.exceptions import BotoCoreError, ClientError

from streamproc.errors import DependencyError, MissingObject
from streamproc.sinks.object_store import Listed, Stored, StoreSettings, check_key

#: What to look at, by error code.
_HINTS = {
    "AccessDenied": "the role needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket here",
    "ExpiredToken": "the credentials have expired",
    "InvalidAccessKeyId": "the access key is not known there; is AWS_ENDPOINT_URL right?",
    "NoSuchBucket": "create the bucket; the service does not",
    "SignatureDoesNotMatch": "the secret key is wrong, or the clock is",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    "EndpointConnectionError": "is the endpoint reachable? Is AWS_ENDPOINT_URL right?",
    "NoRegionError": "set AWS_REGION",
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
        with self._speaking("open", ""):
            self._client = await self._stack.enter_async_context(
                get_session().create_client(
                    "s3",
                    region_name=self._settings.region,
                    endpoint_url=self._settings.endpoint_url,
                    config=self._config(),
                )
            )
            await self._client.head_bucket(Bucket=self._bucket)

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

    def _config(self) -> AioConfig:
        named = self._settings.endpoint_url or any(
            os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
        )
        return AioConfig(
            # "standard" waits with exponential backoff and full jitter, at most 20 s, and retries
            # throttling, 5xx and lost connections.
            retries={"mode": "standard", "total_max_attempts": self._settings.attempts},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=self._settings.connections,
            # Buckets as host names need a wildcard DNS entry, which S3 has and its stand-ins have not.
            s3={"addressing_style": "path" if named else "auto"},
        )

    @contextmanager
    def _speaking(self, operation: str, key: str) -> Iterator[None]:
        """Turn the exceptions of botocore, and of aiohttp below it where a body breaks off, into this project's."""
        place = self._place(key)
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING and key:
                raise MissingObject(place, f"{operation}: no such object") from error
            code = "NoSuchBucket" if code in _MISSING else code
            message = error.response.get("Error", {}).get("Message", "")
            raise DependencyError(
                place, f"{operation}: {code} {message}".rstrip(), _HINTS.get(code, "")
            ) from error
        except (BotoCoreError, ConnectionBroken, OSError) as error:
            name = type(error).__name__
            raise DependencyError(place, f"{operation}: {name}: {error}", _HINTS.get(name, "")) from error
