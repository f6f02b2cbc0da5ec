"""Running a replay: worker processes until the range is processed, then what is left to do once.

The workers are processes of their own, told apart from this one only by what they do: each joins the
replay's consumer group and takes its share. One that dies is replaced by the others, or by resuming.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess

import structlog

from streamproc.concurrency import done_before, end_if_cancelled
from streamproc.errors import DependencyError, LedgerError, StreamprocError
from streamproc.ledger import Ledger
from streamproc.ledger.replays import Replay, Replays
from streamproc.ops.logging import configure_logging
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.replay.work import ReplayWorker, Unfinishable, still_open
from streamproc.runtimes.service import signals, spare_the_collector
from streamproc.settings import Settings
from streamproc.topic_pages import find_pages, load_pages

log = structlog.get_logger(__name__)

#: Seconds between two looks at how far the workers are.
_LOOK_EVERY = 0.5

#: Rates are over this many seconds.
_RATE_OVER = 15.0

#: Workers that may be lost before something must be wrong.
_LOSSES = 5

#: Seconds that a worker has beyond its drain deadline to end.
_MARGIN = 15.0

#: The live service comes first where both want the processor.
_NICENESS = 5

#: The exit code of a worker that another one could not go on for.
_FOR_GOOD = 3


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """``done`` of ``positions`` are processed, lately ``rate`` a second; ``seconds_left`` at that rate."""

    positions: int
    done: int
    rate: float
    seconds_left: float | None


class Rate:
    """Positions a second over the last seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: list[tuple[float, int]] = []

    def report(self, replay: Replay) -> ProgressReport:
        """The progress of ``replay`` as it is now."""
        now, done = self._clock(), replay.positions - replay.left
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_OVER:
            self._seen.pop(0)
        since, before = self._seen[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        return ProgressReport(
            replay.positions, done, rate, replay.left / rate if rate > 0 else (None if replay.left else 0.0)
        )


async def process(
    settings: Settings,
    replays: Replays,
    replay: Replay,
    workers: int,
    tell: Callable[[ProgressReport], None],
) -> Replay:
    """Run worker processes until the range is processed; returns the replay as it is then.

    ``tell`` is called now and then. SIGTERM and SIGINT end the workers, which commit what they have.
    Raises :class:`LedgerError` when it was ended before it was done, and what ended a worker.
    """
    ending = asyncio.Event()
    crew = _Crew(settings, replay)
    try:
        with signals(ending):
            if not await done_before(crew.work(replays, workers, tell), ending):
                raise LedgerError(f"ended with {crew.replay.left} positions left; {_goes_on(crew.replay)}")
    finally:
        await asyncio.to_thread(crew.end)
    return crew.replay


class _Crew:
    """The worker processes. ``replay``: as it was when it was looked at last."""

    def __init__(self, settings: Settings, replay: Replay) -> None:
        self.replay = replay
        self._settings = settings
        self._processes: list[SpawnProcess] = []
        self._started = 0

    async def work(self, replays: Replays, workers: int, tell: Callable[[ProgressReport], None]) -> None:
        """Until the range is processed. A ledger that is away is waited for."""
        rate = Rate()
        while not self.replay.processed:
            self.fill(workers)
            tell(rate.report(self.replay))
            await asyncio.sleep(_LOOK_EVERY)
            self.replay = await _look(replays, self.replay)
        tell(rate.report(self.replay))

    def fill(self, workers: int) -> None:
        """Start what is missing. One that was killed is replaced; what made one fail would stop all."""
        for process_ in self._processes:
            if process_.exitcode is not None and (process_.exitcode > 0 or self._started > workers + _LOSSES):
                what_now = (_begins_anew if process_.exitcode == _FOR_GOOD else _goes_on)(self.replay)
                raise LedgerError(f"{process_.name} ended with {process_.exitcode}; {what_now}")
        self._processes = [process_ for process_ in self._processes if process_.exitcode is None]
        context = multiprocessing.get_context("spawn")
        while len(self._processes) < workers:
            self._started += 1
            replay, settings = self.replay, self._settings
            worker = f"{settings.worker}-replay-{self._started}"
            process_ = context.Process(
                target=worker_process, args=(settings, replay.stream, replay.name, worker), name=worker
            )
            process_.start()
            self._processes.append(process_)

    def end(self) -> None:
        """Have them commit what they took and leave; waits for it."""
        for process_ in self._processes:
            if process_.is_alive():
                process_.terminate()
        for process_ in self._processes:
            process_.join(self._settings.drain_deadline + _MARGIN)
            if process_.is_alive():
                process_.kill()
                process_.join()


def _goes_on(replay: Replay) -> str:
    return f"`streamproc replay --into {replay.name}` goes on where it was"


def _begins_anew(replay: Replay) -> str:
    return f"`streamproc replay discard {replay.name}`, and replay what the topic still has"


async def _look(replays: Replays, replay: Replay) -> Replay:
    try:
        return await still_open(replays, replay)
    except DependencyError as error:  # the workers wait for it too
        end_if_cancelled(error)
        log.warning("waiting", on=error.what, problem=error.problem)
        return replay


def worker_process(settings: Settings, stream: str, name: str, worker: str) -> None:
    """One worker: the target of a process of its own."""
    configure_logging(settings.log)
    os.nice(_NICENESS)
    try:
        asyncio.run(_work(settings, stream, name, worker))
    except StreamprocError as error:
        log.error("replay_worker_failed", worker=worker, problem=str(error))
        raise SystemExit(_FOR_GOOD if isinstance(error, Unfinishable) else 1) from None


async def _work(settings: Settings, stream: str, name: str, worker: str) -> None:
    spare_the_collector()
    ending = asyncio.Event()
    _listen(ending)
    async with Endpoints(settings) as endpoints:
        found = find_pages(settings.topics)
        folder = found if found.is_dir() else found.parent
        page = load_pages(found)[stream]
        async with Ledger(endpoints.ledger, stream, worker, pool_size=1) as ledger:
            replay = await Replays(ledger.database, stream).get(name)
        if replay is None or replay.fingerprint != page.fingerprint:
            raise LedgerError(f"replay {name} is gone, or the topic page has changed since it began")
        await ReplayWorker(settings, page, replay, endpoints, pages=folder, worker=worker).run(ending)


def _listen(ending: asyncio.Event) -> None:
    """``ending`` is set when the command that has started this process says so by SIGTERM, or is gone itself."""
    loop = asyncio.get_running_loop()
    # Ctrl-C reaches this process too, and is the command's to pass on: the second signal would be one too many.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    parent = multiprocessing.parent_process()
    if parent is not None:  # nobody would wait for the rest, and a resumed replay brings its own workers
        loop.add_reader(parent.sentinel, _orphaned, loop, parent.sentinel, ending)


def _orphaned(loop: asyncio.AbstractEventLoop, sentinel: int, ending: asyncio.Event) -> None:
    loop.remove_reader(sentinel)
    ending.set()
