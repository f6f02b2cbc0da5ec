"""Gauges of a worker process: how it is when somebody asks, read from the workers and from the machine."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamproc.concurrency import PROCESSES
from streamproc.model import Partition


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
    ``sinks``: whether each was well when it was used last. ``loaded``: Unix time at which the warehouse had all that
    was committed, ``None`` before that. ``unpublished``: notes of the outbox and the seconds of the oldest, where
    something is published. ``stopped``: partitions that cannot go on until somebody decides.
    """

    stream: str
    not_ready: str | None
    partitions: Mapping[Partition, PartitionState] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    rebalances: int = 0
    fences: int = 0
    last_commit: float | None = None
    sinks: Mapping[str, bool] = field(default_factory=dict)
    loaded: float | None = None
    unpublished: tuple[int, float] | None = None
    stopped: int = 0


class States(Collector):
    """Gauges of the workers as they are when they are asked for."""

    def __init__(self, states: Callable[[], Iterable[WorkerState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        by_stream = ["stream"]
        by_partition = ["stream", "source", "partition"]
        ready = GaugeMetricFamily("streamproc_ready", "1 when the worker is ready.", labels=by_stream)
        commit = GaugeMetricFamily(
            "streamproc_last_commit_timestamp_seconds", "Unix time of the last commit.", labels=by_stream
        )
        claimed = GaugeMetricFamily(
            "streamproc_partitions_claimed", "Partitions this worker holds.", labels=by_stream
        )
        stopped = GaugeMetricFamily(
            "streamproc_partitions_stopped",
            "Partitions this worker holds and cannot go on with until somebody decides.",
            labels=by_stream,
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
        sinks = GaugeMetricFamily(
            "streamproc_sink_up",
            "1 when the sink took what it was given last: summaries, lake, warehouse, publication.",
            labels=["stream", "sink"],
        )
        loaded = GaugeMetricFamily(
            "streamproc_warehouse_loaded_timestamp_seconds",
            "Unix time at which the warehouse had everything committed.",
            labels=by_stream,
        )
        notes = GaugeMetricFamily(
            "streamproc_unpublished_notes",
            "Objects and row sets that wait to be published.",
            labels=by_stream,
        )
        oldest = GaugeMetricFamily(
            "streamproc_unpublished_oldest_seconds", "Age of the oldest that waits.", labels=by_stream
        )
        for state in self._states():
            name = [state.stream]
            ready.add_metric(name, float(state.not_ready is None))
            if state.last_commit is not None:
                commit.add_metric(name, state.last_commit)
            if state.loaded is not None:
                loaded.add_metric(name, state.loaded)
            if state.unpublished is not None:
                notes.add_metric(name, state.unpublished[0])
                oldest.add_metric(name, state.unpublished[1])
            for sink, up in state.sinks.items():
                sinks.add_metric([state.stream, sink], float(up))
            claimed.add_metric(name, len(state.partitions))
            stopped.add_metric(name, state.stopped)
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
        yield from (stopped, sinks, loaded, notes, oldest)


class Worst(Collector):
    """The longest freshness of the epochs committed within ``window`` seconds, for those who cannot read histograms:
    the CloudWatch agent drops them. Two minutes are twice what lies between two of its looks, so each epoch is
    seen, most of them twice. Nothing is told of a stream that committed nothing in that time.
    """

    def __init__(self, window: float = 120.0, clock: Callable[[], float] = time.time) -> None:
        self._window = window
        self._clock = clock
        # Each is longer than all behind it, so that the first is the longest and few are kept.
        self._kept: dict[str, deque[tuple[float, float]]] = {}

    def observe(self, stream: str, now: float, seconds: float) -> None:
        """Note an epoch that was committed at ``now`` (Unix seconds), ``seconds`` after its oldest batch came."""
        kept = self._kept.setdefault(stream, deque())
        while kept and kept[-1][1] <= seconds:
            kept.pop()
        kept.append((now, seconds))
        self._forget(kept, now)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        worst = GaugeMetricFamily(
            "streamproc_freshness_worst_seconds",
            "Longest freshness of the epochs committed in the last two minutes.",
            labels=["stream"],
        )
        now = self._clock()
        for stream, kept in self._kept.items():
            self._forget(kept, now)
            if kept:
                worst.add_metric([stream], kept[0][1])
        yield worst

    def _forget(self, kept: deque[tuple[float, float]], now: float) -> None:
        while kept and kept[0][0] <= now - self._window:
            kept.popleft()


class Listeners(Collector):
    """Those who listen to changed windows: how many now, and how many were dropped."""

    def __init__(self, listeners: Callable[[], tuple[int, int]]) -> None:
        self._listeners = listeners

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        now, dropped = self._listeners()
        yield GaugeMetricFamily("streamproc_listeners", "Clients that listen to changed windows.", now)
        yield CounterMetricFamily("streamproc_listeners_dropped", "Listeners that were too slow.", dropped)


class Machine(Collector):
    """What the process may use: memory, and the disks behind ``volumes``, by the name that a label gives them."""

    def __init__(self, volumes: Mapping[str, Path]) -> None:
        self._volumes = volumes

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        free = GaugeMetricFamily(
            "streamproc_disk_free_bytes", "Bytes free where the volume lies.", labels=["volume"]
        )
        size = GaugeMetricFamily("streamproc_disk_size_bytes", "Bytes of that disk.", labels=["volume"])
        for name, folder in self._volumes.items():
            try:
                usage = shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists()))
            except OSError:
                continue  # unknown is not 0
            free.add_metric([name], usage.free)
            size.add_metric([name], usage.total)
        yield from (free, size)
        limit = memory_limit()
        if limit is not None:
            yield GaugeMetricFamily(
                "streamproc_memory_limit_bytes",
                "Bytes the process may use: its cgroup's, else the machine's; of several workers in one its share.",
                limit // int(os.environ.get(PROCESSES, "1")),
            )


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes this process may use before it is ended; ``None`` where nobody says (not Linux).

    A container sees its own cgroup at the top; versions 2 and 1. ``root``: of the files, for tests.
    """
    limits = []
    for file in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / file).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # not "max"
            limits.append(int(text))
    try:
        meminfo = (root / "proc/meminfo").read_text()
        limits += [
            int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemTotal:")
        ]
    except OSError:
        pass
    return min(limits, default=None)
