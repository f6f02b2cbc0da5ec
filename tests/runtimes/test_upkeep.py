"""What the periodic work decides: which event time says that rows have expired."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.model import Advance, Counts, Partition
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.expiry import expire_events, without_broker
from streamproc.runtimes.upkeep import Upkeep
from streamproc.settings import read_settings
from streamproc.sinks.object_store import open_store
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.log_store import LogConnection
from streamproc.topic_pages import load_page
from streamproc.topology import DAY, HOUR, Retention
from tests.e2e.harness import REPOSITORY
from tests.ledger.epochs import nothing, planned, record, written

PLACE = "file:///var/log/nginx"
MINUTE = 60_000_000


class Told:
    """Summaries that note what they are told to expire."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, bool]] = []

    async def expire(self, _: Any, name: str, watermark_us: int, *, reopening: bool = False) -> int:
        self.calls.append((name, watermark_us, reopening))
        return 0


@pytest.mark.parametrize("clocks", [[], [None], [7 * MINUTE, 90 * MINUTE, None, 8 * MINUTE]])
async def test_the_newest_event_of_all_logs_says_what_is_beyond_retention(
    postgres: str, clocks: list[int | None]
) -> None:
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    told: Any = Told()
    async with Ledger(postgres, page.name, "w") as ledger:
        await ledger.migrate()
        with psycopg.connect(postgres, autocommit=True) as db:
            for number, clock in enumerate([*clocks, 999 * MINUTE]):
                source = PLACE if number < len(clocks) else "weblogs"  # a topic that was read before
                db.execute(
                    "INSERT INTO streamproc.partitions"
                    " (stream, source, partition, fence, token, clock_us, records, accepted, filtered, rejected,"
                    " duplicate, claimed_at, updated_at)"
                    " VALUES (%s, %s, %s, 1, gen_random_uuid(), %s, 0, 0, 0, 0, 0, now(), now())",
                    [page.name, source, str(number), clock],
                )
        endpoints = Endpoints(read_settings(environ={}), broker=LogConnection(PLACE))
        await Upkeep(page, ledger, None, told, endpoints).expire()
    newest = max((clock for clock in clocks if clock is not None), default=None)
    assert told.calls == [
        (table.name, newest - 5 * MINUTE, True) for table in page.tables if newest is not None
    ]


@pytest.mark.parametrize("behind", ["7", "2"])
async def test_a_partition_that_the_topic_has_no_more_holds_nothing_back(
    ledger: Ledger, kafka: KafkaConnection, topic: str, behind: str
) -> None:
    """The topic has four: number 7 is of one before it, and number 2 may only be idle."""
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    page = replace(page, name=ledger.stream, topic=replace(page.topic, name=topic))
    new, old = 30 * DAY, 2 * DAY
    for number, clock in (("0", new), ("1", new + MINUTE), (behind, old)):
        claims = await ledger.claim([partition := Partition(topic, number)])
        await ledger.commit(record(Advance(claims[partition], None, 1, clock, Counts(1, 1))), nothing)
    told: Any = Told()
    upkeep = Upkeep(page, ledger, None, told, Endpoints(read_settings(environ={}), broker=kafka))
    with capture_logs() as logs:
        await upkeep.expire()
        await upkeep.expire()
    watermark = (new if behind == "7" else old) - page.contract.event_time.disorder
    assert told.calls == 2 * [(table.name, watermark, False) for table in page.tables]
    said = [entry["partitions"] for entry in logs if entry["event"] == "not_expiring"]
    assert said == ([] if behind == "7" else [[f"{topic}/2"]])


async def test_where_one_worker_deletes_rows_another_has_nothing_to_do(ledger: Ledger, postgres: str) -> None:
    page = replace(load_page(REPOSITORY / "topics" / "weblogs.toml"), name=ledger.stream)
    claims = await ledger.claim([partition := Partition(PLACE, "log")])
    await ledger.commit(record(Advance(claims[partition], None, 1, DAY, Counts(1, 1))), nothing)
    endpoints = Endpoints(read_settings(environ={}), broker=LogConnection(PLACE))
    second: Any = Told()
    async with Ledger(postgres, page.name, "w2") as rival:
        other = Upkeep(page, rival, None, second, endpoints)

        class Meanwhile(Told):
            async def expire(self, *told: Any, **how: Any) -> int:
                await other.expire()
                return await super().expire(*told, **how)

        first: Any = Meanwhile()
        await Upkeep(page, ledger, None, first, endpoints).expire()
        assert (len(first.calls), second.calls) == (len(page.tables), [])
        await other.expire()
    assert second.calls == first.calls


