"""The exposition, read by Prometheus' own parsers."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from streamproc.epoch import Epoch
from streamproc.model import REJECT_SCHEMA, Claim, Counts, Partition, RecordBatch, Transformed
from streamproc.ops.metrics import Metrics, PartitionState, WorkerState
from streamproc.ops.metrics_now import PROCESSES, Worst, memory_limit
from streamproc.partition_epoch import PartitionEpoch
from streamproc.progress import PartitionProgress
from streamproc.runtimes.processes import environment
from streamproc.settings import read_settings
from streamproc.topic_pages import load_page

P0, P1 = Partition("clicks", "0"), Partition("clicks", "1")


def samples(metrics: Metrics, accept: str = "") -> dict[tuple, float]:
    """Value by name and sorted labels."""
    body, content_type = metrics.render(accept)
    parse = openmetrics if "openmetrics" in content_type else prometheus
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def of(name: str, **labels: str) -> tuple:
    return (name, *sorted(labels.items()))


@pytest.fixture
def topology():
    return load_page(Path(__file__).parents[2] / "topics" / "clickstream.toml")


class Committed:
    """An epoch as it is when it has been committed."""

    def __init__(self) -> None:
        claim = Claim(P0, 1, "t", None, None)
        share = PartitionEpoch(PartitionProgress(claim, None, None), None, 9, None)
        share.counts = Counts(records=10, accepted=6, filtered=1, rejected=2, duplicate=1)
        self.id = uuid.uuid4()
        self.partitions = {P0: share}
        self.reasons = {"not_json": 2}
        self.filtered_by = {"bots": 1}
        self.late = {"page_views": 3}
        self.seconds = {"fold": 0.2, "put": 0.02}
        self.batches = {"transform": [0.1, 0.2], "fold": [0.05]}
        self.records = 10
        self.oldest_received_ms: int | None = 1_000_000


def test_an_epoch_is_counted_once_and_wholly():
    metrics = Metrics(list, clock=lambda: 1_002.0)
    metrics.committed("clickstream", Committed(), 0.3, now=1_002.0)
    got = samples(metrics)
    outcomes = {
        outcome: got[
            of(
                "streamproc_records_total",
                stream="clickstream",
                source="clicks",
                partition="0",
                outcome=outcome,
            )
        ]
        for outcome in ("accepted", "filtered", "rejected", "duplicate")
    }
    assert outcomes == {"accepted": 6, "filtered": 1, "rejected": 2, "duplicate": 1}
    assert got[of("streamproc_rejects_total", stream="clickstream", reason="not_json")] == 2
    assert got[of("streamproc_filtered_total", stream="clickstream", filter="bots")] == 1
    assert got[of("streamproc_late_events_total", stream="clickstream", table="page_views")] == 3
    assert got[of("streamproc_epoch_stage_seconds_sum", stream="clickstream", stage="put")] == 0.02
    assert got[of("streamproc_epoch_commit_seconds_count", stream="clickstream")] == 1
    assert got[of("streamproc_freshness_seconds_sum", stream="clickstream")] == 2.0
    assert got[of("streamproc_freshness_worst_seconds", stream="clickstream")] == 2.0


@given(
    epochs=st.lists(st.tuples(st.floats(0, 40), st.floats(0, 500)), max_size=30),
    asked=st.floats(0, 300),
)
def test_the_worst_freshness_is_the_longest_of_the_last_two_minutes(epochs, asked):
    times = list(itertools.accumulate(apart for apart, _ in epochs))
    now = [0.0]
    worst = Worst(clock=lambda: now[0])

    def told() -> list[float]:
        (family,) = worst.collect()
        return [sample.value for sample in family.samples]

    for at, (_, fresh) in zip(times, epochs, strict=True):
        worst.observe("s", at, fresh)
        now[0] = at
        told()  # whoever asks in between takes nothing away from the next
    now[0] += asked
    recent = [fresh for at, (_, fresh) in zip(times, epochs, strict=True) if at > now[0] - 120]
    assert told() == ([max(recent)] if recent else [])


def test_an_epoch_without_a_time_of_arrival_has_no_freshness():
    metrics = Metrics(list, clock=lambda: 1_000.0)
    epoch = Committed()
    epoch.oldest_received_ms = None
    metrics.committed("s", epoch, 0.1, now=1_000.0)
    assert of("streamproc_freshness_worst_seconds", stream="s") not in samples(metrics)


def test_gauges_say_how_it_is_when_they_are_asked_for():
    partitions = {P0: PartitionState(5, 9, 1.5), P1: PartitionState(None, None, None)}
    state = WorkerState("clickstream", None, partitions, stopped=1)
    metrics = Metrics(lambda: [state])
    got = samples(metrics)
    assert got[of("streamproc_ready", stream="clickstream")] == 1
    assert got[of("streamproc_partitions_claimed", stream="clickstream")] == 2
    assert got[of("streamproc_partitions_stopped", stream="clickstream")] == 1
    here = {"stream": "clickstream", "source": "clicks", "partition": "0"}
    assert got[of("streamproc_lag_records", **here)] == 4
    assert got[of("streamproc_committed_position", **here)] == 5
    assert got[of("streamproc_watermark_timestamp_seconds", **here)] == 1.5
    assert of("streamproc_lag_records", **here | {"partition": "1"}) not in got, "unknown is not 0"
    state = WorkerState("clickstream", "waiting for s3")
    assert samples(metrics)[of("streamproc_ready", stream="clickstream")] == 0


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0"])
def test_both_formats_can_be_read(accept):
    metrics = Metrics(lambda: [WorkerState("clickstream", None)])
    metrics.committed("clickstream", Committed(), 0.3, now=1_002.0)
    got = samples(metrics, accept)
    assert got[of("streamproc_epoch_records_count", stream="clickstream")] == 1
    assert any(name == "streamproc_build_info" for name, *_ in got)
    assert any(name == "process_resident_memory_bytes" for name, *_ in got)


def test_an_epoch_notes_reasons_filters_and_the_oldest_batch(topology):
    epoch = Epoch(topology, {})
    claim = Claim(P0, 1, "t", None, None)
    progress = {P0: PartitionProgress(claim, None, None)}
    for received in (7_000, 5_000, 6_000):
        batch = RecordBatch(P0, 0, 2, [b"x", b"y"], range(1, 3), received, 2)
        rejects = pl.DataFrame(
            {name: [None] for name in REJECT_SCHEMA} | {"source_partition": ["0"], "reason": ["not_json"]},
            schema=REJECT_SCHEMA,
        )
        events = pl.DataFrame(
            schema={"event_id": pl.String, "event_time": pl.Datetime("us", "UTC"), "position": pl.Int64}
        )
        counts = {"0": Counts(records=2, filtered=1, rejected=1)}
        epoch.fold([batch], Transformed(events, rejects, counts, {"bots": 1}), progress)
    assert (epoch.reasons, epoch.filtered_by, epoch.oldest_received_ms) == (
        {"not_json": 3},
        {"bots": 3},
        5_000,
    )


def test_sinks_loader_publication_and_batches_are_told():
    state = WorkerState("s", None, sinks={"lake": False, "summaries": True}, loaded=7.0, unpublished=(3, 1.5))
    metrics = Metrics(lambda: [state], listeners=lambda: (4, 1))
    metrics.committed("s", Committed(), 0.1, now=2_000.0)
    got = samples(metrics)
    assert got[of("streamproc_sink_up", stream="s", sink="lake")] == 0
    assert got[of("streamproc_sink_up", stream="s", sink="summaries")] == 1
    assert got[of("streamproc_warehouse_loaded_timestamp_seconds", stream="s")] == 7
    assert got[of("streamproc_unpublished_notes", stream="s")] == 3
    assert got[of("streamproc_unpublished_oldest_seconds", stream="s")] == 1.5
    assert got[of("streamproc_batch_seconds_count", stream="s", stage="transform")] == 2
    assert got[of("streamproc_listeners")] == 4 and got[of("streamproc_listeners_dropped_total")] == 1


def test_a_volume_that_is_not_made_yet_is_told_by_the_disk_it_will_lie_on(tmp_path):
    metrics = Metrics(list, volumes={"data": tmp_path / "not" / "there", "root": tmp_path})
    got = samples(metrics)
    size = got[of("streamproc_disk_size_bytes", volume="root")]
    assert size == got[of("streamproc_disk_size_bytes", volume="data")]
    assert 0 <= got[of("streamproc_disk_free_bytes", volume="data")] <= size


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/meminfo": "MemFree: 1 kB\nMemTotal:       4 kB\n"}, 4_096),
        ({"proc/meminfo": "MemTotal: 4 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 4_096),
        ({"proc/meminfo": "MemTotal: 4 kB\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1_000),
        (
            {"proc/meminfo": "MemTotal: 4 kB\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63)},
            4_096,
        ),
    ],
)
def test_the_memory_limit_is_the_smallest_that_anybody_sets(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_of_several_workers_in_a_container_each_may_use_its_share(monkeypatch):
    """Else none of them would come near the limit before all of them together are beyond it."""
    alone = samples(Metrics(list))[of("streamproc_memory_limit_bytes")]
    assert alone == memory_limit()
    monkeypatch.setenv(PROCESSES, environment(read_settings(environ={}), 4, 1)[PROCESSES])
    assert samples(Metrics(list))[of("streamproc_memory_limit_bytes")] == alone // 4
