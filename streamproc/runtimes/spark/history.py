"""The driver's part: which logs a job reads, and the one commit of what its executors made of them.

A job is a worker with large epochs. It takes logs from the ledger as every worker does, claims them, and commits
tables, objects and positions in one transaction under their fences. So a log is counted once whoever reads it, a job
that is run again finds nothing to do, and one that was killed has done nothing or all of an epoch. Logs are taken by
the day on which they were last changed, a day after the other.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from psycopg import AsyncConnection

from streamproc.errors import DependencyError, Fenced, Inconsistent
from streamproc.failpoints import failpoint
from streamproc.ledger import Ledger
from streamproc.ledger.logs import Logs
from streamproc.log_objects import PACKED, LogEnd, Period, TakenLog
from streamproc.model import (
    Advance,
    Claim,
    Counts,
    EncodedRows,
    EpochRecord,
    Partition,
    PlannedObject,
    WrittenObject,
)
from streamproc.runtimes.erased import read_erased
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.reading import LogWork
from streamproc.runtimes.spark.setup import Setup
from streamproc.runtimes.spark.stages import Reads, Stages
from streamproc.runtimes.spark.uniting import together
from streamproc.sinks.lake import Lake
from streamproc.sinks.summaries import Summaries
from streamproc.sources.log_store import LogStore
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

_DAY_MS = 86_400_000

#: Logs of an epoch at most: each is a row to be locked and written by its commit.
_MOST_LOGS = 10_000

#: Renewals within a lease.
_BEATS = 3


@dataclass(slots=True)
class Done:
    """What a job has committed. ``bytes``: of logs, as they lie there; ``late``: events, by table."""

    epochs: int = 0
    logs: int = 0
    bytes: int = 0
    counts: Counts = field(default_factory=Counts)
    late: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sizes:
    """``epoch_bytes``: of logs, as they lie there, in a commit; ``task_bytes``: in a task. A larger log stands alone.

    A gigabyte of packed log lines is some ten million; the driver holds the session events of one commit, so where
    there are sessions the command takes less.
    """

    epoch_bytes: int = 64 << 30
    task_bytes: int = 64 << 20


class History:
    """Logs of a place as tables, lake objects and positions of one stream."""

    def __init__(self, setup: Setup, ledger: Ledger, logs: Logs, engine: Reads) -> None:
        self._page = page = setup.topology()
        self._setup = setup
        self._ledger = ledger
        self._logs = logs
        self._lake = (
            Lake(setup.open_store(), page) if page.sinks.lake else None
        )  # plans keys only: not opened
        self._engine = engine
        self._summaries = Summaries(page.tables, page.name)

    async def run(
        self, store: LogStore, period: Period, sizes: Sizes, tell: Callable[[str, Done], None]
    ) -> Done:
        """Find the logs of the period and read them, each day's together. ``tell`` is called after each commit.

        Raises :class:`Fenced` when another worker has taken logs that this one had, and what Spark, the ledger
        or a store raised; what was committed by then stays, and the same job goes on behind it.
        """
        days: set[int] = set()
        async for entries in store.listing():
            mine = [entry for entry in entries if entry.modified_ms in period]
            await self._logs.found(mine)
            days |= {entry.modified_ms // _DAY_MS for entry in mine}
        done = Done()

        async def read() -> None:
            for day in sorted(days):
                whole = _within(period, day * _DAY_MS, (day + 1) * _DAY_MS)
                while taken := await self._take(whole, sizes.epoch_bytes):
                    await self._epoch(taken, sizes.task_bytes, done)
                    tell(datetime.fromtimestamp(day * 86_400, UTC).date().isoformat(), done)

        await read()
        if not days:
            return done
        all_days = _within(period, min(days) * _DAY_MS, (max(days) + 1) * _DAY_MS)
        totals = await self._logs.totals(all_days)
        if totals.done < totals.logs:
            # What a job has taken that was killed a moment ago, as when YARN starts its driver again, is free once its
            # leases have expired. Who is at work renews them, and reads its logs itself.
            log.info("logs_held", logs=totals.logs - totals.done, waiting=self._logs.timeout)
            await asyncio.sleep(self._logs.timeout)
            await read()
        return done

    async def _take(self, period: Period, most_bytes: int) -> list[TakenLog]:
        """Logs of an epoch; those that are too many go back."""
        taken = await self._logs.take(_MOST_LOGS, period)
        kept: list[TakenLog] = []
        size = 0
        for one in sorted(taken, key=lambda one: (one.entry.modified_ms, one.entry.id)):
            size += one.entry.size % PACKED
            if kept and size > most_bytes:
                break
            kept.append(one)
        ids = {one.entry.id for one in kept}
        if rest := [one.entry.id for one in taken if one.entry.id not in ids]:
            await self._logs.release(rest)
        return kept

    async def _epoch(self, taken: Sequence[TakenLog], task_bytes: int, done: Done) -> None:
        started = datetime.now(UTC)
        partitions = {one.entry.id: Partition(str(self._setup.logs), one.entry.id) for one in taken}
        try:
            claims = await self._ledger.claim(list(partitions.values()))
            failpoint("claim.after")
            if self._page.erasure:  # after the claim, which an erasure voids
                erased = await read_erased(self._ledger.database, self._page.name, self._page)
                self._setup = replace(self._setup, erased=erased)
            # Asked after the claim, nobody else can commit any more: what is still ours is not done.
            ours = await self._logs.renew(partitions)
            mine = [one for one in taken if one.entry.id in ours]
            works = [await self._work(one, claims[partitions[one.entry.id]]) for one in mine]
            async with self._leased(list(ours)):
                stage = await asyncio.to_thread(
                    self._engine.read, self._setup, _shared_out(works, task_bytes)
                )
                try:
                    commit = _Commit(self._page, claims, started, await asyncio.to_thread(stage.told))
                    await self._commit(commit, stage)
                finally:
                    await asyncio.to_thread(stage.close)
            await self._logs.finish(commit.ends)
        except BaseException:
            await self._logs.release(partitions)
            raise
        done.epochs += 1
        done.logs += len(commit.ends)
        done.bytes += sum(one.entry.size % PACKED for one in mine)
        done.counts.add(commit.counts)
        for name, late in commit.late.items():
            done.late[name] = done.late.get(name, 0) + late

    async def _work(self, taken: TakenLog, claim: Claim) -> LogWork:
        recent: tuple[str, ...] = ()
        duplicates = self._page.contract.duplicates
        if duplicates is not None and claim.clock_us is not None:
            since = claim.clock_us - duplicates.horizon
            recent = tuple(o.plan.key for o in await self._ledger.recent_objects(claim.partition, since))
        return LogWork(taken, claim.position, claim.clock_us, recent)

    async def _commit(self, commit: _Commit, stage: Stages) -> None:
        """The same steps in the same order as a worker's: intend, put, commit."""
        deltas = together(self._setup.folds(), await asyncio.to_thread(stage.united))
        keys = commit.plan(self._lake)
        failpoint("intend.before")
        await self._ledger.intend(commit.id, commit.planned, commit.claims)
        failpoint("intend.after")
        written = commit.written(await asyncio.to_thread(stage.put, keys)) if keys else []
        failpoint("put.last")

        async def apply(conn: AsyncConnection[Any]) -> None:
            await self._summaries.apply(conn, deltas)

        if commit.advances:
            await self._ledger.commit(commit.record(written), apply)
        failpoint("commit.acknowledged")

    @asynccontextmanager
    async def _leased(self, logs: Sequence[str]) -> AsyncIterator[None]:
        """Renews the leases while the block runs. Losing one is no harm but wasted work: the commit is refused."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._logs.timeout / _BEATS)
                try:
                    lost = set(logs) - await self._logs.renew(logs)
                except DependencyError as error:  # whether they are lost by then shows when it answers
                    log.warning("leases_not_renewed", on=error.what, problem=error.problem)
                    continue
                if lost:
                    self._engine.cancel()
                    raise Fenced(f"{len(lost)} logs were taken by another worker, the first: {min(lost)}")

        renewing = asyncio.create_task(renew())
        try:
            yield
        except Exception:
            if renewing.done():
                renewing.result()  # why Spark was cancelled says more than that it was
            raise
        finally:
            renewing.cancel()


class _Commit:
    """What executors told of an epoch, as the ledger wants to hear it."""

    def __init__(
        self, page: Topology, claims: Mapping[Partition, Claim], started: datetime, told: Sequence[Piece]
    ) -> None:
        self.id = uuid.uuid4()
        self.claims = claims
        self.started = started
        self.planned: list[PlannedObject] = []
        self.late = dict.fromkeys((table.name for table in page.tables), 0)
        self.ends: dict[str, LogEnd] = {}
        self.counts = Counts()
        self.advances: dict[str, Advance] = {}
        self._files = [piece for piece in told if piece.kind == "file"]
        by_id = {partition.id: claim for partition, claim in claims.items()}
        for piece in told:
            if piece.kind == "late":
                for name, number in piece.told.items():
                    self.late[name] += number
            elif piece.kind == "log":
                self.ends[piece.name] = LogEnd(*piece.told["end"])
                if (read := piece.told["read"]) is not None:
                    counts = Counts(**read.pop("counts"))
                    self.counts.add(counts)
                    self.advances[piece.name] = Advance(by_id[piece.name], counts=counts, **read)

    def plan(self, lake: Lake | None) -> dict[tuple[str, int], str]:
        """A key for each file, by its log and number, which no other attempt has."""
        keys = {}
        for piece in self._files:
            assert lake is not None
            file = EncodedRows(body=b"", **piece.told)
            [planned] = lake.plan([file], self.advances[piece.name])
            self.planned.append(planned.plan)
            keys[piece.name, piece.bucket] = planned.plan.key
        return keys

    def written(self, put: Sequence[Piece]) -> list[WrittenObject]:
        """The objects that were put.

        Raises :class:`Inconsistent` when they are not those that were planned. An executor that was lost reads its logs
        again, and what arrives in other pieces may be cut into other files.
        """
        stored = {piece.name: piece.told for piece in put}
        rows = {plan.key: plan.rows for plan in self.planned}
        if {key: told["rows"] for key, told in stored.items()} != rows:
            raise Inconsistent(
                "an executor was lost and made other files than before: nothing was kept, run it again"
            )
        return [
            WrittenObject(plan, stored[plan.key]["size"], stored[plan.key]["checksum"])
            for plan in self.planned
        ]

    def record(self, written: Sequence[WrittenObject]) -> EpochRecord:
        """For the ledger."""
        return EpochRecord(
            id=self.id,
            started_at=self.started,
            advances=list(self.advances.values()),
            objects=written,
            late=self.late,
        )


def _within(period: Period, since_ms: int, until_ms: int) -> Period:
    since = since_ms if period.since_ms is None else max(period.since_ms, since_ms)
    return Period(since, until_ms if period.until_ms is None else min(period.until_ms, until_ms))


def _shared_out(works: Sequence[LogWork], task_bytes: int) -> list[list[LogWork]]:
    """Logs of one task together, as they come; the large ones first, for they take longest."""
    tasks: list[list[LogWork]] = []
    size = task_bytes
    for work in sorted(works, key=lambda work: -(work.taken.entry.size % PACKED)):
        mine = work.taken.entry.size % PACKED
        if not tasks or size + mine > task_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(work)
        size += mine
    return tasks
