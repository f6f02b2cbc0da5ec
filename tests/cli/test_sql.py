from __future__ import annotations

import csv
import io
import json
import time

import psycopg
import pytest

from tests.cli.shop import Shop


def test_rows_come_as_a_table_for_a_person(shop: Shop) -> None:
    shop.commit(0, [0, 1])
    text = shop.call("sql", "SELECT partition, position, owner FROM streamproc.partitions").stdout
    assert [line.split() for line in text.splitlines()] == [
        ["partition", "position", "owner"],
        ["0", "1", "w1"],
    ]


def test_json_keeps_numbers_and_nulls_and_writes_the_rest_as_text(shop: Shop) -> None:
    query = """SELECT 1 AS one, 12345678901234567890::numeric AS big, 0.5::numeric AS half,
        'NaN'::float8 AS nan, null AS nothing, true AS yes, timestamptz '2026-07-01 12:00+02' AS at,
        '\\x00ff'::bytea AS bytes, ARRAY[1, null] AS list, '{"a": [1.5]}'::jsonb AS object,
        'é"' AS text, interval '1 day' AS day"""
    (row,) = map(json.loads, shop.call("sql", "--json", query).stdout.splitlines())
    assert row == {
        "one": 1,
        "big": 12345678901234567890,
        "half": 0.5,
        "nan": "nan",
        "nothing": None,
        "yes": True,
        "at": "2026-07-01T10:00:00+00:00",
        "bytes": "\\x00ff",
        "list": [1, None],
        "object": {"a": [1.5]},
        "text": 'é"',
        "day": "1 day, 0:00:00",
    }


def test_times_are_those_of_the_answer_whatever_the_machines_zone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        noon = "timestamptz '2026-07-01 12:00+00'"
        text = shop.call("sql", f"SELECT {noon} AS utc, {noon} AT TIME ZONE 'Europe/Berlin' AS berlin").stdout
    finally:
        monkeypatch.undo()
        time.tzset()
    assert text.splitlines()[1].split() == ["2026-07-01", "12:00:00", "2026-07-01", "14:00:00"]


def test_csv_survives_commas_quotes_and_line_ends(shop: Shop) -> None:
    text = shop.call("sql", "--csv", "SELECT 'a,\"b\"\nc' AS x, null AS y UNION ALL SELECT '', 'z'").stdout
    assert list(csv.reader(io.StringIO(text))) == [["x", "y"], ['a,"b"\nc', ""], ["", "z"]]


@pytest.mark.parametrize("form", [["--csv"], []])
def test_an_answer_without_rows_still_has_its_header(shop: Shop, form: list[str]) -> None:
    text = shop.call("sql", *form, "SELECT 1 AS first, 2 AS second WHERE false").stdout
    assert text.replace(",", " ").split() == ["first", "second"]
    assert shop.call("sql", "--json", "SELECT 1 AS first WHERE false").stdout == ""


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM streamproc.partitions",
        "DROP TABLE streamproc.epochs",
        "WITH gone AS (DELETE FROM streamproc.partitions RETURNING 1) SELECT * FROM gone",
        "SELECT 1; DROP TABLE streamproc.epochs",
        "COMMIT; DROP TABLE streamproc.epochs",
        "COPY streamproc.partitions TO STDOUT",
        "COPY streamproc.partitions FROM STDIN",
        "SELECT nonsense",
        "not SQL at all",
    ],
)
def test_what_is_not_one_query_that_only_reads_is_refused_in_one_line(shop: Shop, query: str) -> None:
    shop.commit(0, [0])
    answer = shop.call("sql", query, code=1)
    assert answer.stdout == ""
    assert answer.stderr.startswith("streamproc: PostgreSQL")
    assert answer.stderr.count("\n") == 1
    with psycopg.connect(shop.ledger) as connection:
        assert connection.execute("SELECT count(*) FROM streamproc.partitions").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM streamproc.epochs").fetchone() == (1,)


def test_explain_and_show_are_queries_too(shop: Shop) -> None:
    assert "Result" in shop.call("sql", "EXPLAIN SELECT 1").stdout
    assert "on" in shop.call("sql", "SHOW transaction_read_only").stdout


def test_a_table_for_a_person_ends_at_a_thousand_rows_and_says_so(shop: Shop) -> None:
    answer = shop.call("sql", "SELECT * FROM generate_series(1, 1001)")
    assert len(answer.stdout.splitlines()) == 1001  # with the header
    assert "--json and --csv give all" in answer.stderr
    assert (
        len(shop.call("sql", "--json", "SELECT * FROM generate_series(1, 1001)").stdout.splitlines()) == 1001
    )
    assert "--json and" not in shop.call("sql", "SELECT * FROM generate_series(1, 1000)").stderr


def test_nothing_in_a_table_reaches_the_terminal_as_a_command_to_it(shop: Shop) -> None:
    evil = "SELECT E'\\x1b[2J\\u202eevil\\x07' AS path"
    shown = shop.call("sql", evil).stdout
    assert shown.splitlines()[1] == r"\x1b[2J\u202eevil\x07"
    assert "\x1b" not in shop.call("sql", "--json", evil).stdout


@pytest.mark.parametrize("query", ["", " \n", ";"])
def test_nothing_to_ask_is_wrong_usage(shop: Shop, query: str) -> None:
    assert "QUERY is empty" in shop.call("sql", query, code=2).stderr
