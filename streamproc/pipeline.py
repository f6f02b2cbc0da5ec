"""The only place where effects are ordered.

Record batches are folded into an epoch on one compute thread; an epoch is committed in five steps,
in this order, while the next one is being filled:

1. seal the tables' deltas and encode the objects (pure);
2. *intend*: the ledger learns the keys about to be written (T1);
3. *put* the objects, in parallel;
4. *commit*: tables, positions, watermarks and object states change in one transaction (T2);
5. *tell*: copy the positions to the source's own offsets, publish. Nothing depends on these.

A step that fails because something does not answer is tried again until it does; meanwhile one epoch at
most is waiting and one is full, so memory is bounded and the source is simply not asked for more. A step
that fails because the partition is no longer ours (:class:`Fenced`) drops everything uncommitted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import polars as pl
import stamina
import structlog

from streamproc.epoch import Epoch
from streamproc.errors import DependencyError, UnexpectedPosition
from streamproc.ledger import Ledger
from streamproc.model import Partition, RecordBatch, WrittenObject
from streamproc.progress import PartitionProgress, RecentIds
from streamproc.sinks.lake import EncodedObject, Lake
from streamproc.sinks.summaries import Summaries
from streamproc.tables.fold import TableFold
from streamproc.topology import Topology
from streamproc.transform import Transform

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Batches handed to the compute thread ahead of the one being folded: enough to keep it busy while the
#: event loop fetches, few enough that they are a small part of an epoch.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """When an epoch is committed: whichever comes first. Seconds, records, bytes of record values."""

    flush_interval: float = 5.0
    max_records: int = 250_000
    max_bytes: int = 256 * 1024 * 1024
    drain_deadline: float = 30.0


class Follower(Protocol):
    """Someone who is told of a commit after it happened, at least once, and may not undo it."""

    async def committed(self, epoch: Epoch, changed: dict[str, pl.DataFrame]) -> None:
        """The epoch is committed; ``changed`` holds the finished rows of each table that it touched."""


@dataclass(slots=True)
class Stats:
    """Running totals of this process, for status and health. ``seconds`` by stage of work."""

    epochs: int = 0
    records: int = 0
    accepted: int = 0
    filtered: int = 0
    rejected: int = 0
    duplicate: int = 0
    late: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    waiting_for: str | None = None
    last_commit: float | None = None


class Pipeline:
    """Takes record batches of claimed partitions and commits epochs. One per worker and stream."""

    def __init__(
        self,
        topology: Topology,
        transform: Transform,
        *,
        ledger: Ledger,
        lake: Lake | None,
        summaries: Summaries,
        limits: Limits,
        followers: Sequence[Follower] = (),
    ) -> None:
        self.topology = topology
        self.stats = Stats()
        self._transform = transform
        self._ledger = ledger
        self._lake = lake
        self._summaries = summaries
        self._limits = limits
        self._followers = followers
        self._folds = {table.name: TableFold(table) for table in topology.tables}
        self._progress: dict[Partition, PartitionProgress] = {}
        self._submitted: dict[Partition, int | None] = {}
        self._epoch = self._new_epoch()
        self._folding: deque[asyncio.Future[None]] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._rotating = asyncio.Lock()
        self._generation = 0
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="fold")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    # -- partitions come and go ------------------------------------------------------------------

    async def assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """Claim these partitions; returns the committed position of each, ``None`` where there is none."""
        claims = await self._until_answered("claim", lambda: self._ledger.claim(partitions))
        for partition, claim in claims.items():
            recent = await self._recent_ids(partition, claim.clock_us)
            self._progress[partition] = PartitionProgress(claim, claim.position, claim.clock_us, recent)
            self._submitted[partition] = claim.position
        return {partition: claim.position for partition, claim in claims.items()}

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """Commit what was taken, then let these partitions go. Gives up at the drain deadline."""
        if not self._progress:
            return
        try:
            async with asyncio.timeout(self._limits.drain_deadline):
                await self.drain()
        except (TimeoutError, DependencyError) as error:
            log.warning("uncommitted_dropped", why=str(error) or "deadline", records=self._epoch.records)
        self.drop()

    async def drain(self) -> None:
        """Fold and commit everything taken so far."""
        await self._rotate()
        if self._committing is not None:
            await asyncio.wait({self._committing})
        self._raise_failure()

    def drop(self) -> None:
        """Forget everything uncommitted. The positions in the ledger still say where to go on."""
        self._generation += 1
        if self._committing is not None:
            self._committing.cancel()
            self._committing = None
        self._progress.clear()
        self._submitted.clear()
        self._folding.clear()
        self._epoch = self._new_epoch()

    async def close(self) -> None:
        """Release the claims and the threads. Call :meth:`drain` first; nothing is committed here."""
        claims = [progress.claim for progress in self._progress.values()]
        self.drop()
        if claims:
            await self._ledger.release(claims)
        self._compute.shutdown(wait=True)
        self._encoder.shutdown(wait=True)

    # -- records -----------------------------------------------------------------------------------

    async def take(self, batches: Sequence[RecordBatch]) -> None:
        """Fold these batches; commits when the epoch is due. Waits when too much is under way.

        An empty sequence only checks whether a commit is due. Raises what the fold or a commit raised.
        """
        self._raise_failure()
        generation = self._generation
        fresh = sorted((b for b in batches if self._follows(b)), key=lambda batch: batch.partition)
        if fresh:
            loop = asyncio.get_running_loop()
            progress = {batch.partition: self._progress[batch.partition] for batch in fresh}
            self._folding.append(loop.run_in_executor(self._compute, self._epoch.fold, fresh, progress))
        while len(self._folding) > _AHEAD and generation == self._generation:
            await self._folding.popleft()
        if generation == self._generation and self._due():
            await self._rotate()

    def _follows(self, batch: RecordBatch) -> bool:
        """Whether the batch continues where this worker stands; stale batches of an older claim do not."""
        if batch.partition not in self._submitted:
            return False
        taken = self._submitted[batch.partition]
        if taken is not None and batch.through <= taken:
            return False
        if taken is not None and batch.after != taken:
            raise UnexpectedPosition(f"{batch.partition}: expected records after {taken}, got ({batch.after}, {batch.through}]")
        self._submitted[batch.partition] = batch.through
        return True

    def _due(self) -> bool:
        epoch, limits = self._epoch, self._limits
        return bool(epoch.partitions or self._folding) and (
            epoch.age >= limits.flush_interval
            or epoch.records >= limits.max_records
            or epoch.bytes >= limits.max_bytes
        )

    # -- epochs ------------------------------------------------------------------------------------

    def _new_epoch(self) -> Epoch:
        keep = self._lake is not None or bool(self._followers)
        return Epoch(self.topology, self._transform, self._folds, keep_events=keep)

    async def _rotate(self) -> None:
        """Close the epoch and start committing it, once the one before is done."""
        async with self._rotating:
            generation = self._generation
            while self._folding and generation == self._generation:
                await self._folding.popleft()
            if self._committing is not None:
                await asyncio.wait({self._committing})
            if generation != self._generation:
                return
            self._raise_failure()
            epoch, self._epoch = self._epoch, self._new_epoch()
            if epoch.partitions:
                self._committing = asyncio.create_task(self._commit(epoch), name=f"commit {epoch.id}")

    def _raise_failure(self) -> None:
        done = self._committing
        if done is not None and done.done():
            self._committing = None
            done.result()

    async def _commit(self, epoch: Epoch) -> None:
        begin = time.perf_counter()
        seconds = epoch.seconds
        loop = asyncio.get_running_loop()
        shares = list(epoch.partitions.values())
        advances = [share.advance() for share in shares]
        encoding = loop.run_in_executor(self._encoder, self._encode, epoch)
        deltas = await loop.run_in_executor(self._encoder, epoch.seal)
        objects = await encoding
        plans = [encoded.plan for encoded in objects]
        if plans:
            await self._until_answered("intend", lambda: self._ledger.intend(epoch.id, plans, advances))
        sealed = time.perf_counter()
        written = await asyncio.gather(*(self._put(encoded) for encoded in objects))
        put = time.perf_counter()
        seconds["put"] = put - sealed
        changed = await self._until_answered(
            "commit",
            lambda: self._ledger.commit(
                epoch.id,
                advances,
                written,
                lambda conn: self._summaries.apply(conn, deltas, changed=bool(self._followers)),
                late=epoch.late,
                seconds=seconds,
            ),
        )
        seconds["commit"] = time.perf_counter() - put
        self._account(epoch, time.perf_counter() - begin)
        for follower in self._followers:
            await follower.committed(epoch, changed)

    def _encode(self, epoch: Epoch) -> list[EncodedObject]:
        if self._lake is None:
            return []
        begin = time.perf_counter()
        objects = [o for share in epoch.partitions.values() for o in self._lake.encode(share)]
        epoch.seconds["encode"] = time.perf_counter() - begin
        return objects

    async def _put(self, encoded: EncodedObject) -> WrittenObject:
        assert self._lake is not None
        lake = self._lake
        return await self._until_answered("put", lambda: lake.put(encoded))

    def _account(self, epoch: Epoch, elapsed: float) -> None:
        counts, stats = epoch.counts, self.stats
        stats.epochs += 1
        for name in ("records", "accepted", "filtered", "rejected", "duplicate"):
            setattr(stats, name, getattr(stats, name) + getattr(counts, name))
        for name, late in epoch.late.items():
            stats.late[name] = stats.late.get(name, 0) + late
        for stage, spent in epoch.seconds.items():
            stats.seconds[stage] = stats.seconds.get(stage, 0.0) + spent
        stats.last_commit = time.time()
        log.info(
            "epoch_committed",
            epoch=str(epoch.id),
            records=counts.records,
            accepted=counts.accepted,
            filtered=counts.filtered,
            rejected=counts.rejected,
            duplicate=counts.duplicate,
            partitions=len(epoch.partitions),
            commit_seconds=round(elapsed, 3),
        )

    # -- waiting -----------------------------------------------------------------------------------

    async def _until_answered(self, step: str, act: Callable[[], Awaitable[T]]) -> T:
        """Try until it works or fails for a reason that waiting does not cure."""
        async for attempt in stamina.retry_context(
            on=DependencyError, attempts=None, timeout=None, wait_initial=0.2, wait_max=15.0
        ):
            with attempt:
                try:
                    result = await act()
                except DependencyError as error:
                    self.stats.waiting_for = error.what
                    log.warning("waiting", step=step, on=error.what, problem=error.problem, attempt=attempt.num)
                    raise
                self.stats.waiting_for = None
                return result
        raise AssertionError("stamina gave up though told not to")

    async def _recent_ids(self, partition: Partition, clock_us: int | None) -> RecentIds | None:
        duplicates = self.topology.contract.duplicates
        if duplicates is None:
            return None
        recent = RecentIds(duplicates.horizon)
        if clock_us is None or self._lake is None:
            return recent
        lake = self._lake
        objects = await self._until_answered(
            "claim", lambda: self._ledger.recent_objects(partition, clock_us - duplicates.horizon)
        )
        seen = await self._until_answered("claim", lambda: lake.read(objects, ["position", duplicates.field, "event_time"]))
        if len(seen):
            recent.rebuild(seen.sort("position"), duplicates.field)
        return recent
