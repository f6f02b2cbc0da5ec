from __future__ import annotations

import json
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.quantities import Invalid
from streamproc.settings.redshift import DataApi, Direct, parse_redshift
from streamproc.sinks import redshift_statements as sql
from streamproc.sinks.redshift_session import (
    MOST_BATCH_BYTES,
    MOST_BYTES,
    MOST_STATEMENTS,
    BatchFailed,
    batches,
)
from streamproc.sinks.warehouse import Rows, TableLayout
from tests.support.redshift_dialect import Copy, Refused, translate

ROLE = "arn:aws:iam::123456789012:role/team/copy"


@settings(max_examples=50)
@given(st.text(max_size=80))
def test_whatever_becomes_a_literal_is_that_text_and_nothing_more(text: str) -> None:
    try:
        written = sql.literal(text)
    except ValueError:
        assert re.search(r"['\\\"\n\0`]|[^ -~]", text)
        return
    assert written == f"'{text}'"
    assert written.count("'") == 2
    assert "\\" not in written


@given(st.text(max_size=80), st.integers(0, 80))
def test_any_message_can_be_written_and_keeps_its_length(text: str, longest: int) -> None:
    written = sql.prose(text, longest)
    assert len(written) == 2 + min(len(text), longest)
    assert written.isascii()


@pytest.mark.parametrize("name", ["", "1a", "a b", 'a"b', "A", "a;", "é", "a" * 128])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        sql.identifier(name)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["a", "lake/b.parquet", "k" * 1000, "x/y=1/z" * 60]), max_size=200))
def test_statements_keep_to_the_limits_and_lose_no_key(keys: list[str]) -> None:
    for statements in (sql.keys_among("clicks", keys), sql.refuse("clicks", keys), sql.supersede("r", keys)):
        written = list(statements)
        assert all(len(statement.encode()) < 100_000 for statement in written)
        found = [text for each in written for text in re.findall(r"'([^']*)'", each)]
        assert [text for text in found if text not in {"clicks", "r"}] == keys
        for statement in written:
            assert isinstance(translate(statement), str)


def test_many_long_keys_make_several_statements_and_batches() -> None:
    keys = [f"{'k' * 1000}{number}" for number in range(5000)]
    written = list(sql.keys_among("clicks", keys))
    assert max(map(len, written)) < 100_000
    parts = list(batches(written))
    assert [each for part in parts for each in part] == written
    assert max(map(len, parts)) <= MOST_STATEMENTS
    assert max(sum(map(len, part)) for part in parts) <= MOST_BATCH_BYTES
    assert len(parts) > 1


@pytest.mark.parametrize("columns", [["visitor_id"], ["visitor_id", "user_id"], ["a", "b", "c" * 127]])
def test_visitors_of_any_number_of_columns_and_any_letters_keep_to_the_limit(columns: list[str]) -> None:
    values = [f"\N{SNOWMAN}\N{SNOWMAN}\N{SNOWMAN} visitor {number:05d}" for number in range(4000)]
    found: dict[str, list[str]] = {}
    for theirs in sql.visitors_rows("clicks", columns, values):
        assert len(f"DELETE {theirs}".encode()) <= MOST_BYTES
        for column, part in re.findall(r'"(\w+)" IN \(([^)]*)\)', theirs):
            found.setdefault(column, []).extend(re.findall(r"'([^']*)'", part))
    assert found == dict.fromkeys(columns, values)


def test_batches_are_counted_in_bytes() -> None:
    statements = ["\N{SNOWMAN}" * 30_000] * 12  # 90,000 bytes each
    assert [len(part) for part in batches(statements)] == [10, 2]


def test_a_manifest_says_that_every_object_must_be_there_and_how_large_it_is() -> None:
    assert json.loads(sql.manifest({"s3://b/x": 7})) == {
        "entries": [{"url": "s3://b/x", "mandatory": True, "meta": {"content_length": 7}}]
    }


def test_a_copy_is_what_the_manual_allows_for_columns() -> None:
    written = sql.copy(sql.table("clicks"), ["a", "b"], "s3://b/m.json", ROLE, nested=True)
    assert translate(written) == Copy('warehouse."clicks"', ("a", "b"), "s3://b/m.json", ROLE, True)
    by_default = sql.copy(sql.table("clicks"), ["a"], "s3://b/m.json", "default", nested=False)
    assert " IAM_ROLE default " in by_default


@pytest.mark.parametrize(
    ("dtype", "is_json", "kind"),
    [
        (pl.String(), False, "character varying(65535)"),
        (pl.String(), True, "super"),
        (pl.List(pl.String()), False, "super"),
        (pl.Struct({"a": pl.Int64()}), False, "super"),
        (pl.Int8(), False, "smallint"),
        (pl.Int64(), False, "bigint"),
        (pl.Decimal(20, 0), False, "numeric(20,0)"),
        (pl.Datetime("us", "UTC"), False, "timestamp without time zone"),
        (pl.Boolean(), False, "boolean"),
    ],
)
def test_a_column_has_the_type_of_its_values(dtype: pl.DataType, is_json: bool, kind: str) -> None:
    assert sql.column_type(dtype, is_json=is_json) == kind


def test_a_table_of_the_owners_own_lengths_and_time_zones_fits() -> None:
    assert sql.fits("character varying(200)", sql.TEXT)
    assert sql.fits("timestamp with time zone", "timestamp without time zone")
    assert sql.fits("character varying(9)", "super")
    assert not sql.fits("bigint", "integer")
    assert not sql.fits("super", sql.TEXT)


