"""Objects that were created in S3: each is read as a log, once, however often it is told of.

The ledger keeps a row of each (decision 17): an invocation takes the object, commits epoch by epoch, and what its
time does not reach is read by the next one, from behind the last committed row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.ledger.logs import Logs
from streamproc.log_objects import LogEntry, Period, TakenLog
from streamproc.model import Partition, RecordBatch
from streamproc.runtimes.aws_lambda.engine import Engine
from streamproc.runtimes.aws_lambda.mapping import OutOfTime
from streamproc.sources.log_bucket import Bucket
from streamproc.sources.log_queue import notified
from streamproc.sources.log_reader import LogReader
from streamproc.sources.log_store import LogConnection
from streamproc.sources.log_unpack import Caps
from streamproc.sources.logs import how_to_read

log = structlog.get_logger(__name__)

#: Bytes read and not taken by the pipeline: reading pauses there.
_PREFETCH = 32 << 20

#: Seconds by which a lease outlives the invocation that took it.
_AFTER = 5.0


class Held(DependencyError):
    """Another invocation, or a worker, is reading the object."""


class ObjectTrigger:
    """Reads the objects of one place, ``s3://bucket/prefix``, that messages tell of."""

    def __init__(self, engine: Engine) -> None:
        settings = engine.settings
        if settings.broker.scheme != "s3":
            fix = "Set STREAMPROC_BROKER to s3://bucket/prefix"
            raise ConfigError([Mistake("broker", f"is {settings.broker}, and objects were created", fix)])
        self._engine = engine
        self._connection = LogConnection.of(
            settings.broker,
            endpoint_url=settings.s3.endpoint_url,
            region=settings.s3.region,
            caps=Caps(settings.logs.max_ratio, settings.logs.max_size),
        )
        self._bucket: Bucket | None = None

    async def __call__(self, message: Mapping[str, Any], seconds: float) -> None:
        """Read what the message tells of to the end, within so many seconds.

        Objects of other places are none of ours. Raises :class:`OutOfTime` when there is more to read, :class:`Held`
        when somebody else is at it, and what the reading raised: the message has to come again.
        """
        until = asyncio.get_running_loop().time() + seconds
        if self._bucket is None:
            self._bucket = Bucket(self._connection)
        await self._bucket.open()
        entries = notified(message, self._bucket)
        if not entries:
            log.info("no_objects_of_ours", place=str(self._connection))
            return
        page, settings = self._engine.transform.topology, self._engine.settings
        logs = Logs(
            self._engine.database, page.name, str(self._connection), settings.worker, seconds + _AFTER
        )
        await logs.found(entries)
        for entry in entries:
            await self._read(logs, entry, until)

    async def close(self) -> None:
        """Disconnect."""
        if self._bucket is not None:
            await self._bucket.close()

    async def _read(self, logs: Logs, entry: LogEntry, until: float) -> None:
        taken = await logs.take(1, Period(), only=[entry.id])
        if not taken:
            if await logs.unfinished([entry.id]):
                raise Held(f"{self._connection}: {entry.place}", "is being read by somebody else")
            log.info("object_read_before", place=entry.place)
            return
        try:
            await self._take(logs, taken[0], until)
        finally:
            await logs.release([entry.id])

    async def _take(self, logs: Logs, taken: TakenLog, until: float) -> None:
        """Read a log that is ours from behind the committed row on; finish it if its end is reached."""
        assert self._bucket is not None
        partition = Partition(str(self._connection), taken.entry.id)
        position = (await self._engine.positions([partition]))[partition]
        # Asked after the claim, as workers do: nobody else can commit any more, so what is still ours is not done.
        if taken.entry.id not in await logs.renew([taken.entry.id]):
            return
        pipeline, arrived = self._engine.pipeline, asyncio.Event()
        how = how_to_read(
            self._connection,
            self._engine.transform.topology.contract,
            self._bucket,
            room=lambda: reader.queued_bytes < _PREFETCH,
            arrived=arrived,
            waiting=lambda error, failing: log.warning("waiting", on=error.what, problem=error.problem),
        )
        reader = LogReader(partition, taken, position, how)
        reader.start()
        try:
            complete = await self._fold(reader, arrived, until)
        finally:
            await reader.stop()
        await pipeline.drain()
        if not complete:
            raise OutOfTime(
                f"{taken.entry.place}: committed through row {reader.handed_out}, and there is more"
            )
        assert reader.end is not None
        await logs.finish({taken.entry.id: reader.end})
        await pipeline.finished([partition])

    async def _fold(self, reader: LogReader, arrived: asyncio.Event, until: float) -> bool:
        """Hand the records to the pipeline, which commits full epochs; whether the end was reached in time."""
        pipeline, most = self._engine.pipeline, self._engine.settings.batch_records
        try:
            async with asyncio.timeout_at(until):
                while True:
                    arrived.clear()
                    batches = _next(reader, most)
                    if batches:
                        await pipeline.take(batches, pipeline.generation)
                    elif reader.failure is not None:
                        raise reader.failure
                    elif reader.end is not None:
                        return True
                    else:
                        await arrived.wait()
                    reader.go_on()
        except TimeoutError:
            return False


def _next(reader: LogReader, most: int) -> Sequence[RecordBatch]:
    batches: list[RecordBatch] = []
    while sum(map(len, batches)) < most and (batch := reader.next()) is not None:
        batches.append(batch)
    return batches
