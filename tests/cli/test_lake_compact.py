"""``lake compact`` on a real ledger, lake and warehouse; what is in the lake is read by DuckDB."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
import psycopg
import pytest

from streamproc.errors import DependencyError
from streamproc.ledger import Ledger
from streamproc.runtimes.compaction import Compactor
from streamproc.sinks.object_store import open_store
from tests.cli.shop import Reject, Shop

pytestmark = pytest.mark.slow


@pytest.fixture
def filled(shop: Shop) -> Shop:
    """Two full hours of one partition and the beginning of a third, one commit of another; all in the warehouse."""
    for first in range(0, 125, 5):
        shop.commit(
            0, [first, first + 1, first + 2], [Reject(first + 3, b"?")], filtered=1, through=first + 4
        )
    shop.commit(1, [5])
    shop.call("warehouse", "load")
    return shop


def lake_rows(shop: Shop) -> list[tuple[Any, ...]]:
    answer = duckdb.sql(shop.call("lake", "manifest", "--sql").stdout)
    assert answer is not None
    return answer.project("source_partition, position, kind, event_time").fetchall()


def ranges(shop: Shop, kind: str = "events") -> list[tuple[int, int]]:
    objects = shop.lines("lake", "manifest", "--kind", kind)
    found = {(o["partition"], o["after"] if o["after"] is not None else -1, o["through"]) for o in objects}
    return sorted((after, through) for partition, after, through in found if partition == "0")


def warehouse(shop: Shop) -> list[tuple[Any, ...]]:
    with psycopg.connect(shop.ledger) as db:
        return db.execute("SELECT source_partition, position FROM warehouse.shop ORDER BY 1, 2").fetchall()


def test_what_is_merged_holds_the_same_rows_in_the_same_order_in_fewer_objects(filled: Shop) -> None:
    before, rejects = sorted(lake_rows(filled)), len(filled.lines("rejects", "list"))
    answer = filled.json("lake", "compact")["streams"][0]
    assert (answer["runs"], answer["objects_before"], answer["waiting"]) == (2, 48, {})
    objects = filled.lines("lake", "manifest")
    assert sorted((o["partition"], o["rows"]) for o in objects) == [("0", 3), ("0", 36), ("0", 36), ("1", 1)]
    assert sorted(lake_rows(filled)) == before
    for each in objects:
        rows = duckdb.read_parquet(unquote(urlsplit(each["url"]).path)).project("position").fetchall()
        assert rows == sorted(rows)
    assert len(filled.lines("rejects", "list")) == rejects == 25


def test_the_ranges_of_the_objects_chain_as_those_of_commits_do(filled: Shop) -> None:
    filled.call("lake", "compact")
    for kind in ("events", "rejects"):
        found = ranges(filled, kind)
        assert found[0][0] == -1
        assert all(before[1] == after[0] for before, after in itertools.pairwise(found))
        assert found[-1][1] == 124


def test_a_dry_run_names_the_runs_and_changes_nothing(filled: Shop) -> None:
    before = filled.lines("lake", "manifest")
    runs = filled.json("lake", "compact", "--dry-run")["streams"][0]["runs"]
    assert [(run["partition"], run["after"], run["through"], run["commits"]) for run in runs] == [
        ("0", None, 59, 12),
        ("0", 59, 119, 12),
    ]
    assert filled.lines("lake", "manifest") == before


def test_a_second_run_finds_nothing_to_do(filled: Shop) -> None:
    filled.call("lake", "compact")
    objects = filled.lines("lake", "manifest")
    assert filled.json("lake", "compact")["streams"][0]["runs"] == 0
    assert filled.lines("lake", "manifest") == objects


def test_the_warehouse_loads_no_row_again(filled: Shop) -> None:
    before = warehouse(filled)
    filled.call("lake", "compact")
    assert filled.json("warehouse", "load")["loaded"][0]["rows"] == 0
    assert warehouse(filled) == before


def test_what_the_warehouse_has_not_loaded_waits(shop: Shop) -> None:
    for first in range(0, 20, 5):
        shop.commit(0, [first])
    shop.commit(0, [200])
    answer = shop.json("lake", "compact")["streams"][0]
    assert (answer["runs"], answer["waiting"]) == (0, {"the warehouse has not loaded it yet": 1})
    shop.call("warehouse", "load")
    assert shop.json("lake", "compact")["streams"][0]["runs"] == 1


def test_what_was_merged_is_swept_a_day_later_and_not_before(filled: Shop) -> None:
    old = [Path(unquote(urlsplit(o["url"]).path)) for o in filled.lines("lake", "manifest")]
    filled.call("lake", "compact")
    assert all(path.exists() for path in old)
    with psycopg.connect(filled.ledger) as db:
        states = db.execute(
            "SELECT state, count(*), bool_and(superseded_at > now() - interval '1 day') FROM streamproc.objects"
            " GROUP BY state ORDER BY state"
        ).fetchall()
    assert states == [("committed", 7, None), ("superseded", 48, True)]


def test_objects_of_before_and_after_a_new_column_become_one(shop: Shop) -> None:
    shop.commit(0, [0])
    page = shop.pages / "shop.toml"
    page.write_text(
        page.read_text().replace("[contract.fields]", '[contract.fields]\nnew = { type = "string" }')
    )
    shop.commit(0, [1])
    shop.commit(0, [200])
    shop.call("warehouse", "load")
    assert shop.json("lake", "compact")["streams"][0]["runs"] == 1
    answer = duckdb.sql(shop.call("lake", "manifest", "--sql").stdout)
    assert answer is not None
    assert answer.project("count(*), count(new)").fetchall() == [(3, 0)]


def killed_at(shop: Shop, point: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamproc", "lake", "compact"],
        env={**os.environ, **shop.environment, "STREAMPROC_FAILPOINTS": f"{point}=kill"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr.decode()


def swept(shop: Shop) -> set[Path]:
    """What is left in the lake after everything that is due has been deleted; the committed objects' files."""

    async def sweep(ledger: Ledger) -> None:
        store = open_store(shop.lake.as_uri())
        await store.open()
        for days in (2, 4, 6):  # abandoned, deleted, and deleted again
            await ledger.sweep(store, now=datetime.now(UTC) + timedelta(days=days))
        await store.close()

    shop.with_ledger(sweep)
    return set(shop.lake.rglob("*.parquet"))


