"""Notifications of new objects from an SQS queue: S3's own, and EventBridge's.

Formats: https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html. S3's may have come through SNS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote_plus

import orjson
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from streamproc.log_objects import LogEntry
from streamproc.s3_client import speaking
from streamproc.sources.log_bucket import Bucket
from streamproc.sources.log_store import LogConnection

log = structlog.get_logger(__name__)

#: Seconds for which an empty queue is listened to, and the most messages at once: SQS's limits.
_LISTEN, _MOST = 20, 10

_HINTS = {
    "AccessDenied": "the role needs sqs:ReceiveMessage and sqs:DeleteMessage here",
    "AWS.SimpleQueueService.NonExistentQueue": "is logs.queue right, and the region?",
    "KMS.AccessDeniedException": "the role needs kms:Decrypt for the queue's key",
}


class Queue:
    """The queue of a connection. Connected between enter and exit."""

    def __init__(self, connection: LogConnection, bucket: Bucket) -> None:
        assert connection.queue is not None
        self._url = connection.queue
        self._region = connection.region
        self._bucket = bucket
        self._stack = AsyncExitStack()
        self._client: Any = None

    async def __aenter__(self) -> Self:
        """Connect. Raises :class:`DependencyError`."""
        config = AioConfig(connect_timeout=10, read_timeout=_LISTEN + 20, retries={"mode": "standard"})
        with speaking(self._url, "open", _HINTS):
            client = get_session().create_client("sqs", region_name=self._region, config=config)
            self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._stack.aclose()

    async def receive(self) -> tuple[list[LogEntry], list[str]]:
        """Objects that messages tell of, and the receipts of those messages. Raises :class:`DependencyError`.

        Messages that nobody here can read stay in the queue: its dead-letter queue is where they belong.
        """
        with speaking(self._url, "receive", _HINTS):
            answer = await self._client.receive_message(
                QueueUrl=self._url, MaxNumberOfMessages=_MOST, WaitTimeSeconds=_LISTEN
            )
        entries: list[LogEntry] = []
        receipts = []
        for message in answer.get("Messages", ()):
            try:
                entries += self.entries(message["Body"])
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                log.warning(
                    "message_unreadable", queue=self._url, why=repr(error), body=message["Body"][:200]
                )
            else:
                receipts.append(message["ReceiptHandle"])
        return entries, receipts

    async def delete(self, receipts: Sequence[str]) -> None:
        """Take messages out of the queue. Raises :class:`DependencyError`."""
        if receipts:
            with speaking(self._url, "delete", _HINTS):
                await self._client.delete_message_batch(
                    QueueUrl=self._url,
                    Entries=[{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(receipts)],
                )

    def entries(self, body: str) -> list[LogEntry]:
        """See :func:`notified`."""
        return notified(orjson.loads(body), self._bucket)


def notified(message: Any, bucket: Bucket) -> list[LogEntry]:
    """Objects of the bucket, and under its prefix, that a message tells of. Raises ValueError and the like."""
    found = (
        bucket.entry(key, etag, size, modified)
        for name, key, etag, size, modified in _objects(message)
        if name == bucket.name
    )
    return [entry for entry in found if entry is not None]


def _objects(message: Any) -> Iterator[tuple[str, str, str, int, int]]:
    """Bucket, key, ETag, size and time (Unix milliseconds) of each object that was created."""
    if message.get("Type") == "Notification" and "Message" in message:  # by way of SNS
        yield from _objects(orjson.loads(message["Message"]))
    elif "detail-type" in message:
        if message["detail-type"] == "Object Created":
            found = message["detail"]["object"]
            bucket = message["detail"]["bucket"]["name"]
            yield bucket, found["key"], found["etag"], found["size"], _milliseconds(message["time"])
    elif message.get("Event") != "s3:TestEvent":
        for record in message["Records"]:
            if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
                found = record["s3"]["object"]
                bucket, key = record["s3"]["bucket"]["name"], unquote_plus(found["key"])
                yield bucket, key, found["eTag"], found["size"], _milliseconds(record["eventTime"])


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)
