"""Tables computed anew from the lake; the oracle is what was made of the same events, none of them late."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from streamproc.errors import ConfigError, Inconsistent
from streamproc.generator import Generator
from streamproc.ledger import Ledger
from streamproc.ledger.logs import Logs
from streamproc.ledger.retention import expire_objects
from streamproc.log_objects import Period
from streamproc.runtimes.spark.history import Done, History, Sizes
from streamproc.runtimes.spark.lake_reading import LakeWork
from streamproc.runtimes.spark.reading import LogWork
from streamproc.runtimes.spark.rebuild import Rebuild, Rebuilt
from streamproc.runtimes.spark.setup import Setup
from streamproc.sinks.object_store import StoreSettings
from streamproc.sinks.summaries import Summaries
from streamproc.sources.log_store import LogConnection
from streamproc.sources.logs import open_log_store
from streamproc.topic_pages import load_page
from streamproc.topology import DAY, HOUR, Topology
from tests.e2e.harness import REPOSITORY
from tests.emr.comparing import assert_same_rows, rows_of
from tests.emr.inline import Inline, InlineStage

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]


class World:
    """A place of logs, a lake and a ledger, with the shipped page but that no event is ever late.

    ``kept``: how long the lake keeps events, in the words of a page.
    """

    def __init__(self, directory: Path, ledger: str, kept: str = "forever") -> None:
        self.ledger = ledger
        self.pages = directory / "topics"
        self.pages.mkdir()
        page = (REPOSITORY / "topics" / "clickstream.toml").read_text()
        page = re.sub(r"(?m)^(retention|lateness) = .*\n", "", page)
        page = re.sub(r"(?m)^window = .*$", r'\g<0>\nlateness = "30d"', page)
        page = page.replace("[retention]\n", f'[retention]\nevents = "{kept}"\n')
        (self.pages / "clickstream.toml").write_text(page)
        self.page: Topology = load_page(self.pages / "clickstream.toml")
        self.windowed = [table.name for table in self.page.tables if table.window.kind != "session"]
        self.folder = directory / "logs"
        self.folder.mkdir()
        records = Generator(seed=5, events=6_000).records()
        self.lines = [record.value for record in records if record.value and b"\n" not in record.value]
        self.setup = Setup(
            topics=self.pages,
            stream="clickstream",
            fingerprint=self.page.fingerprint,
            visitor_key=b"",
            logs=LogConnection(self.folder.as_uri()),
            lake=(directory / "lake").as_uri(),
            store=StoreSettings(durable=False),
            buckets=3,
            batch_records=2_000,
        )

    def add(self, name: str, lines: Sequence[bytes]) -> None:
        (self.folder / name).write_bytes(b"\n".join(lines) + b"\n")

    async def read(self) -> Done:
        store = open_log_store(self.setup.logs)
        async with Ledger(self.ledger, "clickstream", "job") as ledger:
            await ledger.migrate()
            async with ledger.database.connection("create the tables") as conn:
                await Summaries(self.page.tables, "clickstream").ensure(conn)
            logs = Logs(ledger.database, "clickstream", str(self.setup.logs), "job", 30.0)
            history = History(self.setup, ledger, logs, Inline())
            return await history.run(store, Period(), Sizes(), lambda day, done: None)

    async def rebuild(
        self, engine: Any, tables: Sequence[str] | None = None, begin: int | None = None
    ) -> Rebuilt:
        with psycopg.connect(self.ledger) as db:
            query = "SELECT min(min_time_us), max(max_time_us) FROM streamproc.objects WHERE kind = 'events'"
            [(first, last)] = db.execute(query).fetchall()
        async with Ledger(self.ledger, "clickstream", "job") as ledger:
            rebuild = Rebuild(self.setup, ledger, engine)
            first, end = (first // DAY - 1) * DAY if begin is None else begin, (last // DAY + 1) * DAY
            return await rebuild.run(tables or self.windowed, first, end, 20_000, lambda what, done: None)

    def spoil(self) -> None:
        """Rows go, rows are wrong, rows are there that should not be."""
        with psycopg.connect(self.ledger) as db:
            for name in self.windowed:
                table, state = (sql.Identifier("clickstream", each) for each in (name, f"{name}__state"))
                db.execute(sql.SQL("DELETE FROM {} WHERE ctid::text ~ '[05]\\)$'").format(table))
                db.execute(sql.SQL("DELETE FROM {} WHERE ctid::text ~ '[37]\\)$'").format(state))
            db.execute("UPDATE clickstream.page_views SET views = views + 1000, path = path || '/wrong'")

    def rows(self) -> Any:
        return rows_of(self.ledger, self.page)


@pytest.fixture
def world(tmp_path: Path, postgres: str) -> World:
    made = World(tmp_path, postgres)
    for number in range(3):
        made.add(f"{number}.ndjson", made.lines[number:5000:3])
    return made


async def test_spoiled_tables_are_again_what_the_service_made_and_stay_it(world: World) -> None:
    done = await world.read()
    assert sum(done.late.values()) == 0
    right = world.rows()
    world.spoil()
    assert world.rows() != right
    engine = Inline()
    rebuilt = await world.rebuild(engine)
    assert max(engine.tasks) > 1
    assert rebuilt.rows == sum(len(right[name]) for name in world.windowed) > 500
    assert_same_rows(right, world.rows(), world.page)
    again = world.rows()
    await world.rebuild(Inline())
    assert_same_rows(again, world.rows(), world.page)


async def test_events_that_come_later_add_to_rows_that_were_rebuilt(
    world: World, tmp_path: Path, other_postgres: str
) -> None:
    """Their states are rebuilt too: sketches go on from what the lake has."""
    await world.read()
    world.spoil()
    await world.rebuild(Inline())
    world.add("more.ndjson", world.lines[5000:])
    await world.read()
    other = tmp_path / "other"
    other.mkdir()
    whole = World(other, other_postgres)
    for file in world.folder.iterdir():
        (whole.folder / file.name).write_bytes(file.read_bytes())
    await whole.read()
    assert_same_rows(whole.rows(), world.rows(), world.page)


class Meanwhile(Inline):
    """While the lake is read, something else happens: so many times."""

    def __init__(self, happens: Callable[[], object], times: int) -> None:
        super().__init__()
        self.happens = happens
        self.left = times

    def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> InlineStage:
        stage = super().read(setup, tasks)
        if self.left:
            self.left -= 1
            self.happens()
        return stage


async def test_a_date_that_gets_events_while_it_is_read_is_read_again(world: World) -> None:
    await world.read()

    def more() -> None:
        world.add("more.ndjson", world.lines[5000:])
        asyncio.run(world.read())

    await world.rebuild(Meanwhile(more, 1))
    found = world.rows()
    assert sum(row["events"] for row in found["audience"].values()) == await accepted(world)
    await world.rebuild(Inline())
    assert_same_rows(found, world.rows(), world.page)


async def accepted(world: World) -> int:
    async with Ledger(world.ledger, "clickstream", "job") as ledger:
        return sum(each.counts.accepted for each in await ledger.status())


async def test_a_date_that_never_stands_still_is_given_up_and_left_as_it_is(world: World) -> None:
    await world.read()
    number = 0

    def more() -> None:
        nonlocal number
        number += 1
        world.add(f"more-{number}.ndjson", world.lines[5000 + number :: 7])
        asyncio.run(world.read())

    with pytest.raises(Inconsistent, match="all the time"):
        await world.rebuild(Meanwhile(more, 9))
    found = world.rows()
    assert sum(row["events"] for row in found["audience"].values()) == await accepted(world)


async def test_sessions_and_unknown_tables_are_refused(world: World) -> None:
    await world.read()
    with pytest.raises(ConfigError, match="know no midnight"):
        await world.rebuild(Inline(), ["sessions"])
    with pytest.raises(ConfigError, match="is no table of clickstream"):
        await world.rebuild(Inline(), ["nothing"])


async def test_rows_of_a_date_whose_events_the_lake_has_no_more_stay(world: World) -> None:
    await world.read()
    right = world.rows()
    async with Ledger(world.ledger, "clickstream", "job") as ledger:
        assert await expire_objects(ledger.database, "clickstream", "events", 10**18)
    with pytest.raises(ConfigError, match="has rows, and the lake has no events to compute them from"):
        await world.rebuild(Inline())
    assert_same_rows(right, world.rows(), world.page)


async def test_dates_of_which_the_lake_keeps_a_part_are_refused(tmp_path: Path, postgres: str) -> None:
    world = World(tmp_path, postgres, kept="1d")
    world.add("all.ndjson", world.lines)
    await world.read()
    right = world.rows()
    with psycopg.connect(postgres) as db:
        [(newest,)] = db.execute("SELECT max(clock_us) FROM streamproc.partitions").fetchall()
    oldest = datetime.fromtimestamp(newest / 1_000_000, UTC) - timedelta(days=1, seconds=30)
    whole = datetime(oldest.year, oldest.month, oldest.day, tzinfo=UTC) + timedelta(days=1)
    with pytest.raises(ConfigError, match=f"Begin with {whole:%Y-%m-%d}, or later"):
        await world.rebuild(Inline())
    assert_same_rows(right, world.rows(), world.page)
    await world.rebuild(Inline(), begin=int(whole.timestamp()) * 1_000_000)
    assert_same_rows(right, world.rows(), world.page)


async def test_a_date_of_which_an_earlier_retention_has_left_a_part_is_refused(world: World) -> None:
    """The page of now keeps everything."""
    await world.read()
    right = world.rows()
    with psycopg.connect(world.ledger) as db:
        [(newest,)] = db.execute("SELECT max(clock_us) FROM streamproc.partitions").fetchall()
    async with Ledger(world.ledger, "clickstream", "job") as ledger:
        assert await expire_objects(ledger.database, "clickstream", "events", newest - HOUR)
    after = datetime.fromtimestamp(newest / 1_000_000, UTC).date() + timedelta(days=1)
    with pytest.raises(ConfigError, match=rf"all events from before {after} .*Begin with {after}, or later"):
        await world.rebuild(Inline())
    assert_same_rows(right, world.rows(), world.page)


async def test_a_stream_without_a_lake_has_nothing_to_rebuild_from(world: World, tmp_path: Path) -> None:
    pages = tmp_path / "without"
    pages.mkdir()
    (pages / "bare.toml").write_text(
        '[stream]\nname = "bare"\n'
        '[contract.fields]\nat = { type = "integer", required = true }\n'
        '[contract.event_time]\nfield = "at"\n'
        '[tables.hits]\nwindow = { kind = "tumbling", size = "1m" }\nmeasures.hits = { kind = "count" }\n'
        "[sinks]\nlake = false\nwarehouse = false\n"
    )
    page = load_page(pages / "bare.toml")
    setup = replace(world.setup, topics=pages, stream="bare", fingerprint=page.fingerprint)
    async with Ledger(world.ledger, "bare", "job") as ledger:
        await ledger.migrate()
        with pytest.raises(ConfigError, match=r"sinks\.lake: is false"):
            await Rebuild(setup, ledger, Inline()).run(["hits"], 0, DAY, 20_000, lambda what, done: None)
