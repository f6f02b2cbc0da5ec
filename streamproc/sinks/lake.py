"""The lake: accepted events and rejects as Parquet, partitioned the way Hive, Spark and DuckDB expect.

::

    lake/<stream>/date=2026-07-01/hour=13/<partition>-<after>-<through>-<fence>-<random>.parquet
    rejects/<stream>/date=2026-07-01/<partition>-<after>-<through>-<fence>-<random>.parquet

``date`` and ``hour`` (UTC) are of the event for events and of ``received_at`` for rejects. The same range
can be written twice by two owners; the random suffix keeps the two apart and the ledger says which counts.
"""

from __future__ import annotations

import asyncio
import io
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from streamproc.concurrency import each
from streamproc.errors import ConfigError, Inconsistent, Mistake
from streamproc.failpoints import failpoint
from streamproc.model import (
    FOLDER_COLUMNS,
    REJECT_SCHEMA,
    Advance,
    EncodedRows,
    Partition,
    PlannedObject,
    WrittenObject,
)
from streamproc.sinks.object_store import ObjectStore
from streamproc.topology import HOUR, Topology

#: One row group for what one flush usually holds; larger files are cut so that readers can work in parallel.
ROW_GROUP = 262_144

#: Puts at once: they mostly wait for the store.
_PARALLEL = 4

_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")

#: How an object was written that was made of others: of those of a run, or of one without a visitor's rows.
MERGED, ERASED = "merged", "erased"

#: The name of an object: partition, after, through, how it was written, and what no other attempt has.
_NAME = re.compile(r"[A-Za-z0-9._]+-(start|\d+)-(\d+)-([0-9a-z]+)-[0-9a-f]+\.parquet")


@dataclass(frozen=True, slots=True)
class LakeFile:
    """An object to be written and its bytes."""

    plan: PlannedObject
    body: bytes


