"""What executors fold apart is, united, what one fold of everything says; and keys find their bucket anywhere."""

from __future__ import annotations

import zlib

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.runtimes.spark import exchange
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.job import _setup
from streamproc.runtimes.spark.uniting import together, unite
from streamproc.settings import read_settings
from streamproc.sources.log_store import LogConnection
from streamproc.tables.fold import TableFold
from streamproc.topic_pages import load_page
from streamproc.topology import MINUTE, Measure, Table, Window
from tests.e2e.harness import REPOSITORY
from tests.emr.inline import Inline

COUNTED = (
    Measure("events", "count", pl.Int64()),
    Measure("visitors", "approx_distinct", pl.Int64(), column="visitor"),
    Measure("first_path", "first", pl.String(), column="path"),
    Measure("last_path", "last", pl.String(), column="path"),
)
HOPPING = Table("hopping", Window("hopping", size=5 * MINUTE, hop=MINUTE), ("path",), (pl.String(),), COUNTED)
SESSIONS = Table(
    "sessions",
    Window("session", key="visitor", gap=30 * MINUTE, cap=1440 * MINUTE),
    ("visitor",),
    (pl.String(),),
    COUNTED[:1] + COUNTED[2:],
)
FOLDS = {table.name: TableFold(table) for table in (HOPPING, SESSIONS)}

events = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from("abc"), st.sampled_from(["/", "/x", "/é", None])),
    min_size=1,
    max_size=40,
)


def frame(rows: list[tuple[int, str, str | None]], first: int) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (minute * MINUTE, f"visitor-{visitor}", path, first + number, None)
            for number, (minute, visitor, path) in enumerate(rows)
        ],
        schema={
            "event_time": pl.Int64,
            "visitor": pl.String,
            "path": pl.String,
            "position": pl.Int64,
            "watermark": pl.Int64,
        },
        orient="row",
    ).with_columns(pl.col("event_time", "watermark").cast(pl.Datetime("us", "UTC")))


def folded(name: str, rows: pl.DataFrame, buckets: int) -> list[Piece]:
    fold = FOLDS[name]
    partial, late = fold.partial(rows)
    assert late == 0
    return list(exchange.split(name, fold, fold.seal(fold.merge([partial])), buckets))


@settings(max_examples=12)
@given(events, st.integers(0, 40), st.integers(1, 5))
def test_two_tasks_and_several_buckets_give_what_one_fold_gives(
    rows: list[tuple[int, str, str | None]], cut: int, buckets: int
) -> None:
    parts = [part for part in (frame(rows[:cut], 0), frame(rows[cut:], cut)) if len(part)]
    for name in FOLDS:
        pieces = [piece for part in parts for piece in folded(name, part, buckets)]
        [whole] = together(FOLDS, unite(FOLDS, folded(name, frame(rows, 0), 1))).values()
        [united] = together(FOLDS, unite(FOLDS, pieces)).values()
        keys = ["visitor", "session_start"] if name == "sessions" else ["window_start", "path"]
        values = [column for column in whole.rows.columns if column not in {"__piece", "visitors__sketch"}]
        assert united.rows.select(values).sort(keys).equals(whole.rows.select(values).sort(keys))
        if name == "hopping":
            assert united.rows[keys].equals(whole.rows[keys])  # in the order that the summaries want
        else:
            assert united.events is not None
            behind = united.events.group_by("__piece").len().sort("__piece")
            assert behind["__piece"].to_list() == united.rows["__piece"].sort().to_list()
            assert behind["len"].sum() == len(rows)


@pytest.mark.parametrize(("slots", "buckets"), [(2, 64), (64, 64), (200, 200)])
def test_a_cluster_that_has_no_cores_yet_gets_buckets_for_those_to_come(slots: int, buckets: int) -> None:
    page = load_page(REPOSITORY / "topics" / "weblogs.toml")
    setup = _setup(read_settings(environ={}), page, Inline(slots), LogConnection("file:///logs"), b"")
    assert setup.buckets == buckets


def test_the_bucket_of_a_key_is_the_crc_of_its_text() -> None:
    keys = pl.DataFrame({"window_start": [0, 60, 0], "path": ["/é", None, "/é"]})
    wanted = [zlib.crc32(text.encode()) % 7 for text in ("0\1/é", "60\1\0", "0\1/é")]
    assert exchange.buckets(keys, 7).to_list() == wanted


def test_a_piece_comes_out_of_arrow_as_it_went_in() -> None:
    pieces = [
        Piece("rows", "table", 3, payload=exchange.packed(pl.DataFrame({"a": [1, None]}))),
        Piece("log", "x", about='{"end": null}'),
    ]
    assert list(exchange.pieces(exchange.batches(pieces))) == pieces
    assert exchange.unpacked(pieces[0].payload).equals(pl.DataFrame({"a": [1, None]}))
