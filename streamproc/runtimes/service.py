"""``streamproc run``: one worker per stream in one process, with signals, health and embedded servers."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from streamproc import allocators, failpoints
from streamproc.epoch import Epoch
from streamproc.errors import ConfigError, Mistake
from streamproc.ops.changes import Changes, Watching
from streamproc.ops.health import HealthServer
from streamproc.ops.metrics import Metrics
from streamproc.ops.tables import TablesApi
from streamproc.ops.tracing import Traces, open_traces
from streamproc.ops.watch import LoopWatchdog
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.worker import Worker
from streamproc.settings import Settings
from streamproc.sources.opening import admin
from streamproc.topology import Topology

log = structlog.get_logger(__name__)

#: Seconds between two times that free memory is given back, which holds up everything else for ten milliseconds.
_GIVE_BACK_EVERY = 60.0


async def serve(
    settings: Settings, pages: Mapping[str, Topology], folder: Path, *, agents: str | None = None
) -> None:
    """Run the streams until SIGTERM or SIGINT, then drain. Raises what stopped a worker.

    ``folder``: where the pages are, for files they name. ``agents``: a module of users' own Faust agents;
    needs exactly one stream.
    """
    if agents is not None and len(pages) != 1:
        fix = "Name the stream they belong to: streamproc run STREAM --agents MODULE"
        raise ConfigError([Mistake("--agents", f"needs one stream and there are {len(pages)}", fix)])
    if failpoints.armed is not None:
        log.warning("failpoints_armed", points=failpoints.armed)  # a test; never elsewhere
    spare_the_collector()
    traces = open_traces(settings.traces, settings.worker)
    ending = asyncio.Event()
    with signals(ending):
        async with Endpoints(settings) as endpoints:
            workers: list[Worker] = []
            changes = Changes()
            metrics = Metrics(
                lambda: [worker.observation.state() for worker in workers],
                volumes=volumes(settings),
                listeners=lambda: (changes.listening, changes.dropped),
            )
            workers += [
                Worker(
                    settings,
                    page,
                    endpoints,
                    pages=folder,
                    agents=agents,
                    committed=noted(metrics, traces, page),
                    watcher=Watching(page, changes),
                )
                for page in pages.values()
            ]
            await apply_embedded(settings, endpoints, pages.values())
            health = HealthServer(
                settings.health.host,
                settings.health.port,
                lambda: probe(workers),
                lambda: {"workers": [worker.observation.status() for worker in workers]},
                metrics.render,
                parts=[TablesApi(list(pages.values()), endpoints.ledger, settings.worker), changes],
                token=settings.api_token,
            )
            watchdog = LoopWatchdog()
            await health.start()
            watchdog.start()
            try:
                await _run_all(workers, ending)
            finally:
                watchdog.stop()
                await health.stop()
                if traces is not None:
                    await traces.close()


def volumes(settings: Settings) -> dict[str, Path]:
    """Folders of this machine that grow: what is embedded, and a lake that is a folder."""
    folders = {"data": settings.data_dir}
    if settings.lake.scheme == "file":
        folders["lake"] = Path(unquote(urlsplit(settings.lake.reveal()).path))
    return folders


def noted(metrics: Metrics, traces: Traces | None, page: Topology) -> Callable[[Epoch, float], None]:
    """What a pipeline tells of its epochs, into the metrics and the traces."""

    def note(epoch: Epoch, elapsed: float) -> None:
        metrics.committed(page.name, epoch, elapsed, time.time())
        if traces is not None:
            traces.committed(page.name, epoch)

    return note


async def _run_all(workers: Sequence[Worker], ending: asyncio.Event) -> None:
    """All workers; when one fails that is said, the others drain, and its failure is raised."""
    tasks = [asyncio.create_task(worker.run(ending), name=worker.topology.name) for worker in workers]
    giving_back = asyncio.create_task(_give_back())
    try:
        ended, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        giving_back.cancel()
    for task in ended:
        if others and not task.cancelled() and (error := task.exception()) is not None:
            kind, name = type(error).__name__, task.get_name()
            log.error("stream_failed", stream=name, error=kind, why=str(error), others="are told to drain")
    ending.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def apply_embedded(settings: Settings, endpoints: Endpoints, pages: Iterable[Topology]) -> None:
    """Create the topics of an embedded broker: it begins empty and nobody else would."""
    if not settings.broker.embedded or endpoints.broker is None:
        return
    async with admin(endpoints.broker) as topics:
        for page in pages:
            for topic in page.topics:
                if await topics.describe(topic.name) is None:
                    await topics.apply(topic)


def spare_the_collector() -> None:
    """Make garbage collections rare.

    Without the compiled part, records live in lists of thousands of byte strings, which the collector walks again and
    again and which are never part of a cycle: at its default thresholds it took a tenth of a worker's time. What is
    loaded by now lives as long as the process and need not be looked at again. Rarer than this, and what libraries
    leave in cycles (each retry that may be needed, for one) comes to tens of megabytes before somebody looks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


async def _give_back() -> None:
    """Until cancelled, now and then what nobody uses goes back to the system.

    A collection of all generations, which our thresholds leave to chance, also empties Python's lists of free tuples:
    two thousand of each length, which rows of the ledger fill in hours.
    """
    while True:
        await asyncio.sleep(_GIVE_BACK_EVERY)
        begin = time.perf_counter()
        gc.collect()
        collected = time.perf_counter()
        await asyncio.to_thread(allocators.give_back)
        log.debug(
            "memory_given_back", collecting=collected - begin, giving_back=time.perf_counter() - collected
        )


@contextmanager
def signals(ending: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``ending``; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        if ending.is_set():
            loop.remove_signal_handler(number)
            signal.raise_signal(number)
        log.info("ending", signal=signal.Signals(number).name)
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def probe(workers: Sequence[Worker]) -> tuple[str | None, dict[str, Any]]:
    """Ready when every worker is; the first reason otherwise."""
    probes = [worker.observation.probe() for worker in workers]
    reason = next((why for why, _ in probes if why is not None), None)
    return reason, {"workers": [facts for _, facts in probes]}
