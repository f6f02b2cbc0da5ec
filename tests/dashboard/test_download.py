"""Files: what a spreadsheet would run is text in them, numbers stay numbers, nothing is lost, and memory suffices."""

from __future__ import annotations

import asyncio
import csv
import io
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import ANY

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from streamproc.dashboard import download, downloads
from streamproc.dashboard.catalog import explorable
from streamproc.dashboard.choice import read_choice
from streamproc.dashboard.download import LIMIT, TooLarge, as_csv, as_parquet, safe
from streamproc.dashboard.downloads import Downloads
from streamproc.dashboard.explore import everything
from streamproc.dashboard.reading import Answer, Question, Reader, Shared, read_only
from streamproc.dashboard.shell import Site as Streams
from streamproc.database import Database
from streamproc.topology import Topology
from tests.dashboard.conftest import Site

#: Half of what the manifests give a dashboard, 1 GiB.
MEMORY = 512 * 1024 * 1024


async def pieces(columns: Sequence[str], *rows: Sequence[Sequence[object]]) -> AsyncIterator[Answer]:
    for each in rows:
        yield Answer(columns, [tuple(row) for row in each])


def whole(parts: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(parts)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_formula_gets_an_apostrophe(start: str) -> None:
    assert safe(f"{start}HYPERLINK()") == f"'{start}HYPERLINK()"


@pytest.mark.parametrize(
    ("value", "text"), [(-1, "-1"), (-1.5, "-1.5"), (Decimal(-2), "-2"), (None, ""), (True, "true")]
)
def test_numbers_are_left_alone(value: object, text: str) -> None:
    assert safe(value) == text


@given(st.lists(st.lists(st.tuples(st.text(), st.one_of(st.none(), st.integers())), max_size=10), min_size=1))
def test_csv_gives_back_the_text_behind_the_apostrophe(parts: list[list[tuple[str, int | None]]]) -> None:
    data = whole(asyncio.run(as_csv(pieces(["name", "=n"], *parts)))).decode()
    head, *read = list(csv.reader(io.StringIO(data, newline="")))
    assert head == ["name", "'=n"]
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for row in read for cell in row)
    rows = [row for part in parts for row in part]
    for (name, number), (cell, figure) in zip(rows, read, strict=True):
        assert cell in {name, f"'{name}"}
        assert figure == ("" if number is None else str(number))


async def test_parquet_keeps_types_and_nulls() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    columns = ["time", "path", "views", "value"]
    made = await as_parquet(pieces(columns, [(moment, "=1", Decimal(5), 1.5), (moment, None, None, None)]))
    frame = pl.read_parquet(whole(made))
    assert frame.columns == columns
    assert frame["views"].dtype == pl.Int64
    assert frame.rows()[1][1:] == (None, None, None)
    assert frame["path"][0] == "=1", "Parquet is no spreadsheet"
    assert frame["time"][0] == moment


async def test_a_column_that_is_empty_or_whole_in_one_piece_has_one_type_in_the_file() -> None:
    made = await as_parquet(pieces(["path", "value"], [(None, 1)], [("/", 1.5)], [(None, None)], []))
    frame = pl.read_parquet(whole(made))
    assert frame.rows() == [(None, 1.0), ("/", 1.5), (None, None)]


@pytest.mark.parametrize("make", [as_csv, as_parquet])
async def test_a_table_without_rows_is_a_file_with_its_columns(make: Any) -> None:
    made = whole(await make(pieces(["path", "views"], [])))
    assert made == b"path,views\r\n" if make is as_csv else pl.read_parquet(made).columns == ["path", "views"]


async def test_a_stream_without_tables_has_no_files() -> None:
    stream = SimpleNamespace(tables={})
    request = Request({"type": "http", "path_params": {"kind": "csv"}, "query_string": b""})
    site = SimpleNamespace(stream=lambda _: stream)
    assert (await Downloads(cast(Streams, site))._response(request)).status_code == 404


