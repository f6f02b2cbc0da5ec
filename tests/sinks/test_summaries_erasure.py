"""A visitor is taken out of every table of the stream, also of those that its page has no more."""

from __future__ import annotations

from collections.abc import Sequence
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