@pytest.mark.parametrize("events", [None, "enriched"])
@pytest.mark.parametrize("tables", [None, "changes"])
async def test_what_the_page_publishes_no_more_is_noted_for_a_day(
    ledger: Ledger, postgres: str, events: str | None, tables: str | None
) -> None:
    """A worker with a newer page, or one with an older, may still publish it. Other streams have pages of their own."""
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    sinks = replace(page.sinks, publish_events=events, publish_tables=tables)
    page = replace(page, name=ledger.stream, sinks=sinks, retention=Retention(history=None))
    notes = [
        (stream, kind, hours)
        for stream in (ledger.stream, f"{ledger.stream}_replayed")
        for kind in ("events", "rows")
        for hours in (1, 25)
    ]
    nobody: Any = None
    endpoints = Endpoints(read_settings(environ={}), broker=LogConnection(PLACE))
    with psycopg.connect(postgres, autocommit=True) as db:
        for stream, kind, hours in notes:
            db.execute(
                "INSERT INTO streamproc.outbox (stream, epoch, kind, payload, created_at)"
                " VALUES (%s, gen_random_uuid(), %s, %s, clock_timestamp() - make_interval(hours => %s))",
                [stream, kind, str(hours).encode(), hours],
            )
        with capture_logs() as logs:
            await Upkeep(page, ledger, nobody, nobody, endpoints).retain()
        rows = db.execute("SELECT stream, kind, convert_from(payload, 'UTF8')::int FROM streamproc.outbox")
        left = rows.fetchall()
    gone = [kind for kind, topic in (("events", events), ("rows", tables)) if topic is None]
    assert sorted(left) == sorted(set(notes) - {(ledger.stream, kind, 25) for kind in gone})
    said = [(entry["kinds"], entry["notes"]) for entry in logs if entry["event"] == "not_published"]
    assert said == ([(gone, len(gone))] if gone else [])


async def test_rows_of_a_table_that_the_page_has_no_more_are_noted_for_a_day(
    ledger: Ledger, postgres: str
) -> None:
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    sinks = replace(page.sinks, publish_events="enriched", publish_tables="changes")
    page = replace(page, name=ledger.stream, sinks=sinks, retention=Retention(history=None))
    notes = [(table, hours) for table in (page.tables[0].name, "removed") for hours in (1, 25)]
    nobody: Any = None
    endpoints = Endpoints(read_settings(environ={}), broker=LogConnection(PLACE))
    with psycopg.connect(postgres, autocommit=True) as db:
        for table, hours in notes:
            db.execute(
                "INSERT INTO streamproc.outbox (stream, epoch, kind, table_name, payload, created_at)"
                " VALUES (%s, gen_random_uuid(), 'rows', %s, %s, clock_timestamp() - make_interval(hours => %s))",
                [ledger.stream, table, str(hours).encode(), hours],
            )
        await Upkeep(page, ledger, nobody, nobody, endpoints).retain()
        left = db.execute(
            "SELECT table_name, convert_from(payload, 'UTF8')::int FROM streamproc.outbox"
        ).fetchall()
    assert sorted(left) == sorted(set(notes) - {("removed", 25)})


class Started(Upkeep):
    """Notes the periodic work that would begin."""

    names: list[str]

    async def _every(self, seconds: float, name: str, work: Any) -> None:
        self.names.append(name)


@pytest.mark.parametrize(
    ("sweep", "expected"), [("on", ["expire", "retain", "sweep"]), ("off", ["expire", "retain"])]
)
async def test_workers_sweep_unless_another_has_the_right_to_delete(sweep: str, expected: list[str]) -> None:
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    settings = read_settings(environ={"STREAMPROC_SWEEP": sweep})
    parts: Any = object()
    upkeep = Started(page, parts, parts, parts, Endpoints(settings, broker=LogConnection(PLACE)))
    upkeep.names = []
    await upkeep.run()
    assert sorted(upkeep.names) == expected


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_objects_and_history_go_as_the_page_says(postgres: str, elsewhere: bool) -> None:
    """``elsewhere``: of a warehouse that this worker does not know, nobody here can say what it still has to load."""
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    page = replace(page, retention=Retention(events=HOUR, rejects=None, history=1))
    page = replace(page, sinks=replace(page.sinks, warehouse=elsewhere))
    told: Any = Told()
    partition = Partition(PLACE, "log")
    async with Ledger(postgres, page.name, "w") as ledger:
        await ledger.migrate()
        claims = await ledger.claim([partition])
        keys = []
        for through in (1, 2):  # an hour and ten minutes of event time apart
            part = Advance(claims[partition], None, through, through * 70 * MINUTE, Counts(1, 1))
            part = replace(part, after=claims[partition].position)
            epoch = record(part, objects=written(planned(part)))
            await ledger.intend(epoch.id, [each.plan for each in epoch.objects], claims)
            claims |= (await ledger.commit(epoch, nothing)).claims
            keys.append(epoch.objects[0].plan.key)
        endpoints = Endpoints(read_settings(environ={}), broker=LogConnection(PLACE))
        await Upkeep(page, ledger, None, told, endpoints).retain()
        assert [each.plan.key async for each in ledger.manifest()] == keys[0 if elsewhere else 1 :]
        assert await ledger.epochs() == []
        assert (await ledger.status())[0].counts.accepted == 2


