"""Traces of epochs, decoded by a collector that knows OTLP's own messages and nothing of the SDK."""

from __future__ import annotations

import gzip
import random
import sys
import threading
import time
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streamproc.errors import ConfigError
from streamproc.ops import tracing
from streamproc.ops.tracing import open_traces
from tests.ops.test_metrics import Committed

otlp = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra otel is not installed"
)
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver. ``requests``: path and message of each."""

    def __init__(self):
        self.requests = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Receive)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def spans(self):
        return [
            span
            for _, message in self.requests
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Receive(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["Content-Type"] == "application/x-protobuf"
        self.server.requests.append((self.path, otlp.ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    with Collector() as server:
        yield server
        server.shutdown()
        server.thread.join()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in tracing._VARIABLES:
        monkeypatch.delenv(name, raising=False)


def epoch():
    """An epoch whose stages have known times, a minute ago."""
    found = Committed()
    found.begun = time.perf_counter() - 60
    found.intervals = {
        "transform": (found.begun + 1, found.begun + 3),
        "fold": (found.begun + 2, found.begun + 4),
        "put": (found.begun + 4, found.begun + 5),
        "commit": (found.begun + 5, found.begun + 6.5),
    }
    found.seconds = {"transform": 1.5, "fold": 0.5, "put": 1.0, "commit": 1.5}
    found.counts = next(iter(found.partitions.values())).counts
    return found


def values(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


async def test_an_epoch_is_one_trace_with_a_span_for_each_stage(collector):
    traces, done = open_traces(collector.url, "w1"), epoch()
    traces.committed("clickstream", done)
    await traces.close()
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    resource = values(collector.requests[0][1].resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["service.instance.id"]) == ("streamproc", "w1")
    by_name = {span.name: span for span in collector.spans}
    root = by_name.pop("epoch")
    assert uuid.UUID(bytes=root.trace_id) == done.id and not root.parent_span_id
    assert abs(root.start_time_unix_nano - (time.time_ns() - 60 * 10**9)) < 30 * 10**9
    assert root.end_time_unix_nano - root.start_time_unix_nano == pytest.approx(6.5e9, abs=1e3)
    assert values(root.attributes) == {
        "streamproc.stream": "clickstream",
        "streamproc.epoch": str(done.id),
        "streamproc.partitions": 1,
        "streamproc.records": 10,
        "streamproc.accepted": 6,
        "streamproc.filtered": 1,
        "streamproc.rejected": 2,
        "streamproc.duplicate": 1,
        "streamproc.late": 3,
    }
    assert set(by_name) == set(done.intervals)
    for stage, span in by_name.items():
        begin, end = done.intervals[stage]
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        since = span.start_time_unix_nano - root.start_time_unix_nano
        assert since == pytest.approx((begin - done.begun) * 1e9, abs=1e3)
        took = span.end_time_unix_nano - span.start_time_unix_nano
        assert took == pytest.approx((end - begin) * 1e9, abs=1e3)
        assert values(span.attributes) == {"streamproc.busy_seconds": done.seconds[stage]}


async def test_two_epochs_are_two_traces(collector):
    traces, done = open_traces(collector.url, "w1"), [epoch(), epoch()]
    for each in done:
        traces.committed("clickstream", each)
    await traces.close()
    assert {uuid.UUID(bytes=span.trace_id) for span in collector.spans} == {each.id for each in done}
    assert len(collector.spans) == 2 * (1 + len(done[0].intervals))


async def test_the_environment_alone_switches_them_on(collector, monkeypatch):
    assert open_traces(None, "w1") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "clicks-eu")
    traces = open_traces(None, "w1")
    traces.committed("clickstream", epoch())
    await traces.close()
    resource = values(collector.requests[0][1].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "clicks-eu"


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
@pytest.mark.parametrize(
    ("share", "least", "most"), [("0.1", 100, 300), ("0.5", 850, 1_150), ("0.9", 1_700, 1_900)]
)
def test_a_sampler_takes_its_share_of_the_epochs_and_each_whole(monkeypatch, sampler, share, least, most):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    kept, draw = memory.InMemorySpanExporter(), random.Random(4)
    monkeypatch.setattr(export, "BatchSpanProcessor", lambda _: export.SimpleSpanProcessor(kept))
    traces, done = open_traces("http://127.0.0.1:1", "w1"), epoch()
    for _ in range(2_000):
        done.id = uuid.UUID(int=draw.getrandbits(128), version=4)
        traces.committed("clickstream", done)
    sampled = Counter(span.context.trace_id for span in kept.get_finished_spans())
    assert least <= len(sampled) <= most
    assert set(sampled.values()) == {1 + len(done.intervals)}


async def test_a_collector_that_refuses_costs_the_worker_nothing_but_the_trace(collector):
    collector.status = 400
    traces = open_traces(collector.url, "w1")
    traces.committed("clickstream", epoch())
    await traces.close()
    traces.committed("clickstream", epoch())


async def test_without_the_extra_the_setting_is_a_mistake_and_the_environment_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match="otel"):
        open_traces("http://127.0.0.1:1", "w1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert open_traces(None, "w1") is None
