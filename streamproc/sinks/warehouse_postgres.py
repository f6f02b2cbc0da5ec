"""The warehouse in PostgreSQL: schema ``warehouse``, one table per stream, loaded by COPY."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any, LiteralString

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.concurrency import each
from streamproc.database import ENCODE, Database, other_encoding, patient
from streamproc.errors import ConfigError, Inconsistent, Mistake
from streamproc.failpoints import failpoint
from streamproc.model import CommittedObject, PlannedObject
from streamproc.sinks.lake import fits, rows_within, siblings
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import LoadReport, Rows, WarehouseStatus
from streamproc.topology import HOUR, SECOND

#: As ``format_type`` writes them, so that they can be compared with what is there.
_TYPES: Mapping[type[pl.DataType], LiteralString] = {
    pl.String: "text",
    pl.Boolean: "boolean",
    pl.Int8: "smallint",
    pl.Int16: "smallint",
    pl.Int32: "integer",
    pl.Int64: "bigint",
    pl.Float32: "real",
    pl.Float64: "double precision",
    pl.Decimal: "numeric",
    pl.Date: "date",
    pl.Datetime: "timestamp with time zone",
    pl.Binary: "bytea",
}

#: What is read of a column of the table.
_READ: Mapping[str, pl.DataType] = {
    "text": pl.String(),
    "boolean": pl.Boolean(),
    "smallint": pl.Int16(),
    "integer": pl.Int32(),
    "bigint": pl.Int64(),
    "real": pl.Float32(),
    "double precision": pl.Float64(),
    "date": pl.Date(),
    "timestamp with time zone": pl.Datetime("us", "UTC"),
}

#: Any fixed number; it only has to differ from other advisory locks of the same database.
_LOCK = 5_510_262_938_447_106_229

_LOADS = """
    CREATE TABLE IF NOT EXISTS warehouse.loads (
        stream     text COLLATE "C" NOT NULL,
        key        text COLLATE "C" NOT NULL,
        rows       bigint NOT NULL,
        loaded_at  timestamptz NOT NULL,
        PRIMARY KEY (stream, key)
    )
