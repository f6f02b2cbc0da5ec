"""The same rows as JSON, CSV and Arrow, each read by somebody else's reader."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.ops.table_formats import as_arrow, as_csv, as_json, chosen

SCHEMA = {"at": pl.Datetime("us", "UTC"), "host": pl.String(), "value": pl.Float64(), "count": pl.Int64()}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
ROWS = st.lists(
    st.tuples(
        st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
        st.none() | TEXTS | st.builds("".join, st.tuples(st.sampled_from("=+-@\t\r"), TEXTS)),
        st.none() | st.floats(),
        st.none() | st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=6,
)


def frame(rows):
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@given(ROWS)
def test_json_holds_every_value_and_null_for_what_is_no_number(rows):
    read = json.loads(as_json(frame(rows), {"table": "t"}))
    assert read["table"] == "t"
    for got, (at, host, value, count) in zip(read["rows"], rows, strict=True):
        assert datetime.fromisoformat(got["at"]) == at
        assert (got["host"], got["count"]) == (host, count)
        finite = value is not None and value - value == 0
        assert got["value"] == (value if finite else None)


@given(ROWS)
def test_no_text_of_a_csv_begins_a_formula_and_the_rest_is_as_it_was(rows):
    lines = list(csv.reader(io.StringIO(as_csv(frame(rows), {}).decode(), newline="")))
    assert lines[0] == list(SCHEMA)
    for (at, host, _, count), want in zip(lines[1:], rows, strict=True):
        assert datetime.fromisoformat(at) == want[0]
        assert count == ("" if want[3] is None else str(want[3]))
        begins_formula = bool(want[1]) and want[1][0] in "=+-@\t\r"
        assert host == ("'" if begins_formula else "") + (want[1] or "")


@given(ROWS)
def test_arrow_keeps_the_types(rows):
    table = pa.ipc.open_stream(as_arrow(frame(rows), {})).read_all()
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")
    assert table.schema.field("host").type == pa.large_string()
    assert [(row["host"], row["count"]) for row in table.to_pylist()] == [(row[1], row[3]) for row in rows]


@pytest.mark.parametrize(
    ("asked", "accept", "format_"),
    [
        (None, "", "json"),
        (None, "*/*", "json"),
        (None, "text/csv", "csv"),
        (None, "application/vnd.apache.arrow.stream, */*;q=0.1", "arrow"),
        ("csv", "application/json", "csv"),
        ("xml", "", None),
    ],
)
def test_the_parameter_is_asked_before_the_header(asked, accept, format_):
    assert chosen(asked, accept) == format_