@pytest.mark.parametrize("source", [PLACE, "clickstream"])
async def test_events_from_a_year_ahead_let_nothing_go_that_is_kept_until_then(
    ledger: Ledger, source: str
) -> None:
    """Of a machine whose clock is wrong: on a topic with its producers' timestamps nobody can tell, nor of its logs."""
    name = "weblogs" if source == PLACE else "clickstream"
    page = replace(load_page(REPOSITORY / "topics" / f"{name}.toml"), name=ledger.stream)

    async def now() -> int:
        return int((await ledger.now()).timestamp() * 1_000_000)

    claims = await ledger.claim([partition := Partition(source, "0")])
    part = Advance(claims[partition], None, 1, await now() + 365 * DAY, Counts(2, 2))
    await ledger.commit(record(part), nothing)
    told: Any = Told()
    broker = LogConnection(PLACE) if source == PLACE else KafkaConnection("nobody:9092")
    before = await now()
    await Upkeep(page, ledger, None, told, Endpoints(read_settings(environ={}), broker=broker)).expire()
    loader = await without_broker(ledger, page)
    after = await now()
    disorder = page.contract.event_time.disorder
    assert len(told.calls) == len(page.tables)
    assert all(before <= watermark + disorder <= after for _, watermark, _ in told.calls)
    assert loader is not None and before <= loader <= after


async def test_events_of_long_ago_stay_while_a_second_one_would_be_a_duplicate(ledger: Ledger) -> None:
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    page = replace(page, name=ledger.stream, retention=Retention(events=HOUR, rejects=None))
    assert page.contract.duplicates is not None and page.contract.duplicates.horizon == 10 * MINUTE
    claims = await ledger.claim([partition := Partition("clickstream", "0")])
    part = Advance(claims[partition], None, 1, 30 * DAY, Counts(2, 2))
    plan = replace(planned(part), min_time_us=DAY, max_time_us=DAY)
    epoch = record(part, objects=written(plan))
    await ledger.intend(epoch.id, [plan], claims)
    await ledger.commit(epoch, nothing)
    assert await expire_events(ledger, page, 30 * DAY + 10 * MINUTE, None) == 0
    assert await expire_events(ledger, page, 30 * DAY + 10 * MINUTE + 1, None) == 1


async def test_history_goes_while_the_warehouse_is_away(ledger: Ledger) -> None:
    """Only what it may still want stays: a ledger that grew for weeks would be a second outage."""
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    page = replace(page, name="clicks", retention=Retention(events=HOUR, rejects=None, history=1))
    claims = await ledger.claim([partition := Partition(PLACE, "log")])
    part = Advance(claims[partition], None, 1, 70 * MINUTE, Counts(1, 1))
    await ledger.commit(record(part), nothing)
    nobody: Any = None
    endpoints = Endpoints(read_settings(environ={}), broker=LogConnection(PLACE))
    upkeep = Upkeep(page, ledger, nobody, nobody, endpoints)

    async def away() -> int:
        raise DependencyError("warehouse", "is away")

    upkeep._warehouse, upkeep._clock = Told(), away  # type: ignore[assignment, method-assign]
    with pytest.raises(DependencyError, match="is away"):
        await upkeep.retain()
    assert await ledger.epochs() == []


@pytest.mark.parametrize(
    ("lake", "asked", "loads", "warehouse", "compacts"),
    [
        (True, True, True, "postgresql://streamproc@127.0.0.1:1/nobody", True),
        (True, True, False, None, True),
        (True, True, True, None, False),  # a loader elsewhere would load the rows again
        (True, False, False, None, False),
        (False, True, False, None, False),
    ],
)
async def test_small_objects_are_merged_where_asked_for_and_the_warehouse_is_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lake: bool,
    asked: bool,
    loads: bool,
    warehouse: str | None,
    compacts: bool,
) -> None:
    page = load_page(REPOSITORY / "topics" / "clickstream.toml")
    page = replace(page, sinks=replace(page.sinks, compact=asked, warehouse=loads))
    endpoints = Endpoints(
        read_settings(environ={"STREAMPROC_COMPACT_EVERY": "3s", "STREAMPROC_SWEEP": "off"}),
        warehouse=warehouse,
        broker=LogConnection(PLACE),
    )
    nobody: Any = None
    upkeep = Upkeep(page, nobody, open_store(tmp_path.as_uri()) if lake else None, nobody, endpoints)
    turns: dict[str, float] = {}

    async def every(seconds: float, name: str, work: object) -> None:
        turns[name] = seconds

    monkeypatch.setattr(upkeep, "_every", every)
    await upkeep.run()
    assert turns.get("compact") == (3.0 if compacts else None)
