"""What a worker says of itself: readiness, facts for status and metrics, and whether it is stuck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from streamproc.errors import DependencyError, SourceError, Stuck
from streamproc.model import Partition
from streamproc.ops.metrics import PartitionState, WorkerState
from streamproc.ops.watch import Failures, StuckWatch

if TYPE_CHECKING:
    from streamproc.runtimes.worker import Worker

log = structlog.get_logger(__name__)

#: Seconds between two looks at the topic's ends, and the longest wait for the broker's answer.
LOOK_EVERY = 15.0
_ANSWER_WITHIN = 10.0
#: So many looks in a row without an answer, and the worker waits for the broker.
_UNANSWERED = 2
#: Kinesis and places of logs are asked by their readers only. They are waited for when they have failed for so many
#: seconds. An attempt may take as long as the second: S3's client tries to connect six times, ten seconds each.
_FAILED_FOR, _ATTEMPT = 30.0, 120.0
#: A position that has not moved for this many seconds (or six flush intervals, if that is longer) while
#: there are records after it makes the worker not ready; five times that ends it, to be started again.
STUCK_AFTER = 120.0
_FLUSHES = 6
#: What a starting worker calls a sink it waits for.
_ENDPOINT = {"summaries": "ledger", "lake": "lake", "warehouse": "warehouse"}
_END_AFTER = 5
#: Steps of the pipeline that wait for the lake; all others wait for the database.
_OF_THE_LAKE = {"put", "recall"}


class Observation:
    """Looks at one worker; changes nothing. :meth:`run` raises when the worker is stuck for good."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._after = max(STUCK_AFTER, _FLUSHES * worker.settings.flush_interval)
        self._watch = StuckWatch(self._after)
        self._newest: dict[Partition, int] = {}
        self._stuck: dict[Partition, float] = {}
        self._unanswered = 0
        self._failures = Failures(_FAILED_FOR, _ATTEMPT)

    async def run(self) -> None:
        """Look again and again. Raises :class:`Stuck`."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    def source_failed(self, error: DependencyError, failing: float) -> None:
        """The source waits this out; see :data:`streamproc.sources.Waiting`."""
        self._failures.note(time.monotonic(), failing, error.what)

    def source_started(self) -> None:
        """Whatever the source waited for is there."""
        self._unanswered = 0
        self._failures.end()

    async def look(self) -> None:
        """Compare the positions with the topic's ends. Raises :class:`Stuck`."""
        worker = self._worker
        if worker.source is None or worker.state != "running":  # it joins, and cannot be asked meanwhile
            self._begin_anew()
            return
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                self._newest = await worker.source.end_positions()
        except (DependencyError, TimeoutError) as error:
            self._unanswered += 1
            self._tell_of_the_broker(error)
        else:
            self._unanswered = 0
        if self._waits_for() is not None:
            self._begin_anew()
        elif not self._unanswered:
            self._look_for_stuck()

    def _tell_of_the_broker(self, error: DependencyError | TimeoutError) -> None:
        late = f"no answer within {_ANSWER_WITHIN:.0f} s"
        problem = error.problem if isinstance(error, DependencyError) else late
        if self._unanswered < _UNANSWERED:
            log.debug("ends_unknown", problem=problem)
        else:
            log.warning("waiting", on="the broker", problem=problem)

    def _look_for_stuck(self) -> None:
        self._stuck = self._watch.look(time.monotonic(), self._positions(), self._newest)
        if not self._stuck:
            return
        partition, seconds = max(self._stuck.items(), key=lambda item: item[1])
        log.warning("stuck", partition=str(partition), seconds=round(seconds))
        if seconds >= _END_AFTER * self._after:
            raise Stuck(
                f"{partition}: the position has not moved for {seconds:.0f} s though there are records"
            )

    def _positions(self) -> dict[Partition, int | None]:
        """Through where each claimed partition is committed; or where its reading began, if nothing ever was."""
        worker = self._worker
        begins = worker.source.begins if worker.source is not None else {}
        stopped = self._stopped()
        return {
            partition: begins.get(partition) if position is None else position
            for partition, (position, _) in worker.pipeline.committed.items()
            if partition not in stopped  # another start does not mend it, and would take the others along
        }

    def _stopped(self) -> Mapping[Partition, SourceError]:
        """Partitions that cannot go on until somebody decides, and why."""
        source = self._worker.source
        return source.stopped if source is not None else {}

    def _begin_anew(self) -> None:
        """A worker that waits stands still and is not stuck; nor is it when it goes on, before its next commit."""
        self._watch, self._stuck = StuckWatch(self._after), {}

    def _waits_for(self) -> str | None:
        """What does not answer."""
        if (what := self._worker.pipeline.stats.waiting_for) is not None:
            return what
        if self._unanswered >= _UNANSWERED:
            return "the broker"
        return self._failures.away(time.monotonic())

    def not_ready(self) -> str | None:
        """Why the worker is not ready; ``None`` when it is."""
        worker = self._worker
        if worker.state != "running":
            return worker.state
        if (what := self._waits_for()) is not None:
            return f"waiting for {what}"
        if stopped := self._stopped():
            return f"stopped: {stopped[min(stopped)]}"
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
            fences=worker.pipeline.stats.fences,
            last_commit=worker.pipeline.stats.last_commit,
            sinks=self._sinks(),
            loaded=worker.upkeep.loaded,
            stopped=len(self._stopped()),
            unpublished=None if worker.publication is None else worker.publication.backlog,
        )

    def _sinks(self) -> dict[str, bool]:
        """Whether each sink took what it was given last."""
        worker = self._worker
        steps = worker.pipeline.stats.waiting_steps
        sinks = {"summaries": steps <= _OF_THE_LAKE}
        if worker.topology.sinks.lake:
            sinks["lake"] = steps.isdisjoint(_OF_THE_LAKE)
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
        stopped = {partition: str(error) for partition, error in self._stopped().items()}
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
                "stopped": stopped.get(partition),
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
