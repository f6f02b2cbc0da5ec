"""What the page *Pipeline* asks of the ledger."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TypeVar, cast

import polars as pl
import psycopg
import pytest

from streamproc.dashboard import charts, server
from streamproc.dashboard import pipeline_cards as cards
from streamproc.dashboard.markup import duration
from streamproc.dashboard.pipeline_view import (
    BIN,
    Bin,
    Ends,
    PartitionRow,
    PipelineSnapshot,
    PipelineView,
    lag,
    rate,
)
from streamproc.dashboard.reading import Answer, Question, Reader, Seen, read_only
from streamproc.dashboard.reject_samples import LARGEST, RejectReader
from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.ledger import Ledger, PartitionStatus, compaction
from streamproc.model import Counts, Partition, PlannedObject
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import WarehouseStatus
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_positions import Span
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
        totals=lambda: _now(Seen([], 0.0, None)),
        late=lambda: _now(Seen(None, None, DependencyError("the database", "is slow"))),
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
        *_, newest = sorted(epoch.committed_at for epoch in await ledger.epochs())
    after = await look(page, site.url)
    assert (after.bins[-1].newest, sum(each.records for each in after.bins)) == (newest, 15)
    assert max(seconds for _, seconds in after.freshness) == pytest.approx(before, abs=1)


@pytest.mark.slow
async def test_what_cannot_be_counted_is_not_none_and_a_note_says_why(site: Site, topology: Topology) -> None:
    found = await look(topology, site.url)
    assert found.notes == ["Late events could not be counted: the database: is slow"]
    assert "Not known" in cards.late(found)
    assert "Nothing written yet" in cards.sinks(found)
    assert "not known" in cards.sinks(replace(found, objects=None))


def snapshot(*rows: PartitionRow) -> PipelineSnapshot:
    """Of a stream without commits in the last minutes."""
    return PipelineSnapshot(datetime.now(UTC), rows, [], [], [], {}, [], None, [], [])


def row(
    position: int | None, owner: str | None, lag: int | None, behind: float | None = None
) -> PartitionRow:
    now = datetime.now(UTC)
    counts = Counts(records=0 if position is None else position + 1)
    return PartitionRow(PartitionStatus(P0, position, owner, 1, None, now, now, counts), lag, behind, None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "No epoch committed yet|No worker holds a partition: is streamproc run running?"),
        ([row(None, None, None)], "No epoch committed yet|No worker holds a partition: is streamproc run running?"),
        ([row(None, None, 7)], "No epoch committed yet|7 records wait at the source. No worker holds a partition: "
         "is streamproc run running?"),
        ([row(None, "w", None), row(None, "w", 0)], "No epoch committed yet|The workers wait for the first records."),
        ([row(None, "w", 1_200), row(None, None, 34)], "No epoch committed yet|1,234 records wait at the source. "
         "They are committed when an epoch is full, or after flush_interval."),
        ([row(None, "w", None, 0.0)], "No epoch committed yet|The workers wait for the first records."),
        ([row(None, "w", None, 90.0)], "No epoch committed yet|Records wait at the source, the oldest 90.0 s behind "
         "the newest. They are committed when an epoch is full, or after flush_interval."),
        ([row(5, "w", 0)], "Nothing committed in the last 15 minutes|The last commit was …."),
        ([row(5, "w", 3)], "Nothing committed in the last 15 minutes|The last commit was …. 3 records wait at the "
         "source. The log of the workers tells why."),
        ([row(5, None, 3)], "Nothing committed in the last 15 minutes|The last commit was …. 3 records wait at the "
         "source. No worker holds a partition: is streamproc run running?"),
    ],
)  # fmt: skip
def test_charts_without_commits_say_what_is_going_on(rows: list[PartitionRow], said: str) -> None:
    html = re.sub(r"<time.*?</time>", "…", cards.standstill(snapshot(*rows)))
    found = re.fullmatch(r'<div class="empty"><strong>(.*)</strong><span>(.*)</span></div>', html)
    assert found is not None
    assert re.sub(r"</?code>", "", "|".join(found.groups())) == said


@pytest.mark.parametrize(
    ("position", "first", "last", "waiting"),
    [
        (None, 0, -1, 0),  # nothing was ever written
        (None, 0, 9, 10),
        (None, 1_000_000, 999_999, 0),  # everything was deleted before anybody read it
        (None, 500, 509, 10),
        (4, 0, 9, 5),
        (9, 0, 9, 0),
        (4, 500, 509, 10),  # a gap: what is gone does not wait
        (9, 0, 4, 0),  # the topic was made anew
    ],
)
def test_what_waits_is_what_can_be_read(position: int | None, first: int, last: int, waiting: int) -> None:
    assert lag(position, Span(first, last)) == waiting


def test_charts_with_commits_speak_for_themselves() -> None:
    bins = [Bin(datetime.now(UTC), 1, 0, 0, 0, 0.5, datetime.now(UTC))]
    assert cards.standstill(replace(snapshot(row(5, "w", 3)), bins=bins)) == ""


def test_a_warehouse_that_is_not_known_is_not_left_out() -> None:
    assert "warehouse" not in cards.sinks(snapshot())
    html = cards.sinks(replace(snapshot(), warehouse="in Redshift, <which> is not asked"))
    assert "<td>warehouse</td><td>in Redshift, &lt;which&gt; is not asked</td>" in html


async def test_a_warehouse_in_postgresql_says_what_is_loaded(site: Site) -> None:
    warehouse = PostgresWarehouse(site.url, site.topology.name)
    await warehouse.open()
    await warehouse.ensure({"path": pl.String()})
    with psycopg.connect(site.url, autocommit=True) as db:
        db.execute(
            "INSERT INTO warehouse.loads VALUES (%s, 'a', 3, now()), (%s, 'b', 4, now()), ('other', 'c', 5, now())",
            [site.topology.name] * 2,
        )
        found = await server._warehouse(
            server.Sources([site.topology], site.url, warehouse=site.url), site.topology
        )
        db.execute("DROP SCHEMA warehouse CASCADE")
    await warehouse.close()
    assert isinstance(found, WarehouseStatus)
    assert (found.objects, found.rows) == (2, 7)


async def test_a_warehouse_that_says_nothing_holds_nobody_up_for_long(
    monkeypatch: pytest.MonkeyPatch, topology: Topology
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        called.append(task)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    called: list[asyncio.Task[None]] = []
    monkeypatch.setattr(server, "_WAREHOUSE", 0.2)
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        sources = server.Sources([topology], "", warehouse=f"postgresql://reader@127.0.0.1:{port}/warehouse")
        with pytest.raises(DependencyError, match="warehouse: no answer within"):
            await server._warehouse(sources, topology)
        assert called
        await asyncio.gather(*called)


async def test_a_broker_that_comes_later_or_again_elsewhere_is_asked_where_it_is_now(
    site: Site, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[KafkaConnection | None] = [None]
    left = 0

    @asynccontextmanager
    async def broker() -> AsyncIterator[KafkaConnection | None]:
        nonlocal left
        yield running[0]
        left += 1

    async def spans(asked: KafkaConnection, topic: str) -> dict[Partition, Span]:
        return {P0: Span(0, int(asked.bootstrap.split(":")[1]))}

    monkeypatch.setattr(server, "spans", spans)
    sources = server.Sources([topology], site.url, broker)
    assert await server._ends(sources.broker, topology) == Ends({}, {}, server._NO_ENDS)
    for port in (1_001, 1_002):
        running[0] = KafkaConnection(f"127.0.0.1:{port}", embedded=True)
        assert await server._ends(sources.broker, topology) == Ends({P0: Span(0, port)}, {})
    assert left == 3
    without = server.Sources([topology], site.url)
    assert (await server._ends(without.broker, topology)).problem == server._NO_ENDS


class Lake:
    """A store that is away, or has one object of rejects."""

    def __init__(self) -> None:
        self.away = True
        self.opened = 0

    async def open(self) -> None:
        self.opened += 1
        if self.away:
            raise DependencyError("the lake", "is away")

    async def get(self, key: str) -> bytes:
        assert not self.away
        body = io.BytesIO()
        row = {"reason": "too_old", "original": b"{}", "field": "", "detail": "", "position": 7}
        pl.DataFrame([{**row, "source_partition": "0"}]).write_parquet(body)
        return body.getvalue()


async def test_a_lake_that_was_away_at_the_start_is_opened_when_it_is_back(topology: Topology) -> None:
    now, lake = datetime.now(UTC), Lake()
    asked: list[tuple[str, int, int, datetime]] = []

    async def ask(_: Question) -> Answer:
        return Answer(["key", "rows", "size", "committed_at"], list(asked))

    rejects = RejectReader(topology.name, cast(Reader, SimpleNamespace(ask=ask)), cast(ObjectStore, lake))
    assert not (await rejects.look()).reasons
    assert lake.opened == 0, "without rejects there is nothing to fetch"
    asked.append(("rejects/1.parquet", 1, 1_000, now))
    with pytest.raises(DependencyError, match="is away"):
        await rejects.look()
    lake.away = False
    for _ in range(2):
        assert [(reason, count) for reason, count, _ in (await rejects.look()).reasons] == [("too_old", 1)]
    assert lake.opened == 2


async def test_rejects_in_objects_too_large_to_be_read_are_told(topology: Topology) -> None:
    large = ("rejects/merged.parquet", 3_600_000, LARGEST + 1, datetime.now(UTC))
    asked = [large]

    async def ask(_: Question) -> Answer:
        return Answer(["key", "rows", "size", "committed_at"], list(asked))

    lake = Lake()
    lake.away = False
    rejects = RejectReader(topology.name, cast(Reader, SimpleNamespace(ask=ask)), cast(ObjectStore, lake))
    card = cards.rejects(Seen(await rejects.look(), None, None))
    assert "3,600,000 more are in objects too large" in card and "None" not in card
    asked.append(("rejects/1.parquet", 1, 1_000, datetime.now(UTC)))
    card = cards.rejects(Seen(await rejects.look(), None, None))
    assert "too_old" in card and "3,600,000 more are in objects too large" in card


def binned(commits: Sequence[tuple[datetime, int]], now: datetime) -> list[Bin]:
    """Those of the last 15 minutes, (time, records), in tens of seconds."""
    bins: dict[datetime, Bin] = {}
    for time, records in commits:
        if now - timedelta(minutes=15) <= time <= now:
            start = time.replace(second=time.second // 10 * 10, microsecond=0)
            before = bins[start].accepted if start in bins else 0
            bins[start] = Bin(start, before + records, 0, 0, 0, 0.0, time)
    return list(bins.values())


@pytest.mark.parametrize("every", [0.5, 3, 7, 10, 15, 25, 45, 60, 61, 150, 400])
def test_the_rate_is_right_however_often_an_epoch_is_committed(every: float) -> None:
    begin = datetime(2026, 6, 1, 12, tzinfo=UTC)
    commits = [
        (begin + timedelta(seconds=n * every), round(1_000 * every)) for n in range(round(3_600 / every))
    ]
    for second in range(2_000, 2_000 + 2 * round(every) + 10):
        now = begin + timedelta(seconds=second + 0.25)
        assert rate(binned(commits, now), now) == pytest.approx(1_000, rel=0.001)


def test_a_stream_that_stands_still_has_no_rate_and_one_that_begins_an_unknown_one() -> None:
    now = datetime(2026, 6, 1, 12, 0, 5, tzinfo=UTC)
    commits = [(now - timedelta(seconds=second), 5_000) for second in range(300, 90, -5)]
    assert rate(binned(commits, now), now) == 0
    assert rate([], now) == 0
    assert rate(binned([(now, 5_000)], now), now) is None


def test_bars_of_throughput_have_no_gaps_between_them_up_to_now() -> None:
    now = datetime(2026, 6, 1, 12, 0, 7, tzinfo=UTC)
    first, last = now.replace(second=0) - 8 * BIN, now.replace(second=0) - 2 * BIN
    drawn = charts.throughput([Bin(first, 10, 0, 0, 0, 1.0, first), Bin(last, 20, 0, 0, 0, 1.0, last)], now)
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
