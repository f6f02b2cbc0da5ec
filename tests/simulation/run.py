"""One seed: build the world, let it run, judge it."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import stamina.instrumentation
import structlog

import streamproc.runtimes.worker
from tests.simulation import clock
from tests.simulation.loop import current
from tests.simulation.oracle import judge
from tests.simulation.trouble import trouble
from tests.simulation.world import new_world


@dataclass
class Outcome:
    """``digest``: hash of everything that happened; the same seed has the same. ``simulated``: seconds."""

    seed: int
    digest: str
    wrong: list[str]
    happened: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    simulated: float = 0.0
    records: int = 0
    commits: int = 0

    def line(self) -> str:
        return json.dumps(asdict(self))


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """``trace`` is told of everything that happens, log lines of the service among it."""
    world = new_world(seed, trace)
    loop = world.loop
    with _quiet(None if trace is None else loop.remark), clock.simulated(loop):
        main = loop.spawn(world.run(trouble))
        main.add_done_callback(lambda done: done.get_loop().stop())
        try:
            loop.run_forever()
            main.result()
            wrong = judge(world)
        except Exception as error:
            wrong = [*world.wrong, f"the run broke off: {error!r}"]
            if trace is not None:
                raise
        tables = world.database.rows.tables
        outcome = Outcome(
            seed,
            loop.digest,
            wrong,
            dict(world.happened),
            loop.steps,
            round(loop.time(), 3),
            sum(row["records"] for row in tables.get("partitions", {}).values()),
            len(tables.get("epochs", {})),
        )
        loop.dispose()
        del main, world, loop
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was under way is never awaited
            gc.collect()
    return outcome


@contextmanager
def _quiet(note: Callable[[str], None] | None) -> Iterator[None]:
    """The service's log goes into the trace, or nowhere. What the end of the world interrupts is not told."""

    def into_trace(logger: Any, method: str, event: dict[str, Any]) -> Any:
        if note is not None:
            words = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
            note(f"{current().name} logs {event['event']} {words}")
        raise structlog.DropEvent

    before = structlog.get_config()
    level = logging.CRITICAL if note is None else logging.DEBUG
    structlog.configure(
        processors=[into_trace], wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )  # fmt: skip
    hooks = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks(())
    unraisable, sys.unraisablehook = sys.unraisablehook, lambda _: None
    wait, streamproc.runtimes.worker._MAX_WAIT = streamproc.runtimes.worker._MAX_WAIT, 2.0
    try:
        yield
    finally:
        streamproc.runtimes.worker._MAX_WAIT = wait
        sys.unraisablehook = unraisable
        stamina.instrumentation.set_on_retry_hooks(hooks)
        structlog.configure(**before)
