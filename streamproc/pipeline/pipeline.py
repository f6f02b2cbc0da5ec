"""A worker's records on their way from the source to the commit."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from streamproc.epoch import Epoch
from streamproc.errors import DependencyError, Fenced, UnexpectedPosition
from streamproc.failpoints import failpoint
from streamproc.ledger import Ledger
from streamproc.model import Claim, Partition, RecordBatch
from streamproc.pipeline.commit import Committer, Listeners
from streamproc.pipeline.limits import Limits, Stats, Watcher
from streamproc.pipeline.patience import Patience
from streamproc.pipeline.recall import Recall
from streamproc.progress import PartitionProgress
from streamproc.sinks.lake import Lake
from streamproc.sinks.outbox import Outbox
from streamproc.sinks.summaries import Summaries
from streamproc.tables.fold import TableFold
from streamproc.topology import Topology
from streamproc.transform.pool import TransformPool

log = structlog.get_logger(__name__)

#: Batches under way behind the one that is folded: enough to keep the transforms' threads busy.
_AHEAD = 2

#: Stands for the position before the first.
_BEFORE = -1


class Pipeline:
    """Takes record batches of claimed partitions and commits epochs. One per worker and stream."""

    def __init__(
        self,
        topology: Topology,
        transforms: TransformPool,
        *,
        ledger: Ledger,
        lake: Lake | None,
        summaries: Summaries,
        limits: Limits,
        outbox: Outbox | None = None,
        tell: Callable[[Mapping[Partition, int]], Awaitable[None]] | None = None,
        committed: Callable[[Epoch, float], None] | None = None,
        watcher: Watcher | None = None,
        claimed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``committed`` is told of each epoch that is in the ledger, and the seconds its commit took.

        ``claimed`` is called after each claim, before any record of it: for what workers have to know by then.
        """
        self.topology = topology
        self.stats = Stats()
        patience = Patience(self.stats)
        self._committer = Committer(
            ledger,
            lake,
            summaries,
            patience,
            outbox=outbox,
            listeners=Listeners(tell, committed, watcher),
        )
        #: Set after each commit; whoever waits for progress clears it.
        self.progressed = self._committer.progressed
        self._recall = Recall(ledger, lake, topology.contract.duplicates, patience)
        self._until_answered = patience.until_answered
        self._transforms = transforms
        self._ledger = ledger
        self._lake = lake
        self._limits = limits
        self._claimed = claimed
        self._folds = {table.name: TableFold(table) for table in topology.tables}
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._progress: dict[Partition, PartitionProgress] = {}
        self._submitted: dict[Partition, int | None] = {}
        #: Claims of partitions that were taken from us, or finished: worth nothing, but the ledger names us as the
        #: owner until the next one claims, and nobody may if all workers end now.
        self._let_go: dict[Partition, Claim] = {}
        self._epoch = self._new_epoch()
        self._taken_records = self._taken_bytes = 0
        self._behind = False
        self._waiting: list[RecordBatch] = []
        self._waiting_records = 0
        self._waiting_since = 0.0
        self._folding: deque[asyncio.Future[None]] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._rotating = asyncio.Lock()
        self._generation = 0
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="fold")

    @property
    def generation(self) -> int:
        """Grows whenever everything uncommitted was dropped."""
        return self._generation

    @property
    def partitions(self) -> list[Partition]:
        """Partitions this worker holds claims on."""
        return list(self._progress)

    @property
    def committed(self) -> dict[Partition, tuple[int | None, int | None]]:
        """Position and clock (newest accepted event time, Unix µs) in the ledger of each claimed partition."""
        claims = {partition: progress.claim for partition, progress in self._progress.items()}
        return {partition: (claim.position, claim.clock_us) for partition, claim in claims.items()}

    @property
    def buffered_bytes(self) -> int:
        """Bytes of record values taken for the epoch being filled."""
        return self._taken_bytes

    @property
    def uncommitted(self) -> int:
        """Positions taken and not known to be committed."""
        return sum(
            (_BEFORE if taken is None else taken) - (_BEFORE if committed is None else committed)
            for partition, taken in self._submitted.items()
            for committed in [self._progress[partition].claim.position]
        )

    # -- partitions come and go ------------------------------------------------------------------

    async def assigned(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """Claim these partitions; returns the committed position of each, ``None`` where there is none."""
        failpoint("claim.before")
        claims = await self._until_answered("claim", lambda: self._ledger.claim(partitions))
        failpoint("claim.after")
        self._let_go |= claims  # cancelled from here on, they are to be released all the same
        if self._claimed is not None:
            await self._until_answered("claim", self._claimed)
        for partition, claim in claims.items():
            recent = await self._recall.recent_ids(partition, claim.clock_us)
            self._progress[partition] = PartitionProgress(claim, claim.position, claim.clock_us, recent)
            self._submitted[partition] = claim.position
            self._let_go.pop(partition, None)
        return {partition: claim.position for partition, claim in claims.items()}

    async def held(self) -> set[Partition]:
        """Those of :attr:`partitions` that nobody has claimed since: for a process that was frozen meanwhile."""
        claims = [progress.claim for progress in self._progress.values()]
        return await self._until_answered("claim", lambda: self._ledger.held(claims)) if claims else set()

    async def begun(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None] | None:
        """Where these stand, if it is decided where their source begins; claims without a position go on from there."""
        noted = await self._until_answered("claim", lambda: self._ledger.begun(partitions))
        if noted is not None:
            self._go_on_from(noted)
        return noted

    async def begin_behind(
        self, newest: Mapping[Partition, int], log: str | None
    ) -> Mapping[Partition, int | None]:
        """Note where the source begins, unless that is decided; claims without a position go on from what is noted."""
        noted = await self._until_answered("claim", lambda: self._ledger.begin_behind(newest, log))
        self._go_on_from(noted)
        return noted

    def _go_on_from(self, noted: Mapping[Partition, int | None]) -> None:
        for partition, progress in self._progress.items():
            if progress.claim.position is None and (position := noted.get(partition)) is not None:
                progress.claim = replace(progress.claim, position=position)
                progress.taken = self._submitted[partition] = position

    async def read_from(self, partitions: Sequence[Partition], log: str) -> Mapping[Partition, str]:
        """Note the log where there is none; returns the one that each partition's position belongs to."""
        claims = [self._progress[partition].claim for partition in partitions]
        return await self._until_answered("claim", lambda: self._ledger.note_log(claims, log))

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        """Commit what was taken, then let these partitions go.

        Gives up at the drain deadline, and when others have claimed them before (we were away for a while).
        """
        if not self._progress:
            return
        try:
            async with asyncio.timeout(self._limits.drain_deadline):
                await self.drain()
        except Fenced as error:
            log.warning("fenced", why=str(error))
        except (TimeoutError, DependencyError) as error:
            log.warning("uncommitted_dropped", why=str(error) or "deadline", records=self._epoch.records)
        self.drop()

    async def finished(self, partitions: Sequence[Partition]) -> None:
        """Forget these: they are committed to their ends. Another claim begins with :meth:`assigned`."""
        for partition in partitions:
            progress = self._progress.get(partition)
            if progress is not None and progress.claim.position == self._submitted[partition]:
                del self._progress[partition], self._submitted[partition]
                if not partition.passing:  # a log that is done has no owner any more
                    self._let_go[partition] = progress.claim

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
        self._let_go |= {partition: progress.claim for partition, progress in self._progress.items()}
        self._progress.clear()
        self._submitted.clear()
        self._waiting, self._waiting_records = [], 0
        self._folding.clear()
        self._failure = None
        self._open_epoch()

    async def abandon(self, seconds: float) -> None:
        """:meth:`drop`, and wait so long for a commit under way to end: frozen then, a process holds no locks."""
        committing = self._committing
        self.drop()
        if committing is not None:
            await asyncio.wait({committing}, timeout=seconds)

    async def close(self) -> None:
        """Release the claims and the threads. Call :meth:`drain` first; nothing is committed here.

        Also the claims that were dropped before: see :meth:`Ledger.release` for those that others have by now.
        """
        self.drop()
        if self._let_go:
            await self._ledger.release(list(self._let_go.values()))
        self._transforms.close()
        self._compute.shutdown(wait=True)
        self._encoding.shutdown(wait=True)
        self._committer.close()

    # -- records -----------------------------------------------------------------------------------

    async def take(self, batches: Sequence[RecordBatch], generation: int) -> None:
        """Fold these batches; commits when the epoch is due. Waits when too much is under way.

        ``generation``: what :attr:`generation` was when the source gave the batches; those of an earlier
        one belong to claims that are gone. An empty sequence only checks whether a commit is due. Raises
        what the fold or a commit raised.
        """
        self._raise_failure()
        if generation != self._generation:
            return
        fresh = [batch for batch in batches if self._follows(batch)]
        if fresh and not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting += fresh
        records = sum(map(len, fresh))
        self._waiting_records += records
        self._taken_records += records
        self._behind = records >= self._limits.fold_records
        self._taken_bytes += sum(batch.size for batch in fresh)
        if fresh and not self.stats.first_taken_at:
            self.stats.first_taken_at = time.monotonic()
        while self._folding and self._folding[0].done():
            await self._oldest_fold()
        if self._waiting and self._worth_folding():
            self._fold_waiting()
        while len(self._folding) > _AHEAD and generation == self._generation:
            await self._oldest_fold()
        if generation == self._generation and self._due():
            await self._rotate()

    def _worth_folding(self) -> bool:
        if self._waiting_records >= self._limits.fold_records:
            return True
        return len(self._folding) < _AHEAD and time.monotonic() - self._waiting_since >= self._limits.linger

    def _fold_waiting(self) -> None:
        """Hand what is waiting to the compute thread, a partition's batches side by side and in order."""
        batches = sorted(self._waiting, key=lambda batch: batch.partition)
        self._waiting, self._waiting_records = [], 0
        progress = {batch.partition: self._progress[batch.partition] for batch in batches}
        epoch, transforming = self._epoch, self._transforms.submit(batches)

        def fold() -> None:
            waited = time.perf_counter()
            out = transforming.result()
            epoch.spent("transform", waited)
            epoch.fold(batches, out, progress)

        self._folding.append(asyncio.get_running_loop().run_in_executor(self._compute, fold))

    async def _oldest_fold(self) -> None:
        """Wait for the oldest fold. It stays in the queue until it is done: others wait for it as well."""
        oldest = self._folding[0]
        await asyncio.wait({oldest})
        if self._folding and self._folding[0] is oldest:
            self._folding.popleft()
            if (error := oldest.exception()) is not None:
                self._failure = error  # the epoch holds a part of that batch: it must never be committed
        self._raise_failure()

    def _follows(self, batch: RecordBatch) -> bool:
        """Whether the batch continues where this worker stands; stale batches of an older claim do not."""
        if batch.partition not in self._submitted:
            return False
        taken = self._submitted[batch.partition]
        if taken is not None and batch.through <= taken:
            return False
        if taken is not None and batch.after != taken:
            raise UnexpectedPosition(
                f"{batch.partition}: expected records after {taken}, got ({batch.after}, {batch.through}]"
            )
        self._submitted[batch.partition] = batch.through
        return True

    def _due(self) -> bool:
        """Whether to close the epoch: it is full, or old while no commit is under way.

        What is taken counts, folded or not: it bounds what there is to do again after a crash, and memory. An old
        one may go on growing while the one before is committed; a full one has to wait for that.
        """
        limits = self._limits
        if self._taken_records >= limits.max_records or self._taken_bytes >= limits.max_bytes:
            return True
        free = self._committing is None or self._committing.done()
        filled = bool(self._epoch.partitions or self._folding or self._waiting)
        return free and filled and self._epoch.age >= limits.interval(self._behind)

    # -- epochs ------------------------------------------------------------------------------------

    def _new_epoch(self) -> Epoch:
        return Epoch(self.topology, self._folds, self._lake, self._encoding)

    def _open_epoch(self) -> None:
        self._epoch = self._new_epoch()
        self._taken_records = self._taken_bytes = 0

    async def _rotate(self) -> None:
        """Close the epoch and start committing it, once the one before is done."""
        async with self._rotating:
            generation = self._generation
            # Whatever is awaited here, more may be taken meanwhile: look again until nothing is under way.
            while generation == self._generation:
                if self._waiting:
                    self._fold_waiting()
                elif self._folding:
                    await self._oldest_fold()
                elif self._committing is not None and not self._committing.done():
                    await asyncio.wait({self._committing})
                else:
                    break
            if generation != self._generation:
                return
            self._raise_failure()
            epoch = self._epoch
            self._open_epoch()
            if epoch.partitions:
                self._committing = asyncio.create_task(
                    self._committer.commit(epoch), name=f"commit {epoch.id}"
                )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        done = self._committing
        if done is not None and done.done():
            self._committing = None
            if not done.cancelled() and (error := done.exception()) is not None:
                self._failure = error
                self.stats.fences += isinstance(error, Fenced)
                raise error
