"""A job's driver on a real ledger, its stages in this process; the oracle is the service on the same logs."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from streamproc.errors import Fenced, Inconsistent
from streamproc.generator import Generator
from streamproc.ledger import Ledger
from streamproc.ledger.erasures import Erasures
from streamproc.ledger.logs import Logs
from streamproc.log_objects import Period
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.history import Done, History, Sizes
from streamproc.runtimes.spark.lake_reading import LakeWork
from streamproc.runtimes.spark.putting import Keys
from streamproc.runtimes.spark.reading import LogWork
from streamproc.runtimes.spark.setup import Setup
from streamproc.sinks.object_store import StoreSettings
from streamproc.sinks.summaries import Summaries
from streamproc.sources.log_store import LogConnection
from streamproc.sources.logs import open_log_store
from streamproc.topic_pages import load_page
from streamproc.transform.erased import visitor_hash
from tests.e2e.harness import REPOSITORY, Site, settled_files
from tests.emr.comparing import assert_same_tables, fates, lake_rows, rows_of
from tests.emr.inline import Inline, InlineStage

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]

CLICKS = load_page(REPOSITORY / "topics" / "clickstream.toml")
DAYS = (datetime(2026, 7, 1, 12, tzinfo=UTC), datetime(2026, 7, 2, 12, tzinfo=UTC))


def site_at(directory: Path, ledger: str) -> Site:
    directory.mkdir()
    pages = directory / "topics"
    pages.mkdir()
    (pages / "clickstream.toml").write_text((REPOSITORY / "topics" / "clickstream.toml").read_text())
    return Site(directory, "", "embedded:", ledger, pages)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Invented visitors' events, duplicates, late and broken ones, dealt out to five logs of two days."""
    made = tmp_path / "logs"
    made.mkdir()
    records = Generator(seed=11, events=12_000, bad_ratio=0.02).records()
    lines = [record.value for record in records if record.value and b"\n" not in record.value]
    for number in range(5):
        file = made / f"{number}.ndjson"
        file.write_bytes(b"\n".join(lines[number::5]) + b"\n")
        changed = DAYS[number % 2].timestamp()
        os.utime(file, (changed, changed))
    return made


def setup_of(site: Site, folder: Path, slots: int) -> Setup:
    return Setup(
        topics=site.topics,
        stream="clickstream",
        fingerprint=CLICKS.fingerprint,
        visitor_key=b"",
        logs=LogConnection(folder.as_uri()),
        lake=site.lake.as_uri(),
        store=StoreSettings(durable=False),
        buckets=slots,
        batch_records=2_000,
    )


async def run(
    site: Site,
    folder: Path,
    engine: Any,
    sizes: Sizes | None = None,
    period: Period | None = None,
    lease: float = 30.0,
) -> Done:
    setup = setup_of(site, folder, engine.slots)
    store = open_log_store(setup.logs)
    async with Ledger(site.ledger, "clickstream", "job") as ledger:
        await ledger.migrate()
        async with ledger.database.connection("create the tables") as conn:
            await Summaries(CLICKS.tables, "clickstream").ensure(conn)
        logs = Logs(ledger.database, "clickstream", str(setup.logs), "job", lease)
        history = History(setup, ledger, logs, engine)
        return await history.run(store, period or Period(), sizes or Sizes(), lambda day, done: None)


def backfilled(site: Site, folder: Path) -> None:
    report = json.loads(site.run("backfill", folder.as_uri(), "--json", patience=300).stdout)
    assert report["complete"] and report["duplicate"] > 0 and report["rejected"] > 0


async def test_generated_events_give_the_stream_s_tables_however_they_are_cut(
    tmp_path: Path, postgres: str, other_postgres: str, folder: Path
) -> None:
    stream, batch = site_at(tmp_path / "stream", postgres), site_at(tmp_path / "batch", other_postgres)
    backfilled(stream, folder)
    engine = Inline()
    done = await run(batch, folder, engine, Sizes(epoch_bytes=1, task_bytes=1))
    assert (done.epochs, done.logs, engine.tasks) == (5, 5, [1] * 5)
    assert assert_same_tables(postgres, other_postgres, CLICKS) > 500
    assert fates(postgres) == fates(other_postgres)
    assert sum(done.late.values()) > 0
    assert lake_rows(stream) == lake_rows(batch)


