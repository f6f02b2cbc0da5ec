from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import duckdb
import psycopg
import pytest

from tests.cli.shop import NOON, RECEIVED, Reject, Shop


@pytest.fixture
def filled(shop: Shop) -> Shop:
    """Events of two hours in two partitions, a reject, and a file that was never committed."""
    shop.commit(0, [0, 1, 61], [Reject(2, b"?")])
    shop.commit(1, [5, 62, 63])
    stray = next((shop.lake / "lake").rglob("*.parquet"))
    stray.with_name("0-start-9-9-abandoned.parquet").write_bytes(stray.read_bytes())
    return shop


def path_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def test_the_manifest_names_exactly_the_committed_objects(filled: Shop) -> None:
    objects = filled.lines("lake", "manifest")
    assert sorted((o["partition"], o["rows"]) for o in objects) == [("0", 1), ("0", 2), ("1", 1), ("1", 2)]
    for each in objects:
        body = path_of(each["url"]).read_bytes()
        assert (each["size"], each["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        assert each["after"] is None
    assert not [o for o in objects if "abandoned" in o["url"]]


def test_the_manifest_of_rejects_goes_by_the_time_they_were_received(filled: Shop) -> None:
    (only,) = filled.lines("lake", "manifest", "--kind", "rejects")
    assert datetime.fromisoformat(only["min_time"]) == RECEIVED + timedelta(minutes=2)
    later = (RECEIVED + timedelta(minutes=3)).isoformat()
    assert filled.lines("lake", "manifest", "--kind", "rejects", "--from", later) == []


def ask(query: str, columns: str) -> list[tuple[object, ...]]:
    answer = duckdb.sql(query)
    assert answer is not None
    return answer.project(columns).fetchall()


def rows_of(query: str) -> list[tuple[object, ...]]:
    return sorted(ask(query, "source_partition, position"))


def test_the_query_gives_every_committed_event_once(filled: Shop) -> None:
    query = filled.call("lake", "manifest", "--sql").stdout
    assert rows_of(query) == [("0", 0), ("0", 1), ("0", 61), ("1", 5), ("1", 62), ("1", 63)]


@pytest.mark.parametrize(("since", "until"), [(None, None), (1, None), (None, 62), (1, 62), (5, 6), (62, 64)])
def test_the_query_keeps_to_its_interval_to_the_event(
    filled: Shop, since: int | None, until: int | None
) -> None:
    options = []
    for option, minutes in (("--from", since), ("--to", until)):
        if minutes is not None:
            options += [option, (NOON + timedelta(minutes=minutes)).isoformat()]
    query = filled.call("lake", "manifest", "shop", *options, "--sql").stdout
    minutes_of = [("0", 0), ("0", 1), ("0", 61), ("1", 5), ("1", 62), ("1", 63)]
    low, high = (since or 0), (until or 99)
    assert rows_of(query) == [row for row in minutes_of if low <= row[1] < high]


def test_an_interval_without_objects_gives_no_query(filled: Shop) -> None:
    answer = filled.call("lake", "manifest", "--from", "2030-01-01", "--sql")
    assert answer.stdout == ""
    assert "No committed objects" in answer.stderr


def test_a_folder_with_a_quote_in_its_name_does_not_end_the_string(filled: Shop, tmp_path: Path) -> None:
    elsewhere = tmp_path / "it's a lake"
    filled.lake.rename(elsewhere)
    filled.lake = elsewhere
    assert len(rows_of(filled.call("lake", "manifest", "--sql").stdout)) == 6


def test_the_query_reads_objects_of_an_older_page_beside_newer_ones(filled: Shop) -> None:
    page = filled.pages / "shop.toml"
    added = 'new = { type = "string" }'
    page.write_text(page.read_text().replace("[contract.fields]", f"[contract.fields]\n{added}"))
    filled.commit(2, [7])
    query = filled.call("lake", "manifest", "--sql").stdout
    assert ask(query, "count(*), count(new)") == [(7, 0)]


def test_for_a_person_the_objects_are_a_table(filled: Shop) -> None:
    text = filled.call("lake", "manifest").stdout
    assert "shop: 4 committed events objects" in text
    assert len(text.splitlines()) == 2 + 4


def test_a_time_that_is_none_is_a_usage_mistake(shop: Shop) -> None:
    assert "is not a time" in shop.call("lake", "manifest", "--from", "yesterday", code=2).stderr


def test_the_sweep_deletes_what_was_abandoned_ten_minutes_ago_and_nothing_else(shop: Shop) -> None:
    shop.commit(0, [0, 1])
    (kept,) = (shop.lake / "lake").rglob("*.parquet")
    abandoned = kept.with_name("never-committed.parquet")
    abandoned.write_bytes(kept.read_bytes())
    with psycopg.connect(shop.ledger, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO streamproc.objects SELECT (jsonb_populate_record(o, jsonb_build_object('key', %s::text,"
            " 'state', 'abandoned', 'abandoned_at', now() - interval '9 minutes'))).*"
            " FROM streamproc.objects AS o",
            [str(abandoned.relative_to(shop.lake))],
        )
        assert shop.json("lake", "sweep") == {"swept": [{"stream": "shop", "deletions": 0}]}
        assert abandoned.exists()
        connection.execute(
            "UPDATE streamproc.objects SET abandoned_at = abandoned_at - interval '2 minutes'"
            " WHERE state = 'abandoned'"
        )
    assert shop.json("lake", "sweep", "shop") == {"swept": [{"stream": "shop", "deletions": 1}]}
    assert not abandoned.exists()
    assert kept.exists()
