"""What a worker says of itself: readiness, facts for status and metrics, and whether it is stuck."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog

from streamproc.errors import DependencyError, Stuck
from streamproc.model import Partition
from streamproc.ops.metrics import PartitionState, WorkerState
from streamproc.ops.watch import StuckWatch

if TYPE_CHECKING:
    from streamproc.runtimes.worker import Worker

log = structlog.get_logger(__name__)

#: Seconds between two looks at the topic's ends, and the longest wait for the broker's answer.
LOOK_EVERY = 15.0
_ANSWER_WITHIN = 10.0
#: A position that has not moved for this many seconds (or six flush intervals, if that is longer) while
#: there are records after it makes the worker not ready; five times that ends it, to be started again.
STUCK_AFTER = 120.0
_FLUSHES = 6
#: What a starting worker calls a sink it waits for.
_ENDPOINT = {"summaries": "ledger", "lake": "lake", "warehouse": "warehouse"}
_END_AFTER = 5


class Observation:
    """Looks at one worker; changes nothing. :meth:`run` raises when the worker is stuck for good."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._after = max(STUCK_AFTER, _FLUSHES * worker.settings.flush_interval)
        self._watch = StuckWatch(self._after)
        self._newest: dict[Partition, int] = {}
        self._stuck: dict[Partition, float] = {}
        #: Times another worker had claimed what this one held.
        self.fences = 0

    async def run(self) -> None:
        """Look again and again. Raises :class:`Stuck`."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Compare the positions with the topic's ends. Raises :class:`Stuck`."""
        worker = self._worker
        if worker.source is None:
            return
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                self._newest = await worker.source.end_positions()
        except (DependencyError, TimeoutError) as error:
            log.debug("ends_unknown", why=repr(error))  # the fetch says so too, and waits
            return
        committed = {partition: at for partition, (at, _) in worker.pipeline.committed.items()}
        self._stuck = self._watch.look(time.monotonic(), committed, self._newest)
        if not self._stuck or worker.pipeline.stats.waiting_for is not None:
            return
        partition, seconds = max(self._stuck.items(), key=lambda item: item[1])
        log.warning("stuck", partition=str(partition), seconds=round(seconds))
        if seconds >= _END_AFTER * self._after:
            raise Stuck(
                f"{partition}: the position has not moved for {seconds:.0f} s though there are records"
            )

    def not_ready(self) -> str | None:
        """Why the worker is not ready; ``None`` when it is."""
        worker = self._worker
        if worker.state != "running":
            return worker.state
        if (what := worker.pipeline.stats.waiting_for) is not None:
            return f"waiting for {what}"
        if self._stuck:
            partition, seconds = max(self._stuck.items(), key=lambda item: item[1])
            return f"stuck: {partition} has records and its position has not moved for {seconds:.0f} s"
        return None

    def probe(self) -> tuple[str | None, dict[str, Any]]:
        """Why this worker is not ready, or ``None``, and facts for the health answer."""
        worker, stats = self._worker, self._worker.pipeline.stats
        age = None if stats.last_commit is None else round(time.time() - stats.last_commit, 1)
        facts: dict[str, Any] = {
            "stream": worker.topology.name,
            "worker": worker.settings.worker,
            "partitions": sorted(str(p) for p in worker.pipeline.partitions),
            "records": stats.records,
            "epochs": stats.epochs,
            "seconds_since_commit": age,
        }
        if worker.publication is not None:
            facts["publication"] = worker.publication.facts()
        return self.not_ready(), facts

    def state(self) -> WorkerState:
        """The worker as the metrics show it."""
        worker = self._worker
        disorder = worker.topology.contract.event_time.disorder
        buffers = {"epoch": worker.pipeline.buffered_bytes}
        if worker.source is not None:
            buffers["fetched"] = worker.source.buffered_bytes
        behind = worker.source.behind if worker.source is not None else {}
        return WorkerState(
            stream=worker.topology.name,
            not_ready=self.not_ready(),
            partitions={
                partition: PartitionState(
                    committed,
                    self._newest_of(partition),
                    None if clock is None else (clock - disorder) / 1e6,
                    behind.get(partition),
                )
                for partition, (committed, clock) in worker.pipeline.committed.items()
            },
            buffers=buffers,
            rebalances=worker.source.rebalances if worker.source is not None else 0,
            fences=self.fences,
            last_commit=worker.pipeline.stats.last_commit,
            sinks=self._sinks(),
            loaded=worker.upkeep.loaded,
            unpublished=None if worker.publication is None else worker.publication.backlog,
        )

    def _sinks(self) -> dict[str, bool]:
        """Whether each sink took what it was given last."""
        worker = self._worker
        step = worker.pipeline.stats.waiting_step
        sinks = {"summaries": step in {None, "put"}}
        if worker.topology.sinks.lake:
            sinks["lake"] = step != "put"
        if worker.upkeep.loads:
            sinks["warehouse"] = "load" not in worker.upkeep.failing
        if worker.publication is not None:
            sinks["publication"] = worker.publication.well
        # A worker that has not come as far waits for one of them by name.
        return {
            sink: up and worker.state != f"waiting for the {_ENDPOINT.get(sink)}"
            for sink, up in sinks.items()
        }

    def status(self) -> dict[str, Any]:
        """Everything this process knows of the worker, as JSON."""
        reason, facts = self.probe()
        state, stats = self.state(), self._worker.pipeline.stats
        counts = {
            name: getattr(stats, name)
            for name in ("records", "accepted", "filtered", "rejected", "duplicate")
        }
        partitions = [
            {
                "source": partition.source,
                "partition": partition.id,
                "committed": each.committed,
                "newest": each.newest,
                "lag": each.lag,
                "behind_seconds": each.behind,
                "watermark": each.watermark,
                "stuck_seconds": self._stuck.get(partition),
            }
            for partition, each in sorted(state.partitions.items())
        ]
        return {
            **facts,
            **counts,
            "ready": reason is None,
            "reason": reason,
            "late": stats.late,
            "seconds": {stage: round(spent, 3) for stage, spent in stats.seconds.items()},
            "buffers": state.buffers,
            "rebalances": state.rebalances,
            "fences": state.fences,
            "partitions": partitions,
        }

    def _newest_of(self, partition: Partition) -> int | None:
        """The newest position known: of the last look, or of the last fetch where that has seen more."""
        known = self._newest.get(partition)
        source = self._worker.source
        fetched = source.fetched_newest(partition) if source is not None else None
        return max((at for at in (known, fetched) if at is not None), default=None)
