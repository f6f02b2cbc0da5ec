"""The commit of an epoch, step by step; see :mod:`streamproc.pipeline`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
from psycopg import AsyncConnection

from streamproc.epoch import Epoch
from streamproc.failpoints import failpoint
from streamproc.ledger import Ledger
from streamproc.model import Partition, WrittenObject
from streamproc.pipeline.limits import Watcher
from streamproc.pipeline.patience import Patience
from streamproc.sinks.lake import Lake, LakeFile
from streamproc.sinks.outbox import Outbox
from streamproc.sinks.summaries import Summaries

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of a commit when it is done; each of them may be nobody.

    ``tell``: the positions by partition, for the source's own offsets. ``committed``: the epoch, and the seconds its
    commit took. ``watcher``: which rows of the tables it has changed.
    """

    tell: Callable[[Mapping[Partition, int]], Awaitable[None]] | None = None
    committed: Callable[[Epoch, float], None] | None = None
    watcher: Watcher | None = None


class Committer:
    """Commits epochs, one at a time and in order: whoever calls sees to that."""

    def __init__(
        self,
        ledger: Ledger,
        lake: Lake | None,
        summaries: Summaries,
        patience: Patience,
        *,
        outbox: Outbox | None = None,
        listeners: Listeners,
    ) -> None:
        #: Set after each commit; whoever waits for progress clears it.
        self.progressed = asyncio.Event()
        self._ledger = ledger
        self._lake = lake
        self._summaries = summaries
        self._stats = patience.stats
        self._until_answered = patience.until_answered
        self._outbox = outbox
        self._listeners = listeners
        self._sealer = ThreadPoolExecutor(2, thread_name_prefix="seal")

    def close(self) -> None:
        """Release the threads."""
        self._sealer.shutdown(wait=True)

    async def commit(self, epoch: Epoch) -> None:
        """All five steps. Raises :class:`Fenced` when a partition of the epoch is no longer ours."""
        begin = time.perf_counter()
        files, deltas = await asyncio.gather(self._off_loop(self._plan, epoch), self._off_loop(epoch.seal))
        plans = [file.plan for file in files]
        claims = {partition: share.progress.claim for partition, share in epoch.partitions.items()}
        failpoint("intend.before")
        encoded = time.perf_counter()
        await self._until_answered("intend", lambda: self._ledger.intend(epoch.id, plans, claims))
        failpoint("intend.after")
        ready = epoch.spent("intend", encoded)
        written: Sequence[WrittenObject] = ()
        if self._lake is not None and files:
            lake = self._lake
            # Kept from attempt to attempt: a store that refuses a part of them each time has all of them at last.
            objects: dict[str, WrittenObject] = {}
            written = await self._until_answered("put", lambda: lake.write(files, objects))
        files.clear()  # they are in the store
        put = epoch.spent("put", ready)

        async def apply(conn: AsyncConnection[Any]) -> None:
            wanted = self._outbox is not None and self._outbox.wants_rows
            changed = await self._summaries.apply(conn, deltas, changed=wanted)
            if self._outbox is not None:
                await self._outbox.enlist(conn, epoch.id, written, changed)

        patiently = partial(self._until_answered, "commit")
        done = await patiently(lambda: self._ledger.commit(epoch.record(written), apply, patiently))
        failpoint("commit.acknowledged")
        epoch.spent("commit", put)
        for partition, claim in done.claims.items():
            epoch.partitions[partition].progress.claim = claim
        self._account(epoch, time.perf_counter() - begin)
        failpoint("tell")
        listeners = self._listeners
        if listeners.tell is not None:
            await listeners.tell({partition: share.through for partition, share in epoch.partitions.items()})
        if self._outbox is not None:
            self._outbox.noted.set()
        if listeners.watcher is not None and listeners.watcher.wanted:
            await listeners.watcher.committed(epoch.id, deltas)

    def _plan(self, epoch: Epoch) -> list[LakeFile]:
        epoch.encode()
        files = []
        for share in epoch.partitions.values():
            if self._lake is not None:
                files += self._lake.plan(share.files, share.advance())
            share.files = []
        return files

    async def _off_loop(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sealer, work, *arguments)

    def _account(self, epoch: Epoch, elapsed: float) -> None:
        counts, stats = epoch.counts, self._stats
        stats.epochs += 1
        for name in ("records", "accepted", "filtered", "rejected", "duplicate"):
            setattr(stats, name, getattr(stats, name) + getattr(counts, name))
        for name, late in epoch.late.items():
            stats.late[name] = stats.late.get(name, 0) + late
        for stage, spent in epoch.seconds.items():
            stats.seconds[stage] = stats.seconds.get(stage, 0.0) + spent
        stats.last_commit, stats.last_commit_at = time.time(), time.monotonic()
        self.progressed.set()
        if self._listeners.committed is not None:
            self._listeners.committed(epoch, elapsed)
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
