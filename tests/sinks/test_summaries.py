"""The summaries in a real PostgreSQL say what a loop over the events says."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection, errors, sql

from streamproc.sinks import summaries_expiry
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.summaries_expiry import STATE_GRACE
from streamproc.sinks.summaries_layout import Column, Layout
from streamproc.tables.fold import TableFold
from streamproc.topic_pages import read_page
from streamproc.topology import DAY, MINUTE, SECOND, Measure
from tests.config.test_topic_pages import put, raw
from tests.tables import oracle
from tests.tables.streams import (
    FUNNEL,
    MEASURES,
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

ADDITIVE = [m for m in MEASURES if m.kind in {"count", "sum", "min", "max"}]
IN_SERVER = [m for m in MEASURES if m.kind not in {"approx_distinct", "distinct", "approx_percentile"}]


def every_kind_of_table():
    return [
        tumbling(),
        hopping(),
        visits(),
        replace(tumbling(ADDITIVE), name="additive"),
        replace(tumbling(IN_SERVER), name="ordered"),
        replace(visits([*IN_SERVER, FUNNEL]), name="plain_visits"),
    ]


some_streams = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def fresh_schema():
    return f"s_{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def conn(postgres):
    async with await AsyncConnection.connect(postgres, autocommit=True) as connection:
        yield connection


def expected(table, events):
    rows, _ = (oracle.sessions if table.window.kind == "session" else oracle.windowed)(table, events)
    return rows


def keyed(table, rows):
    keys = (
        ["session_start", table.window.key] if table.window.kind == "session" else ["window_start", *table.by]
    )
    found = {
        tuple(row[k] for k in keys): {k: v for k, v in row.items() if k not in keys}
        for row in rows.to_dicts()
    }
    assert len(found) == len(rows)
    return found


async def commit(conn, summaries, tables, batches, **options):
    deltas = {table.name: sealed(TableFold(table), batches)[0] for table in tables}
    async with conn.transaction():
        return await summaries.apply(conn, deltas, **options)


async def assert_tables_equal_the_oracle(conn, summaries, tables, events):
    for table in tables:
        assert keyed(table, await summaries.rows(conn, table.name)) == expected(table, events), table.name


@given(data=st.data())
@some_streams
async def test_any_cut_of_a_stream_into_transactions_gives_the_tables_of_the_whole(conn, data):
    events = data.draw(streams(most=30))
    tables = every_kind_of_table()
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    for batches in data.draw(cut(events)):
        await commit(conn, summaries, tables, batches)
    await assert_tables_equal_the_oracle(conn, summaries, tables, events)


@given(data=st.data(), cap=st.sampled_from([MINUTE, 3 * MINUTE, 7 * MINUTE]))
@some_streams
async def test_sessions_in_order_are_capped_whichever_transaction_the_cap_falls_into(conn, data, cap):
    events = sorted(data.draw(streams(most=30)), key=lambda e: e["at"])
    events = [{**e, "position": index} for index, e in enumerate(events)]
    tables = [
        visits(gap=MINUTE, cap=cap),
        replace(visits([*IN_SERVER, FUNNEL], gap=MINUTE, cap=cap), name="plain"),
    ]
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    for batches in data.draw(cut(events, shuffle=False)):
        await commit(conn, summaries, tables, batches)
    await assert_tables_equal_the_oracle(conn, summaries, tables, events)


steps_in_time = st.tuples(
    st.sampled_from("ab"), st.sampled_from([1, MINUTE // 2, MINUTE, MINUTE + 1, 3 * MINUTE])
)


@pytest.mark.slow
@given(data=st.data(), steps=st.lists(steps_in_time, min_size=6, max_size=24))
@settings(some_streams, max_examples=30)
async def test_visitors_who_come_back_start_sessions_in_any_transaction(conn, data, steps):
    kind = st.sampled_from(["view", "cart", "buy"])
    events, at = [], 0
    for position, (visitor, step) in enumerate(steps):
        at += step
        events.append(event(at, visitor=visitor, kind=data.draw(kind), position=position))
    tables = [
        visits(gap=MINUTE),
        replace(visits([*IN_SERVER, FUNNEL], gap=MINUTE), name="plain"),
    ]
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    done = []
    for batches in data.draw(cut(events, shuffle=False)):
        await commit(conn, summaries, tables, batches)
        done += [each for batch in batches for each in batch]
        await assert_tables_equal_the_oracle(conn, summaries, tables, done)


async def test_workers_that_commit_the_same_keys_at_once_neither_deadlock_nor_lose_anything(conn, postgres):
    chance = random.Random(1)
    kinds, pages = ["view", "cart", "buy", "click"], ["/", "/a", None]
    events = [
        event(
            chance.randrange(40 * MINUTE),
            visitor=chance.choice(["a", "b", "c", "d"]),
            site=chance.choice(["x", "y", None]),
            kind=chance.choice(kinds),
            page=chance.choice(pages),
            amount=chance.randrange(8) / 4,
            units=chance.randrange(8),
            position=index,
        )
        for index in range(400)
    ]
    tables = every_kind_of_table()
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)

    async def worker(mine):
        async with await AsyncConnection.connect(postgres, autocommit=True) as own:
            await own.execute("SET deadlock_timeout = '50ms'")
            for start in range(0, len(mine), 10):
                await commit(own, summaries, tables, [mine[start : start + 10]])

    await asyncio.gather(*(worker(events[number::4]) for number in range(4)))
    await assert_tables_equal_the_oracle(conn, summaries, tables, events)


@pytest.mark.parametrize("table", every_kind_of_table(), ids=lambda table: table.name)
async def test_a_row_that_another_worker_puts_in_first_is_merged(conn, postgres, table):
    tables = [table]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    first = [event(0), event(1, site=None), event(0, visitor="b")]
    second = [event(2, position=3), event(3, site=None, position=4), event(0, site="y", position=5)]
    async with await AsyncConnection.connect(postgres, autocommit=True) as other:
        pid = other.info.backend_pid
        async with conn.transaction():
            deltas = {table.name: sealed(TableFold(table), [first])[0] for table in tables}
            await summaries.apply(conn, deltas)
            waiting = asyncio.create_task(commit(other, summaries, tables, [second]))
            while not (await (await conn.execute("SELECT pg_blocking_pids(%s)", [pid])).fetchone())[0]:
                assert not waiting.done()
                await asyncio.sleep(0)
        await waiting
    await assert_tables_equal_the_oracle(conn, summaries, tables, first + second)


@pytest.mark.parametrize("site", ["x", None])
async def test_a_window_whose_state_has_gone_goes_on_with_what_its_row_says(conn, site):
    tables = [tumbling(), replace(tumbling(IN_SERVER), name="ordered")]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    finished = [
        event(n * SECOND, visitor=f"v{n}", site=site, page=f"/{n}", amount=4.0, units=2) for n in (20, 21, 22)
    ]
    await commit(conn, summaries, tables, [finished])
    counted = {"events": 3, "views": 3, "units": 6, "least": 4.0, "most": 2}
    stays = {"mean": 4.0, "landing": "/20", "leaving": "/22", "visitors": 3, "pages": 3, "amounts": 4.0}
    for late, expired in ((10, True), (50, True), (55, False)):
        for table in tables if expired else ():
            await summaries.expire(conn, table.name, START + DAY)
            assert await count(conn, f"{table.name}__state") == 0
        more = event(late * SECOND, visitor="late", site=site, page="/late", amount=3.0, units=late, bot=True)
        new = event(late * SECOND, site=f"{late}")  # another row of the window
        changed = await commit(conn, summaries, tables, [[more, new]], changed=True)
        counted["events"] += 1
        counted["views"] += 1
        counted["units"] += late
        counted.update(least=3.0, most=late)
        for table in tables:
            rows = keyed(table, changed[table.name])
            names = [measure.name for measure in table.measures if measure.name != "revenue"]
            wanted = {**counted, **stays, "automatic": True}
            assert {name: rows[oracle.moment(START), site][name] for name in names} == {
                n: wanted[n] for n in names
            }
            assert rows.items() <= keyed(table, await summaries.rows(conn, table.name)).items()
            assert expected(table, [new]).items() <= rows.items()


async def test_a_session_that_outlives_its_state_is_replaced(conn):
    table = visits()
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, [table], [[event(0)]])
    await summaries.expire(conn, table.name, START + DAY)
    assert await count(conn, "visits__state") == 0
    again = [event(0, units=7)]
    await commit(conn, summaries, [table], [again])
    await assert_tables_equal_the_oracle(conn, summaries, [table], again)


async def test_a_state_that_outlives_its_public_row_restores_it(conn):
    tables = [tumbling(retention=MINUTE), visits(retention=MINUTE)]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    events = [event(0), event(0, site=None)]
    await commit(conn, summaries, tables, [events])
    for table in tables:
        assert await summaries.expire(conn, table.name, START + 10 * MINUTE) > 0
        assert await count(conn, table.name) == 0
    more = [event(1, position=2), event(1, site=None, position=3)]
    await commit(conn, summaries, tables, [more])
    await assert_tables_equal_the_oracle(conn, summaries, tables, events + more)


async def test_a_delta_with_a_key_twice_is_an_error(conn):
    table = replace(tumbling(ADDITIVE), name="additive")
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    delta = sealed(TableFold(table), [[event(0)]])[0]
    twice = replace(delta, rows=pl.concat([delta.rows, delta.rows]))
    with pytest.raises(errors.UniqueViolation):
        async with conn.transaction():
            await summaries.apply(conn, {table.name: twice})
    assert await count(conn, "additive") == 0


async def test_a_transaction_that_is_rolled_back_leaves_nothing(conn):
    tables = every_kind_of_table()
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, tables, [[event(0)]])
    with pytest.raises(ZeroDivisionError):
        async with conn.transaction():
            deltas = {table.name: sealed(TableFold(table), [[event(1)]])[0] for table in tables}
            await summaries.apply(conn, deltas)
            raise ZeroDivisionError
    await assert_tables_equal_the_oracle(conn, summaries, tables, [event(0)])


async def test_deltas_applied_twice_in_one_transaction_count_twice(conn):
    tables = every_kind_of_table()
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    async with conn.transaction():
        for at in (0, 1):
            deltas = {table.name: sealed(TableFold(table), [[event(at)]])[0] for table in tables}
            await summaries.apply(conn, deltas)
    await assert_tables_equal_the_oracle(conn, summaries, tables, [event(0), event(1)])


async def test_any_text_can_be_a_key_or_a_value(conn, shared_data):
    strings = json.loads((shared_data / "bad_input" / "blns.json").read_text())
    strings = [s for s in dict.fromkeys(strings) if "\0" not in s]
    strings += ["", "\\N", "\\.", "a\nb", "a\n\\.\nb", "tab\there", "\b\f\v\r", "é" * 4096, "/" + "x" * 9000]
    chance = random.Random(2)  # a compressor makes nothing of it
    long = "".join(chr(0x4E00 + chance.randrange(20_000)) for _ in range(4096))
    strings += [long, long + "y"]  # differ at the end only
    events = [event(i % 7, visitor=s, site=s, page=s, position=i) for i, s in enumerate(strings)]
    tables = every_kind_of_table()
    summaries = Summaries(tables, "naughty")
    await summaries.ensure(conn)
    for half in (events[::2], events[1::2], events):
        await commit(conn, summaries, tables, [half])
    await assert_tables_equal_the_oracle(conn, summaries, tables, events + events)


@pytest.mark.parametrize("visitor", ["\ufeffa", "x^2", "x\x01ab"])
async def test_a_visitor_may_be_called_what_a_file_of_another_kind_begins_with(conn, visitor):
    tables = every_kind_of_table()
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    events = [event(at, visitor=visitor) for at in (0, SECOND, 2 * SECOND)]
    for each in events:
        await commit(conn, summaries, tables, [[each]], changed=True)
    await assert_tables_equal_the_oracle(conn, summaries, tables, events)


@pytest.mark.parametrize("before", [slice(0), slice(0, 1), slice(1, None)], ids=["none", "it", "others"])
async def test_no_text_passes_for_one_that_is_too_long_for_an_index(conn, before):
    tables = every_kind_of_table()
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    long = r"\123\\'ä€😀" + "x" * 5_000
    texts = [long, *await stands_for(conn, tables, long)]
    events = [event(i, visitor=s, site=s, page=s, position=i) for i, s in enumerate(texts)]
    for batch in filter(None, (events[before], events)):
        await commit(conn, summaries, tables, [batch])
    await assert_tables_equal_the_oracle(conn, summaries, tables, events[before] + events)


async def stands_for(conn, tables, text):
    """What a text is indexed by in each of the tables, and what it was in a version before: anybody can work it out."""
    former = "left(t.key, 8) || '#' || hashtextextended(t.key, 0) || '#' || hashtextextended(t.key, 1)"
    key = Column("key", pl.String())
    now = [Layout(table, "any").indexed(key, "t") for table in tables]
    query = sql.SQL("SELECT {} FROM (SELECT %s::text AS key) t").format(
        sql.SQL(", ").join([sql.SQL(former), *now])
    )
    found = await (await conn.execute(query, [text])).fetchone()
    assert text not in found
    return list(dict.fromkeys(found))


#: Names that a page may give, and that folds or statements could need for columns of their own.
ORDINARY = ["at", "begin", "end", "how", "old", "piece", "row", "run"]


async def test_measures_may_be_called_anything(conn):
    measures = [Measure(name, "last", pl.String(), "page") for name in ORDINARY]
    measures += [Measure(f"{name}s", "count", pl.Int64()) for name in ORDINARY]
    tables = [
        tumbling(measures),
        visits(measures, gap=MINUTE, cap=3 * MINUTE),
        replace(tumbling([Measure(name, "count", pl.Int64()) for name in ORDINARY]), name="additive"),
    ]
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    done = []
    for batch in ([0], [1], [10, 20, 21, 22, 23], [5]):
        done += (more := [event(at * MINUTE) for at in batch])
        await commit(conn, summaries, tables, [more], changed=True)
        await assert_tables_equal_the_oracle(conn, summaries, tables, done)


async def test_the_key_of_sessions_may_be_called_anything(conn):
    keys = [name for name in ORDINARY if name != "at"]  # of which the oracle thinks otherwise
    plain = visits(IN_SERVER, gap=MINUTE, cap=3 * MINUTE)
    tables = [replace(plain, name=f"by_{key}", window=replace(plain.window, key=key)) for key in keys]
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    done = []
    for batch in ([0], [1], [10, 20, 21, 22, 23], [5]):
        done += (more := [event(at * MINUTE, **dict.fromkeys(keys, "a")) for at in batch])
        events = frame(more).with_columns(pl.col("visitor").alias(key) for key in keys)
        folds = {table.name: TableFold(table) for table in tables}
        deltas = {name: fold.seal(fold.partial(events)[0]) for name, fold in folds.items()}
        async with conn.transaction():
            await summaries.apply(conn, deltas, changed=True)
        await assert_tables_equal_the_oracle(conn, summaries, tables, done)


@pytest.mark.parametrize(
    ("type_", "key"),
    [(pl.Int32(), 7), (pl.Boolean(), True), (pl.Date(), 20_000), (pl.Datetime("us", "UTC"), START)],
    ids=str,
)
async def test_sessions_may_be_of_anything_that_a_key_can_be(conn, type_, key):
    table = replace(visits(IN_SERVER, gap=MINUTE, cap=3 * MINUTE), by_types=(type_,))
    summaries, fold = Summaries([table], "clicks"), TableFold(table)
    await summaries.ensure(conn)
    value = pl.Series([key]).cast(type_)
    done = []
    for batch in ([0], [1], [10, 20, 21, 22, 23], [5], [9, 24]):
        done += [event(at * MINUTE, visitor=value[0]) for at in batch]
        events = frame([event(at * MINUTE) for at in batch]).with_columns(
            visitor=value.new_from_index(0, len(batch))
        )
        async with conn.transaction():
            changed = await summaries.apply(
                conn, {table.name: fold.seal(fold.partial(events)[0])}, changed=True
            )
        rows = keyed(table, await summaries.rows(conn, table.name))
        assert rows == expected(table, done)
        assert keyed(table, changed[table.name]).items() <= rows.items()


async def test_sessions_of_a_page_whose_key_is_a_number_are_stitched(conn):
    page = raw()
    put(page, "tables/visits/window/key", "amount")
    put(page, "tables/visits/measures", {"events": {"kind": "count"}})
    put(page, "tables/visits/derived", ...)
    table = read_page(page, "shop.toml").tables[1]
    summaries, fold = Summaries([table], fresh_schema()), TableFold(table)
    await summaries.ensure(conn)
    for minute in (5, 3):
        events = frame([event(minute * MINUTE)]).with_columns(amount=pl.lit(7, pl.Int64()))
        async with conn.transaction():
            delta = fold.seal(fold.partial(events)[0])
            changed = await summaries.apply(conn, {table.name: delta}, changed=True)
    rows = (await summaries.rows(conn, table.name)).select("amount", "session_start", "events").rows()
    assert rows == [(7, oracle.moment(START + 3 * MINUTE), 2)]
    assert changed[table.name].select("amount", "events").rows() == [(7, 2)]


async def test_changed_rows_are_returned_as_analysts_see_them(conn):
    tables = every_kind_of_table()
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    first, second = event(0), event(1, visitor="b", site="y")
    await commit(conn, summaries, tables, [[first]])
    changed = await commit(conn, summaries, tables, [[second]], changed=True)
    for table in tables:
        assert keyed(table, changed[table.name]) == expected(table, [second]), table.name
        assert changed[table.name].columns == (await summaries.rows(conn, table.name)).columns


async def test_the_changed_sessions_are_those_that_were_touched(conn):
    table = visits(gap=MINUTE)
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    events = [event(0), event(10 * MINUTE), event(20 * MINUTE)]
    await commit(conn, summaries, [table], [events])
    more = [event(10 * MINUTE + 1), event(30 * MINUTE)]
    changed = await commit(conn, summaries, [table], [more], changed=True)
    everything = expected(table, events + more)
    touched = {
        k: v
        for k, v in everything.items()
        if k[0] in (oracle.moment(START + 10 * MINUTE), oracle.moment(START + 30 * MINUTE))
    }
    assert keyed(table, changed["visits"]) == touched


async def test_all_sessions_that_the_cap_makes_of_a_visit_are_changed(conn):
    table = visits(gap=MINUTE, cap=3 * MINUTE)
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    first, second = [event(at * MINUTE) for at in range(2)], [event(at * MINUTE) for at in range(2, 8)]
    await commit(conn, summaries, [table], [first])
    changed = await commit(conn, summaries, [table], [second], changed=True)
    assert len(changed["visits"]) == 3
    assert keyed(table, changed["visits"]) == expected(table, first + second)


async def test_a_session_that_begins_earlier_than_was_known_moves(conn):
    table = visits(gap=MINUTE)
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    events = [event(3 * MINUTE), event(0), event(2 * MINUTE), event(MINUTE)]
    for e in events:
        await commit(conn, summaries, [table], [[e]])
    await assert_tables_equal_the_oracle(conn, summaries, [table], events)


async def test_a_late_event_writes_the_sessions_that_it_changes_and_no_others(conn):
    tables = [visits(gap=MINUTE), replace(visits(IN_SERVER, gap=MINUTE), name="plain")]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    events = [event(10 * MINUTE * number) for number in range(50)]
    await commit(conn, summaries, tables, [events])
    before = {}
    for table in ("visits", "visits__state", "plain", "plain__state"):
        before[table] = await versions(conn, table)
    late = event(10 * MINUTE * 48 + 1)
    await commit(conn, summaries, tables, [[late]])
    for table, rows in before.items():
        assert len(rows) == 50
        assert len(rows - await versions(conn, table)) == 1, table
    await assert_tables_equal_the_oracle(conn, summaries, tables, [*events, late])


async def versions(conn, table):
    return set(await (await conn.execute(f"SELECT ctid, xmin FROM clicks.{table}")).fetchall())


async def test_visitors_who_share_half_a_hash_have_their_own_sessions(conn):
    # Their events lie among each other where pieces are made, so a run of either comes in several.
    names = pl.DataFrame({"name": [f"v{number}" for number in range(300_000)]})
    halves = names.with_columns(half=pl.col("name").hash() // 2**32)
    pair = halves.filter(pl.col("half").is_duplicated()).sort("half")["name"].head(2).to_list()
    tables = [visits(gap=MINUTE), replace(visits(IN_SERVER, gap=MINUTE), name="plain")]
    summaries = Summaries(tables, fresh_schema())
    await summaries.ensure(conn)
    events = [
        event(
            visit * 10 * MINUTE + second * 1_000_000, visitor=pair[second % 2], position=20 * visit + second
        )
        for visit in range(2)
        for second in range(20)
    ]
    assert len(sealed(TableFold(tables[0]), [events])[0].rows) > 4
    await commit(conn, summaries, tables, [events[:10]])
    await assert_tables_equal_the_oracle(conn, summaries, tables, events[:10])
    await commit(conn, summaries, tables, [events[10:]])
    await assert_tables_equal_the_oracle(conn, summaries, tables, events)


async def test_one_transaction_may_hold_a_run_longer_than_the_cap(conn):
    table = visits([*IN_SERVER, FUNNEL], gap=MINUTE, cap=MINUTE)
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    events = [event(0), event(MINUTE), event(2 * MINUTE - 1), event(2 * MINUTE)]
    for batch in (events[:3], events[3:]):
        await commit(conn, summaries, [table], [batch])
    await assert_tables_equal_the_oracle(conn, summaries, [table], events)


async def test_sums_beyond_what_the_column_holds_saturate_instead_of_stopping_the_stream(conn):
    table = tumbling(ADDITIVE)
    summaries = Summaries([table, visits()], "clicks")
    await summaries.ensure(conn)
    for at in range(4):
        await commit(
            conn, summaries, [table, visits()], [[event(at, units=2**62, amount=1.7e308, kind="buy")]]
        )
    for name in ("per_minute", "visits"):
        (row,) = (await summaries.rows(conn, name)).to_dicts()
        assert (row["units"], row["revenue"]) == (2**62 - 1, 1e290)


@pytest.mark.parametrize("smallest", [5e-324, -5e-324])
async def test_an_average_too_small_for_a_double_is_zero_and_stops_no_stream(conn, smallest):
    tables = [tumbling(), visits()]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, tables, [[event(0, amount=smallest), event(1, amount=0.0)]])
    await commit(conn, summaries, tables, [[event(2, amount=0.0), event(3)]])
    for table in tables:
        (row,) = (await summaries.rows(conn, table.name)).to_dicts()
        assert (row["events"], row["mean"]) == (4, 0)


# -- expiry ----------------------------------------------------------------------------------------


async def count(conn, table):
    return (await (await conn.execute(f"SELECT count(*) FROM clicks.{table}")).fetchone())[0]


async def test_rows_beyond_retention_and_state_of_closed_windows_expire(conn):
    tables = [tumbling(retention=DAY, lateness=MINUTE), visits(gap=MINUTE, lateness=MINUTE)]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, tables, [[event(0), event(10 * MINUTE)]])

    assert await summaries.expire(conn, "per_minute", START + 2 * MINUTE + STATE_GRACE - 1) == 0
    assert await count(conn, "per_minute__state") == 2
    assert await summaries.expire(conn, "per_minute", START + 2 * MINUTE + STATE_GRACE) == 0
    assert await count(conn, "per_minute__state") == 1
    assert await summaries.expire(conn, "per_minute", START + DAY + MINUTE) == 1
    assert await count(conn, "per_minute") == 1

    await summaries.expire(conn, "visits", START + 3 * MINUTE + STATE_GRACE - 1)
    assert await count(conn, "visits__state") == 2
    await summaries.expire(conn, "visits", START + 3 * MINUTE + STATE_GRACE)
    assert (await count(conn, "visits__state"), await count(conn, "visits")) == (1, 2)


async def test_where_windows_reopen_state_expires_with_its_row_and_without_retention_never(conn):
    tables = [tumbling(retention=DAY, lateness=MINUTE), visits(gap=MINUTE, lateness=MINUTE)]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, tables, [[event(0), event(10 * MINUTE)]])

    assert await summaries.expire(conn, "per_minute", START + DAY + MINUTE - 1, reopening=True) == 0
    assert await count(conn, "per_minute__state") == 2
    assert await summaries.expire(conn, "per_minute", START + DAY + MINUTE, reopening=True) == 1
    assert (await count(conn, "per_minute__state"), await count(conn, "per_minute")) == (1, 1)
    assert await summaries.expire(conn, "visits", START + 1000 * DAY, reopening=True) == 0
    assert (await count(conn, "visits__state"), await count(conn, "visits")) == (2, 2)


async def test_events_after_an_expiry_are_merged_as_before(conn):
    tables = every_kind_of_table()
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    events = [event(n * MINUTE, visitor="ab"[n % 2]) for n in range(0, 1200, 100)]
    for e in events:
        await commit(conn, summaries, tables, [[e]])
        for table in tables:
            await summaries.expire(conn, table.name, e["at"])
    await assert_tables_equal_the_oracle(conn, summaries, tables, events)


async def test_expiry_in_many_turns_takes_what_is_due_and_nothing_else(conn, monkeypatch):
    """Five rows begin at a time, and three go in a turn; the last window that is due ends where retention does."""
    monkeypatch.setattr(summaries_expiry, "_ROWS", 3)
    tables = [tumbling(IN_SERVER, retention=DAY), visits(IN_SERVER, retention=DAY)]
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    events = [event(n // 5 * MINUTE, site=f"s{n}", visitor=f"v{n}", position=n) for n in range(40)]
    await commit(conn, summaries, tables, [events])
    assert await summaries.expire(conn, "per_minute", START + DAY + 5 * MINUTE) == 25
    assert await summaries.expire(conn, "visits", START + DAY + 5 * MINUTE) == 30
    left = {"per_minute": 5, "visits": 6}
    for table in tables:
        rows = await summaries.rows(conn, table.name)
        starts = rows[f"{'session' if table.window.kind == 'session' else 'window'}_start"].to_physical()
        wanted = [START + n // 5 * MINUTE for n in range(left[table.name] * 5, 40)]
        assert sorted(starts) == wanted, table.name
        assert await count(conn, f"{table.name}__state") == 0


@pytest.mark.parametrize(
    "table",
    [tumbling(IN_SERVER, retention=DAY), hopping(IN_SERVER, retention=DAY), visits(IN_SERVER, retention=DAY)],
    ids=lambda table: table.name,
)
async def test_expiry_does_not_read_the_rows_that_stay(conn, table):
    """It looks every minute, and a table may have the rows of years. A state of sessions is read: it is small."""
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, [table], [[event(n * MINUTE, visitor=f"v{n}") for n in range(3000)]])
    names = [table.name] if table.window.kind == "session" else [table.name, f"{table.name}__state"]
    await conn.execute(f"ANALYZE {', '.join(f'clicks.{name}' for name in names)}")
    async with conn.transaction():
        assert await summaries.expire(conn, table.name, START) == 0
        cursor = await conn.execute(
            "SELECT relname, seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = ANY(%s)",
            [names],
        )
        read = dict(await cursor.fetchall())
    assert all(read.get(name, 0) < 10 for name in names), read


async def test_expiry_passes_over_rows_that_are_being_written(conn, postgres):
    table = tumbling(retention=MINUTE)
    summaries = Summaries([table], "clicks")
    await summaries.ensure(conn)
    await commit(conn, summaries, [table], [[event(0)]])
    async with await AsyncConnection.connect(postgres, autocommit=True) as other, other.transaction():
        await other.execute("SELECT FROM clicks.per_minute FOR UPDATE")
        assert await summaries.expire(conn, "per_minute", START + DAY) == 0
    assert await summaries.expire(conn, "per_minute", START + DAY) == 1
