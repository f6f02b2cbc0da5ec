"""Stuck partitions and outages against their definitions read backwards; the watchdog on a loop that is blocked."""

from __future__ import annotations

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from streamproc.ops.watch import Failures, LoopWatchdog, StuckWatch

AFTER = 30.0

#: One look: seconds since the one before, the committed position, and the end, which never falls.
LOOKS = st.lists(
    st.tuples(st.integers(1, 25), st.one_of(st.none(), st.integers(0, 3)), st.integers(-1, 4)), max_size=15
)


def stuck_seconds(history: list[tuple[float, int | None, int]]) -> float | None:
    """Of looks (time, position, end): for how long the last one's position has stood with records after it."""
    now, position, _ = history[-1]
    since = now
    for index in range(len(history) - 1, -1, -1):
        at, then, end = history[index]
        if then != position:
            break
        since = at
        if end < 0 or (then is not None and then >= end):
            break
    last_behind = history[-1][2] >= 0 and (position is None or position < history[-1][2])
    return now - since if last_behind and now - since >= AFTER else None


@given(LOOKS)
def test_a_partition_is_stuck_when_its_position_stands_still_with_records_after_it(looks):
    watch, now, history = StuckWatch(AFTER), 0.0, []
    for passed, position, end in looks:
        now += passed
        history.append((now, position, end))
        assert watch.look(now, {"p": position}, {"p": end}).get("p") == stuck_seconds(history)


def test_a_partition_that_was_away_begins_anew():
    watch = StuckWatch(AFTER)
    watch.look(0, {"p": 1}, {"p": 9})
    watch.look(20, {}, {"p": 9})
    assert watch.look(40, {"p": 1}, {"p": 9}) == {}
    assert watch.look(75, {"p": 1}, {"p": 9}) == {"p": 35}


def test_an_unknown_end_is_no_reason_to_call_it_stuck():
    watch = StuckWatch(AFTER)
    watch.look(0, {"p": 1}, {})
    assert watch.look(100, {"p": 1}, {}) == {}


LASTING, PAUSE = 30, 120


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), max_size=12), st.integers(0, 600))
def test_what_somebody_has_tried_in_vain_for_a_while_is_away_until_that_is_some_time_ago(failures, later):
    watch = Failures(LASTING, PAUSE)
    for at, failing in sorted(failures):
        watch.note(at, failing, "Kinesis")
    now = max((at for at, _ in failures), default=0) + later
    away = any(failing >= LASTING and now - at <= PAUSE for at, failing in failures)
    assert watch.away(now) == ("Kinesis" if away else None)


def test_what_fails_once_a_minute_is_not_away():
    watch = Failures(LASTING, PAUSE)
    for at in range(0, 3600, 60):
        watch.note(at, 0, "Kinesis")
        assert watch.away(at) is None


def test_what_has_answered_fails_anew():
    watch = Failures(LASTING, PAUSE)
    watch.note(40, 40, "b")
    assert watch.away(41) == "b"
    watch.end()
    assert watch.away(42) is None
    watch.note(50, 0, "c")
    assert watch.away(51) is None


def test_the_watchdog_ends_a_process_whose_loop_is_blocked():
    ended = threading.Event()

    async def block() -> None:
        watchdog = LoopWatchdog(every=0.01, misses=3, end=ended.set)
        watchdog.start()
        assert ended.wait(30), "the watchdog said nothing"  # and the loop does not turn meanwhile
        watchdog.stop()

    asyncio.run(block())


async def test_the_watchdog_leaves_a_loop_that_turns_alone():
    ended, looked, looks = threading.Event(), asyncio.Event(), 0
    watchdog = LoopWatchdog(every=0.005, misses=40, end=ended.set)
    answer = watchdog._answer

    def count() -> None:
        nonlocal looks
        looks += 1
        if looks == 20:
            looked.set()
        answer()

    watchdog._answer = count
    watchdog.start()
    async with asyncio.timeout(30):
        await looked.wait()
    watchdog.stop()
    assert not ended.is_set()
