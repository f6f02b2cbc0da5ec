"""Batches of a Kinesis mapping: what is new in them is committed, and nothing is passed over.

A mapping delivers a batch again after any failure, and leaves records out when it gives up on them. So the ledger
decides what is new, and where a batch does not follow what is committed the stream itself is read. See
``docs/decisions/0022-lambda.md``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import structlog

from streamproc.database import Database
from streamproc.errors import Gap, UnexpectedPosition
from streamproc.leases import Found, Mark, ShardInfo
from streamproc.ledger.shards import Shards
from streamproc.model import Partition, RecordBatch
from streamproc.runtimes.aws_lambda.engine import Engine
from streamproc.runtimes.aws_lambda.mapping import Unfinished
from streamproc.sources.kinesis_records import ALL_KEYS, HashRange, Page, runs

if TYPE_CHECKING:
    from streamproc.sources.kinesis_lookup import StreamReader

log = structlog.get_logger(__name__)

#: Seconds. A record is not counted on until the last moment of its retention.
_MARGIN = 300.0

#: Seconds for which marks are kept at most: the longest that Kinesis keeps records.
_LONGEST_KEPT = 365 * 86_400.0


class KinesisTrigger:
    """Commits the batches of one stream's shards."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stream = engine.transform.topology.topic.name
        self._database: Database | None = None
        self._marks: Shards | None = None
        self._region = ""
        self._known: set[str] = set()
        self._reader: StreamReader | None = None

    async def __call__(self, pages: Mapping[str, Page], unfinished: Unfinished, region: str) -> None:
        """Commit pages by shard. Raises what kept it from that; what is done is noted in ``unfinished``."""
        settings = self._engine.settings
        if self._marks is None or self._database is not self._engine.database:
            self._database = self._engine.database
            name = self._engine.transform.topology.name
            self._marks = Shards(self._database, name, self._stream, settings.worker, 0)
            await self._marks.thin(_LONGEST_KEPT)
        self._region = region
        for shard, page in pages.items():
            await _Batch(self, self._marks, shard, unfinished).commit(page)
            unfinished.done(shard)

    @property
    def engine(self) -> Engine:
        """What commits."""
        return self._engine

    @property
    def stream(self) -> str:
        """The stream's name."""
        return self._stream

    async def known(self, shard: str) -> None:
        """Note the shard in the ledger, once."""
        assert self._marks is not None
        if shard not in self._known:
            await self._marks.found([ShardInfo(shard)], "earliest", None)
            self._known.add(shard)

    async def reader(self) -> StreamReader:
        """Reads the stream itself."""
        if self._reader is None:
            from streamproc.sources.kinesis_lookup import StreamReader  # noqa: PLC0415 - takes a second

            endpoint = self._engine.settings.kinesis.endpoint_url
            self._reader = await StreamReader.connect(self._stream, self._region, endpoint)
        return self._reader

    async def close(self) -> None:
        """Disconnect."""
        if self._reader is not None:
            await self._reader.close()


