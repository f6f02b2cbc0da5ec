"""Prometheus metrics of a worker process, in base units, all named ``streamproc_…``.

Counters and histograms move when an epoch is committed, so they never count what was rolled back, and
nothing here costs the records anything. Gauges are read from the workers when somebody asks. Labels are
bounded by the configuration: streams, partitions, tables, filters, reasons, stages. Never by events.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client import Counter, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from streamproc.epoch import Epoch
from streamproc.model import Partition

#: Seconds. An epoch takes from some ten milliseconds to the flush interval and beyond.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One claimed partition. ``committed``: position through which all is in the ledger; ``newest``: last
    position the source has. Both ``None`` when not known. ``watermark``: Unix seconds, ``None`` before the
    first event. ``behind``: seconds between the records read last and the newest, of sources that say so.
    """

    committed: int | None
    newest: int | None
    watermark: float | None
    behind: float | None = None

    @property
    def lag(self) -> int | None:
        """Records that are there and not committed."""
        if self.newest is None or self.committed is None:
            return None
        return max(0, self.newest - self.committed)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One stream's worker as it is now. ``not_ready``: why, ``None`` when it is ready.

    ``buffers``: bytes of records by where they wait. ``rebalances`` and ``fences`` count since the start.
    """

    stream: str
    not_ready: str | None
    partitions: Mapping[Partition, PartitionState] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    rebalances: int = 0
    fences: int = 0
    last_commit: float | None = None


class Metrics:
    """The metrics of this process. ``states`` gives the workers' states when metrics are asked for."""

    def __init__(self, states: Callable[[], Iterable[WorkerState]]) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(_States(states))
        build = Info("streamproc_build", "Version of streamproc and of Python.", registry=registry)
        build.info({"version": version("streamproc"), "python": platform.python_version()})
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
        self._epoch.labels(stream).observe(elapsed)
        self._sizes.labels(stream).observe(epoch.records)
        if epoch.oldest_received_ms is not None:
            self._freshness.labels(stream).observe(max(0.0, now - epoch.oldest_received_ms / 1000))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that an ``Accept`` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _States(Collector):
    """Gauges of the workers as they are when they are asked for."""

    def __init__(self, states: Callable[[], Iterable[WorkerState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        by_stream = ["stream"]
        by_partition = ["stream", "source", "partition"]
        ready = GaugeMetricFamily("streamproc_ready", "1 when the worker is ready.", labels=by_stream)
        commit = GaugeMetricFamily(
            "streamproc_last_commit_timestamp_seconds", "Unix time of the last commit.", labels=by_stream
        )
        claimed = GaugeMetricFamily(
            "streamproc_partitions_claimed", "Partitions this worker holds.", labels=by_stream
        )
        rebalances = CounterMetricFamily(
            "streamproc_rebalances", "Times partitions were assigned.", labels=by_stream
        )
        fences = CounterMetricFamily(
            "streamproc_fences", "Times another worker had claimed what this one held.", labels=by_stream
        )
        buffers = GaugeMetricFamily(
            "streamproc_buffer_bytes", "Bytes of records that wait, by where.", labels=["stream", "buffer"]
        )
        position = GaugeMetricFamily(
            "streamproc_committed_position", "Position committed through, inclusive.", labels=by_partition
        )
        lag = GaugeMetricFamily(
            "streamproc_lag_records", "Records in the source that are not committed.", labels=by_partition
        )
        behind = GaugeMetricFamily(
            "streamproc_lag_seconds",
            "How far the records read last were behind the newest (Kinesis).",
            labels=by_partition,
        )
        watermark = GaugeMetricFamily(
            "streamproc_watermark_timestamp_seconds",
            "Event time up to which a partition is believed complete, Unix time.",
            labels=by_partition,
        )
        for state in self._states():
            name = [state.stream]
            ready.add_metric(name, float(state.not_ready is None))
            if state.last_commit is not None:
                commit.add_metric(name, state.last_commit)
            claimed.add_metric(name, len(state.partitions))
            rebalances.add_metric(name, state.rebalances)
            fences.add_metric(name, state.fences)
            for buffer, size in state.buffers.items():
                buffers.add_metric([state.stream, buffer], size)
            for partition, facts in state.partitions.items():
                if partition.passing:
                    continue  # a million of them would be a million time series
                labels = [state.stream, partition.source, partition.id]
                for family, value in (
                    (position, facts.committed),
                    (lag, facts.lag),
                    (behind, facts.behind),
                    (watermark, facts.watermark),
                ):
                    if value is not None:
                        family.add_metric(labels, value)
        yield from (ready, commit, claimed, rebalances, fences, buffers, position, lag, behind, watermark)
