"""A visitor is taken out of every table of the stream, also of those that its page has no more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from streamproc.ledger import Ledger
from streamproc.runtimes.erasing import Eraser, ErasureReport, Visitor
from streamproc.sinks.summaries import Summaries
from streamproc.tables.fold import TableFold
from streamproc.topology import MINUTE, Measure, Sinks, Table
from tests.sinks.topologies import topology
from tests.tables.streams import SCHEMA, event, sealed, tumbling, visits

EVENTS = Measure("events", "count", pl.Int64())


async def had(ledger: Ledger, table: Table, *events: Any) -> None:
    """The table, with these events."""
    summaries = Summaries([table], "clicks")
    async with ledger.database.connection("prepare") as conn:
        await summaries.ensure(conn)
        async with conn.transaction():
            await summaries.apply(conn, {table.name: sealed(TableFold(table), [list(events)])[0]})


async def erased(ledger: Ledger, table: Table, *, dry: bool = False) -> ErasureReport:
    """What is erased of visitor a when the page has this table only."""
    page = topology(SCHEMA)
    page = replace(page, tables=(table,), sinks=Sinks(warehouse=False), erasure=("visitor",))
    async with ledger.database.connection("extend the tables") as conn:
        await Summaries(page.tables, page.name).ensure(conn)
    return await Eraser(page, ledger, None, None).erase([Visitor("a", ["a"])], dry=dry)


async def values(ledger: Ledger, table: str, column: str) -> Sequence[object]:
    async with ledger.database.connection("look") as conn:
        rows = await conn.execute(f"SELECT {column} FROM clicks.{table} ORDER BY 1")
        return [value for (value,) in await rows.fetchall()]


async def test_a_visitor_goes_from_tables_that_the_page_has_no_more(ledger: Ledger) -> None:
    old, new = replace(visits([EVENTS]), name="visits_before"), visits([EVENTS])
    await had(ledger, old, event(0), event(1, visitor="b"))
    assert (await erased(ledger, new, dry=True)).tables == {"visits": 0, "visits_before": 1}
    assert (await erased(ledger, new)).tables == {"visits": 0, "visits_before": 1}
    for table in ("visits_before", "visits_before__state"):
        assert await values(ledger, table, "visitor") == ["b"], table
    assert (await erased(ledger, new)).tables == {"visits": 0, "visits_before": 0}


async def test_a_table_that_was_dropped_is_none_of_those_with_visitors(ledger: Ledger) -> None:
    await had(ledger, replace(visits([EVENTS]), name="visits_before"), event(0))
    async with ledger.database.connection("drop") as conn:
        await conn.execute("DROP TABLE clicks.visits_before, clicks.visits_before__state")
    assert (await erased(ledger, visits([EVENTS]))).tables == {"visits": 0}


async def test_a_measure_that_was_removed_shows_the_visitor_no_more(ledger: Ledger) -> None:
    newest = Measure("newest", "last", pl.String(), "visitor")
    await had(ledger, tumbling([EVENTS, newest]), event(0), event(60 * MINUTE, visitor="b"))
    table = tumbling([EVENTS])
    assert (await erased(ledger, table, dry=True)).tables == {"per_minute": 1}
    assert (await erased(ledger, table)).tables == {"per_minute": 1}
    for name in ("per_minute", "per_minute__state"):
        assert await values(ledger, name, "newest") == ["b", None], name
        assert await values(ledger, name, "events") == [1, 1], name


async def test_a_key_that_was_a_number_once_is_looked_at_too(ledger: Ledger) -> None:
    old = replace(tumbling([EVENTS]), name="before", by=("units",), by_types=(pl.Int64(),))
    await had(ledger, old, event(0, units=7), event(1, units=8))
    page = replace(topology(SCHEMA), sinks=Sinks(warehouse=False), erasure=("units",))
    report = await Eraser(page, ledger, None, None).erase([Visitor("7", ["7"])])
    assert report.tables == {"before": 1}
    assert await values(ledger, "before", "units") == [8]


async def noted(ledger: Ledger, table: str, *rows: Mapping[str, object], stream: str = "clicks") -> None:
    """Changed rows that have still to be published."""
    payload = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    async with ledger.database.connection("note") as conn:
        await conn.execute(
            "INSERT INTO streamproc.outbox (stream, epoch, kind, table_name, payload)"
            " VALUES (%s, gen_random_uuid(), 'rows', %s, %s)",
            [stream, table, payload],
        )


async def notes(ledger: Ledger) -> Sequence[tuple[str, str, list[Any]]]:
    """What has still to be published: stream, table and rows of each note, in their order."""
    async with ledger.database.connection("look") as conn:
        found = await conn.execute("SELECT stream, table_name, payload FROM streamproc.outbox ORDER BY id")
        return [
            (stream, table, [json.loads(line) for line in payload.splitlines()])
            for stream, table, payload in await found.fetchall()
        ]


async def test_rows_that_have_still_to_be_published_are_published_without_the_visitor(ledger: Ledger) -> None:
    table = visits([EVENTS])
    await had(ledger, table, event(0), event(1, visitor="b"))
    mine, other, nobodys = ({"visitor": visitor, "events": 1} for visitor in ("a", "b", None))
    await noted(ledger, "visits", mine, other, mine, nobodys)
    await noted(ledger, "visits", mine)
    await noted(ledger, "visits", other)
    await noted(ledger, "pages", mine)  # it is no visitor's there
    await noted(ledger, "visits", mine, stream="elsewhere")
    before = await notes(ledger)
    await erased(ledger, table, dry=True)
    assert await notes(ledger) == before
    await erased(ledger, table)
    assert await notes(ledger) == [
        ("clicks", "visits", [other, nobodys]),
        ("clicks", "visits", [other]),
        ("clicks", "pages", [mine]),
        ("elsewhere", "visits", [mine]),
    ]


async def test_rows_of_earlier_pages_are_published_without_what_shows_the_visitor(ledger: Ledger) -> None:
    newest = Measure("newest", "last", pl.String(), "visitor")
    await had(ledger, tumbling([EVENTS, newest]), event(0))
    shown, other = ({"site": "x", "events": 1.5, "newest": visitor} for visitor in ("a", "b"))
    await noted(ledger, "per_minute", shown, other)
    await erased(ledger, tumbling([EVENTS]))
    assert await notes(ledger) == [("clicks", "per_minute", [{**shown, "newest": None}, other])]


async def test_a_row_is_found_by_a_key_that_was_a_number_when_it_was_noted(ledger: Ledger) -> None:
    old = replace(tumbling([EVENTS]), name="before", by=("units",), by_types=(pl.Int64(),))
    await had(ledger, old, event(0, units=7))
    rows = [{"units": each} for each in (7, 7.0, "7", 8, 7.5, True, None)]
    await noted(ledger, "before", *rows)
    page = replace(topology(SCHEMA), sinks=Sinks(warehouse=False), erasure=("units",))
    await Eraser(page, ledger, None, None).erase([Visitor("7", ["7"]), Visitor("true", ["true"])])
    assert await notes(ledger) == [("clicks", "before", [{"units": each} for each in (8, 7.5, None)])]
