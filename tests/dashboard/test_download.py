"""Files: what a spreadsheet would run is text in them, numbers stay numbers, and nothing is lost."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.dashboard.download import as_csv, as_parquet, safe
from streamproc.dashboard.reading import Answer


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_formula_gets_an_apostrophe(start: str) -> None:
    assert safe(f"{start}HYPERLINK()") == f"'{start}HYPERLINK()"


@pytest.mark.parametrize(
    ("value", "text"), [(-1, "-1"), (-1.5, "-1.5"), (Decimal(-2), "-2"), (None, ""), (True, "true")]
)
def test_numbers_are_left_alone(value: object, text: str) -> None:
    assert safe(value) == text


@given(st.lists(st.tuples(st.text(), st.one_of(st.none(), st.integers())), max_size=30))
def test_csv_gives_back_the_text_behind_the_apostrophe(rows: list[tuple[str, int | None]]) -> None:
    data = b"".join(as_csv(["name", "=n"], rows)).decode()
    head, *read = list(csv.reader(io.StringIO(data, newline="")))
    assert head == ["name", "'=n"]
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for row in read for cell in row)
    for (name, number), (cell, figure) in zip(rows, read, strict=True):
        assert cell in {name, f"'{name}"}
        assert figure == ("" if number is None else str(number))


def test_parquet_keeps_types_and_nulls() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    answer = Answer(
        ["time", "path", "views", "value"], [(moment, "=1", Decimal(5), 1.5), (moment, None, None, None)]
    )
    frame = pl.read_parquet(as_parquet(answer))
    assert frame.columns == ["time", "path", "views", "value"]
    assert frame["views"].dtype == pl.Int64
    assert frame.rows()[1][1:] == (None, None, None)
    assert frame["path"][0] == "=1", "Parquet is no spreadsheet"
    assert frame["time"][0] == moment