@pytest.mark.parametrize("point", ["compact.intended", "compact.put", "compact.noted", "compact.replaced"])
def test_a_compaction_that_is_killed_loses_and_doubles_nothing_and_is_done_by_the_next(
    filled: Shop, point: str
) -> None:
    before, loaded = sorted(lake_rows(filled)), warehouse(filled)
    killed_at(filled, point)
    assert sorted(lake_rows(filled)) == before
    filled.call("warehouse", "load")
    assert warehouse(filled) == loaded
    filled.call("lake", "compact")
    assert sorted(lake_rows(filled)) == before
    assert len(filled.lines("lake", "manifest")) == 4
    filled.call("warehouse", "load")
    assert warehouse(filled) == loaded
    listed = [*filled.lines("lake", "manifest"), *filled.lines("lake", "manifest", "--kind", "rejects")]
    assert swept(filled) == {Path(unquote(urlsplit(o["url"]).path)) for o in listed}


def test_of_two_compactors_one_works_and_the_other_says_so(filled: Shop) -> None:
    with psycopg.connect(filled.ledger, autocommit=True) as db:
        db.execute("SELECT pg_advisory_lock(hashtextextended('streamproc compactor shop', 0))")
        answer = filled.json("lake", "compact")["streams"][0]
        assert (answer["runs"], answer["waiting"]) == (0, {"another compactor is at work": 1})
    assert filled.json("lake", "compact")["streams"][0]["runs"] == 2


def test_nothing_is_merged_while_a_replay_is_open(filled: Shop) -> None:
    with psycopg.connect(filled.ledger, autocommit=True) as db:
        db.execute(
            "INSERT INTO streamproc.replays (stream, name, namespace, state, fingerprint, asked, operator, created_at)"
            " VALUES ('shop', 'fix', 'shop__replay_fix', 'running', '', '', '', now())"
        )
        assert filled.json("lake", "compact")["streams"][0]["runs"] == 0
        db.execute("DELETE FROM streamproc.replays")
    assert filled.json("lake", "compact")["streams"][0]["runs"] == 2