def lake_schema(columns: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The columns as they stand in the files: types that every Parquet reader has.

    Spark knows no unsigned integers and no nanoseconds, and dictionaries are an encoding, not a type.
    """
    return {name: _plain(dtype) for name, dtype in columns.items()}


def encode(rows: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> bytes:
    """The rows as one Parquet file with exactly the columns of ``schema``, in its order.

    zstd at level 1: on the shipped clickstream, level 3 takes half as long again and saves nothing.
    """
    if rows.schema != pl.Schema(schema):
        rows = rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    buffer = io.BytesIO()
    rows.write_parquet(
        buffer, compression="zstd", compression_level=1, statistics=True, row_group_size=ROW_GROUP
    )
    return buffer.getvalue()


class Lake:
    """Plans and writes the objects of one stream. Planning and encoding touch nothing outside."""

    def __init__(self, store: ObjectStore, topology: Topology) -> None:
        taken = [name for name in FOLDER_COLUMNS if name in topology.columns]
        if taken:
            raise ConfigError(
                Mistake(
                    f"{topology.name}: column {name}", "is a folder of the lake too", "Give it another name"
                )
                for name in taken
            )
        self._store = store
        self._stream = topology.name
        self._schemas = {"events": lake_schema(topology.columns), "rejects": lake_schema(REJECT_SCHEMA)}

    def encode_events(self, events: pl.DataFrame) -> list[EncodedRows]:
        """Accepted events of one partition as files to be, one per event hour.

        ``events`` has the topology's columns; rows keep their order. No rows, no file.
        """
        return [
            self._encoded("events", f"lake/{self._stream}/{_hive(start, hourly=True)}", rows)
            for start, rows in _split(events, "event_time", "1h")
        ]

    def encode_rejects(self, rejects: pl.DataFrame) -> list[EncodedRows]:
        """Rejects of one partition as files to be, one per day received. ``rejects`` has :data:`REJECT_SCHEMA`."""
        return [
            self._encoded("rejects", f"rejects/{self._stream}/{_hive(start, hourly=False)}", rows)
            for start, rows in _split(rejects, "received_at", "1d")
        ]

    def plan(self, encoded: Sequence[EncodedRows], advance: Advance) -> list[LakeFile]:
        """The objects of one partition's share of an epoch, each with a key that no other attempt has."""
        partition = advance.claim.partition
        name = object_name(partition, advance.after, advance.through, str(advance.claim.fence))
        return [
            LakeFile(
                PlannedObject(
                    key=f"{each.folder}/{name}-{secrets.token_hex(6)}.parquet",
                    kind=each.kind,
                    partition=partition,
                    after=advance.after,
                    through=advance.through,
                    rows=each.rows,
                    min_time_us=each.min_time_us,
                    max_time_us=each.max_time_us,
                    clock_us=advance.clock_us,
                ),
                each.body,
            )
            for each in encoded
        ]

    async def write(
        self, files: Sequence[LakeFile], done: dict[str, WrittenObject] | None = None
    ) -> list[WrittenObject]:
        """Put the files, a few at once; the results stand in the files' order.

        They must have been intended before. Raises :class:`DependencyError`; what was put by then stays, and stands
        in ``done`` by its key: with that the same files may be written again, and only the others are put.
        """
        written = {} if done is None else done

        async def write_one(file: LakeFile) -> None:
            stored = await self._store.put(file.plan.key, file.body)
            written[file.plan.key] = WrittenObject(file.plan, stored.size, stored.checksum)
            if len(written) == 1:
                failpoint("put.first")
            if len(written) == (len(files) + 1) // 2:
                failpoint("put.middle")
            if len(written) == len(files):
                failpoint("put.last")

        left = [file for file in files if file.plan.key not in written]
        await each(write_one, left, at_once=_PARALLEL)
        return [written[file.plan.key] for file in files]

    async def read(self, keys: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
        """Some columns of some event objects, one after the other as the keys stand, with the types of the page:
        it may have changed one since they were written.

        Raises :class:`DependencyError`, :class:`MissingObject` when the ledger and the store disagree, and
        :class:`ConfigError` when a value cannot have the type that the page gives its column by now.
        """
        schema = {name: self._schemas["events"][name] for name in columns}
        frames = [pl.DataFrame(schema=schema)]
        for key in keys:
            body = await self._store.get(key)
            frames.append(await asyncio.to_thread(_decode, key, body, schema))
        return pl.concat(frames)

    def _encoded(self, kind: str, folder: str, rows: pl.DataFrame) -> EncodedRows:
        times = rows["event_time" if kind == "events" else "received_at"].to_physical()
        return EncodedRows(
            kind=kind,
            folder=folder,
            body=encode(rows, self._schemas[kind]),
            rows=rows.height,
            min_time_us=_integer(times.min()),
            max_time_us=_integer(times.max()),
        )


def _decode(key: str, body: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """These columns of a file and no others; null where it is older than a column that the page has gained since."""
    there = pl.read_parquet_schema(body)
    frame = pl.read_parquet(body, columns=[name for name in schema if name in there])
    if wrong := [name for name in frame.columns if not fits(frame[name], schema[name])]:
        fix = "Give the column another name in the topic page, or the type it had"
        # Not what polars says about it: that quotes values, and they may be a visitor's.
        raise ConfigError(
            Mistake(f"{key}: column {name}", f"is {there[name]}, not all of it can be {schema[name]}", fix)
            for name in wrong
        )
    return frame.select(
        pl.col(name).cast(dtype) if name in there else pl.lit(None, dtype).alias(name)
        for name, dtype in schema.items()
    )


def fits(column: pl.Series, dtype: pl.DataType) -> bool:
    """Whether every value can have the type, and says the same then: polars takes 1.5 for the whole number 1."""
    if column.dtype == dtype:
        return True
    try:
        changed = column.cast(dtype)
    except pl.exceptions.PolarsError:
        return False
    if column.dtype.is_numeric() and (dtype.is_integer() or dtype == pl.Boolean()):
        return bool((changed.cast(column.dtype) == column).all())
    return True


def object_name(partition: Partition, after: int | None, through: int, written: str) -> str:
    """How an object's name begins; ``written`` under which fence, or how else."""
    return f"{_UNSAFE.sub('_', partition.id)}-{'start' if after is None else after}-{through}-{written}"


def made_of_others(key: str) -> bool:
    """Whether the object was made of others, whose rows it has."""
    name = _NAME.fullmatch(key.rpartition("/")[2])
    return name is not None and name[3] in {MERGED, ERASED}


def siblings(key: str) -> str:
    """What the keys of all objects of the same partition and event hour have behind the stream, or the replay of it."""
    folder, _, name = key.rpartition("/")
    return f"/{'/'.join(folder.split('/')[2:])}/{name.partition('-')[0]}-"


def rows_within(plan: PlannedObject, rows: Iterable[tuple[str, int]]) -> int:
    """The sum of the ``rows`` (by key) of those siblings that lie, by their names, within the positions of ``plan``.

    0 where several are of exactly its positions: a large commit writes several objects of an hour. The one was made of
    one of them, and what has become of the others nobody says.
    """
    mine, first = siblings(plan.key), -1 if plan.after is None else plan.after
    found = alike = 0
    for key, count in rows:
        name = _NAME.fullmatch(key.rpartition("/")[2])
        if name is None or mine not in key:
            continue
        after, through = -1 if name[1] == "start" else int(name[1]), int(name[2])
        if first <= after and through <= plan.through:
            found += count
            alike += count > 0 and (after, through) == (first, plan.through)
    return found if alike < 2 else 0


def _split(rows: pl.DataFrame, time: str, every: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows by hour or day of ``time``, each with the start of it (µs).

    Nearly always there is just one, and two comparisons show it.
    """
    if rows.is_empty():
        return
    first, last = rows.select(
        pl.col(time).min().dt.truncate(every).to_physical().alias("first"),
        pl.col(time).max().dt.truncate(every).to_physical().alias("last"),
    ).row(0)
    if first == last:
        yield first, rows
        return
    start = rows[time].dt.truncate(every).to_physical().alias("start").to_frame()
    # Looked for one by one, hours strewn over years would each cost a look at all rows.
    found = start.with_row_index("row").group_by("start").agg("row").sort("start")
    for value, places in zip(found["start"], found["row"], strict=True):
        yield value, rows[places]


def _hive(start_us: int, *, hourly: bool) -> str:
    moment = pl.from_epoch(pl.Series([start_us]), time_unit="us")
    date = moment.dt.strftime("%Y-%m-%d")[0]
    return f"date={date}/hour={start_us // HOUR % 24:02}" if hourly else f"date={date}"


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise Inconsistent(f"a row of the lake has no time: {value!r}")
    return value


def _plain(dtype: pl.DataType) -> pl.DataType:
    wider: Mapping[type[pl.DataType], pl.DataType] = {
        pl.UInt8: pl.Int16(),
        pl.UInt16: pl.Int32(),
        pl.UInt32: pl.Int64(),
        pl.UInt64: pl.Decimal(20, 0),
        pl.Categorical: pl.String(),
        pl.Enum: pl.String(),
    }
    if isinstance(dtype, pl.Datetime):
        return pl.Datetime("us", dtype.time_zone)
    return wider.get(type(dtype), dtype)
