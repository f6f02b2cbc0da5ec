"""A table that was rebuilt beside the live one, compared with it and put in its place."""

from __future__ import annotations

import sys
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection

from streamproc.sinks.summaries import Summaries
from streamproc.sinks.summaries_beside import Beside, region
from streamproc.sinks.summaries_compare import Comparison
from streamproc.tables.fold import TableFold
from streamproc.topology import DAY, HOUR, MINUTE, SECOND, Measure
from tests.ledger.epochs import P0
from tests.sinks.test_summaries import IN_SERVER, assert_tables_equal_the_oracle, commit, fresh_schema
from tests.tables.streams import FUNNEL, START, event, frame, tumbling, visits

GAP = 2 * MINUTE


@pytest.fixture
async def conn(postgres):
    async with await AsyncConnection.connect(postgres, autocommit=True) as connection:
        yield connection


some_events = st.lists(
    st.tuples(
        st.integers(0, 60).map(lambda n: n * MINUTE // 2),
        st.sampled_from("abc"),
        st.sampled_from(["view", "cart", "buy"]),
    ),
    max_size=30,
)


def of(drawn, first):
    """The events drawn, at positions from ``first`` on."""
    return [
        event(at, visitor=visitor, kind=kind, position=first + number)
        for number, (at, visitor, kind) in enumerate(drawn)
    ]


@given(
    before=some_events,
    wrong=some_events,
    right=some_events,
    later=some_events,
    since=st.integers(0, 30).map(lambda n: n * MINUTE),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_sessions_go_on_after_a_replay_took_their_place(conn, before, wrong, right, later, since):
    table = visits([*IN_SERVER, FUNNEL], gap=GAP)
    since += START
    common = of(before, 0)
    wrong = [each for each in of(wrong, 100) if each["at"] >= since]
    right = [each for each in of(right, 200) if each["at"] >= since]
    live, beside = fresh_schema(), fresh_schema()
    lives, replays = Summaries([table], live), Summaries([table], beside)
    for each in (lives, replays):
        await each.ensure(conn)
    for events in (common[::2], common[1::2] + wrong):
        if events:
            await commit(conn, lives, [table], [events])

    both, found = Beside(table, live, beside), region(table, since, table.lateness)
    starts = dict((await both.session_starts(conn, found)).iter_rows())
    reach = [
        each
        for each in common + right
        if each["at"] >= found.events or each["at"] >= starts.get(each["visitor"], each["at"] + 1)
    ]
    for events in (reach[1::2], reach[::2]):
        if events:
            await commit(conn, replays, [table], [events])
    async with conn.transaction():
        await both.lock(conn)
        await both.swap(conn, found)
    newest = (
        "SELECT max(session_start), max(session_start) FILTER (WHERE n = 0), count(*) FILTER (WHERE n = 0)"
    )
    rows = await conn.execute(f"{newest} FROM {live}.visits__state GROUP BY visitor")
    assert all(start == numbered and count == 1 for start, numbered, count in await rows.fetchall())
    await assert_tables_equal_the_oracle(conn, lives, [table], common + right)
    later = [each for each in of(later, 300) if each["at"] >= since]
    for number in range(0, len(later), 3):
        await commit(conn, lives, [table], [later[number : number + 3]])
    await assert_tables_equal_the_oracle(conn, lives, [table], common + right + later)


async def test_keys_may_be_called_anything(conn):
    names = ("added", "changed", "missing")
    events = Measure("events", "count", pl.Int64())
    table = replace(tumbling([events]), by=names, by_types=(pl.String(),) * 3)
    visit = replace(visits([events], gap=GAP), name="starts")
    visit = replace(visit, window=replace(visit.window, key="start"))
    live, beside = fresh_schema(), fresh_schema()
    for schema, value in ((live, "a"), (beside, "b")):
        summaries = Summaries([table, visit], schema)
        await summaries.ensure(conn)
        rows = frame([event(0, visitor="both"), event(1, visitor=value)])
        rows = rows.with_columns(pl.col("visitor").alias(name) for name in (*names, "start"))
        folds = {each.name: TableFold(each) for each in (table, visit)}
        async with conn.transaction():
            await summaries.apply(
                conn, {name: fold.seal(fold.partial(rows)[0]) for name, fold in folds.items()}
            )
    found = region(table, START, 0)
    difference = await Comparison(Beside(table, live, beside)).compare(conn, found, 10)
    assert (difference.rows, difference.missing, difference.added, difference.changed) == (3, 1, 1, 0)
    assert sorted((row["what"], row["missing"]) for row in difference.keys) == [
        ("added", "b"),
        ("missing", "a"),
    ]
    found = replace(region(visit, START, 0), events=START + 1)
    starts = await Beside(visit, live, beside).session_starts(conn, found)
    assert starts.rows() == [("both", START)]


REVENUE = Measure("revenue", "sum", pl.Float64(), "amount")


async def written(conn, table, schema, rows):
    """The table with these values of its measures, by ``site``, in one window."""
    await Summaries([table], schema).ensure(conn)
    names = [measure.name for measure in table.measures]
    async with conn.cursor() as cursor:
        await cursor.executemany(
            f"INSERT INTO {schema}.{table.name} (window_start, window_end, site, {', '.join(names)}) "
            f"VALUES (to_timestamp({START // SECOND}), to_timestamp({START // SECOND + 60}), "
            f"%s{', %s' * len(names)})",
            rows,
        )


async def test_floating_point_numbers_are_compared_but_for_rounding_whatever_their_size(conn):
    inf, nan = float("inf"), float("nan")
    same = [(inf, inf), (-inf, -inf), (nan, nan), (None, None), (0.0, -0.0), (5e-324, 5e-324), (1, 1 + 1e-12)]
    same += [(1e300, 1e300 * (1 + 1e-12)), (1e-300, 1e-300 * (1 + 1e-12)), (1.7e308, 1.7e308)]
    other = [(inf, 5), (5, inf), (inf, -inf), (nan, 5), (nan, inf), (None, 0), (inf, None), (1, 1 + 1e-6)]
    other += [(1.7e308, -1.7e308), (5e-324, 1e-323), (0, 5e-324), (1e-320, 1.001e-320), (0, 1)]
    table = tumbling([REVENUE, Measure("peak", "max", pl.Float32(), "amount")])
    live, beside = fresh_schema(), fresh_schema()
    pairs = {f"same {number}": pair for number, pair in enumerate(same)}
    pairs |= {f"other {number}": pair for number, pair in enumerate(other)}
    for side, schema in enumerate((live, beside)):
        rows = [(site, pair[side], 1) for site, pair in pairs.items()]
        # Neighbours among 32-bit numbers.
        await written(conn, table, schema, [*rows, ("other peak", 1, (1, 1 + 2**-23)[side])])
    found = await Comparison(Beside(table, live, beside)).compare(conn, region(table, START, 0), 100)
    assert (found.missing, found.added) == (0, 0)
    assert {row["site"] for row in found.keys} == {site for site in [*pairs, "other peak"] if "other" in site}


@pytest.mark.parametrize(
    ("live", "replay", "total"),
    [
        ([1.5e308, 1.5e308], [-1.5e308, -1.5e308], (sys.float_info.max, -sys.float_info.max)),
        ([1.5e308, 1e308, -1.5e308], [0.25, 5e-324, None], (1e308, 0.25)),
        ([float("inf"), 1], [float("-inf"), 1], (float("inf"), float("-inf"))),
        ([None], [], (None, None)),
    ],
    ids=["too large", "in between", "infinite", "none"],
)
async def test_totals_of_any_numbers_are_said(conn, live, replay, total):
    table = tumbling([REVENUE])
    schemas = fresh_schema(), fresh_schema()
    for schema, values in zip(schemas, (live, replay), strict=True):
        await written(conn, table, schema, [(f"{number}", value) for number, value in enumerate(values)])
    found = await Comparison(Beside(table, *schemas)).compare(conn, region(table, START, 0), 0)
    assert found.totals == {"revenue": total}


async def test_windows_that_a_longer_lateness_of_before_kept_open_are_rebuilt_from_when_it_was_in_force(
    conn, ledger
):
    tables = {lateness: tumbling([REVENUE], lateness=lateness) for lateness in (DAY, HOUR, MINUTE)}
    both = Beside(tables[MINUTE], "clicks", "clicks__replay_fix")

    async def clock(at):
        await conn.execute("UPDATE streamproc.partitions SET clock_us = %s", [START + at])

    async def page(lateness):
        await Summaries([tables[lateness]], "clicks").ensure(conn)

    async def reaches(since):
        return await both.lateness(conn, "clicks", START + since)

    await ledger.claim([P0])
    await clock(0)
    await page(DAY)
    assert await reaches(-1) == await reaches(DAY) == DAY
    for each in (MINUTE, MINUTE):
        await page(each)
        assert (await reaches(0), await reaches(1)) == (DAY, MINUTE)
        await clock(DAY)
    await page(HOUR)
    assert (await reaches(0), await reaches(1)) == (DAY, HOUR)
    await page(MINUTE)
    assert (await reaches(DAY), await reaches(DAY + 1)) == (DAY, MINUTE)
    start = region(tables[MINUTE], START, await reaches(0)).start
    assert start == START - DAY - MINUTE


async def test_a_state_that_the_measures_need_no_more_is_put_right_by_a_promotion(conn):
    events = Measure("events", "count", pl.Int64())
    visitors = Measure("visitors", "approx_distinct", pl.Int64(), "visitor")
    table, former = tumbling([events]), tumbling([events, visitors])
    live, beside = fresh_schema(), fresh_schema()
    await Summaries([former], live).ensure(conn)
    lives, replays = Summaries([table], live), Summaries([table], beside)
    for each in (lives, replays):
        await each.ensure(conn)
    await commit(conn, lives, [table], [[event(0)]])
    await commit(conn, replays, [table], [[event(1), event(2)]])
    both = Beside(table, live, beside)
    async with conn.transaction():
        await both.lock(conn)
        await both.swap(conn, region(table, START, 0))
    await commit(conn, lives, [table], [[event(3)]])
    await assert_tables_equal_the_oracle(conn, lives, [table], [event(1), event(2), event(3)])
