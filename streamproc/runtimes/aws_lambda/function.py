"""The function: what an event is, how long it may take, and what is answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import structlog

from streamproc.errors import ConfigError, Mistake, StreamprocError
from streamproc.ops.logging import configure_logging
from streamproc.runtimes.aws_lambda.engine import Engine
from streamproc.runtimes.aws_lambda.firehose import Firehose, Output
from streamproc.runtimes.aws_lambda.kafka import KafkaTrigger, item
from streamproc.runtimes.aws_lambda.kinesis import KinesisTrigger, pages_of
from streamproc.runtimes.aws_lambda.mapping import OutOfTime, Unfinished
from streamproc.settings import Settings, read_settings
from streamproc.topic_pages import find_pages, load_pages
from streamproc.topology import Topology
from streamproc.transform import Resources, Transform

if TYPE_CHECKING:
    from streamproc.runtimes.aws_lambda.objects import ObjectTrigger

log = structlog.get_logger(__name__)

#: Seconds of an invocation that are left for the answer.
_ANSWERING = 1.0

#: Part of what is left that reading an object may take; the rest is for its last commit.
_READING = 0.7


class Context(Protocol):
    """What of Lambda's context is used."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation is ended."""


class Function:
    """One stream's function. Made once for an instance, and called with each event, one at a time.

    ``folder``: where the page is, for files it names. Connections are made when an event needs them, and kept. Raises
    :class:`ConfigError`.
    """

    def __init__(self, settings: Settings, page: Topology, folder: Path) -> None:
        self._settings = settings
        self._transform = Transform(page, Resources(os.environ, folder))
        self._loop = asyncio.new_event_loop()
        self._engine: Engine | None = None
        self._firehose: Firehose | None = None
        self._kinesis: KinesisTrigger | None = None
        self._kafka: KafkaTrigger | None = None
        self._objects: ObjectTrigger | None = None

    @classmethod
    def from_environment(cls) -> Function:
        """By the settings of the environment, and the pages of their folder or those in the package."""
        settings = read_settings()
        configure_logging(settings.log)
        folder = find_pages(settings.topics)
        page = _chosen(load_pages(folder), settings.function.stream)
        if settings.lake.scheme == "s3":
            import streamproc.sinks.s3  # noqa: F401, PLC0415 - a second that a first batch would wait for

        return cls(settings, page, folder.parent if folder.is_file() else folder)

    def __call__(self, event: Mapping[str, Any], context: Context) -> dict[str, Any] | None:
        """The answer to an event of one of the triggers.

        Raises when nothing of it could be done, and whenever a commit of Kafka's records fails, which makes the
        sender send it again: :class:`ConfigError` for events that the function is not set up for.
        """
        seconds = context.get_remaining_time_in_millis() / 1000 - _ANSWERING
        return self._loop.run_until_complete(self._answer(event, seconds))

    def close(self) -> None:
        """Release the claims and disconnect; an instance that Lambda ends does not get to it."""
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        for part in (self._kinesis, self._objects, self._engine):
            if part is not None:
                await part.close()

    async def _answer(self, event: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        if "deliveryStreamArn" in event:
            return await self._transformed(event, seconds)
        if event.get("eventSource") in {"aws:kafka", "SelfManagedKafka"}:
            return await self._from_kafka(event["records"], seconds)
        records: Sequence[Mapping[str, Any]] = event.get("Records") or ()
        match records[0].get("eventSource") if records else None:
            case "aws:kinesis":
                return await self._from_kinesis(records, seconds)
            case "aws:sqs":
                return await self._from_queue(records, seconds)
            case "aws:s3":
                await self._from_object(event, seconds)
                return None
        if "detail-type" in event or event.get("Event") == "s3:TestEvent":
            await self._from_object(event, seconds)
            return None
        raise ConfigError(
            [Mistake("event", f"has the keys {sorted(event)[:10]}", "See docs/lambda.md: the triggers")]
        )

    # -- the triggers --------------------------------------------------------------------------------

    async def _transformed(self, event: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        settings = self._settings
        if self._firehose is None:
            named = (settings.function.partition_keys or "").split(",")
            keys = tuple(key.strip() for key in named if key.strip())
            self._firehose = Firehose(self._transform, Output(settings.function.firehose_times, keys))
        has_ledger = not settings.ledger.embedded or settings.function.ledger_secret is not None
        if self._transform.wants_visitor_key and not self._transform.visitor_key and has_ledger:
            await self._within(seconds, self._ready)
        return self._firehose(event)

    async def _from_kinesis(self, records: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
        first = records[0]
        # Of a mapping with enhanced fan-out the ARN goes on behind the stream: stream/NAME/consumer/NAME:TIME.
        topic, stream = self._transform.topology.topic.name, first["eventSourceARN"].split("/")[1]
        if stream != topic:
            fix = "Name the stream of that topic, function.stream"
            raise ConfigError(
                [Mistake("topic.name", f"is {topic!r}, and the mapping's stream is {stream!r}", fix)]
            )
        pages = pages_of(records)
        unfinished = Unfinished({shard: page.sequences[0] for shard, page in pages.items()})

        async def work() -> None:
            engine = await self._ready()
            if self._kinesis is None:
                self._kinesis = KinesisTrigger(engine)
            await self._kinesis(pages, unfinished, first["awsRegion"])

        return await self._mapped(work, unfinished, seconds)

    async def _from_kafka(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], seconds: float
    ) -> dict[str, Any]:
        unfinished = Unfinished({name: item(name, some[0]["offset"]) for name, some in records.items()})

        async def work() -> None:
            engine = await self._ready()
            if self._kafka is None:
                self._kafka = KafkaTrigger(engine)
            await self._kafka(records, unfinished)

        # What keeps all of it from being committed is raised, whatever was committed before: a mapping that is not in
        # provisioned mode takes any answer for success, and would go past the rest.
        await self._within(seconds, work)
        return unfinished.answer()

    async def _from_queue(self, messages: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
        """Messages one after the other, each with what is left of the time."""
        until = self._loop.time() + seconds
        unfinished = Unfinished({message["messageId"]: message["messageId"] for message in messages})
        for message in messages:
            left = until - self._loop.time()
            try:
                if left <= 0:
                    raise OutOfTime("the messages before it took all the time")
                await self._from_object(orjson.loads(message["body"]), left)
            except (StreamprocError, ValueError, LookupError, TypeError, AttributeError) as error:
                unfinished.failed(message["messageId"], error)
            else:
                unfinished.done(message["messageId"])
        return unfinished.answer()

    async def _from_object(self, message: Mapping[str, Any], seconds: float) -> None:
        from streamproc.runtimes.aws_lambda.objects import ObjectTrigger  # noqa: PLC0415 - Amazon's client: a second

        async def work() -> None:
            engine = await self._ready()
            if self._objects is None:
                self._objects = ObjectTrigger(engine)
            await self._objects(message, seconds * _READING)

        await self._within(seconds, work)

    # -- how -----------------------------------------------------------------------------------------

    async def _ready(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._settings, self._transform)
        await self._engine.ready()
        return self._engine

    async def _mapped(
        self, work: Callable[[], Awaitable[None]], unfinished: Unfinished, seconds: float
    ) -> dict[str, Any]:
        """Do the work and answer the mapping: what was not done comes again."""
        try:
            await self._within(seconds, work)
        except StreamprocError as error:
            log.error("batch_not_done", why=str(error), error=type(error).__name__)
            return unfinished.answer(error)
        return unfinished.answer()

    async def _within(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Do the work in that time. After any failure what is not committed is dropped: it comes again.

        Raises :class:`OutOfTime`, or what the work raised.
        """
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await work()
        except BaseException as error:
            if self._engine is not None:
                await self._engine.forget()
            if isinstance(error, TimeoutError):
                raise OutOfTime(
                    f"not done within {seconds:.1f} s; the function's timeout may be too short"
                ) from error
            raise


def _chosen(pages: Mapping[str, Topology], name: str | None) -> Topology:
    known = ", ".join(sorted(pages))
    if name is None and len(pages) == 1:
        return next(iter(pages.values()))
    if name is None:
        raise ConfigError([Mistake("function.stream", "is not set", f"Name one of the streams: {known}")])
    if name not in pages:
        problem = f"is {name!r}, and there is no such stream"
        raise ConfigError([Mistake("function.stream", problem, f"Name one of: {known}")])
    return pages[name]