def test_a_reader_that_has_begun_sees_the_list_as_it_was(filled: Shop) -> None:
    async def read(ledger: Ledger) -> list[str]:
        listed = ledger.manifest()
        found = [(await anext(listed)).plan.key]
        await asyncio.to_thread(filled.call, "lake", "compact")
        return found + [each.plan.key async for each in listed]

    before = [each["key"] for each in filled.lines("lake", "manifest")]
    assert sorted(filled.with_ledger(read)) == sorted(before)
    assert len(filled.lines("lake", "manifest")) == 4


def test_where_the_pages_warehouse_is_not_known_nothing_is_merged(filled: Shop) -> None:
    """A loader elsewhere would load the merged objects' rows a second time."""
    before = filled.lines("lake", "manifest")
    filled.settings["STREAMPROC_WAREHOUSE"] = "none"
    refused = filled.call("lake", "compact", code=2)
    assert "Compact where the loader runs" in refused.stderr
    assert filled.lines("lake", "manifest") == before
    page = filled.pages / "shop.toml"
    page.write_text(page.read_text() + "\n[sinks]\nwarehouse = false\n")
    assert filled.json("lake", "compact")["streams"][0]["runs"] == 2


def test_a_stream_that_cannot_be_compacted_keeps_no_other_from_it(shop: Shop) -> None:
    for position in (0, 1, 200):
        shop.commit(0, [position])
    page = shop.pages / "shop.toml"
    area = page.read_text().replace('name = "shop"', 'name = "area"').replace(shop.topic, "area")
    (shop.pages / "area.toml").write_text(area)
    page.write_text(page.read_text() + "\n[sinks]\nwarehouse = false\n")
    with psycopg.connect(shop.ledger) as db:  # it has run, and comes first
        db.execute(
            "INSERT INTO streamproc.partitions (stream, source, partition, fence, token, claimed_at, updated_at)"
            " VALUES ('area', 'shop', '0', 1, gen_random_uuid(), now(), now())"
        )
    shop.settings["STREAMPROC_WAREHOUSE"] = "none"
    assert "area is loaded into a warehouse" in shop.call("lake", "compact", code=2).stderr
    assert len(shop.lines("lake", "manifest", "shop")) == 2


def test_a_run_of_which_an_object_is_gone_is_left_alone_and_the_others_are_merged(filled: Shop) -> None:
    [first] = [o for o in filled.lines("lake", "manifest") if (o["partition"], o["through"]) == ("0", 4)]
    Path(unquote(urlsplit(first["url"]).path)).unlink()
    answer = filled.json("lake", "compact")["streams"][0]
    assert (answer["runs"], answer["waiting"]) == (1, {"an object of it is not in the lake any more": 1})
    assert sorted(o["rows"] for o in filled.lines("lake", "manifest")) == [1, *[3] * 13, 36]


@pytest.mark.parametrize("trouble", ["full", "absent"])
def test_a_temporary_folder_that_cannot_be_used_is_named_and_nothing_is_changed(
    filled: Shop, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    before = filled.lines("lake", "manifest")
    page = replace(filled.topology, sinks=replace(filled.topology.sinks, warehouse=False))

    def full(self: Path, body: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def compact(ledger: Ledger) -> None:
        store = open_store(filled.lake.as_uri())
        await store.open()
        await Compactor(page, ledger, store, None).compact()

    folder = filled.directory / "absent" if trouble == "absent" else filled.directory
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        if trouble == "full":
            patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DependencyError, match="TMPDIR") as refused:
            filled.with_ledger(compact)
    assert refused.value.what == str(folder)
    assert ("No such file" if trouble == "absent" else "No space left") in refused.value.problem
    assert filled.lines("lake", "manifest") == before
    assert list(filled.directory.glob("streamproc-compact-*")) == []
    filled.with_ledger(compact)
    assert len(filled.lines("lake", "manifest")) == 4
