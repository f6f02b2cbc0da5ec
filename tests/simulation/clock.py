"""Time, random names and jitter as the simulation has them, for as long as a run takes."""

from __future__ import annotations

import datetime as real
import gc
import random
import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.simulation.loop import SimulatedLoop

#: Unix seconds at which every run begins.
BEGIN = 1_785_000_000.0


def now(loop: SimulatedLoop) -> real.datetime:
    """The simulated wall clock, UTC."""
    return real.datetime.fromtimestamp(BEGIN + loop.time(), real.UTC)


@contextmanager
def simulated(loop: SimulatedLoop) -> Iterator[None]:
    """Clocks and sources of randomness that the code under test asks directly. No garbage is collected
    meanwhile: what a finalizer does must not depend on how full the memory is.
    """

    class Moment(real.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.datetime.fromtimestamp(BEGIN + loop.time(), tz)

    import streamproc.epoch

    chance = loop.chance
    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", loop.time),
        (time, "perf_counter", loop.time),
        (time, "time", lambda: BEGIN + loop.time()),
        (uuid, "uuid4", lambda: uuid.UUID(int=chance.getrandbits(128), version=4)),
        (secrets, "token_hex", lambda size=32: f"{chance.getrandbits(8 * size):0{2 * size}x}"),
        (random, "uniform", chance.uniform),
        (random, "random", chance.random),
        (streamproc.epoch, "datetime", Moment),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    collecting = gc.isenabled()
    gc.disable()
    for place, name, value in replaced:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        if collecting:
            gc.enable()