async def test_an_event_that_is_too_old_for_its_log_is_a_reject_of_worker_and_job(
    tmp_path: Path, postgres: str, other_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, batch = site_at(tmp_path / "stream", postgres), site_at(tmp_path / "batch", other_postgres)
    for site in (stream, batch):
        page = site.topics / "clickstream.toml"
        text = page.read_text().replace('disorder = "30s"', 'disorder = "30s"\nmax_age = "30d"')
        page.write_text(text)
    monkeypatch.setattr("tests.emr.test_history.CLICKS", load_page(page))
    folder = tmp_path / "logs"
    folder.mkdir()
    changed = DAYS[0].timestamp()
    event = {"event_type": "page_view", "visitor_id": "v", "page_url": "http://x/"}
    with (folder / "0.ndjson").open("w") as file:
        for number, age in enumerate((30 * 86_400, 30 * 86_400 + 1)):
            told = {"event_id": f"e{number}", "event_time": int(changed - age) * 1_000, **event}
            file.write(json.dumps(told) + "\n")
    os.utime(folder / "0.ndjson", (changed, changed))
    report = json.loads(stream.run("backfill", folder.as_uri(), "--json", patience=300).stdout)
    done = await run(batch, folder, Inline())
    assert (report["records"], report["rejected"]) == (2, 1)
    assert (done.counts.records, done.counts.rejected) == (2, 1)


async def test_each_day_is_a_commit_and_a_day_that_is_done_is_not_read_again(
    tmp_path: Path, postgres: str, other_postgres: str, folder: Path
) -> None:
    stream, batch = site_at(tmp_path / "stream", postgres), site_at(tmp_path / "batch", other_postgres)
    backfilled(stream, folder)
    middle = int(datetime(2026, 7, 2, tzinfo=UTC).timestamp() * 1000)
    engine = Inline(slots=2)
    first = await run(batch, folder, engine, period=Period(None, middle))
    assert (first.epochs, first.logs) == (1, 3)
    rest = await run(batch, folder, engine)
    assert (rest.epochs, rest.logs) == (1, 2)
    assert_same_tables(postgres, other_postgres, CLICKS)
    assert fates(postgres) == fates(other_postgres)
    before = rows_of(other_postgres, CLICKS)
    assert (await run(batch, folder, engine)).logs == 0
    assert rows_of(other_postgres, CLICKS) == before


async def test_what_a_job_has_taken_that_was_killed_a_moment_ago_is_read_when_its_leases_have_expired(
    tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YARN starts a driver again that died: the second one ended well, and a day was missing."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for number, day in enumerate(DAYS):
        told = {
            "event_id": f"e{number}",
            "event_time": int(day.timestamp()) * 1_000,
            "event_type": "page_view",
        }
        file = folder / f"{number}.ndjson"
        file.write_text(json.dumps({**told, "visitor_id": "v", "page_url": "http://x/"}) + "\n")
        os.utime(file, (day.timestamp(), day.timestamp()))
    site = site_at(tmp_path / "site", postgres)
    connection = LogConnection(folder.as_uri())
    async with Ledger(postgres, "clickstream", "killed") as ledger:
        await ledger.migrate()
        killed = Logs(ledger.database, "clickstream", str(connection), "killed", 3_600.0)
        async for entries in open_log_store(connection).listing():
            await killed.found(entries)
        first = int(DAYS[0].timestamp() * 1_000)
        assert len(await killed.take(10, Period(first, first + 1))) == 1

        totals = Logs.totals

        async def expired(logs: Logs, period: Period) -> Any:
            async with ledger.database.connection("let time pass") as conn:
                await conn.execute(
                    "UPDATE streamproc.logs SET expires_at = clock_timestamp() WHERE holder LIKE 'killed/%'"
                )
            return await totals(logs, period)

        monkeypatch.setattr(Logs, "totals", expired)
        done = await run(site, folder, Inline(), lease=0.3)
        assert (done.epochs, done.logs, done.counts.records) == (2, 2, 2)


async def test_a_visitor_who_asked_to_be_forgotten_is_not_read_again(
    tmp_path: Path, postgres: str, folder: Path
) -> None:
    batch = site_at(tmp_path / "batch", postgres)
    lines = (folder / "0.ndjson").read_bytes().splitlines()[:50]
    visitor = next(
        found[1] for line in lines if (found := re.search(r'"visitor_id": ?"([^"]+)"', line.decode()))
    )
    async with Ledger(postgres, "clickstream", "operator") as ledger:
        await ledger.migrate()
        erasures = Erasures(ledger.database, "clickstream")
        await erasures.note([visitor_hash(visitor, await erasures.key())], "operator")
    await run(batch, folder, Inline())
    with psycopg.connect(postgres) as db:
        files = [str(file) for file in settled_files(db, batch.lake)]
        [(sessions,)] = db.execute(
            "SELECT count(*) FROM clickstream.sessions WHERE visitor_id = %s", [visitor]
        )
    query = "SELECT count(*), count(*) FILTER (visitor_id = ?) FROM read_parquet(?)"
    row = duckdb.execute(query, [visitor, files]).fetchone()
    assert row is not None
    assert row[0] > 1_000
    assert (row[1], sessions) == (0, 0)


class Fails(Inline):
    """Fails in one of its calls, as an executor, the store or the driver would."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> InlineStage:
        stage = super().read(setup, tasks)
        kept = getattr(stage, self.at)

        def fail(*arguments: Any) -> Any:
            kept(*arguments)  # what it does is done: the failure comes behind it
            raise OSError("the machine is gone")

        setattr(stage, self.at, fail)
        return stage


@pytest.mark.parametrize("at", ["told", "united", "put"])
async def test_a_job_that_failed_has_done_nothing_and_the_next_does_it_all(
    tmp_path: Path, postgres: str, other_postgres: str, folder: Path, at: str
) -> None:
    broken, whole = site_at(tmp_path / "broken", postgres), site_at(tmp_path / "whole", other_postgres)
    with pytest.raises(OSError, match="the machine is gone"):
        await run(broken, folder, Fails(at))
    assert not any(rows_of(postgres, CLICKS).values())
    await run(broken, folder, Inline())
    await run(whole, folder, Inline())
    assert assert_same_tables(postgres, other_postgres, CLICKS) > 500
    assert lake_rows(broken) == lake_rows(whole)
    with psycopg.connect(postgres) as db:
        states = dict(db.execute("SELECT state, count(*) FROM streamproc.objects GROUP BY 1").fetchall())
    assert ("abandoned" in states) == (at == "put")


class OtherFiles(Inline):
    """As when an executor is lost after it told what files there are to be, and cuts them otherwise the second time."""

    def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> InlineStage:
        stage = super().read(setup, tasks)
        told = stage.told()

        def changed() -> list[Piece]:
            files = itertools.count()
            return [
                piece._replace(about=json.dumps({**piece.told, "rows": piece.told["rows"] + 1}))
                if piece.kind == "file" and next(files) == 0
                else piece
                for piece in told
            ]

        stage.told = changed  # type: ignore[method-assign]  # this stage's answer only
        return stage


async def test_files_that_are_not_those_that_were_planned_are_refused(
    tmp_path: Path, postgres: str, folder: Path
) -> None:
    with pytest.raises(Inconsistent, match="other files than before"):
        await run(site_at(tmp_path / "site", postgres), folder, OtherFiles())
    assert not any(rows_of(postgres, CLICKS).values())


async def test_a_log_that_a_worker_has_begun_is_read_on_behind_what_it_committed(
    tmp_path: Path, postgres: str, other_postgres: str, folder: Path
) -> None:
    """The ids before the break are remembered: the file that grew has its duplicates found on both sides of it."""
    stream, batch = site_at(tmp_path / "stream", postgres), site_at(tmp_path / "batch", other_postgres)
    backfilled(stream, folder)
    file = folder / "0.ndjson"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = file.stat().st_mtime
    file.write_bytes(b"".join(lines[:1500]))
    os.utime(file, (changed, changed))
    first = json.loads(batch.run("backfill", folder.as_uri(), "--json", patience=300).stdout)
    assert first["complete"]
    file.write_bytes(whole)
    os.utime(file, (changed, changed))
    done = await run(batch, folder, Inline())
    assert (done.logs, done.counts.records) == (1, len(lines) - 1500)
    assert_same_tables(postgres, other_postgres, CLICKS)
    assert fates(postgres) == fates(other_postgres)


async def test_no_object_is_put_before_it_is_intended(tmp_path: Path, postgres: str, folder: Path) -> None:
    unknown: list[str] = []

    class Watches(Inline):
        def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> InlineStage:
            stage = super().read(setup, tasks)
            put = stage.put

            def watched(keys: Keys) -> list[Piece]:
                with psycopg.connect(postgres) as db:
                    query = "SELECT key FROM streamproc.objects WHERE state = 'intended'"
                    intended = {key for (key,) in db.execute(query)}
                unknown.extend(set(keys.values()) - intended)
                assert keys
                return put(keys)

            stage.put = watched  # type: ignore[method-assign]  # this stage's only
            return stage

    await run(site_at(tmp_path / "site", postgres), folder, Watches())
    assert not unknown


async def test_logs_that_another_worker_has_claimed_meanwhile_are_left_to_it(
    tmp_path: Path, postgres: str, folder: Path
) -> None:
    async def claim() -> None:
        async with Ledger(postgres, "clickstream", "other") as other:
            await other.claim([status.partition for status in await other.status()])

    class Overtaken(Inline):
        def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> InlineStage:
            stage = super().read(setup, tasks)
            asyncio.run(claim())
            return stage

    site = site_at(tmp_path / "site", postgres)
    with pytest.raises(Fenced):
        await run(site, folder, Overtaken())
    assert not any(rows_of(postgres, CLICKS).values())
    assert (await run(site, folder, Inline())).logs == 5
