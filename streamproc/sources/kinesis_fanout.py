"""Reading a shard by enhanced fan-out: Kinesis pushes its records, 2 MiB a second for this consumer alone.

A subscription lasts five minutes and is made anew behind the record that was read last. Whatever hinders it (no
such right, another worker that has just subscribed, a server without HTTP/2) is no reason to stand still: the
shard is polled for a while, and polling decides whether records are gone.
https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from http import HTTPStatus

import msgspec
import structlog
from botocore.eventstream import EventStreamBuffer, EventStreamMessage, ParserError

from streamproc.leases import Mark
from streamproc.sources.kinesis_client import KinesisClient, KinesisError
from streamproc.sources.kinesis_http2 import posted, trusting
from streamproc.sources.kinesis_polling import Pace, Polling
from streamproc.sources.kinesis_records import Page, decode_event

log = structlog.get_logger(__name__)

#: Seconds for which a shard is polled that could not be subscribed to.
POLLED_FOR = 30.0

#: Seconds between two subscriptions to a shard: the service takes one call a second.
_BETWEEN = 1.0

#: Seconds for which a shard waits for the consumer to be registered, and for whoever is about it.
_REGISTERED_WITHIN = 15.0

#: Events without the record that a subscription was to begin with, until polling has to find it, or why not.
_VAIN = 3


class _Refusal(msgspec.Struct):
    type: str = msgspec.field(default="", name="__type")
    message: str | None = None


class Consumer:
    """A consumer that is registered with a stream, by its name; registered when it is first needed.

    It is never deregistered: others may read by it, and nobody knows who is the last.
    """

    def __init__(self, client: KinesisClient, stream: str, name: str) -> None:
        self._client = client
        self._stream = stream
        self._name = name
        self._registering = asyncio.Lock()
        self._arn: str | None = None
        self._trust = trusting(client.certificates)

    async def arn(self) -> str:
        """Of the active consumer. Raises :class:`KinesisError`, also when it is not active soon."""
        try:
            async with asyncio.timeout(_REGISTERED_WITHIN), self._registering:
                if self._arn is None:
                    self._arn = await self._register()
                return self._arn
        except TimeoutError as error:
            problem = f"the consumer {self._name} was not active within {_REGISTERED_WITHIN:g} s"
            raise KinesisError("TimeoutError", str(self._client.connection), problem) from error

    async def _register(self) -> str:
        named = {
            "StreamARN": (await self._client.summary(self._stream)).arn,
            "ConsumerName": self._name,
        }
        try:
            await self._client.call("register_stream_consumer", **named)
            log.info("consumer_registered", stream=self._stream, consumer=self._name)
        except KinesisError as error:
            if error.code != "ResourceInUseException":  # it is there already
                raise
        while True:
            found = (await self._client.call("describe_stream_consumer", **named))["ConsumerDescription"]
            match found["ConsumerStatus"]:
                case "ACTIVE":
                    return str(found["ConsumerARN"])
                case "DELETING":
                    problem = f"the consumer {self._name} is being deregistered"
                    raise KinesisError("ResourceInUseException", str(self._client.connection), problem)
            await asyncio.sleep(1.0)

    @asynccontextmanager
    async def subscribed(self, shard: str, where: Mark) -> AsyncIterator[AsyncIterator[Page]]:
        """The shard's pages from the mark's place on, as they come. Raises :class:`KinesisError` if it is refused."""
        arguments = {"ConsumerARN": await self.arn(), "ShardId": shard, "StartingPosition": _place(where)}
        request = await self._client.signed("SubscribeToShard", arguments)
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(posted(request, self._trust))
                if answer.status != HTTPStatus.OK:
                    body = b"".join([piece async for piece in answer.body])
                    raise self._refused(body, answer.status)
            except OSError as error:
                code = type(error).__name__
                raise KinesisError(code, str(self._client.connection), str(error) or code) from error
            yield _pages(answer.body)

    def _refused(self, body: bytes, status: int) -> KinesisError:
        try:
            refusal = msgspec.json.decode(body, type=_Refusal)
        except msgspec.DecodeError:
            refusal = _Refusal(message=f"HTTP status {status}")
        code = refusal.type.rpartition("#")[2]
        if code == "ResourceNotFoundException":
            self._arn = None  # somebody may have deregistered the consumer
        return KinesisError(code, str(self._client.connection), f"{code}: {refusal.message}")


class Subscribing:
    """Reads one shard by enhanced fan-out, in the place of ``polling``, and by that when it cannot."""

    def __init__(self, consumer: Consumer, shard: str, polling: Polling) -> None:
        self._consumer = consumer
        self._shard = shard
        self._polling = polling
        self._again = 0.0

    @property
    def pace(self) -> Pace:
        """See :class:`streamproc.sources.kinesis_polling.Pages`."""
        return self._polling.pace

    async def pages(self, where: Mark) -> AsyncGenerator[Page, None]:
        """See :class:`streamproc.sources.kinesis_polling.Pages`. Ends with the subscription, or broken off."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._again - loop.time())
        self._again = loop.time() + _BETWEEN
        async with AsyncExitStack() as stack:
            try:
                subscription = self._consumer.subscribed(self._shard, where)
                pages = await stack.enter_async_context(subscription)
            except KinesisError as error:
                log.warning("polling_instead", shard=self._shard, why=error.problem)
            else:
                vain = 0 if where.sequence is not None else None
                pushed, why = False, "it ended before its first event"
                try:
                    async for page in pages:
                        if vain is not None and not len(page):
                            # An event may be empty though there are records: it does not say that one is gone.
                            vain += 1
                            if vain == _VAIN or page.iterator is None:
                                break
                            continue
                        vain, pushed = None, True
                        yield page
                except KinesisError as error:
                    why = error.problem
                    log.debug("subscription_broke_off", shard=self._shard, why=why)
                if pushed:
                    return
                if not vain:  # refused after all: an error came in the place of the first event
                    log.warning("polling_instead", shard=self._shard, why=why)
        end = loop.time() + POLLED_FOR
        async with aclosing(self._polling.pages(where)) as polled:
            async for page in polled:
                yield page
                if loop.time() > end:
                    return


async def _pages(body: AsyncIterator[bytes]) -> AsyncIterator[Page]:
    """The events of a subscription, until it ends. Raises :class:`KinesisError` when it breaks off."""
    buffer = EventStreamBuffer()
    try:
        async for piece in body:
            buffer.add_data(piece)
            for message in buffer:
                if (page := _page(message)) is not None:
                    yield page
    except (OSError, ParserError, msgspec.DecodeError) as error:
        code = type(error).__name__
        raise KinesisError(code, "subscription", str(error) or code) from error


def _page(message: EventStreamMessage) -> Page | None:
    kind = message.headers.get(":message-type")
    if kind == "event":
        event = message.headers.get(":event-type")
        return decode_event(message.payload) if event == "SubscribeToShardEvent" else None
    code = message.headers.get(":exception-type") or message.headers.get(":error-code") or str(kind)
    raise KinesisError(code, "subscription", f"{code}: {message.payload[:500]!r}")


def _place(where: Mark) -> dict[str, object]:
    if where.sequence is not None:
        return {"Type": "AT_SEQUENCE_NUMBER", "SequenceNumber": str(where.sequence)}
    if where.since_ms is not None:
        return {"Type": "AT_TIMESTAMP", "Timestamp": where.since_ms / 1000}
    return {"Type": "TRIM_HORIZON"}
