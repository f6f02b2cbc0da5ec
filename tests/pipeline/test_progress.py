"""Duplicates and watermarks, against the definition written as a loop over single events."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.model import Claim, Partition
from streamproc.progress import Arrivals, PartitionProgress, RecentIds

HORIZON = 1_000
DISORDER = 50

#: (id, event time): few ids, some events without one, and a moving clock with disorder and silences, so that every rule
#: comes into play.
EVENTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 12), st.integers(0, 12), st.none()),
        st.one_of(st.integers(-400, 400), st.integers(-400, 400), st.just(2 * HORIZON)),
    ),
    max_size=60,
).map(
    lambda pairs: [
        (None if i is None else f"e{i}", 10_000 + 90 * n + shift) for n, (i, shift) in enumerate(pairs)
    ]
)

CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def expected(events: list[tuple[str | None, int]]) -> list[tuple[int, int | None]]:
    """(row, watermark before it) of each event that is kept; one without an id always is."""
    clock: int | None = None
    last_accepted: dict[str, int] = {}
    kept = []
    for row, (event_id, time) in enumerate(events):
        now = -(2**62) if clock is None else clock
        if event_id in last_accepted and now - last_accepted[event_id] <= HORIZON:
            continue
        kept.append((row, None if clock is None else clock - DISORDER))
        clock = time if clock is None else max(clock, time)
        if event_id is not None:
            last_accepted[event_id] = clock
    return kept


def progress(clock_us: int | None = None) -> PartitionProgress:
    claim = Claim(Partition("clicks", "0"), 1, "token", None, clock_us)
    return PartitionProgress(claim, None, clock_us, RecentIds(HORIZON))


def frame(events: list[tuple[str | None, int]], first_row: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_id": [event_id for event_id, _ in events],
            "event_time": pl.Series([time for _, time in events], dtype=pl.Int64).cast(
                pl.Datetime("us", "UTC")
            ),
            "position": range(first_row, first_row + len(events)),
        },
        schema_overrides={"event_id": pl.String, "position": pl.Int64},
    )


def fold(
    state: PartitionProgress, events: list[tuple[str | None, int]], cuts: list[int], first: int = 0
) -> list:
    """Feed the events in pieces of the given sizes, over and over."""
    kept: list[tuple[int, int | None]] = []
    at, turn = 0, 0
    while at < len(events):
        piece = events[at : at + cuts[turn % len(cuts)]]
        rows, dropped = state.accept(frame(piece, first + at), "event_id", DISORDER)
        assert dropped == len(piece) - len(rows)
        kept += zip(rows["position"].to_list(), rows["watermark"].to_physical().to_list(), strict=True)
        at += len(piece)
        turn += 1
    return kept


@given(EVENTS, CUTS)
@settings(max_examples=150, deadline=None)
def test_any_cutting_of_the_stream_gives_the_duplicates_and_watermarks_of_the_definition(events, cuts):
    assert fold(progress(), events, cuts) == expected(events)


@given(EVENTS, CUTS, st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_a_worker_that_takes_over_and_reads_the_lake_decides_as_the_one_before_would_have(
    events, cuts, split
):
    first, rest = events[:split], events[split:]
    before = progress()
    kept_before = fold(before, first, cuts)
    accepted = frame(first, 0).filter(pl.col("position").is_in([row for row, _ in kept_before]))

    after = progress(before.clock_us)
    newest = accepted["event_time"].to_physical().cum_max()
    recent = accepted.filter(newest >= (before.clock_us or 0) - HORIZON)
    after.recent.rebuild(recent, "event_id")
    assert kept_before + fold(after, rest, cuts, first=len(first)) == expected(events)


@given(st.lists(EVENTS, min_size=1, max_size=4), CUTS)
@settings(max_examples=100, deadline=None)
def test_partitions_that_are_decided_about_together_do_not_see_each_other(partitions, cuts):
    states = [progress() for _ in partitions]
    kept: list[list[tuple[int, int | None]]] = [[] for _ in partitions]
    at = [0] * len(partitions)
    for turn in range(sum(map(len, partitions))):
        pieces = [
            events[begin : begin + cuts[(turn + number) % len(cuts)]]
            for number, (events, begin) in enumerate(zip(partitions, at, strict=True))
        ]
        arrivals = Arrivals(
            pl.concat(frame(piece, begin) for piece, begin in zip(pieces, at, strict=True)), "event_id"
        )
        row, left = 0, []
        for state, piece in zip(states, pieces, strict=True):
            dropped = state.decide(arrivals, slice(row, row + len(piece)), DISORDER)
            left.append(len(piece) - dropped)
            row += len(piece)
        accepted, watermark = arrivals.accepted()
        rows = list(zip(accepted["position"].to_list(), watermark.to_physical().to_list(), strict=True))
        for number, count in enumerate(left):
            kept[number] += rows[:count]
            del rows[:count]
        at = [begin + len(piece) for begin, piece in zip(at, pieces, strict=True)]
    assert kept == [expected(events) for events in partitions]


@given(EVENTS, st.sets(st.integers(0, 59)))
@settings(max_examples=100, deadline=None)
def test_what_was_not_kept_before_is_as_if_it_were_not_there(events, without):
    state = progress()
    arrivals = Arrivals(frame(events, 0), "event_id")
    there = [row for row in range(len(events)) if row not in without]
    arrivals.kept[:] = [row in there for row in range(len(events))]
    state.decide(arrivals, slice(0, len(events)), DISORDER)
    accepted, watermark = arrivals.accepted()
    rows = zip(accepted["position"].to_list(), watermark.to_physical().to_list(), strict=True)
    assert list(rows) == [(there[row], mark) for row, mark in expected([events[row] for row in there])]


def test_a_producers_second_attempt_is_dropped_also_after_the_first_event_and_after_a_long_silence():
    first, after_silence = ("a", 10_000), ("b", 10_000 + 50 * HORIZON)
    sent = [first, first, after_silence, after_silence]
    for cuts in ([4], [1]):
        assert [row for row, _ in fold(progress(), sent, cuts)] == [0, 2]


def test_a_worker_that_takes_over_drops_a_second_attempt_after_a_long_silence():
    before = progress()
    after_silence = ("b", 10_000 + 50 * HORIZON)
    fold(before, [("a", 10_000), after_silence], [1])
    after = progress(before.clock_us)
    after.recent.rebuild(frame([after_silence], 1), "event_id")
    assert fold(after, [after_silence], [1], first=2) == []


def test_events_without_an_id_are_nobodys_duplicates_and_take_no_memory():
    sent = [(None, 10_000 + n) for n in range(10)]
    for cuts in ([10], [3], [1]):
        state = progress()
        assert [row for row, _ in fold(state, sent, cuts)] == list(range(10))
        assert len(state.recent) == 0
        after = progress(state.clock_us)
        after.recent.rebuild(frame(sent, 0), "event_id")
        assert [row for row, _ in fold(after, [(None, 10_009)], [1], first=10)] == [10]


def test_an_event_without_an_id_ends_the_time_of_ids_long_before_it():
    sent = [("a", 10_000), (None, 10_000 + 3 * HORIZON), ("a", 10_000), ("a", 10_000)]
    for cuts in ([4], [2], [1]):
        assert [row for row, _ in fold(progress(), sent, cuts)] == [0, 1, 2]


def test_without_a_duplicates_rule_every_event_is_kept():
    state = PartitionProgress(Claim(Partition("clicks", "0"), 1, "t", None, None), None, None, None)
    rows, dropped = state.accept(frame([("a", 1), ("a", 1)], 0), None, DISORDER)
    assert (len(rows), dropped) == (2, 0)


def test_ids_beyond_the_horizon_are_forgotten_and_those_within_are_not():
    recent = RecentIds(horizon=1_000)
    for clock in range(0, 100_000, 10):
        recent.remember(np.array([clock, clock + 1], dtype=np.uint64), np.array([clock, clock]))
        assert len(recent) <= 3 * 2 * 1_000 // 10
    within = np.arange(99_000, 100_000, 10, dtype=np.uint64)
    assert recent.last_seen(within).tolist() == within.tolist()
