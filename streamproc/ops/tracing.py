"""OpenTelemetry traces of epochs, for the extra ``otel``: one trace for each commit, a span for each stage of it.

The trace's id is the epoch's: what a log line or the ledger names is found by it. Spans are made when the epoch is
committed, from times that were noted anyway, and sent by a thread of the SDK; when nobody takes them they are thrown
away. Attributes are numbers and names of the configuration, never an event's values. The SDK's own variables
(``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_TRACES_SAMPLER``, ``OTEL_RESOURCE_ATTRIBUTES`` ...) have their usual meaning.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

from streamproc.epoch import Epoch
from streamproc.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger(__name__)

#: What the SDK is told by, besides the setting ``traces``.
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Seconds that one request to the collector may take, and that a worker which ends waits for the last one.
_REQUEST, _LAST = 10, 5.0


class Traces:
    """Sends a trace of each epoch to an OTLP collector. ``worker`` names this instance of the service."""

    def __init__(self, endpoint: str | None, worker: str) -> None:
        """``endpoint``: the collector's address, ``None``: as the environment says. Raises ``ImportError``."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult  # noqa: PLC0415

        class Ids(RandomIdGenerator):
            """Takes the epoch's id for that of the trace."""

            epoch = 0

            def generate_trace_id(self) -> int:
                return self.epoch

        class ByRandomBits(Sampler):
            """Shows a sampler the id without the bits that are the same in each epoch's."""

            def __init__(self, sampler: Sampler) -> None:
                self._sampler = sampler

            def should_sample(
                self, parent_context: Context | None, trace_id: int, *rest: Any, **more: Any
            ) -> SamplingResult:
                # One that takes a share compares the low half with a bound. The half begins with the UUID's variant,
                # 10: of shares below a half it would take none.
                shown = trace_id >> 64 << 64 | (trace_id << 2) % 2**64
                return self._sampler.should_sample(parent_context, shown, *rest, **more)

            def get_description(self) -> str:
                return self._sampler.get_description()

        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "streamproc"}
        resource = Resource.create(
            {**named, "service.version": version("streamproc"), "service.instance.id": worker}
        )
        address = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        self._ids = Ids()
        self._provider: TracerProvider = TracerProvider(
            resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.sampler = ByRandomBits(self._provider.sampler)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=_REQUEST))
        )
        self._tracer = self._provider.get_tracer("streamproc")

    def committed(self, stream: str, epoch: Epoch) -> None:
        """Make the spans of an epoch that is in the ledger."""
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - an extra

        since_1970 = time.time_ns() - time.perf_counter_ns()

        def unix_ns(moment: float) -> int:
            return since_1970 + int(moment * 1e9)

        self._ids.epoch = epoch.id.int
        end = max(end for _, end in epoch.intervals.values())
        root = self._tracer.start_span(
            "epoch", start_time=unix_ns(epoch.begun), attributes=_attributes(stream, epoch)
        )
        for stage, (begin, done) in epoch.intervals.items():
            child = self._tracer.start_span(
                stage,
                context=set_span_in_context(root),
                start_time=unix_ns(begin),
                # Of what is done batch by batch, the span says from when to when, and this how long in all.
                attributes={"streamproc.busy_seconds": round(epoch.seconds[stage], 6)},
            )
            child.end(unix_ns(done))
        root.end(unix_ns(end))

    async def close(self) -> None:
        """Send what waits, if the collector takes it soon."""
        last = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _LAST)


def _attributes(stream: str, epoch: Epoch) -> Mapping[str, str | int]:
    counts = epoch.counts
    return {
        "streamproc.stream": stream,
        "streamproc.epoch": str(epoch.id),
        "streamproc.partitions": len(epoch.partitions),
        "streamproc.records": counts.records,
        "streamproc.accepted": counts.accepted,
        "streamproc.filtered": counts.filtered,
        "streamproc.rejected": counts.rejected,
        "streamproc.duplicate": counts.duplicate,
        "streamproc.late": sum(epoch.late.values()),
    }


def open_traces(endpoint: str | None, worker: str) -> Traces | None:
    """Traces when the setting ``traces`` or the environment names a collector, else ``None``.

    Raises :class:`ConfigError` when the setting does and the extra is not installed; an environment that is
    shared with other programs is no reason not to run.
    """
    if endpoint is None and not any(os.environ.get(name) for name in _VARIABLES):
        return None
    try:
        traces = Traces(endpoint, worker)
    except ImportError as error:
        fix = "pip install 'streamproc[otel]', or take the setting out"
        if endpoint is not None:
            raise ConfigError([Mistake("traces", "needs the extra otel", fix)]) from error
        log.warning("no_traces", why="OTEL_EXPORTER_OTLP_ENDPOINT is set, the extra otel is not installed")
        return None
    log.info("traces", to=endpoint or "as OTEL_EXPORTER_OTLP_ENDPOINT says")
    return traces
