from __future__ import annotations

import gc
import hashlib
import io
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.dataset
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigError, DependencyError
from streamproc.model import REJECT_SCHEMA, Partition, WrittenObject
from streamproc.sinks.lake import Lake, LakeFile, encode, lake_schema, made_of_others, object_name
from streamproc.sinks.local import LocalStore
from streamproc.sinks.object_store import ObjectStore, Stored
from streamproc.topology import DAY, HOUR, MINUTE
from tests.sinks.topologies import COLUMNS, advance, events, rejects, topology

NOON = int(datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    store = LocalStore(f"file://{tmp_path}", durable=False)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def lake(store: ObjectStore) -> Lake:
    return Lake(store, topology())


def _rows(file: LakeFile) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(file.body))


def test_events_of_one_hour_make_one_file_named_after_their_range(lake: Lake) -> None:
    rows = events(NOON, NOON + 59 * MINUTE, NOON + 5, first=10)
    [file] = lake.plan(lake.encode_events(rows), advance(3, after=9, fence=4))
    folder, _, name = file.plan.key.rpartition("/")
    assert folder == "lake/clicks/date=2026-07-01/hour=12"
    assert name.startswith("0-9-12-4-")
    assert _rows(file).equals(rows)
    assert (file.plan.min_time_us, file.plan.max_time_us) == (NOON, NOON + 59 * MINUTE)
    assert (file.plan.rows, file.plan.kind, file.plan.after, file.plan.through) == (3, "events", 9, 12)


def test_two_plans_of_the_same_rows_share_no_key(lake: Lake) -> None:
    rows, part = events(NOON), advance(1)
    assert (
        lake.plan(lake.encode_events(rows), part)[0].plan.key
        != lake.plan(lake.encode_events(rows), part)[0].plan.key
    )


def test_no_rows_make_no_file(lake: Lake) -> None:
    assert lake.encode_events(events()) == []
    assert lake.encode_rejects(rejects()) == []


