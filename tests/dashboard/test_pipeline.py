"""What the page *Pipeline* asks of the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from streamproc.dashboard import charts
from streamproc.dashboard.markup import duration
from streamproc.dashboard.pipeline_view import BIN, Bin, Ends, PipelineSnapshot, PipelineView
from streamproc.dashboard.reading import Reader, read_only
from streamproc.database import Database
from streamproc.ledger import Ledger, ObjectTotal, compaction
from streamproc.model import PlannedObject
from streamproc.topology import Topology
from tests.dashboard.conftest import Site
from tests.ledger.epochs import P0, advance, nothing, planned, record, written

T = TypeVar("T")


async def _now(value: T) -> T:
    return value


async def look(topology: Topology, url: str) -> PipelineSnapshot:
    reader = Reader(Database(read_only(url, 5.0), "test"))
    view = PipelineView(
        topology,
        reader,
        ends=lambda: _now(Ends({}, {})),
        totals=lambda: _now(list[ObjectTotal]()),
        warehouse=lambda: _now(None),
    )
    try:
        return await view.look()
    finally:
        await reader.database.close()


def aged(plan: PlannedObject, minutes: int) -> PlannedObject:
    """With events of so many minutes ago."""
    newest = int((datetime.now(UTC) - timedelta(minutes=minutes)).timestamp() * 1_000_000)
    return replace(plan, min_time_us=newest, max_time_us=newest)


@pytest.mark.slow
async def test_merging_old_objects_does_not_make_the_stream_look_old(site: Site, topology: Topology) -> None:
    page = replace(topology, name="merging")
    async with Ledger(site.url, page.name, "w1") as ledger:
        held = await ledger.claim([P0])
        for minutes in (5, 4, 1):
            part = advance(held[P0], 4 if (at := held[P0].position) is None else at + 5)
            epoch = record(part, objects=written(aged(planned(part), minutes)))
            await ledger.intend(epoch.id, [each.plan for each in epoch.objects], held)
            held |= (await ledger.commit(epoch, nothing)).claims
        (_, before), *_ = reversed((await look(page, site.url)).freshness)
        assert 5 * 60 <= before < 10 * 60
        found = await compaction.sources(ledger.database, page.name, P0, None, 9)
        plan = replace(found[0].committed.plan, key="merged", through=9, rows=10)
        async with ledger.database.transaction("merge") as conn:
            await compaction.intend(conn, page.name, [aged(plan, 1_000)], found[0])
        async with ledger.database.transaction("replace") as conn:
            await compaction.replace(conn, page.name, found, written(plan))
    after = await look(page, site.url)
    assert max(seconds for _, seconds in after.freshness) == pytest.approx(before, abs=1)


def test_bars_of_throughput_have_no_gaps_between_them_up_to_now() -> None:
    now = datetime(2026, 6, 1, 12, 0, 7, tzinfo=UTC)
    first, last = now.replace(second=0) - 8 * BIN, now.replace(second=0) - 2 * BIN
    drawn = charts.throughput([Bin(first, 10, 0, 0, 0, 1.0), Bin(last, 20, 0, 0, 0, 1.0)], now)
    (accepted,) = (each["data"] for each in drawn["series"] if each["name"] == "accepted")
    times = [datetime.fromisoformat(time) for time, _ in accepted]
    assert times == [first + number * BIN for number in range(9)]
    assert [value for _, value in accepted] == [1.0, 0, 0, 0, 0, 0, 2.0, 0, 0]
    assert all(each["data"] == [] for each in charts.throughput([], now)["series"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.04, "0.0 s"),
        (119.9, "119.9 s"),
        (120, "2.0 min"),
        (7_200, "2.0 h"),
        (59_712_884, "691 days"),
    ],
)
def test_a_duration_reads_as_one_would_say_it(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
