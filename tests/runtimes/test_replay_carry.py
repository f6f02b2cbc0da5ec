"""Live events outside a replay's range, carried into its tables: a real ledger, lake and tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from streamproc.ledger import Ledger, carrying
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.replays import Replays
from streamproc.runtimes.replay.carry import Carrier
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.sinks.summaries import Summaries
from streamproc.tables.fold import TableFold
from streamproc.topology import HOUR, Measure
from tests.ledger.epochs import P0, advance, nothing, record
from tests.sinks.topologies import topology
from tests.tables.streams import SCHEMA, START, event, frame, visits

COLUMNS = {name: type_ for name, type_ in SCHEMA.items() if name != "watermark"} | {
    "source_partition": pl.String()
}
TABLE = visits([Measure("events", "count", pl.Int64())])
PAGE = replace(topology(COLUMNS), tables=(TABLE,))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path.as_uri(), durable=False)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def lake(store: LocalStore) -> Lake:
    return Lake(store, PAGE)


def visit(*hours: int) -> pl.DataFrame:
    """An event of one visitor at each of the hours, which is its position too."""
    return frame([event(hour * HOUR, position=hour) for hour in hours]).with_columns(
        source_partition=pl.lit("0")
    )


async def commit(ledger: Ledger, lake: Lake, events: pl.DataFrame) -> None:
    """Commit the events to ledger and lake."""
    claims = await ledger.claim([P0])
    newest = int(events["event_time"].to_physical().max())  # type: ignore[arg-type]
    part = replace(
        advance(claims[P0], int(events["position"].max())),  # type: ignore[arg-type]
        clock_us=max(newest, claims[P0].clock_us or newest),
    )
    files = lake.plan(lake.encode_events(events.drop("watermark")), part)
    done = record(part, objects=tuple(await lake.write(files)))
    await ledger.intend(done.id, [file.plan for file in files], claims)
    await ledger.commit(done, nothing)


async def sessions(ledger: Ledger, summaries: Summaries) -> Sequence[tuple[int, int]]:
    """When each session began (hours), and its events."""
    async with ledger.database.connection("look") as conn:
        rows = await summaries.rows(conn, TABLE.name)
    hour = (pl.col("session_start").to_physical() - START) // HOUR
    return rows.select(hour, "events").rows()


async def test_events_behind_the_range_are_late_by_the_clock_that_the_range_has_left(
    ledger: Ledger, lake: Lake
) -> None:
    for position, hour in enumerate((0, 10, 1)):  # before the range, in it, behind it and nine hours late
        one = frame([event(hour * HOUR, position=position)]).with_columns(source_partition=pl.lit("0"))
        await commit(ledger, lake, one)
    replay = await Replays(ledger.database, "clicks").create("fix", "f", "all", "me", {P0: Span(0, 1)})
    summaries = Summaries([TABLE], replay.namespace)
    async with ledger.database.connection("process the range") as conn:
        await summaries.ensure(conn)
        await conn.execute(
            "UPDATE streamproc.partitions SET position = 1, clock_us = %s WHERE stream = %s",
            [START + 10 * HOUR, replay.namespace],
        )
    assert await Carrier(PAGE, replace(replay, since_us=START), ledger.database, lake).carry() == 2
    assert await sessions(ledger, summaries) == [(0, 1)]


async def forget(ledger: Ledger, through: int) -> None:
    """As an erasure lets go of an object of which it leaves nothing."""
    async with ledger.database.connection("forget") as conn:
        await conn.execute("UPDATE streamproc.objects SET state = 'superseded' WHERE through = %s", [through])


@pytest.mark.parametrize(
    ("span", "in_range", "expected"),
    [
        (Span(-1, -1), None, 3),  # nothing of it is replayed
        (Span(-1, 1), 1, 3),  # the clock has gone on behind the range
        (Span(-1, 3), 1, 1),  # what had brought it there, the page of today refuses
    ],
)
async def test_a_promotion_sets_no_clock_back_for_an_event_that_was_erased(
    ledger: Ledger, lake: Lake, span: Span, in_range: int | None, expected: int
) -> None:
    for hour in range(4):
        await commit(ledger, lake, visit(hour))
    replay = await Replays(ledger.database, "clicks").create("fix", "f", "all", "me", {P0: span})
    await forget(ledger, 2 if span.through == 3 else 3)
    async with ledger.database.connection("process the range") as conn:
        clock = None if in_range is None else START + in_range * HOUR
        names = [clock, replay.namespace]
        await conn.execute("UPDATE streamproc.partitions SET clock_us = %s WHERE stream = %s", names)
        assert await carrying.clocks(conn, replay) == {P0: START + expected * HOUR}


async def test_nothing_is_read_for_a_page_without_tables(ledger: Ledger, lake: Lake) -> None:
    await commit(ledger, lake, visit(0, 1))
    replay = await Replays(ledger.database, "clicks").create("fix", "f", "all", "me", {P0: Span(-1, 1)})
    await commit(ledger, lake, visit(2))
    page = replace(PAGE, tables=())
    assert await Carrier(page, replace(replay, since_us=START), ledger.database, lake).carry() == 0


async def test_events_are_carried_into_tables_that_a_version_before_has_made(
    ledger: Ledger, lake: Lake
) -> None:
    await commit(ledger, lake, visit(0, 1))
    replay = await Replays(ledger.database, "clicks").create("fix", "f", "all", "me", {P0: Span(-1, 1)})
    summaries, fold = Summaries([TABLE], replay.namespace), TableFold(TABLE)
    async with ledger.database.connection("create the tables") as conn:
        await summaries.ensure(conn)
    async with ledger.database.transaction("process the range") as conn:
        await summaries.apply(conn, {TABLE.name: fold.seal(fold.partial(visit(0, 1))[0])})
        # Sessions of a key were numbered from the newest.
        state, registry = f"{replay.namespace}.visits__state", f"{replay.namespace}.__tables"
        await conn.execute(f"UPDATE {state} SET n = 1 WHERE n <> 0")
        await conn.execute(f"ALTER TABLE {state} ALTER COLUMN n TYPE smallint")
        await conn.execute(f"UPDATE {registry} SET definition = definition - 'sessions'")

    await commit(ledger, lake, visit(2, 3))
    carrier = Carrier(PAGE, replace(replay, since_us=START), ledger.database, lake)
    assert await carrier.carry() == 2
    assert await carrier.carry() == 0
    assert await sessions(ledger, summaries) == [(0, 1), (1, 1), (2, 1), (3, 1)]


async def test_events_of_which_a_column_had_another_type_are_carried(
    ledger: Ledger, store: LocalStore, lake: Lake
) -> None:
    older = Lake(store, replace(PAGE, columns={**COLUMNS, "amount": pl.Int64()}))
    await commit(ledger, lake, visit(0, 1))
    replay = await Replays(ledger.database, "clicks").create("fix", "f", "all", "me", {P0: Span(-1, 1)})
    summaries = Summaries([TABLE], replay.namespace)
    async with ledger.database.connection("create the tables") as conn:
        await summaries.ensure(conn)
    await commit(ledger, older, visit(2))
    await commit(ledger, lake, visit(3))
    carrier = Carrier(PAGE, replace(replay, since_us=START), ledger.database, lake)
    assert await carrier.carry() == 2
    assert await sessions(ledger, summaries) == [(2, 1), (3, 1)]