@pytest.mark.parametrize("make", [as_csv, as_parquet])
async def test_what_is_more_than_the_limit_is_refused_by_rows_and_by_bytes(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LIMIT", 3)
    await make(pieces(["n"], [(1,), (2,)], [(3,)]))
    with pytest.raises(TooLarge):
        await make(pieces(["n"], [(1,), (2,)], [(3,), (4,)]))
    monkeypatch.setattr(download, "LARGEST", 1_000)
    with pytest.raises(TooLarge):
        await make(pieces(["n"], [("x" * 600,)], [("x" * 600,)]))


#: Rows as tables of page views have them, made anew as a driver does. Says the most memory that the process ever had.
_PEAK = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from streamproc.dashboard.download import PIECE, as_csv, as_parquet
from streamproc.dashboard.reading import Answer

start = datetime(2026, 1, 1, tzinfo=UTC)

def row(n):
    at = start + timedelta(minutes=n // 100)
    path = f"/products/category-{n * 7919 % 1_000_003}/detail"
    return at, at + timedelta(minutes=1), "www.shop.example", path, Decimal(n), n, n / 7

async def pieces():
    for first in range(0, int(sys.argv[2]), PIECE):
        yield Answer([*"abcdefg"], [row(n) for n in range(first, first + PIECE)])

kept = asyncio.run({"csv": as_csv, "parquet": as_parquet}[sys.argv[1]](pieces()))
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_largest_download_takes_less_than_half_of_the_memory(kind: str) -> None:
    def peak(rows: int) -> int:
        command = [sys.executable, "-c", _PEAK, kind, str(rows)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    few, many = 10_000, 60_000
    assert (peak(many) - peak(few)) / (many - few) * LIMIT < MEMORY


class Waiting:
    """A reader that gives its rows when ``go`` is set. ``asked``: it has been asked."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def ask_for_pieces(self, question: Question, rows: int) -> AsyncGenerator[Answer]:
        self.asked.set()
        await self.go.wait()
        yield Answer(["n"], [(1,)])


def scope(kind: str, version: str = "2.4") -> dict[str, Any]:
    request = {
        "type": "http",
        "asgi": {"spec_version": version},
        "method": "GET",
        "path": f"/download.{kind}",
    }
    return {**request, "query_string": b"", "headers": [], "path_params": {"kind": kind}}


async def asked(app: Downloads, kind: str = "csv", query: str = "") -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the app's answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**scope(kind), "query_string": query.encode()}, cast(Any, None), send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each["body"] for each in sent[1:])


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


@pytest.fixture
def app(topology: Topology, waiting: Waiting) -> Downloads:
    async def clock() -> Any:
        return SimpleNamespace(now=datetime(2026, 1, 1, tzinfo=UTC))

    stream = SimpleNamespace(
        topology=topology, reader=waiting, tables=explorable(topology), clock=Shared(clock, 1)
    )
    return Downloads(Streams(cast(Any, {"clickstream": stream}), password=False))


async def test_one_download_is_made_at_a_time_and_the_next_waits_for_it(
    app: Downloads, waiting: Waiting
) -> None:
    first = asyncio.create_task(asked(app))
    await waiting.asked.wait()
    waiting.asked.clear()
    second = asyncio.create_task(asked(app))
    await asyncio.sleep(0)
    assert not waiting.asked.is_set()
    waiting.go.set()
    assert [await first, await second] == [(200, (await first)[1], b"n\r\n1\r\n")] * 2


async def test_who_waits_too_long_for_a_download_is_told_when_to_come_again(
    app: Downloads, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_PATIENCE", 0.01)
    first = asyncio.create_task(asked(app))
    await waiting.asked.wait()
    status, headers, _ = await asked(app)
    assert (status, headers[b"retry-after"]) == (503, b"30")
    waiting.go.set()
    assert (await first)[0] == 200
    assert (await asked(app, "parquet"))[0] == 200


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("stream=shop", "There is no stream 'shop'."),
        ("table=views", "There is no table 'views'."),
        ("table=page_views&measures=views,hits&by=path,city", "The table page_views has no hits, city."),
        ("table=page_views&grain=week", "The table page_views has no time step 'week'."),
        ("range=90+days", "There is no range '90 days'."),
        ("from=2026-01-01&to=yesterday", "from and to are no times, one before the other."),
        ("from=2026-01-02&to=2026-01-01", "from and to are no times, one before the other."),
        ("from=2026-01-02", "from and to are no times, one before the other."),
    ],
)
async def test_what_an_address_names_that_is_not_there_is_no_file_of_something_else(
    app: Downloads, waiting: Waiting, query: str, said: str
) -> None:
    """An address that a script has, of before a table or a measure had another name."""
    waiting.go.set()
    assert await asked(app, query=query) == (404, ANY, f"{said}\n".encode())


@pytest.mark.parametrize(
    "query",
    [
        "stream=clickstream&table=page_views&measures=views&by=path,host&grain=hour&range=7+days&order=path",
        "table=sessions&measures=number+of+sessions,pages&by=&grain=&from=2026-01-01&to=2026-01-02T00:00:00Z",
        "table=site_activity&grain=&range=&from=2026-01-01&to=2026-01-02&direction=up",
    ],
)
async def test_what_is_there_is_given(app: Downloads, waiting: Waiting, query: str) -> None:
    waiting.go.set()
    assert (await asked(app, query=query))[0] == 200


@pytest.mark.parametrize("version", ["2.3", "2.4"])
async def test_a_viewer_who_takes_nothing_does_not_keep_the_others_from_theirs(
    app: Downloads, waiting: Waiting, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(downloads, "_WRITE", 0.01)
    waiting.go.set()

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    await app(scope("csv", version), never, never)
    assert (await asked(app))[0] == 200


@pytest.mark.slow
async def test_an_answer_in_pieces_is_the_whole_answer(site: Site, topology: Topology) -> None:
    reader = Reader(Database(read_only(site.url, 5.0), "test"))
    choice = read_choice({"table": "page_views", "range": "24h"}, explorable(topology), site.now)
    question = everything(choice, LIMIT)
    try:
        at_once = await reader.ask(question)
        parts = [part async for part in reader.ask_for_pieces(question, 100)]
    finally:
        await reader.database.close()
    assert [row for part in parts for row in part.rows] == at_once.rows
    assert {tuple(part.columns) for part in parts} == {tuple(at_once.columns)}
    assert len(parts) > 1 and all(len(part.rows) == 100 for part in parts[:-1])