class _Batch:
    """One shard's part of an event."""

    def __init__(self, trigger: KinesisTrigger, marks: Shards, shard: str, unfinished: Unfinished) -> None:
        self._trigger = trigger
        self._marks = marks
        self._shard = shard
        self._unfinished = unfinished
        self._partition = Partition(trigger.stream, shard)
        self._position = -1

    async def commit(self, page: Page) -> None:
        """Commit what of it is not; see the module's docstring."""
        await self._trigger.known(self._shard)
        position = (await self._trigger.engine.positions([self._partition]))[self._partition]
        first = int(page.sequences[0])
        if position is None:  # the mapping's starting position decides where the numbers begin
            await self._marks.settle(self._shard, -1, first)
        self._position = -1 if position is None else position
        found = await self._marks.find(self._shard, position)
        mark = found.mark
        if mark.position != self._position:  # a worker's: it makes fewer of them
            await self._catch_up(mark, page)
            return
        row = next((n for n, each in enumerate(page.sequences) if _beyond(int(each), mark)), len(page))
        if row:
            await self._expect_committed(page.until(row), mark)
        if row == len(page):
            return
        if row:
            self._unfinished.done_before(self._shard, page.sequences[row])
        fresh = page.since(row)
        looked = time.monotonic()
        complete = await self._follows(fresh, found)
        if complete is None:
            await self._catch_up(mark, fresh)
            return
        await self._take(fresh, await self._keys(fresh))
        if complete:
            await self._marks.complete(self._shard, time.monotonic() - looked)

    async def _follows(self, fresh: Page, found: Found) -> bool | None:
        """Whether these are the records behind the mark's, and if so whether the stream has no more; ``None``: not.

        Sequence numbers do not say what lies between two of them, so the stream is asked.
        """
        mark, first = found.mark, int(fresh.sequences[0])
        if mark.inclusive:
            return False if first == mark.sequence else None
        assert mark.sequence is not None, "only an origin has none, and it is settled"
        reader = await self._trigger.reader()
        seen = await reader.after(self._shard, mark, fresh)
        if seen.oldest != mark.sequence:
            await self._lost(found, seen.oldest)
        if seen.following is None or seen.following > first:
            raise UnexpectedPosition(
                f"{self._partition}: record {first} came, which the stream does not have: it is another stream, or "
                "was made anew"
            )
        return seen.complete if seen.following == first else None

    async def _lost(self, found: Found, oldest: int | None) -> None:
        """The committed record is gone. Raises :class:`Gap` unless it is known that none went with it."""
        kept = await (await self._trigger.reader()).kept()
        if found.complete_for is not None and found.complete_for + _MARGIN < kept:
            return
        raise Gap(
            f"{self._partition}: everything through position {self._position} is committed; record "
            f"{found.mark.sequence} is gone, the oldest kept is {oldest}, and records between them may be gone too; to "
            "go on without them: streamproc offsets set --accept-gap"
        )

    async def _expect_committed(self, page: Page, mark: Mark) -> None:
        """Raise :class:`UnexpectedPosition` unless these records are among those that were counted.

        A batch that comes again has its marks. Where it was cut otherwise, the stream is counted: records that lie
        before the committed one and were never counted came by another way, of which the ledger knows nothing.
        """
        first, last = int(page.sequences[0]), int(page.sequences[-1])
        begin = await self._marks.before(self._shard, first)
        end = await self._marks.before(self._shard, last + 1)
        number = sum(len(run.values) for run in runs(page, await self._keys(page)))
        if begin and end and (end.position - begin.position, end.sequence) == (number, last):
            return
        assert mark.sequence is not None
        if begin is not None:
            counted = await (await self._trigger.reader()).count(self._shard, begin, mark.sequence)
            if counted == self._position:
                return
        raise UnexpectedPosition(
            f"{self._partition}: record {first} came, which lies before what is committed and was passed over: the "
            "mapping needs a ParallelizationFactor of 1 and no filter"
        )

    async def _catch_up(self, mark: Mark, page: Page) -> None:
        """Read the stream itself from the mark through the page's last record; commit what is not, page by page."""
        last = int(page.sequences[-1])
        log.warning("reading_what_was_left_out", partition=str(self._partition), after=self._position)
        reader = await self._trigger.reader()
        skip = self._position - mark.position
        begun = False
        async with aclosing(reader.pages(self._shard, mark)) as pages:
            async for read in pages:
                if len(read) and not begun:
                    begun = True
                    if int(read.sequences[0]) != mark.sequence:
                        await self._lost(
                            await self._marks.find(self._shard, self._position), int(read.sequences[0])
                        )
                rows = [
                    n
                    for n, each in enumerate(read.sequences)
                    if _beyond(int(each), mark) and int(each) <= last
                ]
                if rows:
                    part = read.since(rows[0]).until(len(rows))
                    skip = await self._take(part, await self._keys(part), skip)
                    self._note(page, int(part.sequences[-1]))
                if len(read) and int(read.sequences[-1]) >= last:
                    return
                if read.behind_ms == 0:
                    break
        raise UnexpectedPosition(
            f"{self._partition}: the stream ends before record {last}, which came from it"
        )

    def _note(self, page: Page, through: int) -> None:
        """Tell how much of the event's page is done."""
        rest = [sequence for sequence in page.sequences if int(sequence) > through]
        if rest and rest[0] != page.sequences[0]:
            self._unfinished.done_before(self._shard, rest[0])

    async def _take(self, page: Page, keys: HashRange, skip: int = 0) -> int:
        """Number the records and commit them, but for the first ``skip``; returns what of that is left."""
        batches: list[RecordBatch] = []
        mark: Mark | None = None
        through = self._position
        for run in runs(page, keys):
            values = run.values[skip:]
            skip -= len(run.values) - len(values)
            if not values:
                continue
            after, through = through, through + len(values)
            positions, size = range(after + 1, through + 1), sum(map(len, values))
            batches.append(
                RecordBatch(self._partition, after, through, values, positions, run.arrived_ms, size)
            )
            mark = Mark(through, run.sequence, arrived_ms=run.arrived_ms)
        if mark is None:
            return skip
        # A mark is true whether or not this commit happens, so it comes first: then the committed record is known.
        async with self._trigger.engine.database.transaction("note a mark") as conn:
            await self._marks.add(conn, {self._shard: mark})
        await self._trigger.engine.commit(batches)
        self._position = through
        return skip

    async def _keys(self, page: Page) -> HashRange:
        """Which records inside of packed ones are the shard's; does not matter where there are none."""
        return await (await self._trigger.reader()).keys(self._shard) if page.packed else ALL_KEYS


def _beyond(sequence: int, mark: Mark) -> bool:
    """Whether the record is behind the mark's place."""
    assert mark.sequence is not None
    return sequence > mark.sequence or (mark.inclusive and sequence == mark.sequence)


def pages_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Page]:
    """The records of a mapping's event by shard: https://docs.aws.amazon.com/lambda/latest/dg/with-kinesis.html."""
    pages: dict[str, Page] = {}
    for record in records:
        shard = record["eventID"].partition(":")[0]
        page = pages.setdefault(shard, Page())
        data = record["kinesis"]
        page.values.append(base64.b64decode(data["data"]))
        page.sequences.append(data["sequenceNumber"])
        page.arrivals.append(float(data["approximateArrivalTimestamp"]))
    return {shard: page.since(0) for shard, page in pages.items()}  # with its size
