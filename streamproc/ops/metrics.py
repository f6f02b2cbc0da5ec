"""Prometheus metrics of a worker process, in base units, all named ``streamproc_…``.

Counters and histograms move when an epoch is committed, so they never count what was rolled back, and
nothing here costs the records anything. Gauges are read from the workers when somebody asks. Labels are
bounded by the configuration: streams, partitions, tables, filters, reasons, stages. Never by events.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from prometheus_client import Counter, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from streamproc import native
from streamproc.epoch import Epoch
from streamproc.ops.metrics_now import Listeners, Machine, PartitionState, States, WorkerState, Worst

__all__ = ["Metrics", "PartitionState", "WorkerState"]

#: Seconds. An epoch takes from some ten milliseconds to the flush interval and beyond.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The metrics of this process. ``states`` gives the workers' states when metrics are asked for, ``listeners`` how
    many listen to changed windows and how many were dropped. ``volumes``: folders whose disks may fill, by name.
    ``clock``: Unix seconds, the one that ``now`` of :meth:`committed` was read from.
    """

    def __init__(
        self,
        states: Callable[[], Iterable[WorkerState]],
        *,
        volumes: Mapping[str, Path] | None = None,
        listeners: Callable[[], tuple[int, int]] = lambda: (0, 0),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(States(states))
        registry.register(Machine(volumes or {}))
        registry.register(Listeners(listeners))
        self._worst = Worst(clock=clock)
        registry.register(self._worst)
        build = Info("streamproc_build", "Version of streamproc and of Python.", registry=registry)
        compiled = "no" if native.records is None else "yes"
        build.info(
            {"version": version("streamproc"), "python": platform.python_version(), "compiled": compiled}
        )
        self._records = Counter(
            "streamproc_records",
            "Records committed, by what became of them: accepted, filtered, rejected, duplicate.",
            ["stream", "source", "partition", "outcome"],
            registry=registry,
        )
        self._rejects = Counter(
            "streamproc_rejects", "Rejects committed, by reason.", ["stream", "reason"], registry=registry
        )
        self._filtered = Counter(
            "streamproc_filtered", "Records dropped, by filter.", ["stream", "filter"], registry=registry
        )
        self._late = Counter(
            "streamproc_late_events",
            "Events too late for a table; they are in the lake all the same.",
            ["stream", "table"],
            registry=registry,
        )
        self._epoch = Histogram(
            "streamproc_epoch_commit_seconds",
            "From closing an epoch to its commit: seal, encode, put, commit.",
            ["stream"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._stages = Histogram(
            "streamproc_epoch_stage_seconds",
            "Wall-clock time of each stage of an epoch. Stages overlap.",
            ["stream", "stage"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._batches = Histogram(
            "streamproc_batch_seconds",
            "Wall-clock time of each stage of a batch: the records that went through the transform together.",
            ["stream", "stage"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._sizes = Histogram(
            "streamproc_epoch_records",
            "Records in an epoch.",
            ["stream"],
            buckets=(10, 100, 1_000, 10_000, 50_000, 100_000, 200_000, 500_000),
            registry=registry,
        )
        self._freshness = Histogram(
            "streamproc_freshness_seconds",
            "From the broker's timestamp of the oldest record batch of an epoch to its commit.",
            ["stream"],
            buckets=(*_BUCKETS, 900.0, 3_600.0, 86_400.0),
            registry=registry,
        )

    def committed(self, stream: str, epoch: Epoch, elapsed: float, now: float) -> None:
        """Count an epoch that is in the ledger.

        ``elapsed``: seconds that committing it took; ``now``: Unix seconds.
        """
        for partition, share in epoch.partitions.items():
            for outcome in ("accepted", "filtered", "rejected", "duplicate"):
                # Also when it is 0, so that a rate is there before the first of them comes.
                name = "logs" if partition.passing else partition.id
                counter = self._records.labels(stream, partition.source, name, outcome)
                counter.inc(getattr(share.counts, outcome))
        for reason, number in epoch.reasons.items():
            self._rejects.labels(stream, reason).inc(number)
        for name, number in epoch.filtered_by.items():
            self._filtered.labels(stream, name).inc(number)
        for table, number in epoch.late.items():
            self._late.labels(stream, table).inc(number)
        for stage, seconds in epoch.seconds.items():
            self._stages.labels(stream, stage).observe(seconds)
        for stage, times in epoch.batches.items():
            batches = self._batches.labels(stream, stage)
            for seconds in times:
                batches.observe(seconds)
        self._epoch.labels(stream).observe(elapsed)
        self._sizes.labels(stream).observe(epoch.records)
        if epoch.oldest_received_ms is not None:
            fresh = max(0.0, now - epoch.oldest_received_ms / 1000)
            self._freshness.labels(stream).observe(fresh)
            self._worst.observe(stream, now, fresh)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that an ``Accept`` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