@given(st.lists(st.integers(-3 * DAY, 3 * DAY), min_size=1, max_size=40))
def test_every_row_is_in_the_file_of_its_own_hour_in_its_order(offsets: list[int]) -> None:
    times = [NOON + offset for offset in offsets]
    lake = Lake(LocalStore("file:///nowhere"), topology())
    files = lake.plan(lake.encode_events(events(*times)), advance(len(times)))
    expected: dict[str, list[int]] = {}
    for position, time in enumerate(times):
        moment = datetime.fromtimestamp(time // 1_000_000, UTC)
        expected.setdefault(f"date={moment:%Y-%m-%d}/hour={moment:%H}", []).append(position)
    found = {
        file.plan.key.removeprefix("lake/clicks/").rpartition("/")[0]: _rows(file)["position"].to_list()
        for file in files
    }
    assert found == expected
    assert list(found) == sorted(expected)
    for file in files:
        rows = [times[position] for position in _rows(file)["position"]]
        assert (file.plan.min_time_us, file.plan.max_time_us) == (min(rows), max(rows))


def test_rejects_go_by_the_day_they_were_received(lake: Lake) -> None:
    files = lake.plan(lake.encode_rejects(rejects(NOON, NOON + HOUR, NOON + DAY)), advance(0, 3))
    assert [file.plan.key.rpartition("/")[0] for file in files] == [
        "rejects/clicks/date=2026-07-01",
        "rejects/clicks/date=2026-07-02",
    ]
    assert [file.plan.rows for file in files] == [2, 1]


async def test_what_is_written_is_what_the_store_has(lake: Lake, store: ObjectStore) -> None:
    rows = events(*(NOON + hour * HOUR for hour in range(6)))
    files = lake.plan(lake.encode_events(rows), advance(6))
    done = await lake.write(files)
    assert [written.plan for written in done] == [file.plan for file in files]
    for written in done:
        body = await store.get(written.plan.key)
        assert (written.size, written.checksum) == (len(body), hashlib.sha256(body).hexdigest())


async def test_a_failing_store_is_reported_as_it_is(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: LocalStore, key: str, body: bytes) -> Stored:
        raise DependencyError("store", "full")

    monkeypatch.setattr(LocalStore, "put", refuse)
    lake = Lake(store, topology())
    with pytest.raises(DependencyError, match="store: full"):
        await lake.write(lake.plan(lake.encode_events(events(NOON, NOON + HOUR)), advance(2)))


async def test_files_that_are_written_again_are_put_only_where_the_store_does_not_have_them(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    stored: list[str] = []
    put = LocalStore.put

    async def refuse_now_and_then(self: LocalStore, key: str, body: bytes) -> Stored:
        if len(stored) > len(refused) and key not in refused:
            refused.append(key)
            raise DependencyError("store", "slow down")
        there = await put(self, key, body)
        stored.append(key)
        return there

    monkeypatch.setattr(LocalStore, "put", refuse_now_and_then)
    lake = Lake(store, topology())
    files = lake.plan(lake.encode_events(events(*(NOON + hour * HOUR for hour in range(9)))), advance(9))
    done: dict[str, WrittenObject] = {}
    for _ in (None, *files):  # each refusal ends an attempt
        with suppress(DependencyError):
            written = await lake.write(files, done)
            break
    assert [each.plan for each in written] == [file.plan for file in files]
    for each in written:
        assert each.checksum == hashlib.sha256(await store.get(each.plan.key)).hexdigest()
    assert refused and sorted(stored) == sorted(file.plan.key for file in files), "each once"


def test_a_file_has_the_columns_of_the_stream_in_their_order_whatever_the_frame_has() -> None:
    frame = (
        events(NOON, NOON).select(reversed(list(COLUMNS))).with_columns(pl.lit(None).alias("host"), extra=1)
    )
    assert pl.read_parquet(io.BytesIO(encode(frame, COLUMNS))).schema == pl.Schema(COLUMNS)


def test_types_that_spark_cannot_read_are_widened() -> None:
    odd: dict[str, pl.DataType] = {
        "a": pl.UInt8(),
        "b": pl.UInt16(),
        "c": pl.UInt32(),
        "d": pl.UInt64(),
        "e": pl.Categorical(),
        "f": pl.Enum(["x"]),
        "g": pl.Datetime("ns", "UTC"),
    }
    frame = pl.DataFrame(
        {"a": [255], "b": [65535], "c": [2**32 - 1], "d": [2**64 - 1], "e": ["x"], "f": ["x"], "g": [5000]},
        odd,
    )
    body = encode(frame, lake_schema(odd))
    schema = pyarrow.parquet.ParquetFile(io.BytesIO(body)).schema
    physical = {
        column.name: (column.physical_type, str(column.logical_type))
        for column in map(schema.column, range(7))
    }
    assert {kind for kind, _ in physical.values()} <= {"INT32", "INT64", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"}
    assert not any("isSigned=false" in logical for _, logical in physical.values())
    assert pl.read_parquet(io.BytesIO(body)).row(0)[:4] == (255, 65535, 2**32 - 1, 2**64 - 1)


def test_event_time_is_microseconds_utc_and_every_column_has_statistics() -> None:
    file = pyarrow.parquet.ParquetFile(io.BytesIO(encode(events(NOON, NOON + 7), COLUMNS)))
    time = file.schema.column(list(COLUMNS).index("event_time"))
    assert time.physical_type == "INT64"
    assert "isAdjustedToUTC=true, timeUnit=microseconds" in str(time.logical_type)
    group = file.metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        assert column.compression == "ZSTD"
        assert column.statistics is not None
    assert group.column(list(COLUMNS).index("position")).statistics.max == 1


async def test_duckdb_reads_the_lake_by_its_folders(lake: Lake, tmp_path: Path) -> None:
    rows = events(*(NOON + minute * 7 * MINUTE for minute in range(50)))
    await lake.write(lake.plan(lake.encode_events(rows), advance(50)))
    with duckdb.connect() as connection:
        relation = f"read_parquet('{tmp_path}/lake/clicks/**/*.parquet', hive_partitioning = true)"
        by_hour = connection.sql(
            f"SELECT date::VARCHAR, hour::INT, count(*) FROM {relation} GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        described = {
            row[0]: row[1] for row in connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        }
        misplaced = connection.sql(
            f"SELECT position FROM {relation}"
            " WHERE hour::INT <> extract(hour FROM timezone('UTC', event_time))"
        ).fetchall()
    assert by_hour == [("2026-07-01", 12 + hour, count) for hour, count in enumerate([9, 9, 8, 9, 8, 7])]
    assert described["event_time"] == "TIMESTAMP WITH TIME ZONE"
    assert described["date"] == "DATE"
    assert misplaced == []


async def test_pyarrow_reads_the_lake_as_one_data_set(lake: Lake, tmp_path: Path) -> None:
    rows = events(*(NOON + minute * 30 * MINUTE for minute in range(6)))
    await lake.write(lake.plan(lake.encode_events(rows), advance(6)))
    data = pyarrow.dataset.dataset(tmp_path / "lake" / "clicks", partitioning="hive")
    table = data.to_table(filter=pyarrow.dataset.field("hour") == 13, columns=list(COLUMNS))
    assert table.column("position").to_pylist() == [2, 3]
    assert pl.DataFrame(table).equals(rows[2:4])


async def test_rejects_keep_their_bytes(lake: Lake, tmp_path: Path) -> None:
    rows = rejects(NOON)
    await lake.write(lake.plan(lake.encode_rejects(rows), advance(0, 1)))
    [path] = (tmp_path / "rejects").rglob("*.parquet")
    found = pl.read_parquet(path, hive_partitioning=False)
    assert found.schema == pl.Schema(REJECT_SCHEMA)
    assert found.equals(rows)


def test_a_column_named_like_a_folder_is_refused(store: ObjectStore) -> None:
    with pytest.raises(ConfigError, match="clicks: column hour: is a folder of the lake too"):
        Lake(store, topology({**COLUMNS, "hour": pl.Int8()}))


def test_a_partition_id_with_slashes_makes_a_safe_key(lake: Lake) -> None:
    [file] = lake.plan(lake.encode_events(events(NOON)), advance(1, partition="logs/2026/é.gz"))
    assert file.plan.key.rpartition("/")[2].startswith("logs_2026_.gz-start-0-1-")


async def test_a_file_is_read_with_the_types_that_the_page_has_by_now(store: ObjectStore) -> None:
    older = Lake(store, topology({**COLUMNS, "value": pl.Int64()}))
    rows = events(NOON, NOON + 1).with_columns(value=pl.Series([1, 2], dtype=pl.Int64))
    [file] = older.plan(older.encode_events(rows), advance(2))
    await older.write([file])
    read = await Lake(store, topology()).read([file.plan.key], ["value", "position"])
    assert read.schema == pl.Schema({"value": pl.Float64(), "position": pl.Int64()})
    assert read.rows() == [(1.0, 0), (2.0, 1)]


async def test_what_cannot_have_the_type_of_now_is_refused_and_not_quoted(
    lake: Lake, store: ObjectStore
) -> None:
    """A text that is no number, and a fraction, which polars would cut off for a whole number."""
    [file] = lake.plan(lake.encode_events(events(NOON, NOON + 1)), advance(2))
    await lake.write([file])
    changed = Lake(store, topology({**COLUMNS, "host": pl.Int64(), "value": pl.Int64()}))
    for column, was in (("host", "String"), ("value", "Float64")):
        with pytest.raises(ConfigError) as refused:
            await changed.read([file.plan.key], [column, "position"])
        [mistake] = refused.value.mistakes
        assert mistake.where == f"{file.plan.key}: column {column}"
        assert mistake.problem == f"is {was}, not all of it can be Int64"
        assert "shop.example" not in str(refused.value)


async def test_a_number_that_is_whole_may_become_a_whole_number(lake: Lake, store: ObjectStore) -> None:
    rows = events(NOON, NOON + 1, NOON + 2).with_columns(value=pl.Series([1.0, None, 2.0]))
    [file] = lake.plan(lake.encode_events(rows), advance(3))
    await lake.write([file])
    changed = Lake(store, topology({**COLUMNS, "value": pl.Int64()}))
    read = await changed.read([file.plan.key], ["value", "position"])
    assert read.rows() == [(1, 0), (None, 1), (2, 2)]


@pytest.mark.parametrize(
    ("written", "made"), [("17", False), ("merged", True), ("erased", True), ("replayed", False)]
)
def test_an_object_that_was_made_of_others_is_known_by_its_name(written: str, made: bool) -> None:
    for partition in ("0", "3fa9c2d1.0", "2026-07-01/an-erased-merged-7.gz"):
        for after in (None, 0, 2**63):
            name = object_name(Partition("clicks", partition), after, 2**63 + 5, written)
            key = f"lake/clicks/date=2026-07-01/hour=12/{name}-0123456789ab.parquet"
            assert made_of_others(key) is made
    assert not made_of_others("lake/clicks/merged.parquet")


async def test_reading_leaves_nothing_behind(lake: Lake, store: ObjectStore) -> None:
    [file] = lake.plan(lake.encode_events(events(NOON, NOON + 1)), advance(2))
    await lake.write([file])

    async def blocks_after_reading(times: int) -> int:
        await lake.read([file.plan.key] * times, ["event_time"])
        gc.collect()
        return sys.getallocatedblocks()

    before = await blocks_after_reading(300)
    # Of a file object polars keeps an integer each time that it reads one.
    assert await blocks_after_reading(300) < before + 100
