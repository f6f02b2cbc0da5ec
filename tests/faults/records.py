"""What the workers are fed: generated visitors, with retries, stragglers and rubbish strewn in."""

from __future__ import annotations

import random
import re

from streamproc.generator import Generator

#: Events a second of event time: few, so that a few thousand records span windows, lateness and sessions.
_RATE = 5

_EVENT_TIME = re.compile(rb'"event_time":(\d+)')

Keyed = tuple[bytes, bytes | None]


def records(count: int, seed: int) -> list[Keyed]:
    """``count`` records with their keys, the same for the same seed.

    Of a hundred, three come again within some hundred records, two are 11 to 90 minutes late, and two
    cannot be used, some because they are from the future.
    """
    chance = random.Random(seed)
    again: list[tuple[int, Keyed]] = []
    out: list[Keyed] = []
    for key, value in Generator(seed=seed, events=count, bad_ratio=0.015, rate=_RATE).records():
        if value is not None and len(value) > 100_000:
            continue  # what a broker refuses by default is no test of the worker
        while again and again[0][0] <= len(out):
            out.append(again.pop(0)[1])
        luck = chance.random()
        if value is not None and luck < 0.02:
            out.append((key, _moved(value, -chance.randrange(660_000, 5_400_000))))
        elif value is not None and luck < 0.025:
            out.append((key, _moved(value, 10**11)))
        else:
            out.append((key, value))
        if 0.025 <= luck < 0.055:
            again.append((len(out) + chance.randrange(1, 400), (key, value)))
            again.sort(key=lambda due: due[0])
    return out[:count]


def _moved(value: bytes, milliseconds: int) -> bytes:
    return _EVENT_TIME.sub(lambda found: b'"event_time":%d' % (int(found[1]) + milliseconds), value, count=1)