def test_json_is_no_sort_key() -> None:
    layout = TableLayout(sort_key=("properties", "event_time"), dist_key="visitor_id")
    written = sql.create_table(
        "s", {"properties": "super", "event_time": "date", "visitor_id": "bigint"}, layout
    )
    assert written.endswith('DISTKEY ("visitor_id") COMPOUND SORTKEY ("event_time")')
    assert sql.create_table("s", {"a": "date"}, TableLayout()).endswith("DISTSTYLE AUTO SORTKEY AUTO")


def test_rows_are_deleted_between_positions() -> None:
    [written] = sql.delete_rows("s", [Rows("0", -1, 5), Rows("1", 7, 9)])
    assert written == (
        'DELETE FROM warehouse."s" WHERE (source_partition = \'0\' AND "position" > -1 AND "position" <= 5)'
        ' OR (source_partition = \'1\' AND "position" > 7 AND "position" <= 9)'
    )


@pytest.mark.parametrize(
    "foreign",
    [
        "INSERT INTO warehouse.loads (stream) VALUES ('a') ON CONFLICT DO NOTHING",
        "CREATE TABLE t (a bigint PRIMARY KEY)",
        "ALTER TABLE warehouse.t ADD COLUMN IF NOT EXISTS a bigint",
        "ALTER TABLE warehouse.t ADD COLUMN a bigint, ADD COLUMN b bigint",
        "DELETE FROM warehouse.t WHERE a = 1; DROP TABLE warehouse.t",
        "SELECT count(*) FILTER (WHERE true) FROM warehouse.t",
        "COPY t (a) FROM 's3://b/m' IAM_ROLE default FORMAT AS PARQUET MANIFEST MAXERROR 5",
        "CREATE TABLE t (a super) DISTSTYLE AUTO SORTKEY (a)",
        "SELECT 'open",
        "DO $$ BEGIN END $$",
    ],
)
def test_the_stand_in_refuses_what_redshift_has_not(foreign: str) -> None:
    with pytest.raises(Refused):
        translate(foreign)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redshift-data://workgroup/clicks/dev", DataApi("dev", "clicks", None)),
        (
            f"redshift-data://cluster/big-one/dev?region=eu-central-1&user=loader&iam_role={ROLE}",
            DataApi("dev", None, "big-one", ROLE, "eu-central-1", "loader"),
        ),
        (
            "redshift-data://workgroup/clicks/dev?secret=arn:aws:secretsmanager:eu-central-1:123456789012:secret:x-Ab1",
            DataApi(
                "dev", "clicks", None, secret="arn:aws:secretsmanager:eu-central-1:123456789012:secret:x-Ab1"
            ),
        ),
    ],
)
def test_a_url_names_a_database_behind_the_data_api(url: str, target: DataApi) -> None:
    assert parse_redshift(url) == target


def test_a_url_names_a_database_to_connect_to_and_does_not_show_its_password() -> None:
    target = parse_redshift("redshift://me:hun%23ter2@host.example:5440/dev?sslmode=verify-ca")
    assert isinstance(target, Direct)
    assert (target.host, target.port, target.user, target.database) == ("host.example", 5440, "me", "dev")
    assert (target.password.reveal(), target.sslmode, target.iam_role) == ("hun#ter2", "verify-ca", "default")
    assert "ter2" not in repr(target)
    plain = parse_redshift("redshift://me:x@host/dev")
    assert isinstance(plain, Direct)
    assert (plain.port, plain.sslmode) == (5439, "verify-full")


@pytest.mark.parametrize(
    "url",
    [
        "redshift-data://x",
        "redshift-data://workgroup/dev",
        "redshift-data://server/a/dev",
        "redshift-data://workgroup/UPPER/dev",
        "redshift-data://workgroup/clicks/dev?iam_role=me",
        "redshift-data://workgroup/clicks/dev?user=me",
        "redshift-data://workgroup/clicks/dev?color=blue",
        "redshift-data://cluster/c/dev?user=me&secret=arn:aws:secretsmanager:eu-central-1:123456789012:secret:x",
        "redshift://host/dev",
        "redshift://me:hunter2@host",
        "redshift://me:hunter2@host:port/dev",
        "redshift://me:hunter2@host/dev?sslmode=require",
        "redshift://me:hunt#er2@host/dev",
    ],
)
def test_a_url_that_names_none_is_a_mistake_that_quotes_no_password(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_redshift(url)
    assert "hunt" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "in_the_way", "of_the_way"),
    [
        ("ERROR: 1023 DETAIL: Serializable isolation violation on table - 1", True, False),
        ("could not complete because of conflict with concurrent transaction", True, False),
        ("User is not authorized to assume IAM Role arn:aws:iam::1:role/x", False, True),
        ("S3ServiceException:Access Denied,Status 403,Error AccessDenied", False, True),
        ("Query (5) cancelled on user's request", False, True),
        ("Disk Full Detail: ----- error: Disk Full code: 1016", False, True),
        (
            "Spectrum Scan Error. has an incompatible Parquet schema for column 's3://b/k.connection'",
            False,
            False,
        ),
        ("The length of the data column url is longer than the length defined in the table", False, False),
        ("Divide by zero", False, False),
        ("ERROR: division by zero", False, False),
    ],
)
def test_a_failure_is_blamed_on_the_data_only_when_it_does_not_speak_of_the_way(
    message: str, in_the_way: bool, of_the_way: bool
) -> None:
    failed = BatchFailed(3, message)
    assert (failed.in_the_way, failed.of_the_way) == (in_the_way, of_the_way)
    assert failed.divided_by_zero == ("by zero" in message)
