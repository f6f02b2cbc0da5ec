"""An event loop without time, threads or sockets of its own: everything that happens is drawn from a seed.

Callbacks belong to *processes* (the workers, and the world around them), by the context they run in. Inside a
process they run in the order asyncio promises; whose turn it is, is drawn. So every interleaving of several
processes can come up, and none that asyncio rules out. A process can be frozen (SIGSTOP) or killed (SIGKILL)
between any two of its callbacks: a killed one never runs again, not even its ``finally`` blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import heapq
import itertools
import random
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")

#: Callbacks in one run; more means that something goes round in circles without time passing.
_MOST_STEPS = 400_000


class Endless(Exception):
    """The run does not come to an end."""


class Process:
    """What runs under one name. ``ready``: callbacks that are due, in asyncio's order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.frozen = False
        self.dead = False
        self.steps = 0
        self.context = contextvars.Context()
        self.context.run(_PROCESS.set, self)
        self._at_step: tuple[int, Callable[[], None]] | None = None

    def after_steps(self, steps: int, act: Callable[[], None]) -> None:
        """Call ``act`` when the process has run so many callbacks more."""
        self._at_step = (self.steps + steps, act)

    def step(self) -> None:
        self.steps += 1
        if self._at_step is not None and self.steps >= self._at_step[0]:
            act, self._at_step = self._at_step[1], None
            act()


def current() -> Process:
    """The process that runs now."""
    return _PROCESS.get()


class _Future(asyncio.Future):
    """Hashes by number and not by address: sets of futures have the same order in every run."""

    _number: int

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task):
    def __init__(self, number: int, coro: Any, loop: SimulatedLoop, name: str, context: Any) -> None:
        self._number = number  # before asyncio puts the task into a set
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class _Threads:
    """A thread pool without threads: jobs begin in order, ``limit`` at a time, and take a moment."""

    def __init__(self, loop: SimulatedLoop, limit: int) -> None:
        self._loop = loop
        self._free = limit
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()

    def submit(self, future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        self._waiting.append((future, work))
        self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            future, work = self._waiting.popleft()
            if future.cancelled():
                continue
            self._free -= 1
            self._loop.call_later(self._loop.chance.uniform(0, 0.01), self._run, future, work)

    def _run(self, future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        """A thread cannot be cancelled: the work is done even when nobody waits for it any more."""
        try:
            result, error = work(), None
        except BaseException as raised:
            result, error = None, raised
        self._free += 1
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._next()


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs everything; :attr:`digest` is a hash over which process ran when and what was noted."""

    def __init__(self, chance: random.Random, trace: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.chance = chance
        self.world = Process("world")
        self.processes = [self.world]
        self.steps = 0
        self.errors: list[str] = []
        self._trace = trace
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count(1)
        self._tasks: list[_Task] = []
        self._threads: dict[Any, _Threads] = {}
        self._hash = hashlib.sha256()
        self.set_exception_handler(self._noticed)

    # -- processes -----------------------------------------------------------------------------------

    def start(self, name: str, main: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Process, asyncio.Task]:
        """A new process and its first task."""
        process = Process(name)
        self.processes.append(process)
        return process, self.create_task(main(), context=process.context.copy())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the world, whoever asks for it: it goes on when that process dies."""
        task = self.create_task(work, context=self.world.context.copy())
        task.add_done_callback(self._failed)
        return task

    def _failed(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            where = traceback.format_exception(error)[-2].split("\n")[0].strip()
            self.errors.append(f"the world itself failed: {error!r} {where}")

    def kill(self, process: Process) -> None:
        process.dead = True
        process.ready.clear()
        self.note(f"{process.name} is killed")

    def freeze(self, process: Process) -> None:
        process.frozen = True
        self.note(f"{process.name} is frozen")

    def thaw(self, process: Process) -> None:
        process.frozen = False
        self.note(f"{process.name} goes on")

    # -- what happened -------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """Part of the run's trace, and of its hash."""
        self._hash.update(what.encode())
        self.remark(what)

    def remark(self, what: str) -> None:
        """Part of the trace only."""
        if self._trace is not None:
            self._trace(f"{self._now:10.3f} {self.steps:6} {what}")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:16]

    def _noticed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """asyncio found an exception that nobody took, in whatever process."""
        error = context.get("exception")
        self.errors.append(f"{context['message']}: {error!r}")

    # -- what asyncio asks of a loop -----------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        context = context if context is not None else contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle, context)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        context = context if context is not None else contextvars.copy_context()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _put(self, handle: asyncio.Handle, context: contextvars.Context) -> None:
        process = context.get(_PROCESS, self.world)
        if not process.dead:
            process.ready.append(handle)

    def create_future(self) -> _Future:
        future = _Future(loop=self)
        future._number = next(self._numbers)
        return future

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> _Task:
        number = next(self._numbers)
        task = _Task(number, coro, self, name or f"task {number}", context)
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> _Future:
        future = self.create_future()
        key = executor if executor is not None else current()
        threads = self._threads.get(key)
        if threads is None:
            limit = executor._max_workers if isinstance(executor, ThreadPoolExecutor) else 4
            threads = self._threads[key] = _Threads(self, limit)
        threads.submit(future, lambda: func(*args))
        return future

    def run_forever(self) -> None:
        self._check_closed()
        self._stopping = False
        asyncio.events._set_running_loop(self)
        try:
            while not self._stopping:
                self._run_once()
        finally:
            asyncio.events._set_running_loop(None)

    def is_running(self) -> bool:
        return asyncio.events._get_running_loop() is self

    def _run_once(self) -> None:
        able = [p for p in self.processes if p.ready and not p.frozen]
        if not able:
            self._pass_time()
            return
        process = able[0] if len(able) == 1 else able[int(self.chance.random() * len(able))]
        handle = process.ready.popleft()
        if handle._cancelled:
            return
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise Endless(f"{self.steps} callbacks at {self._now:.3f} s")
        self._hash.update(process.name.encode())
        process.step()
        if not process.dead:
            if process.frozen:
                process.ready.appendleft(handle)
            else:
                handle._run()

    def _pass_time(self) -> None:
        while self._timers and (self._timers[0][2]._cancelled or not self._wanted(self._timers[0][2])):
            heapq.heappop(self._timers)
        if not self._timers:
            raise Endless(f"everybody waits for somebody else at {self._now:.3f} s")
        self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            timer = heapq.heappop(self._timers)[2]
            if not timer._cancelled:
                self._put(timer, timer._context)

    def _wanted(self, timer: asyncio.TimerHandle) -> bool:
        return not timer._context.get(_PROCESS, self.world).dead

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when they come up."""

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Generators go with the run."""

    def _write_to_self(self) -> None:
        """Nobody waits in a selector."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    async def shutdown_default_executor(self) -> None:
        """There are no threads."""

    def dispose(self) -> None:
        """Forget everything that is still under way, as the end of the world does."""
        for task in self._tasks:
            task._log_destroy_pending = False
        self._tasks.clear()
        self._timers.clear()
        self._threads.clear()
        for process in self.processes:
            process.ready.clear()
            process.dead = True
        self.close()


async def delay(loop: SimulatedLoop, least: float, most: float) -> None:
    """Let a drawn time pass, in seconds."""
    await asyncio.sleep(loop.chance.uniform(least, most))