"""

_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod)
    FROM pg_attribute AS a WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""

#: Stands among a replay's loads for all of them from when its rows are the stream's until its own table is dropped.
_ADOPTED = "adopted"

#: How long a table that is to be dropped, or to get columns, is waited for: loaders wait meanwhile, for what is to be
#: forgotten of it, and whoever begins to read it.
_PATIENCE = "5s"

#: Bytes handed to COPY at once, so that one large object does not keep the event loop.
_COPY_CHUNK = 1 << 20

#: Objects fetched at once.
_PARALLEL = 8


class PostgresWarehouse:
    """Table ``warehouse.<stream>`` and the list ``warehouse.loads`` of the objects in it."""

    def __init__(self, conninfo: str, stream: str) -> None:
        self._database = Database(conninfo, "streamproc loader", size=2)
        if stream == "loads":
            raise ConfigError([Mistake(f"stream {stream}", "is the name of a table", "Choose another name")])
        self._stream = stream
        self._table = sql.Identifier("warehouse", stream)

    async def open(self) -> None:
        """Connect."""
        await self._database.open()

    async def close(self) -> None:
        """Disconnect."""
        await self._database.close()

    async def ensure(self, columns: Mapping[str, pl.DataType]) -> None:
        """Create or extend the table, with an index on event time.

        Raises :class:`ConfigError` also for a database that cannot hold every text, and :class:`DependencyError` when
        the table is to be extended and somebody keeps it in use.
        """
        async with self._database.transaction("prepare the warehouse") as conn:
            if encoding := other_encoding(conn):
                problem = f"{conn.info.dbname} is encoded in {encoding}, which cannot hold every text"
                raise ConfigError([Mistake("warehouse", problem, ENCODE)])
            # CREATE ... IF NOT EXISTS fails when two do it at the same moment.
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            if not await _exists(conn, "warehouse.loads"):
                await conn.execute("CREATE SCHEMA IF NOT EXISTS warehouse")
                await conn.execute(_LOADS)
            there = await self._extend(conn, columns)
            if wrong := _changed(columns, there):
                name = self._table.as_string(conn)
                raise ConfigError(
                    Mistake(
                        f"warehouse table {name}, column {column}",
                        f"is {there[column]} and should be {_postgres_type(columns[column])}",
                        "Rename the column in the topic page, or the table",
                    )
                    for column in wrong
                )

    async def missing(self, keys: Sequence[str]) -> set[str]:
        """Anti-join with ``warehouse.loads``."""
        async with self._database.connection("compare loads") as conn:
            cursor = await conn.execute(
                "SELECT wanted.key FROM unnest(%s::text[]) AS wanted (key) WHERE NOT EXISTS ("
                " SELECT FROM warehouse.loads AS l WHERE l.stream = %s AND l.key = wanted.key)",
                [list(keys), self._stream],
            )
            return {key for (key,) in await cursor.fetchall()}

    async def load(
        self, objects: Sequence[CommittedObject], store: ObjectStore, instead: Collection[str] = ()
    ) -> LoadReport:
        """One transaction: lock, COPY each object with the columns it has, note it."""
        # Before the transaction, so that the lock is not held while the store takes its time.
        bodies = await each(lambda committed: store.get(committed.plan.key), objects, at_once=_PARALLEL)
        async with self._database.transaction("load the warehouse") as conn:
            # Before reading what is loaded, and against other loaders only: readers go on.
            await conn.execute("LOCK TABLE warehouse.loads IN SHARE ROW EXCLUSIVE MODE")
            failpoint("load.locked")
            cursor = await conn.execute(
                "SELECT key FROM warehouse.loads WHERE stream = %s AND key = ANY(%s)",
                [self._stream, [committed.plan.key for committed in objects]],
            )
            loaded = {key for (key,) in await cursor.fetchall()}
            report = LoadReport()
            for committed, body in zip(objects, bodies, strict=True):
                if committed.plan.key not in loaded:
                    anew = committed.plan.key in instead
                    had = await self._delete_parts(conn, committed.plan) if anew else 0
                    report += await self._load_object(conn, committed, body, had)
            failpoint("load.copied")
        failpoint("load.committed")
        return report

    async def status(self) -> WarehouseStatus:
        """Sums over ``warehouse.loads``, zero before the first :meth:`ensure`."""
        async with self._database.connection("read the loads") as conn:
            if not await _exists(conn, "warehouse.loads"):
                return WarehouseStatus(0, 0, None)
            cursor = await conn.execute(
                "SELECT count(*) FILTER (WHERE rows > 0), COALESCE(sum(rows), 0)::bigint, max(loaded_at)"
                " FROM warehouse.loads WHERE stream = %s",
                [self._stream],
            )
            row = await cursor.fetchone()
        assert row is not None
        return WarehouseStatus(*row)

    async def adopt(self, replay: str, rows: Sequence[Rows], superseded: Sequence[str]) -> bool:
        """See :meth:`streamproc.sinks.warehouse.Swaps.adopt`."""
        other = sql.Identifier("warehouse", replay)
        async with self._database.transaction("promote a replay in the warehouse") as conn:
            if not await _exists(conn, "warehouse.loads"):
                return False
            await conn.execute("LOCK TABLE warehouse.loads IN SHARE ROW EXCLUSIVE MODE")
            cursor = await conn.execute(_COLUMNS, [other.as_string(conn)])
            columns = [column for column, _ in await cursor.fetchall()]
            note = [replay, _ADOPTED]
            query = "SELECT FROM warehouse.loads WHERE (stream, key) = (%s, %s)"
            if not columns or await (await conn.execute(query, note)).fetchone() is not None:
                return False
            await conn.execute(
                sql.SQL(
                    "DELETE FROM {} AS w USING unnest(%s::text[], %s::bigint[], %s::bigint[])"
                    " AS gone (number, after, through)"
                    " WHERE w.source_partition = gone.number AND w.position > gone.after"
                    " AND w.position <= gone.through"
                ).format(self._table),
                [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []],
            )
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            await conn.execute(
                sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(self._table, names, names, other)
            )
            await conn.execute(
                "INSERT INTO warehouse.loads (stream, key, rows, loaded_at)"
                " SELECT %s, key, 0, clock_timestamp() FROM unnest(%s::text[]) AS gone (key)"
                " ON CONFLICT (stream, key) DO UPDATE SET rows = 0",
                [self._stream, list(superseded)],
            )
            await conn.execute(
                "UPDATE warehouse.loads SET stream = %s WHERE stream = %s", [self._stream, replay]
            )
            # To drop its table here would hold up all loaders for as long as anybody reads it.
            await conn.execute(
                "INSERT INTO warehouse.loads (stream, key, rows, loaded_at) VALUES (%s, %s, 0, clock_timestamp())",
                note,
            )
        return True

    async def merged(self, keys: Sequence[str]) -> None:
        """See :meth:`streamproc.sinks.warehouse.Merges.merged`."""
        async with self._database.transaction("note merged objects in the warehouse") as conn:
            await conn.execute(
                "INSERT INTO warehouse.loads (stream, key, rows, loaded_at)"
                " SELECT %s, key, 0, clock_timestamp() FROM unnest(%s::text[]) AS made (key)"
                " ON CONFLICT (stream, key) DO NOTHING",
                [self._stream, list(keys)],
            )

    async def erase(self, columns: Sequence[str], values: Sequence[str], *, dry: bool = False) -> int:
        """See :meth:`streamproc.sinks.warehouse.Erases.erase`."""
        theirs = sql.SQL(" OR ").join(
            sql.SQL("{} = ANY(%(values)s)").format(sql.Identifier(c)) for c in columns
        )
        select = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._table, theirs)
        async with self._database.transaction("erase a visitor from the warehouse") as conn:
            if dry:
                row = await (await conn.execute(select, {"values": list(values)})).fetchone()
                return int(row[0]) if row else 0
            delete = sql.SQL("DELETE FROM {} WHERE {}").format(self._table, theirs)
            return (await conn.execute(delete, {"values": list(values)})).rowcount

    async def remove(self) -> None:
        """See :meth:`streamproc.sinks.warehouse.Swaps.remove`."""
        async with self._database.transaction("drop a table of the warehouse") as conn:
            if await _exists(conn, "warehouse.loads"):
                await conn.execute("DELETE FROM warehouse.loads WHERE stream = %s", [self._stream])
                name, problem = (
                    f"warehouse.{self._stream}",
                    f"is to be dropped, and has been in use for {_PATIENCE}",
                )
                async with patient(conn, _PATIENCE, name, problem):
                    await conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._table))

    async def _delete_parts(self, conn: AsyncConnection[Any], plan: PlannedObject) -> int:
        """Delete what was loaded of the objects that this one was made of; returns how many rows.

        They are found by position and hour. Where there are more of them than came with those objects, somebody
        else's are among them, and all stay.
        """
        mine = siblings(plan.key)
        own, replays = f"lake/{self._stream}{mine}", f"lake/{self._stream}__replay_"
        cursor = await conn.execute(
            "SELECT key, rows FROM warehouse.loads WHERE stream = %s AND (key >= %s AND key < %s"
            " OR key >= %s AND key < %s AND strpos(key, %s) > 0)",
            # A dot follows a hyphen, a backtick an underscore.
            [self._stream, own, own[:-1] + ".", replays, replays[:-1] + "`", mine],
        )
        known = rows_within(plan, await cursor.fetchall())
        if known <= 0 or plan.max_time_us is None:
            return 0
        hour = plan.max_time_us // HOUR * HOUR
        names: dict[str, object] = {"partition": plan.partition.id, "through": plan.through}
        names["after"] = -1 if plan.after is None else plan.after
        names |= {"from": hour // SECOND, "to": (hour + HOUR) // SECOND}
        theirs = sql.SQL(
            " FROM {} WHERE source_partition = %(partition)s AND position > %(after)s AND position <= %(through)s"
            " AND event_time >= to_timestamp(%(from)s) AND event_time < to_timestamp(%(to)s)"
        ).format(self._table)
        row = await (await conn.execute(sql.SQL("SELECT count(*)") + theirs, names)).fetchone()
        if row is None or row[0] > known:
            return 0
        return (await conn.execute(sql.SQL("DELETE") + theirs, names)).rowcount

    async def _load_object(
        self, conn: AsyncConnection[Any], committed: CommittedObject, body: bytes, had: int
    ) -> LoadReport:
        """``had``: how many rows the table had in the place of these; so many are noted with others."""
        key, rows = committed.plan.key, committed.plan.rows
        if len(body) != committed.size:
            raise Inconsistent(f"{key}: {len(body)} bytes in the store, {committed.size} in the ledger")
        frame = await asyncio.to_thread(pl.read_parquet, body)
        # An object may be older or newer than the topic page in force: its own columns count.
        there = await self._extend(conn, frame.schema)
        if _changed(frame.schema, there):
            frame = await asyncio.to_thread(_as_in_the_table, frame, there, key)
        copied = await self._copy(conn, frame)
        if copied != rows:
            raise Inconsistent(f"{key}: {copied} rows copied, {rows} in the ledger")
        rows -= had
        await conn.execute(
            "INSERT INTO warehouse.loads (stream, key, rows, loaded_at)"
            " VALUES (%s, %s, %s, clock_timestamp())",
            [self._stream, key, rows],
        )
        return LoadReport(1, rows)

    async def _copy(self, conn: AsyncConnection[Any], frame: pl.DataFrame) -> int:
        body = await asyncio.to_thread(to_csv, frame)
        query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
            self._table, sql.SQL(", ").join(map(sql.Identifier, frame.columns))
        )
        async with conn.cursor() as cursor:
            async with cursor.copy(query) as copy:
                for start in range(0, len(body), _COPY_CHUNK):
                    await copy.write(body[start : start + _COPY_CHUNK])
            return cursor.rowcount

    async def _extend(self, conn: AsyncConnection[Any], columns: Mapping[str, pl.DataType]) -> dict[str, str]:
        """Create the table, or add the columns it lacks; the types of its columns then."""
        name = self._table.as_string(conn)
        wanted = {column: _postgres_type(dtype) for column, dtype in columns.items()}
        there: dict[str, str] = dict(await (await conn.execute(_COLUMNS, [name])).fetchall())
        added = [
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(wanted[column]))
            for column in wanted
            if column not in there
        ]
        if not there:
            await conn.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(added)))
            if "event_time" in wanted:
                # BRIN: objects arrive roughly in time order, and it costs nothing to keep.
                await conn.execute(sql.SQL("CREATE INDEX ON {} USING brin (event_time)").format(self._table))
        elif added:
            clauses = sql.SQL(", ").join(sql.SQL("ADD COLUMN {}").format(column) for column in added)
            problem = f"is to be extended, and has been in use for {_PATIENCE}"
            async with patient(conn, _PATIENCE, f"warehouse.{self._stream}", problem):
                await conn.execute(sql.SQL("ALTER TABLE {} {}").format(self._table, clauses))
        return {**wanted, **there}


def to_csv(frame: pl.DataFrame) -> bytes:
    r"""The frame as PostgreSQL's COPY reads CSV: null is nothing, an empty string is ``""``.

    Binary becomes ``\x`` and hex digits, lists and structs their JSON. PostgreSQL's text cannot hold NUL,
    which a URL may bring in as ``%00``; it becomes U+FFFD.
    """
    changed: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if dtype == pl.String:
            if frame[name].str.contains("\0", literal=True).any():
                changed.append(column.str.replace_all("\0", "\ufffd", literal=True))
        elif isinstance(dtype, pl.List | pl.Array | pl.Struct):
            # polars encodes structs only, so the value goes in as one field and its braces come off again.
            whole = pl.struct(column.alias("v")).struct.json_encode().str.slice(5).str.head(-1)
            changed.append(pl.when(column.is_not_null()).then(whole).alias(name))
        elif dtype == pl.Binary:
            changed.append((pl.lit("\\x") + column.bin.encode("hex")).alias(name))
        elif isinstance(dtype, pl.Datetime):
            changed.append(
                column.dt.convert_time_zone("UTC") if dtype.time_zone else column.dt.replace_time_zone("UTC")
            )
    prepared = frame.with_columns(changed)
    buffer = io.BytesIO()
    prepared.write_csv(
        buffer, include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ", quote_style="necessary"
    )
    return buffer.getvalue()


def _changed(columns: Mapping[str, pl.DataType], there: Mapping[str, str]) -> list[str]:
    """The columns that have another type in the table."""
    return [name for name, dtype in columns.items() if there[name] != _postgres_type(dtype)]


def _as_in_the_table(frame: pl.DataFrame, there: Mapping[str, str], key: str) -> pl.DataFrame:
    """An object's rows with the types of the table: its page gave some columns another.

    Raises :class:`Inconsistent` when a value cannot have it.
    """
    typed = {name: _READ.get(there[name]) for name in _changed(frame.schema, there)}
    for name, dtype in typed.items():
        if dtype is None or not fits(frame[name], dtype):
            raise Inconsistent(
                f"{key}: column {name} is {frame.schema[name]}, and not all of it can be {there[name]} as in the table"
            )
    return frame.cast({name: dtype for name, dtype in typed.items() if dtype is not None})


def _postgres_type(dtype: pl.DataType) -> LiteralString:
    return _TYPES.get(type(dtype), "text")


async def _exists(conn: AsyncConnection[Any], table: str) -> bool:
    row = await (await conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table])).fetchone()
    return bool(row and row[0])
