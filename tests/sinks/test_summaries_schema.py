"""The tables analysts find: their columns, comments and changes over time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from psycopg import AsyncConnection, sql

from streamproc.errors import ConfigError, DependencyError
from streamproc.sinks.summaries import Summaries
from streamproc.sinks.summaries_layout import Column, published
from streamproc.tables.fold import TableFold
from streamproc.topic_pages import load_page
from streamproc.topology import DAY, HOUR, MINUTE, Derived, Measure, Window
from tests.tables import oracle
from tests.tables.streams import FUNNEL, START, event, sealed, tumbling, visits

EVENTS = Measure("events", "count", pl.Int64())
VISITORS = Measure("visitors", "approx_distinct", pl.Int64(), "visitor")


@pytest.fixture
async def conn(postgres):
    async with await AsyncConnection.connect(postgres, autocommit=True) as connection:
        yield connection


async def ensured(conn, *tables):
    summaries = Summaries(tables, "clicks")
    await summaries.ensure(conn)
    return summaries


async def commit(conn, summaries, table, events):
    async with conn.transaction():
        await summaries.apply(conn, {table.name: sealed(TableFold(table), [events])[0]})


async def columns(conn, table, schema="clicks"):
    found = await conn.execute(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), col_description(a.attrelid, a.attnum) "
        "FROM pg_attribute a WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1",
        [f"{schema}.{table}"],
    )
    return {name: (type_, comment) for name, type_, comment in await found.fetchall()}


async def test_the_shipped_page_becomes_typed_and_commented_tables(conn):
    page = load_page(Path(__file__).parents[2] / "topics" / "clickstream.toml")
    await Summaries(page.tables, page.name).ensure(conn)
    for table in page.tables:
        found = await columns(conn, table.name, page.name)
        assert all(comment for _, comment in found.values()), table.name
        assert not [name for name, (type_, _) in found.items() if type_ == "bytea" or "__" in name]
    sessions = await columns(conn, "sessions", page.name)
    assert {name: type_ for name, (type_, _) in sessions.items()} == {
        "visitor_id": "text",
        "session_start": "timestamp with time zone",
        "session_end": "timestamp with time zone",
        "events": "bigint",
        "pages": "bigint",
        "landing_page": "text",
        "exit_page": "text",
        "host": "text",
        "referrer_medium": "text",
        "referrer_source": "text",
        "utm_campaign": "text",
        "country": "text",
        "device_class": "text",
        "revenue": "double precision",
        "bounce": "boolean",
    }
    views = await columns(conn, "page_views", page.name)
    assert views["visitors"][1].endswith("relative standard error 1.6 %")
    assert views["window_start"][1] == "Start of the window, inclusive"
    (comment,) = await (
        await conn.execute("SELECT obj_description('clickstream.page_views'::regclass)")
    ).fetchone()
    assert comment.startswith("Page views and visitors per page and minute")


async def test_derived_columns_are_computed_by_the_database(conn):
    table = visits([EVENTS], derived=(Derived("bounce", "events = 1", pl.Boolean()),))
    summaries = await ensured(conn, table)
    await commit(conn, summaries, table, [event(0), event(0, visitor="b"), event(1, visitor="b")])
    rows = (await summaries.rows(conn, "visits")).select("visitor", "bounce").rows()
    assert sorted(rows) == [("a", True), ("b", False)]


async def test_a_ratio_of_nothing_is_null(conn):
    table = visits([EVENTS], derived=(Derived("each", "100 / nullif(events - 1, 0)", pl.Int64()),))
    summaries = await ensured(conn, table)
    await commit(conn, summaries, table, [event(0), event(0, visitor="b"), event(1, visitor="b")])
    rows = (await summaries.rows(conn, "visits")).select("visitor", "each").rows()
    assert sorted(rows) == [("a", None), ("b", 100)]


async def test_workers_that_start_at_once_create_the_tables_once(conn, postgres):
    tables = [tumbling(), visits()]

    async def start():
        async with await AsyncConnection.connect(postgres, autocommit=True) as own:
            await Summaries(tables, "clicks").ensure(own)

    await asyncio.gather(*(start() for _ in range(6)))
    assert set(await columns(conn, "visits")) >= {"visitor", "session_start", "shop_step"}


async def test_a_worker_that_extends_a_table_waits_for_a_commit_that_has_begun_with_it(conn, postgres):
    table = visits([EVENTS])
    summaries = await ensured(conn, table)
    await commit(conn, summaries, table, [event(0)])
    newer = Summaries([visits([EVENTS, VISITORS])], "clicks")
    async with await AsyncConnection.connect(postgres, autocommit=True) as other:
        for each in (conn, other):
            await each.execute("SET deadlock_timeout = '50ms'")
        async with conn.transaction():
            await conn.execute("SELECT FROM clicks.visits__state FOR UPDATE")  # as a commit begins
            extending = asyncio.create_task(newer.ensure(other))
            while not await blocked(conn, other):
                assert not extending.done()
                await asyncio.sleep(0)
            delta = sealed(TableFold(table), [[event(1), event(2, visitor="b")]])[0]
            await summaries.apply(conn, {table.name: delta})
        await extending
    assert "visitors" in await columns(conn, "visits")
    assert (await summaries.rows(conn, "visits"))["events"].to_list() == [2, 1]


async def test_a_page_without_an_old_measure_asks_for_no_lock_when_it_starts_again(conn, postgres):
    await ensured(conn, tumbling([EVENTS, VISITORS]))
    await ensured(conn, tumbling([EVENTS]))
    async with await AsyncConnection.connect(postgres) as analyst:  # in a transaction from here on
        await analyst.execute("SELECT count(*) FROM clicks.per_minute")
        await conn.execute("SET lock_timeout = '500ms'")
        await ensured(conn, tumbling([EVENTS]))


async def test_a_table_that_is_read_for_long_is_extended_another_time(conn, postgres, monkeypatch):
    monkeypatch.setattr("streamproc.sinks.summaries_schema._PATIENCE", "50ms")
    table = tumbling([EVENTS])
    summaries = await ensured(conn, table)
    async with await AsyncConnection.connect(postgres) as analyst:  # in a transaction from here on
        await analyst.execute("SELECT count(*) FROM clicks.per_minute")
        with pytest.raises(DependencyError, match=r"clicks\.per_minute: .*50ms.*pg_stat_activity"):
            await ensured(conn, tumbling([EVENTS, VISITORS]))
        await commit(conn, summaries, table, [event(0)])
    await ensured(conn, tumbling([EVENTS, VISITORS]))
    assert "visitors" in await columns(conn, "per_minute")


async def blocked(conn, other):
    found = await conn.execute("SELECT pg_blocking_pids(%s)", [other.info.backend_pid])
    return (await found.fetchone())[0]


@pytest.mark.parametrize("table", [tumbling([EVENTS]), visits([EVENTS])], ids=["tumbling", "session"])
@pytest.mark.parametrize(
    "new",
    [
        Measure("units", "sum", pl.Int64(), "units"),
        Measure("landing", "first", pl.String(), "page"),
        Measure("mean", "avg", pl.Float64(), "units"),
        VISITORS,
    ],
    ids=lambda measure: measure.kind,
)
async def test_a_measure_that_comes_later_counts_from_then_on(conn, table, new):
    await commit(conn, await ensured(conn, table), table, [event(0, units=1), event(60 * MINUTE, units=1)])
    grown = replace(
        table, measures=(new, *table.measures), derived=(Derived("many", "events > 1", pl.Boolean()),)
    )
    summaries = await ensured(conn, grown)
    await commit(conn, summaries, grown, [event(1, units=4)])
    first, second = (await summaries.rows(conn, table.name)).select("events", "many", new.name).rows()
    expected = {"sum": 4, "first": "/", "avg": 4.0, "approx_distinct": 1}[new.kind]
    assert first == (2, True, expected), "of the event that came after the measure"
    assert second == (1, False, None)


async def test_a_funnel_can_be_added_to_a_session_table(conn):
    table = visits([EVENTS])
    await commit(conn, await ensured(conn, table), table, [event(0)])
    grown = visits([EVENTS, FUNNEL])
    summaries = await ensured(conn, grown)
    for at, kind in ((1, "view"), (2, "buy")):
        await commit(conn, summaries, grown, [event(at, kind=kind)])
    (row,) = (await summaries.rows(conn, "visits")).to_dicts()
    assert (row["events"], row["shop_step"], row["shop_seen_at"]) == (3, 2, oracle.moment(START + 1))


async def test_a_measure_taken_away_stays_as_it_is_and_may_come_back(conn):
    both, one = tumbling([EVENTS, VISITORS]), tumbling([EVENTS])
    await commit(conn, await ensured(conn, both), both, [event(0)])
    await commit(conn, await ensured(conn, one), one, [event(60 * MINUTE)])
    summaries = await ensured(conn, both)
    assert (await summaries.rows(conn, "per_minute")).select("events", "visitors").rows() == [
        (1, 1),
        (1, None),
    ]
    changed = tumbling([EVENTS, replace(VISITORS, column="page")])
    with pytest.raises(ConfigError, match=r"measures\.visitors\.column"):
        await ensured(conn, changed)


async def test_counts_go_on_where_they_are_when_a_measure_with_a_state_comes_back(conn):
    both, one = tumbling([EVENTS, VISITORS]), tumbling([EVENTS])
    await commit(conn, await ensured(conn, both), both, [event(0)])
    await commit(conn, await ensured(conn, one), one, [event(1), event(60 * MINUTE)])
    summaries = await ensured(conn, both)
    await commit(conn, summaries, both, [event(2), event(60 * MINUTE + 1)])
    assert (await summaries.rows(conn, "per_minute")).select("events", "visitors").rows() == [(3, 1), (2, 1)]


@pytest.mark.parametrize(
    ("clocks", "kept"),
    [
        ({"clicks": [90 * DAY, 99 * DAY, None]}, 2),
        ({"clicks": [90 * DAY], "s3://logs": [99 * DAY]}, 4),
        ({"clicks": [None]}, 4),
        ({}, 4),
    ],
    ids=["the partition that is behind", "a log among them", "no clock yet", "no partition"],
)
async def test_a_first_state_holds_what_may_still_change_and_nothing_of_years_ago(conn, ledger, clocks, kept):
    both, one = (tumbling(measures, lateness=HOUR) for measures in ([EVENTS, VISITORS], [EVENTS]))
    closed = 90 * DAY - 7 * DAY - HOUR - 6 * HOUR  # by the clock that is behind; windows are of a minute
    minutes = [0, closed - MINUTE, closed, 90 * DAY]
    await commit(conn, await ensured(conn, one), one, [event(at) for at in minutes])
    for source, each in clocks.items():
        for partition, clock in enumerate(each):
            await conn.execute(
                "INSERT INTO streamproc.partitions (stream, source, partition, fence, token, clock_us, records,"
                " accepted, filtered, rejected, duplicate, claimed_at, updated_at)"
                " VALUES ('clicks', %s, %s, 1, gen_random_uuid(), %s, 0, 0, 0, 0, 0, now(), now())",
                [source, str(partition), clock and START + clock],
            )
    summaries = await ensured(conn, both)
    states = await conn.execute("SELECT window_start FROM clicks.per_minute__state ORDER BY 1")
    found = [start - START for (start,) in await states.fetchall()]
    assert found == minutes[-kept:]
    await commit(conn, summaries, both, [event(closed + 1), event(90 * DAY + 1)])
    rows = (await summaries.rows(conn, "per_minute")).select("events", "visitors").rows()
    assert rows == [(1, None), (1, None), (2, 1), (2, 1)]


async def test_a_worker_with_the_page_of_before_counts_where_a_newer_one_looks(conn):
    both, one = tumbling([EVENTS, VISITORS]), tumbling([EVENTS])
    older = await ensured(conn, one)
    await commit(conn, older, one, [event(0), event(1, site=None)])
    newer = await ensured(conn, both)
    await commit(conn, older, one, [event(2), event(3, site=None)])
    await commit(conn, newer, both, [event(4), event(5, site=None)])
    await commit(conn, older, one, [event(6), event(7, site=None)])
    assert (await newer.rows(conn, "per_minute"))["events"].to_list() == [4, 4]


async def test_a_count_that_the_newer_page_has_no_more_is_kept_up_by_the_workers_that_have_it(conn):
    older_page, newer_page = tumbling([EVENTS]), tumbling([VISITORS])
    older = await ensured(conn, older_page)
    await commit(conn, older, older_page, [event(0)])
    newer = await ensured(conn, newer_page)
    await commit(conn, older, older_page, [event(1)])
    await commit(conn, newer, newer_page, [event(2)])
    both = tumbling([EVENTS, VISITORS])
    summaries = await ensured(conn, both)
    await commit(conn, summaries, both, [event(3)])
    assert (await summaries.rows(conn, "per_minute")).select("events", "visitors").rows() == [(3, 1)]


async def test_a_commit_that_has_begun_with_a_table_is_in_the_state_that_it_gets(conn, postgres):
    both, one = tumbling([EVENTS, VISITORS]), tumbling([EVENTS])
    older = await ensured(conn, one)
    newer = Summaries([both], "clicks")
    async with await AsyncConnection.connect(postgres, autocommit=True) as other:
        async with conn.transaction():
            await older.apply(conn, {one.name: sealed(TableFold(one), [[event(0)]])[0]})
            extending = asyncio.create_task(newer.ensure(other))
            while not await blocked(conn, other):
                assert not extending.done()
                await asyncio.sleep(0)
        await extending
        await commit(other, newer, both, [event(1)])
    assert (await newer.rows(conn, "per_minute"))["events"].to_list() == [2]


async def test_a_state_that_a_version_before_has_left_behind_is_made_good_when_it_is_needed(conn):
    both, one = tumbling([EVENTS, VISITORS]), tumbling([EVENTS])
    await commit(conn, await ensured(conn, both), both, [event(0)])
    await ensured(conn, one)
    await conn.execute("UPDATE clicks.__tables SET definition = definition - 'state'")
    before = Summaries([one], "clicks")  # merges into the public rows only, as that version did
    await commit(conn, before, one, [event(1), event(60 * MINUTE)])
    assert await (await conn.execute("SELECT count(*) FROM clicks.per_minute__state")).fetchone() == (1,)
    await commit(conn, await ensured(conn, one), one, [event(2)])
    summaries = await ensured(conn, both)
    await commit(conn, summaries, both, [event(3)])
    rows = (await summaries.rows(conn, "per_minute")).select("events", "visitors").rows()
    assert rows == [(4, 1), (1, None)]


async def test_a_state_that_a_version_before_has_kept_up_is_kept(conn):
    both, one = tumbling([EVENTS, VISITORS]), tumbling([EVENTS])
    await commit(conn, await ensured(conn, both), both, [event(0)])
    await conn.execute("UPDATE clicks.__tables SET definition = definition - 'state'")
    older = Summaries([both], "clicks")
    await commit(conn, await ensured(conn, one), one, [event(1)])
    await commit(conn, older, both, [event(2)])
    assert (await older.rows(conn, "per_minute")).select("events", "visitors").rows() == [(3, 1)]


@pytest.mark.parametrize("meanwhile", [[DAY], [1, DAY]], ids=["merged", "stitched"])
async def test_a_measure_taken_away_from_sessions_stays_with_the_session_it_was_counted_in(conn, meanwhile):
    landing = Measure("landing", "first", pl.String(), "page")
    both, one = visits([EVENTS, landing]), visits([EVENTS])
    await commit(conn, await ensured(conn, both), both, [event(0, page="/first"), event(2)])
    await commit(conn, await ensured(conn, one), one, [event(at, page="/second") for at in meanwhile])
    summaries = await ensured(conn, both)
    await commit(conn, summaries, both, [event(DAY + 1, page="/third")])
    rows = (await summaries.rows(conn, "visits")).sort("session_start")
    assert rows.select("events", "landing").rows() == [(1 + len(meanwhile), "/first"), (2, "/third")]
    states = await conn.execute("SELECT landing FROM clicks.visits__state ORDER BY session_start")
    assert await states.fetchall() == [("/first",), ("/third",)]


async def test_sessions_of_a_table_whose_state_numbers_them_from_the_newest_go_on(conn):
    table = visits([EVENTS])
    summaries = await ensured(conn, table)
    events = [event(0), event(DAY), event(2 * DAY)]
    for each in events:
        await commit(conn, summaries, table, [each])
    await conn.execute(
        "UPDATE clicks.visits__state SET n = rank FROM (SELECT ctid AS at, "
        "row_number() OVER (ORDER BY session_start DESC) - 1 AS rank FROM clicks.visits__state) AS r WHERE ctid = at"
    )
    await conn.execute("ALTER TABLE clicks.visits__state ALTER COLUMN n TYPE smallint")
    await conn.execute("UPDATE clicks.__tables SET definition = definition - 'sessions'")
    summaries = await ensured(conn, table)
    events += [event(3 * DAY), event(DAY + 1), event(2 * DAY - 1)]
    for each in events[3:]:
        await commit(conn, summaries, table, [each])
    rows = await summaries.rows(conn, "visits")
    expected, _ = oracle.sessions(table, events)
    assert {
        (row["session_start"], row["visitor"]): {name: row[name] for name in ("session_end", "events")}
        for row in rows.to_dicts()
    } == expected


#: How long texts were indexed in a version before: a short text could be the one that stood for another.
FORMERLY = (
    "(CASE WHEN octet_length({0}) <= 2000 THEN {0} ELSE left({0}, 8) || '#' || "
    "hashtextextended({0}, 0)::text || '#' || hashtextextended({0}, 1)::text END) COLLATE \"C\""
)


async def test_indexes_of_a_version_before_are_made_anew_and_their_rows_go_on(conn):
    tables = [tumbling([EVENTS, VISITORS]), visits([EVENTS])]
    summaries = await ensured(conn, *tables)
    long = "/" + "x" * 3_000
    events = [event(n, site=text, visitor=text) for n, text in enumerate([long, long + "y", "z", None])]
    for table in tables:
        await commit(conn, summaries, table, events)
    site, visitor = FORMERLY.format("site"), FORMERLY.format("visitor")
    for table, index, columns in (
        ("per_minute", "per_minute_", f"window_start, {site}"),
        ("per_minute__state", "per_minute__state", f"window_start, {site}"),
        ("visits", "visits_", f"session_start, {visitor}"),
        ("visits__state", "visits__state", f"{visitor}, n"),
    ):
        await conn.execute(
            f"DROP INDEX clicks.{index}_row; "
            f"CREATE UNIQUE INDEX {index}_key ON clicks.{table} ({columns}) NULLS NOT DISTINCT"
        )
    await conn.execute("UPDATE clicks.__tables SET definition = definition - 'index'")
    summaries = await ensured(conn, *tables)
    named = await conn.execute("SELECT indexname FROM pg_indexes WHERE schemaname = 'clicks' ORDER BY 1")
    indexes = ["per_minute__row", "per_minute__state_row", "visits__row", "visits__state_row"]
    assert [name for (name,) in await named.fetchall()] == ["__tables_pkey", *indexes]
    for table in tables:
        await commit(conn, summaries, table, events)
    rows = (await summaries.rows(conn, "per_minute")).select("site", "events").rows()
    assert sorted(rows, key=str) == sorted(((e["site"], 2) for e in events), key=str)
    rows = (await summaries.rows(conn, "visits")).select("visitor", "events").rows()
    assert sorted(rows) == sorted((e["visitor"], 2) for e in events if e["visitor"] is not None)


async def test_a_table_without_a_text_in_its_key_keeps_the_index_that_it_has(conn):
    table = replace(tumbling([EVENTS]), by=("units",), by_types=(pl.Int64(),))
    await ensured(conn, table)
    await conn.execute("ALTER INDEX clicks.per_minute__row RENAME TO per_minute__key")
    await ensured(conn, table)
    assert await (await conn.execute("SELECT to_regclass('clicks.per_minute__row')")).fetchone() == (None,)


async def test_as_many_texts_as_an_index_takes_may_all_be_long(conn):
    names = [f"text_{number}" for number in range(31)]
    table = replace(tumbling([EVENTS]), by=tuple(names), by_types=(pl.String(),) * len(names))
    summaries, fold = await ensured(conn, table), TableFold(table)
    chance = random.Random(3)  # four bytes each, and a compressor makes nothing of it
    texts = ["".join(chr(0x1F300 + chance.randrange(700)) for _ in range(500)) for _ in names]
    keys = [tuple(texts), (*texts[:-1], texts[-1] + "y")]
    frame = pl.DataFrame(
        {
            "event_time": pl.Series([START] * 2, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "position": [1, 2],
            "watermark": pl.Series([None] * 2, dtype=pl.Datetime("us", "UTC")),
            **dict(zip(names, map(list, zip(*keys, strict=True)), strict=True)),
        }
    )
    for _ in range(2):
        async with conn.transaction():
            await summaries.apply(conn, {table.name: fold.seal(fold.partial(frame)[0])})
    rows = await summaries.rows(conn, table.name)
    assert sorted(rows.select(names).rows()) == sorted(keys)
    assert rows["events"].to_list() == [2, 2]


async def test_a_derived_column_may_be_computed_differently(conn):
    table = tumbling([EVENTS], derived=(Derived("many", "events > 1", pl.Boolean()),))
    await commit(conn, await ensured(conn, table), table, [event(0)])
    changed = replace(table, derived=(Derived("many", "events > 0", pl.Boolean()),))
    summaries = await ensured(conn, changed)
    assert (await summaries.rows(conn, "per_minute"))["many"].to_list() == [True]
    summaries = await ensured(conn, replace(table, derived=()))
    assert "many" not in await columns(conn, "per_minute")


async def test_derived_columns_that_postgresql_refuses_are_mistakes_that_are_named_all_at_once(conn):
    """polars takes both expressions, so that a page with them is loaded."""
    turnover = Measure("turnover", "sum", pl.Float64(), "amount")
    derived = (
        Derived("weekday", "date_part('dow', window_start)", pl.Int8()),
        Derived("many", "events > 1", pl.Boolean()),
        Derived("rounded", "round(turnover, 2)", pl.Float64()),
    )
    with pytest.raises(ConfigError) as refused:
        await ensured(conn, tumbling([EVENTS, turnover], derived=derived), visits())
    weekday, rounded = refused.value.mistakes
    assert weekday.where == "clicks: tables.per_minute.derived.weekday.sql" and "immutable" in weekday.problem
    assert rounded.where == "clicks: tables.per_minute.derived.rounded.sql" and "round(" in rounded.problem
    found = await conn.execute("SELECT to_regclass('clicks.per_minute'), to_regclass('clicks.visits')")
    assert await found.fetchone() == (None, None), "all or nothing"
    await ensured(conn, tumbling([EVENTS, turnover], derived=derived[1:2]))
    assert "many" in await columns(conn, "per_minute")


async def test_a_derived_column_that_a_view_reads_is_a_mistake_that_names_the_view(conn):
    table = tumbling([EVENTS], derived=(Derived("many", "events > 1", pl.Boolean()),))
    await commit(conn, await ensured(conn, table), table, [event(0)])
    await conn.execute("CREATE VIEW clicks.busy AS SELECT window_start FROM clicks.per_minute WHERE many")
    changed = replace(table, derived=(Derived("many", "events > 0", pl.Boolean()),))
    with pytest.raises(ConfigError, match=r"clicks: tables\.per_minute\.derived\.many: .*view clicks\.busy"):
        await ensured(conn, changed)
    summaries = await ensured(conn, table)
    assert (await summaries.rows(conn, "per_minute"))["many"].to_list() == [False]
    await conn.execute("DROP VIEW clicks.busy")
    summaries = await ensured(conn, changed)
    assert (await summaries.rows(conn, "per_minute"))["many"].to_list() == [True]


@pytest.mark.parametrize("table", [tumbling([EVENTS]), visits([EVENTS])], ids=["tumbling", "session"])
async def test_a_worker_whose_derived_column_a_newer_page_has_taken_away_goes_on(conn, table):
    """The rows that it returns, to be published, have it as its own page says."""
    older_page = replace(table, derived=(Derived("many", "events > 1", pl.Boolean()),))
    older = await ensured(conn, older_page)
    await commit(conn, older, older_page, [event(0)])
    newer_page = replace(table, derived=(Derived("busy", "events > 9", pl.Boolean()),))
    await ensured(conn, newer_page)
    assert "many" not in await columns(conn, table.name)
    async with conn.transaction():
        delta = sealed(TableFold(older_page), [[event(1), event(2, visitor="b", site="y")]])[0]
        changed = (await older.apply(conn, {table.name: delta}, changed=True))[table.name]
    assert sorted(changed.select("events", "many").rows()) == [(1, False), (2, True)]


async def test_a_derived_column_does_not_take_the_place_of_a_measure_that_was_removed(conn):
    many = Measure("many", "count", pl.Int64(), where="kind = 'view'")
    derived = tumbling([EVENTS], derived=(Derived("many", "events > 1", pl.Boolean()),))
    await commit(conn, await ensured(conn, tumbling([EVENTS, many])), tumbling([EVENTS, many]), [event(0)])
    with pytest.raises(ConfigError, match=r"per_minute\.derived\.many: .*another name, or drop the column"):
        await ensured(conn, derived)
    await conn.execute("ALTER TABLE clicks.per_minute DROP COLUMN many")
    summaries = await ensured(conn, derived)
    assert (await summaries.rows(conn, "per_minute"))["many"].to_list() == [False]


async def test_a_measure_does_not_take_a_column_that_another_has_left(conn):
    await ensured(conn, visits([EVENTS, FUNNEL]))
    with pytest.raises(ConfigError, match=r"visits\.measures\.shop_step: .*another name$"):
        await ensured(conn, visits([EVENTS, Measure("shop_step", "count", pl.Int64())]))


async def test_a_measure_may_have_the_name_of_a_derived_column_that_was_removed(conn):
    derived = tumbling([EVENTS], derived=(Derived("many", "events > 1", pl.Boolean()),))
    await commit(conn, await ensured(conn, derived), derived, [event(0)])
    both = tumbling([EVENTS, Measure("many", "count", pl.Int64(), where="kind = 'view'")])
    summaries = await ensured(conn, both)
    await commit(conn, summaries, both, [event(60 * MINUTE)])
    assert (await summaries.rows(conn, "per_minute"))["many"].to_list() == [None, 1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"window": Window("tumbling", size=HOUR)}, "tables.per_minute.window"),
        ({"by": ("page",)}, "tables.per_minute.by"),
        ({"by_types": (pl.Int64(),)}, "tables.per_minute.by"),
        ({"where": "kind = 'view'"}, "tables.per_minute.where"),
        (
            {"measures": (replace(EVENTS, kind="sum", column="units"),)},
            "tables.per_minute.measures.events.kind",
        ),
        ({"measures": (replace(EVENTS, type=pl.Float64()),)}, "tables.per_minute.measures.events.type"),
        ({"measures": (replace(EVENTS, where="amount > 2"),)}, "tables.per_minute.measures.events.where"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_changes_of_meaning_are_refused_with_their_place_and_a_fix(conn, change, named):
    table = tumbling([EVENTS])
    summaries = await ensured(conn, table)
    await commit(conn, summaries, table, [event(0)])
    with pytest.raises(ConfigError) as refused:
        await ensured(conn, replace(table, **change), visits())
    assert refused.value.mistakes[0].where == f"clicks: {named}"
    assert "new name" in refused.value.mistakes[0].fix
    assert len(await summaries.rows(conn, "per_minute")) == 1
    exists = await (await conn.execute("SELECT to_regclass('clicks.visits')")).fetchone()
    assert exists == (None,), "all or nothing"


@pytest.mark.parametrize("dropped", ["clicks.per_minute, clicks.per_minute__state", "clicks.per_minute"])
async def test_a_table_that_was_dropped_is_made_anew_as_the_page_has_it_now(conn, dropped):
    former = tumbling([EVENTS, VISITORS])
    await commit(conn, await ensured(conn, former), former, [event(0), event(1, visitor="b")])
    await conn.execute(f"DROP TABLE {dropped}")
    table = replace(
        former, window=Window("tumbling", size=HOUR), measures=(EVENTS, replace(VISITORS, precision=14))
    )
    summaries = await ensured(conn, table)
    assert START % HOUR == 0, "both have a window that starts then"
    await commit(conn, summaries, table, [event(0), event(5 * MINUTE), event(HOUR, visitor="b")])
    rows = (await summaries.rows(conn, "per_minute")).select(
        "window_start", "window_end", "events", "visitors"
    )
    hours = [oracle.moment(START + hour * HOUR) for hour in range(3)]
    assert rows.rows() == [(*hours[:2], 2, 1), (*hours[1:], 1, 1)]
    await ensured(conn, table)
    with pytest.raises(ConfigError, match=r"per_minute\.window"):
        await ensured(conn, former)


async def test_a_session_key_of_another_type_is_refused(conn):
    text = visits([EVENTS])
    await ensured(conn, text)
    # A version before knew no other keys.
    await conn.execute("UPDATE clicks.__tables SET definition = definition - 'key'")
    with pytest.raises(ConfigError, match=r'visits\.window\.key: .* from "String" to "Int64".*new name'):
        await ensured(conn, replace(text, by_types=(pl.Int64(),)))
    await ensured(conn, text)


async def test_comments_and_lateness_may_change_at_any_time(conn):
    table = tumbling([EVENTS])
    await ensured(conn, table)
    await ensured(conn, replace(table, lateness=HOUR, measures=(replace(EVENTS, comment="All of them"),)))
    assert (await columns(conn, "per_minute"))["events"] == ("bigint", "All of them")


async def test_lateness_may_not_reopen_windows_whose_state_is_gone(conn):
    table = tumbling([EVENTS, VISITORS], lateness=HOUR)
    await ensured(conn, table)
    await ensured(conn, replace(table, lateness=7 * HOUR))
    with pytest.raises(ConfigError, match=r"per_minute\.lateness"):
        await ensured(conn, replace(table, lateness=14 * HOUR))


async def test_disorder_may_not_reopen_them_either(conn):
    table = tumbling([EVENTS, VISITORS], lateness=HOUR)
    # A version before did not note the disorder, which is nothing raised; six hours more are allowed each time.
    for lateness, disorder in ((1, None), (1, 10), (7, 10), (5, 18), (5, None)):
        page = replace(table, lateness=lateness * HOUR)
        await Summaries([page], "clicks", disorder and disorder * HOUR).ensure(conn)
    for lateness, disorder in ((5, 25), (12, 18), (9, 21)):
        page = replace(table, lateness=lateness * HOUR)
        with pytest.raises(ConfigError, match=r"per_minute\.lateness: .* contract\.event_time\.disorder"):
            await Summaries([page], "clicks", disorder * HOUR).ensure(conn)
    await Summaries([replace(table, lateness=25 * HOUR)], "clicks", 0).ensure(conn)


@pytest.mark.parametrize(
    "stored",
    [0, -1, -62_135_596_800_000_000, -62_135_596_799_999_999, START + 1, 253_402_300_799_999_999],
)
async def test_moments_are_published_to_the_microsecond(conn, stored):
    await conn.execute("SET TIME ZONE 'UTC'")
    column = Column("at", pl.Datetime("us", "UTC"))
    found = await conn.execute(sql.SQL("SELECT {}").format(published(column, sql.Literal(stored))))
    assert await found.fetchone() == (oracle.moment(stored),)


async def test_every_type_of_column_can_be_a_key_and_a_value(conn):
    types = {
        "day": pl.Date(),
        "moment": pl.Datetime("us", "UTC"),
        "yes": pl.Boolean(),
        "tiny": pl.Int8(),
        "small": pl.Int32(),
        "big": pl.Int64(),
        "text": pl.String(),
    }
    measures = [
        Measure(f"{kind}_{name}", kind, type_, name)
        for kind in ("first", "last")
        for name, type_ in types.items()
    ] + [
        Measure(f"{kind}_{name}", kind, types[name], name)
        for kind in ("min", "max")
        for name in ("day", "moment", "tiny", "small", "big")
    ]
    sketched = [
        Measure("texts", "approx_distinct", pl.Int64(), "text"),
        Measure("middle", "approx_percentile", pl.Float64(), "tiny", at=0.5, precision=200),
    ]
    table = replace(tumbling([*measures, *sketched]), by=tuple(types), by_types=tuple(types.values()))
    summaries = await ensured(conn, table)
    values = {
        "day": [20_000],
        "moment": [253_402_300_799_999_999],  # the last of the year 9999
        "yes": [True],
        "tiny": [7],
        "small": [-1],
        "big": [2**62],
        "text": ["x"],
    }
    some = {name: [*value, None, *([None] if name == "big" else value)] for name, value in values.items()}
    frame = pl.DataFrame(
        {
            "event_time": pl.Series([START] * 3, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "position": [1, 2, 3],
            "watermark": pl.Series([None] * 3, dtype=pl.Datetime("us", "UTC")),
            **{name: pl.Series(some[name]).cast(type_) for name, type_ in types.items()},
        }
    )
    fold = TableFold(table)
    for _ in range(2):
        async with conn.transaction():
            await summaries.apply(conn, {table.name: fold.seal(fold.partial(frame)[0])})
    rows = await summaries.rows(conn, table.name)
    assert {name: rows.schema[name] for name in types} == types
    with_values = rows.filter(pl.col("big").is_not_null()).to_dicts()[0]
    assert len(rows) == 3
    for measure in measures:
        assert with_values[measure.name] == frame[measure.column][0], measure.name
    assert (with_values["texts"], with_values["middle"]) == (1, 7)
