"""The rows that compiled code writes for COPY, read by the format's description: struct, and nothing of polars."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc import native

pytestmark = pytest.mark.skipif(native.records is None, reason="the compiled part is not there")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: By type: values, how many bytes PostgreSQL's type has, and how struct reads them.
_FIXED: dict[Any, tuple[st.SearchStrategy[Any], int, str]] = {
    pl.Int8(): (st.integers(-(2**7), 2**7 - 1), 2, ">h"),
    pl.UInt8(): (st.integers(0, 2**8 - 1), 2, ">h"),
    pl.Int16(): (st.integers(-(2**15), 2**15 - 1), 2, ">h"),
    pl.UInt16(): (st.integers(0, 2**16 - 1), 4, ">i"),
    pl.Int32(): (st.integers(-(2**31), 2**31 - 1), 4, ">i"),
    pl.UInt32(): (st.integers(0, 2**32 - 1), 8, ">q"),
    pl.Int64(): (st.integers(-(2**63), 2**63 - 1), 8, ">q"),
    pl.Float32(): (st.floats(width=32), 4, ">f"),
    pl.Float64(): (st.floats(), 8, ">d"),
    pl.Boolean(): (st.booleans(), 1, ">?"),
    pl.Datetime("us", "UTC"): (st.datetimes(timezones=st.just(UTC)), 8, ">q"),
    pl.Date(): (st.dates(), 4, ">i"),
}
_OTHER: dict[Any, st.SearchStrategy[Any]] = {
    pl.String(): st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    pl.Binary(): st.binary(max_size=30),
    pl.List(pl.Int64()): st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5),
}


def read(body: bytes, columns: int) -> Iterator[list[bytes | None]]:
    """The fields of each row."""
    at = 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, body, at)
        at += struct.calcsize(form)
        return int(value)

    while at < len(body):
        assert number(">h") == columns
        row: list[bytes | None] = []
        for _ in range(columns):
            length = number(">i")
            row.append(None if length < 0 else body[at : at + length])
            at += max(length, 0)
        yield row


def read_array(field: bytes) -> list[int | None]:
    dimensions, nulls, oid = struct.unpack_from(">iii", field)
    assert oid == 20
    if not dimensions:
        assert len(field) == 12
        return []
    count, lower = struct.unpack_from(">ii", field, 12)
    assert (dimensions, lower) == (1, 1)
    items: list[int | None] = []
    at = 20
    for _ in range(count):
        (length,) = struct.unpack_from(">i", field, at)
        items.append(None if length < 0 else struct.unpack_from(">q", field, at + 4)[0])
        at += 4 + max(length, 0)
    assert at == len(field)
    assert bool(nulls) == (None in items)
    return items


def expected(type_: pl.DataType, value: Any) -> bytes | None:
    if value is None:
        return None
    if type_ == pl.String():
        return str(value).encode()
    if type_ == pl.Binary():
        return bytes(value)
    if isinstance(type_, pl.Datetime):
        value = (value - _EPOCH) // timedelta(microseconds=1)
    if type_ == pl.Date():
        value = (value - date(1970, 1, 1)).days
    return struct.pack(_FIXED[type_][2], value)


@st.composite
def frames(draw: st.DrawFn) -> tuple[pl.DataFrame, list[list[Any]]]:
    """Frames of several chunks, cut out of larger ones; and their columns as Python has them."""
    types = draw(st.lists(st.sampled_from([*_FIXED, *_OTHER]), min_size=1, max_size=6))
    values = {type_: _FIXED[type_][0] if type_ in _FIXED else _OTHER[type_] for type_ in set(types)}
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    chunks = []
    for size in sizes:
        columns = [
            pl.Series(
                f"c{n}",
                draw(st.lists(st.none() | values[type_], min_size=size, max_size=size)),
                dtype=type_,
                strict=False,
            )
            for n, type_ in enumerate(types)
        ]
        chunks.append(pl.DataFrame(columns))
    frame = pl.concat(chunks, rechunk=False)
    begin = draw(st.integers(0, frame.height))
    frame = frame.slice(begin, draw(st.integers(0, frame.height - begin)))
    return frame, [frame[name].to_list() for name in frame.columns]


@given(frames())
@settings(max_examples=200, deadline=None)
def test_each_value_of_each_type_is_written_as_the_format_says(
    drawn: tuple[pl.DataFrame, list[list[Any]]],
) -> None:
    frame, values = drawn
    assert native.records is not None
    rows = list(read(native.records.rows(frame), frame.width))
    assert len(rows) == frame.height
    for number, row in enumerate(rows):
        for type_, column, field in zip(frame.dtypes, values, row, strict=True):
            if type_ == pl.List(pl.Int64()):
                found = None if field is None else read_array(field)
                assert found == column[number]
            else:
                assert field == expected(type_, column[number])


def test_a_text_longer_than_a_view_and_many_rows_are_whole() -> None:
    assert native.records is not None
    texts = [f"{n} " * (n % 50) for n in range(10_000)]
    rows = read(native.records.rows(pl.DataFrame({"t": texts})), 1)
    assert [field.decode() for (field,) in rows if field is not None] == texts


@pytest.mark.parametrize(
    "type_", [pl.UInt64(), pl.Time(), pl.List(pl.String()), pl.Struct({"a": pl.Int64()})]
)
def test_a_type_that_no_column_of_ours_has_is_refused(type_: pl.DataType) -> None:
    assert native.records is not None
    with pytest.raises(TypeError):
        native.records.rows(pl.DataFrame({"c": pl.Series([], dtype=type_)}))
    with pytest.raises((TypeError, AttributeError)):
        native.records.rows(3)


@given(
    st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)), st.integers(0, 9)
)
@settings(max_examples=200, deadline=None)
def test_coupons_stand_in_the_order_of_the_texts_whatever_the_chunks(
    texts: list[str | None], cut: int
) -> None:
    """That they are DataSketches' own is asked in tests/tables/test_hyperloglog.py."""
    assert native.records is not None
    series = pl.Series(texts, dtype=pl.String)
    whole = struct.unpack(f"<{len(texts)}I", native.records.coupons(series.to_frame()))
    assert [one == 0 for one in whole] == [text is None for text in texts]
    parts = pl.concat([series.head(cut), series.slice(cut)], rechunk=False)
    assert struct.unpack(f"<{len(texts)}I", native.records.coupons(parts.to_frame())) == whole
