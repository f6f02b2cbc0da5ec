"""Tables as a terminal of some width shows them."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from streamproc.cli.rendering import Section, drawn

HEADER = [
    "partition",
    "committed",
    "lag",
    "watermark",
    "owner",
    "updated",
    "records",
    "rejected",
    "duplicate",
]
MOMENT = datetime(2026, 7, 1, 13, 0, 59, tzinfo=UTC)
ROWS = [["98a3db92.0", 1291, 0, MOMENT, "worker-1", MOMENT, 1292, 72, 3], ["98a3db92.1", *[None] * 8]]


def shown(width: int) -> list[str]:
    out = io.StringIO()
    Console(width=width, file=out).print(drawn([Section("shop: partitions", HEADER, ROWS)]))
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def test_a_table_that_fits_has_a_line_for_each_row() -> None:
    title, header, _, first, second = shown(160)
    assert title == "shop: partitions"
    assert header.split() == HEADER
    assert first.split() == [
        *("98a3db92.0", "1291", "0", "2026-07-01", "13:00:59", "worker-1", "2026-07-01", "13:00:59"),
        *("1292", "72", "3"),
    ]
    assert second.split() == ["98a3db92.1", *["-"] * 8]


@pytest.mark.parametrize("width", [40, 60])
def test_where_it_does_not_fit_each_value_stands_whole_beside_its_name(width: int) -> None:
    title, *lines = shown(width)
    assert title == "shop: partitions"
    assert [line.split(maxsplit=1)[0] for line in lines] == HEADER * 2
    assert lines[3].split(maxsplit=1)[1] == "2026-07-01 13:00:59"
    assert lines[6].split() == ["records", "1292"]


def test_a_cell_that_cannot_be_told_whole_in_a_line_goes_on_in_the_next() -> None:
    out = io.StringIO()
    Console(width=30, file=out).print(drawn([Section("", ["object"], [["x" * 50]])]))
    assert out.getvalue().count("x") == 50
