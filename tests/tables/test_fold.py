"""However a stream is cut into batches and epochs, its tables say what a loop over its events says."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.tables.fold import TableFold
from streamproc.tables.measures import Aggregation, state_columns
from streamproc.tables.sessions import SessionFold
from streamproc.tables.sketches import SKETCHED, union
from streamproc.topology import MINUTE, SECOND, Measure, Window
from tests.tables import oracle
from tests.tables.streams import (
    FUNNEL,
    START,
    cut,
    event,
    frame,
    hopping,
    sealed,
    streams,
    tumbling,
    visits,
)

some_streams = settings(max_examples=20, deadline=None)


def finished(table, states, keys):
    """``{key: {column: value}}`` of merged states, as the store finishes them."""
    moments = [
        pl.col(name).cast(pl.Datetime("us", "UTC"))
        for name in ("window_start", "session_start", "session_end")
    ]
    states = states.with_columns(m for m in moments if m.meta.output_name() in states.columns)
    rows = {}
    for row in states.iter_rows(named=True):
        for measure in table.measures:
            if measure.kind == "avg":
                count = row[f"{measure.name}__count"]
                row[measure.name] = row[f"{measure.name}__sum"] / count if count else None
        key = tuple(row[name] for name in keys)
        assert key not in rows
        rows[key] = {name: value for name, value in row.items() if "__" not in name and name not in keys}
    return rows


class WindowStore:
    """Merges deltas like the sink, in memory."""

    def __init__(self, table):
        self.table, self.keys, self.states = table, ["window_start", *table.by], None

    def add(self, delta):
        self.states = delta.rows if self.states is None else pl.concat([self.states, delta.rows])

    def rows(self):
        if self.states is None:
            return {}
        merged = Aggregation(self.table.measures).merge(self.states, self.keys)
        for measure in self.table.measures:
            if measure.kind in SKETCHED:
                merged = merged.with_columns(union(measure, merged[f"{measure.name}__sketch"]))
        return finished(self.table, merged, self.keys)


class SessionStore:
    """Stitches deltas like the sink, in memory."""

    def __init__(self, table):
        self.table, self.fold, self.states = table, SessionFold(table), None

    def add(self, delta):
        empty = delta.rows.select(self.fold.columns).clear()
        states = empty if self.states is None else self.states
        keys = delta.rows.select(self.fold.key).unique()
        mine = states.join(keys, on=self.fold.key, how="semi")
        stitched = self.fold.stitch(mine, delta.rows, delta.events)
        self.states = pl.concat([states.join(keys, on=self.fold.key, how="anti"), stitched])

    def rows(self):
        if self.states is None:
            return {}
        return finished(self.table, self.states, ["session_start", self.fold.key])


def folded(table, epochs):
    fold = TableFold(table)
    store = SessionStore(table) if table.window.kind == "session" else WindowStore(table)
    late = 0
    for batches in epochs:
        delta, missed = sealed(fold, batches)
        late += missed
        store.add(delta)
    return store.rows(), late


def expected(table, events):
    rows, late = (oracle.sessions if table.window.kind == "session" else oracle.windowed)(table, events)
    for row in rows.values():
        row.pop("window_end", None)
    return rows, late


@pytest.mark.parametrize(
    "table",
    [
        tumbling(),
        tumbling(where="kind = 'view'"),
        hopping(),
        hopping(size=6 * MINUTE, hop=2 * MINUTE),
        visits(),
        visits(where="kind in ('cart', 'buy')"),
    ],
    ids=["tumbling", "tumbling where", "uneven hops", "hops", "sessions", "sessions where"],
)
@given(data=st.data())
@some_streams
def test_any_cut_and_order_of_a_stream_gives_the_table_of_the_whole(table, data):
    events = data.draw(streams())
    assert folded(table, data.draw(cut(events))) == expected(table, events)


@given(
    data=st.data(),
    cap=st.sampled_from([MINUTE, 3 * MINUTE, 7 * MINUTE]),
    gap=st.sampled_from([MINUTE, 2 * MINUTE]),
)
@some_streams
def test_sessions_in_order_are_capped_between_the_right_two_events(data, cap, gap):
    events = sorted(data.draw(streams()), key=lambda e: (e["at"], e["position"], e["partition"]))
    events = [{**e, "position": index} for index, e in enumerate(events)]
    table = visits(gap=min(gap, cap), cap=cap)
    assert folded(table, data.draw(cut(events, shuffle=False))) == expected(table, events)


@given(data=st.data())
@some_streams
def test_sessions_out_of_order_under_a_cap_keep_every_event_once_and_the_cap(data):
    events = data.draw(streams())
    table = visits(cap=3 * MINUTE)
    rows, _ = folded(table, data.draw(cut(events)))
    assert sum(row["events"] for row in rows.values()) == sum(e["visitor"] is not None for e in events)
    assert all((row["session_end"] - start).total_seconds() < 180 for (start, _), row in rows.items())


@pytest.mark.parametrize(
    "table", [tumbling(lateness=MINUTE), hopping(lateness=MINUTE), visits(lateness=MINUTE)]
)
@given(data=st.data())
@some_streams
def test_late_events_are_judged_one_by_one_against_their_own_watermark(table, data):
    events = [
        {
            **e,
            "watermark": data.draw(
                st.one_of(st.none(), st.integers(0, 30).map(lambda n: START + n * MINUTE // 2))
            ),
        }
        for e in data.draw(streams(most=25))
    ]
    assert folded(table, data.draw(cut(events))) == expected(table, events)


@pytest.mark.parametrize(("offset", "late"), [(0, 1), (-1, 0)])
def test_a_window_closes_when_the_watermark_reaches_its_end_plus_lateness(offset, late):
    table = tumbling(lateness=10 * SECOND)
    watermark = START + MINUTE + 10 * SECOND + offset
    assert TableFold(table).partial(frame([event(0, watermark=watermark)]))[1] == late


def test_an_event_that_some_hopping_windows_still_take_is_folded_into_those_and_not_late():
    table = hopping(size=4 * MINUTE, hop=MINUTE, lateness=0)
    at = 10 * MINUTE  # in the windows that end at 11, 12, 13 and 14 minutes
    rows, late = folded(table, [[[event(at, watermark=START + 12 * MINUTE)]]])
    assert late == 0
    starts = sorted((key[0] - oracle.moment(START)).total_seconds() // 60 for key in rows)
    assert starts == [9, 10]


@pytest.mark.parametrize(("beyond", "sessions"), [(0, 1), (1, 2)])
def test_an_event_exactly_a_gap_after_the_last_one_still_belongs_to_the_session(beyond, sessions):
    table = visits(gap=MINUTE)
    together, _ = folded(table, [[[event(0), event(MINUTE + beyond)]]])
    apart, _ = folded(table, [[[event(0)]], [[event(MINUTE + beyond)]]])
    assert len(together) == len(apart) == sessions


@pytest.mark.parametrize(("before", "sessions"), [(1, 1), (0, 2)])
def test_an_event_exactly_a_cap_after_the_first_one_starts_a_new_session(before, sessions):
    table = visits(gap=2 * MINUTE, cap=3 * MINUTE)
    events = [event(0), event(2 * MINUTE), event(3 * MINUTE - before)]
    assert len(folded(table, [[events]])[0]) == sessions
    assert len(folded(table, [[[e]] for e in events])[0]) == sessions


def test_a_late_arrival_between_two_sessions_joins_them():
    table = visits(gap=MINUTE)
    rows, _ = folded(table, [[[event(0)]], [[event(2 * MINUTE)]], [[event(MINUTE)]]])
    assert [row["events"] for row in rows.values()] == [3]


def test_an_event_without_a_key_belongs_to_no_session():
    assert folded(visits(), [[[event(0, visitor=None)]]]) == ({}, 0)


def test_funnel_steps_count_only_in_order_and_an_event_counts_for_one_step():
    table = visits([FUNNEL])
    rows, _ = folded(table, [[[event(0, kind="buy"), event(1, kind="view"), event(2, kind="buy")]]])
    (row,) = rows.values()
    assert row["shop_step"] == 2
    assert row["shop_chosen_at"] == oracle.moment(START + 2)


def test_a_funnel_keeps_the_earliest_step_events_only():
    table = visits([FUNNEL], gap=MINUTE, cap=10_000 * MINUTE)
    noise = [event(at, kind="click") for at in range(5)]
    many = [event(at) for at in range(300)]
    late_purchase = [event(1_000, kind="buy")]
    for epochs in (
        [[many, noise, late_purchase]],
        [[late_purchase], [noise, many]],
        [[[e]] for e in many + late_purchase],
    ):
        rows, _ = folded(table, epochs)
        (row,) = rows.values()
        assert row["shop_step"] == 1, "the purchase is step event 301"


def test_estimates_of_many_values_stay_within_the_stated_error():
    table = tumbling(
        [
            Measure("exact", "distinct", pl.Int64(), "visitor"),
            Measure("visitors", "approx_distinct", pl.Int64(), "visitor"),
            Measure("median", "approx_percentile", pl.Float64(), "amount", at=0.5, precision=200),
        ]
    )
    events = [event(i % 1000, visitor=f"v{i % 20_000}", amount=float(i % 20_000)) for i in range(40_000)]
    rows, _ = folded(table, [[events[i : i + 10_000]] for i in range(0, 40_000, 10_000)])
    (row,) = rows.values()
    assert row["exact"] == 20_000
    assert row["visitors"] == pytest.approx(20_000, rel=5 * 0.0163)
    assert row["median"] == pytest.approx(10_000, abs=20_000 * 0.03)


def test_sums_saturate_where_the_database_would_overflow():
    table = tumbling(
        [Measure("units", "sum", pl.Int64(), "units"), Measure("amount", "sum", pl.Float64(), "amount")]
    )
    huge = [event(i, units=2**62, amount=1.7e308) for i in range(4)]
    rows, _ = folded(table, [[huge[:2]], [huge[2:]]])
    assert list(rows.values()) == [{"units": 2**62 - 1, "amount": 1e290}]


@pytest.mark.parametrize("together", [True, False])
def test_what_is_infinite_is_a_sum_at_its_limit_whatever_it_meets(together):
    table = tumbling([Measure(kind, kind, pl.Float64(), "amount") for kind in ("sum", "avg", "min", "max")])
    values = [float("inf"), float("-inf")]
    events = [event(i, amount=value) for i, value in enumerate(values)]
    rows, _ = folded(table, [[events]] if together else [[[each]] for each in events])
    assert list(rows.values()) == [{"sum": 0.0, "avg": 0.0, "min": values[1], "max": values[0]}]


def test_what_is_no_number_is_no_value_of_a_measure_that_calculates():
    table = tumbling(
        [Measure(kind, kind, pl.Float64(), "amount") for kind in ("sum", "avg", "min", "max")]
        + [Measure("median", "approx_percentile", pl.Float64(), "amount", at=0.5)]
    )
    nan = float("nan")
    some = [event(0, amount=nan), event(1, amount=2.0), event(2, amount=4.0), event(3, amount=nan)]
    none = [event(4, amount=nan, site="y")]
    rows, _ = folded(table, [[some[:2]], [some[2:], none]])
    assert {site: row for (_, site), row in rows.items()} == {
        "x": {"sum": 6.0, "avg": 3.0, "min": 2.0, "max": 4.0, "median": 2.0},
        "y": dict.fromkeys(("sum", "avg", "min", "max", "median")),
    }


def test_a_batch_without_a_matching_event_folds_to_nothing():
    for table in (
        tumbling(where="kind = 'buy'"),
        hopping(where="kind = 'buy'"),
        visits(where="kind = 'buy'"),
    ):
        fold = TableFold(table)
        delta = fold.seal(fold.merge([fold.partial(frame([event(0)]))[0]]))
        assert len(delta) == 0


def test_unknown_kinds_of_measure_are_refused():
    with pytest.raises(ValueError, match="median"):
        state_columns(Measure("m", "median", pl.Float64(), "amount"))


def test_windows_before_1970_are_aligned_like_all_others():
    table = tumbling([Measure("events", "count", pl.Int64())])
    rows, _ = folded(table, [[[{**event(0), "at": -1}]]])
    assert list(rows) == [(oracle.moment(-60 * SECOND), "x")]


def test_a_tumbling_window_is_a_hopping_one_that_hops_by_its_size():
    window = Window("hopping", size=MINUTE, hop=MINUTE)
    events = [event(n * MINUTE // 3) for n in range(9)]
    same = tumbling()
    assert folded(replace(same, window=window), [[events]]) == folded(same, [[events]])
