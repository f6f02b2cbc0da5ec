"""Reading a shard with GetRecords, within what the service allows.

https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html: five reads and 2 MiB a second
from a shard, for all its readers together; a read may be of up to 10 MiB, after which the shard refuses more
until the average is right again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import DependencyError
from streamproc.leases import Mark
from streamproc.sources import Outage, Waiting
from streamproc.sources.kinesis_client import THROTTLES, KinesisClient, KinesisError
from streamproc.sources.kinesis_records import Page

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Seconds between two reads of a shard, and bytes a second from it.
FASTEST = 0.2
BYTES_A_SECOND = 2 * 1024 * 1024

#: Records of one read at most; the service gives no more.
LIMIT = 10_000

#: Seconds to wait after the first refusal, doubled with each more, and the longest.
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 10.0

#: Iterators are good for five minutes. Servers that were started again do not know older ones.
_OLD = "ExpiredIteratorException"
_EXPIRED = frozenset({_OLD, "InvalidArgumentException"})

#: What a server says of a sequence number or a shard that it does not have any more, or never had.
_UNKNOWN_PLACE = frozenset({"ResourceNotFoundException", "InvalidArgumentException"})


@dataclass(frozen=True, slots=True)
class Pace:
    """``idle``: seconds between reads of a shard that has nothing new. ``waiting`` is told what is
    being waited out. ``fan_out``: the registered consumer to read by, where that is possible."""

    idle: float = 0.5
    waiting: Waiting | None = None
    fan_out: str | None = None


class Pages(Protocol):
    """Reads one shard, by polling or pushed."""

    @property
    def pace(self) -> Pace:
        """How failures are waited out."""

    def pages(self, where: Mark) -> AsyncGenerator[Page, None]:
        """Pages from the mark's place on, with the record of its sequence number first if that is kept.

        Ends after the page that ends the shard, or when it is to be begun anew behind what was read.
        A sequence number that the shard does not know begins at its oldest record.
        """


class Polling:
    """Reads one shard. ``limit``: most records at once."""

    def __init__(
        self, client: KinesisClient, stream: str, shard: str, pace: Pace, limit: int = LIMIT
    ) -> None:
        self._client = client
        self._stream = stream
        self._shard = shard
        self._limit = limit
        #: Not to be read again before, on the loop's clock: also by whoever begins anew.
        self._due = 0.0
        self.pace = pace

    async def pages(self, where: Mark) -> AsyncGenerator[Page, None]:
        """See :class:`Pages`. Ends when the iterator expired."""
        loop = asyncio.get_running_loop()
        iterator: str | None = await self._iterator(where)
        read = False  # a page by an iterator of this call
        while iterator is not None:
            await asyncio.sleep(max(0.0, self._due - loop.time()))
            begin = loop.time()
            try:
                ask = partial(self._client.page, iterator, self._limit)
                page = await persistently(ask, self.pace, _EXPIRED | _UNKNOWN_PLACE)
            except KinesisError as error:
                if error.code in _UNKNOWN_PLACE and not read and where.sequence is not None:
                    # It is the place that is refused, not the iterator's age: a new one would be, too.
                    where = Mark(where.position)
                    iterator = await self._iterator(where)
                    continue
                if error.code not in _EXPIRED or not (read or error.code == _OLD):
                    raise
                log.debug("iterator_expired", shard=self._shard, why=error.problem)
                return
            read = True
            least = FASTEST if len(page) or page.behind_ms else self.pace.idle
            self._due = begin + max(least, page.size / BYTES_A_SECOND)
            yield page
            iterator = page.iterator

    async def _iterator(self, where: Mark) -> str:
        def ask(place: Mark) -> Awaitable[str]:
            return self._client.iterator(self._stream, self._shard, place)

        try:
            return await persistently(lambda: ask(where), self.pace, _UNKNOWN_PLACE)
        except KinesisError:
            if where.sequence is None:
                raise
            return await persistently(lambda: ask(Mark(where.position)), self.pace, _UNKNOWN_PLACE)


async def persistently(
    call: Callable[[], Awaitable[T]], pace: Pace, final: frozenset[str] = frozenset()
) -> T:
    """Try until it works, or Kinesis refuses it with one of the errors ``final``: waiting cures the others."""
    failures, outage = 0, Outage()
    while True:
        try:
            return await call()
        except DependencyError as error:
            end_if_cancelled(error)
            code = error.code if isinstance(error, KinesisError) else ""
            if code in final:
                raise
            if code in THROTTLES:
                log.debug("throttled", why=error.problem)
            else:
                log.warning("waiting", on=error.what, problem=error.problem, hint=error.hint)
                if pace.waiting is not None:
                    pace.waiting(error, outage.failed())
        wait = min(_FIRST_WAIT * 2**failures, _LONGEST_WAIT)
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - readers must not march in step
        failures = min(failures + 1, 10)
