"""Redshift's SQL, as text: it takes no parameters in COPY and DDL, so every name and value is checked here.

What Redshift has not, and what is done instead: no ``ON CONFLICT`` and no enforced keys (a lock, and a SELECT
that fails); no ``DO`` blocks (a division by zero ends the transaction); no ``ADD COLUMN IF NOT EXISTS`` (the
catalog is read first, and again when somebody was faster).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import polars as pl

from streamproc.model import PlannedObject
from streamproc.sinks.redshift_session import MOST_BYTES
from streamproc.sinks.warehouse import Rows, TableLayout
from streamproc.topology import HOUR, SECOND

SCHEMA = "warehouse"
LOADS = f"{SCHEMA}.loads"
SUPERSEDED = f"{SCHEMA}.superseded"

#: Stands among a replay's loads for all of them from when its rows are the stream's until its own table is dropped.
ADOPTED = "adopted"

#: The longest text of a column, in bytes: https://docs.aws.amazon.com/redshift/latest/dg/r_Character_types.html
LONGEST_TEXT = 65_535

TEXT = f"character varying({LONGEST_TEXT})"

#: As ``format_type`` writes them. Times are UTC without saying so: COPY from Parquet knows no time zones.
_TYPES: Mapping[type[pl.DataType], str] = {
    pl.String: TEXT,
    pl.Boolean: "boolean",
    pl.Int8: "smallint",
    pl.Int16: "smallint",
    pl.Int32: "integer",
    pl.Int64: "bigint",
    pl.Float32: "real",
    pl.Float64: "double precision",
    pl.Date: "date",
    pl.Datetime: "timestamp without time zone",
    pl.Binary: "varbyte(1024000)",
}

#: Bytes of a statement for a list of keys or values; the rest is for what stands around it.
_MOST_PARTS = MOST_BYTES - 1000

_NESTED = (pl.List, pl.Array, pl.Struct)

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,126}", re.ASCII)

#: What a literal may hold. No quote and no backslash, which some settings of Redshift take for an escape.
_LITERAL = re.compile(r"[ \w.,:;=/+@()\[\]*<>#%&!?|~^${}-]*", re.ASCII)

#: It has no key, because none would be enforced. ``problem`` is set for an object that could not be loaded.
CREATE_LOADS = f"""CREATE TABLE IF NOT EXISTS {LOADS} (
    stream character varying(127) NOT NULL,
    "key" character varying(1024) NOT NULL,
    "rows" bigint NOT NULL,
    loaded_at timestamp without time zone NOT NULL DEFAULT SYSDATE,
    problem character varying(2000)
) DISTSTYLE AUTO SORTKEY (stream, "key")"""

CREATE_SUPERSEDED = f"""CREATE TABLE IF NOT EXISTS {SUPERSEDED} (
    stream character varying(127) NOT NULL,
    "key" character varying(1024) NOT NULL
) DISTSTYLE AUTO SORTKEY (stream, "key")"""

#: The first statement of whatever changes the loads. A transaction's snapshot is taken by its first SELECT, DML or
#: DDL, and LOCK is none: what is read after it is what the last holder of the lock has committed.
#: https://docs.aws.amazon.com/redshift/latest/dg/c_serial_isolation.html
LOCK = f"LOCK {LOADS}"


def identifier(name: str) -> str:
    """The name in quotes. Raises :class:`ValueError` for one that could be something else than a name."""
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"not a name in Redshift: {name!r}")
    return f'"{name}"'


def table(stream: str) -> str:
    """The stream's table."""
    return f"{SCHEMA}.{identifier(stream)}"


def literal(text: str) -> str:
    """The text in quotes. Raises :class:`ValueError` for characters that object keys and names do not have."""
    if not _LITERAL.fullmatch(text):
        raise ValueError(f"not to be written into a statement: {text!r}")
    return f"'{text}'"


def any_text(text: str) -> str:
    """Any text as an expression: a backslash is written as ``CHR(92)``."""
    return " || CHR(92) || ".join("'" + part.replace("'", "''") + "'" for part in text.split("\\"))


def prose(text: str, longest: int) -> str:
    """A message as a literal, with ``?`` for each character that cannot stand there."""
    plain = "".join(character if _LITERAL.fullmatch(character) else "?" for character in text)
    return literal(plain[:longest])


def column_type(dtype: pl.DataType, *, is_json: bool) -> str:
    """The type of a column that holds values of ``dtype``."""
    if is_json or isinstance(dtype, _NESTED):
        return "super"
    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision or 38},{dtype.scale})"
    return _TYPES.get(type(dtype), TEXT)


def fits(there: str, wanted: str) -> bool:
    """Whether a column of the type ``there`` can take what is ``wanted``; lengths are the table owner's business.

    JSON may be kept as text, and a time may have got a time zone.
    """
    if wanted == "super":
        return there == "super" or there.startswith("character varying")
    if wanted.startswith("timestamp"):
        return there.startswith("timestamp")
    if wanted.startswith("varbyte"):  # its other name
        return there.startswith(("varbyte", "binary varying"))
    return there.partition("(")[0] == wanted.partition("(")[0]


def create_table(stream: str, types: Mapping[str, str], layout: TableLayout) -> str:
    """The stream's table with these columns; keys of the layout that are no columns are left out."""
    columns = ", ".join(f"{identifier(name)} {kind}" for name, kind in types.items())
    spread = layout.dist_key
    style = f"DISTKEY ({identifier(spread)})" if spread is not None and spread in types else "DISTSTYLE AUTO"
    keys = [identifier(name) for name in layout.sort_key if name in types and types[name] != "super"]
    sort = f"COMPOUND SORTKEY ({', '.join(keys)})" if keys else "SORTKEY AUTO"
    return f"CREATE TABLE IF NOT EXISTS {table(stream)} ({columns}) {style} {sort}"


def add_column(stream: str, name: str, kind: str) -> str:
    """One column more; ALTER TABLE adds one at a time."""
    return f"ALTER TABLE {table(stream)} ADD COLUMN {identifier(name)} {kind}"


def schema_exists() -> str:
    """A row when the schema is there. CREATE SCHEMA IF NOT EXISTS would want leave to create even then."""
    return f"SELECT 1 FROM pg_namespace WHERE nspname = {literal(SCHEMA)}"


def columns_of(stream: str) -> str:
    """Names and types of the table's columns; no rows when there is no such table."""
    return (
        "SELECT a.attname::character varying(127), format_type(a.atttypid, a.atttypmod)"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE n.nspname = {literal(SCHEMA)} AND c.relname = {literal(stream)}"
        " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    )


def keys_among(stream: str, keys: Sequence[str]) -> Iterator[str]:
    """SELECTs that give those of the keys that are in the loads."""
    for part in _parts(map(literal, keys)):
        yield f'SELECT "key" FROM {LOADS} WHERE stream = {literal(stream)} AND "key" IN ({part})'


def refuse(stream: str, keys: Sequence[str]) -> Iterator[str]:
    """Statements that fail when one of the keys is in the loads."""
    for part in _parts(map(literal, keys)):
        yield (
            "SELECT 1 / (CASE WHEN count(*) = 0 THEN 1 ELSE 0 END)"
            f' FROM {LOADS} WHERE stream = {literal(stream)} AND "key" IN ({part})'
        )


def loads_with(stream: str, parts: Iterable[str]) -> Iterator[str]:
    """SELECTs that give keys and rows of the loads whose keys have one of the parts in them."""
    conditions = (f'STRPOS("key", {literal(each)}) > 0' for each in parts)
    for part in _parts(conditions, " OR "):
        yield f'SELECT "key", "rows" FROM {LOADS} WHERE stream = {literal(stream)} AND ({part})'


def manifest(urls: Mapping[str, int]) -> bytes:
    """The manifest of objects, by URL with their bytes. COPY of Parquet wants ``content_length``.

    https://docs.aws.amazon.com/redshift/latest/dg/loading-data-files-using-manifest.html
    """
    entries = [
        {"url": url, "mandatory": True, "meta": {"content_length": size}} for url, size in urls.items()
    ]
    return json.dumps({"entries": entries}).encode()


def copy(target: str, columns: Iterable[str], url: str, iam_role: str, *, nested: bool) -> str:
    """COPY what a manifest lists. Columns of Parquet are taken by their place, so ``columns`` is the file's order.

    https://docs.aws.amazon.com/redshift/latest/dg/copy-usage_notes-copy-from-columnar.html
    """
    role = "default" if iam_role == "default" else literal(iam_role)
    return (
        f"COPY {target} ({', '.join(map(identifier, columns))}) FROM {literal(url)} IAM_ROLE {role}"
        f" FORMAT AS PARQUET{' SERIALIZETOJSON' if nested else ''} MANIFEST"
    )


def check_copied(rows: int) -> str:
    """A statement that fails when the COPY before it did not load that many rows."""
    return f"SELECT 1 / (CASE WHEN pg_last_copy_count() = {rows:d} THEN 1 ELSE 0 END)"


def create_stage(name: str, types: Mapping[str, str]) -> str:
    """A temporary table for a COPY whose texts are parsed on the way to the stream's table."""
    columns = ", ".join(f"{identifier(column)} {kind}" for column, kind in types.items())
    return f"CREATE TEMP TABLE {identifier(name)} ({columns})"


def insert_parsed(stream: str, stage: str, columns: Iterable[str], parsed: frozenset[str]) -> str:
    """Move the stage's rows; ``parsed`` columns are JSON's text there."""
    names = list(columns)
    values = [f"JSON_PARSE({identifier(c)})" if c in parsed else identifier(c) for c in names]
    return (
        f"INSERT INTO {table(stream)} ({', '.join(map(identifier, names))})"
        f" SELECT {', '.join(values)} FROM {identifier(stage)}"
    )


def drop_stage(name: str) -> str:
    """The stage goes with the session, and a session may be used again."""
    return f"DROP TABLE {identifier(name)}"


def record(stream: str, rows: Mapping[str, int]) -> Iterator[str]:
    """Statements that note objects as loaded, by key with their rows."""
    values = (f"({literal(stream)}, {literal(key)}, {count:d})" for key, count in rows.items())
    for part in _parts(values):
        yield f'INSERT INTO {LOADS} (stream, "key", "rows") VALUES {part}'


def record_merged(stream: str, keys: Sequence[str]) -> list[str]:
    """Statements that note the keys as loaded without rows; those that are noted so already too."""
    again = [
        f'DELETE FROM {LOADS} WHERE stream = {literal(stream)} AND "rows" = 0 AND "key" IN ({part})'
        for part in _parts(map(literal, keys))
    ]
    values = (f"({literal(stream)}, {literal(key)}, 0)" for key in keys)
    return again + [f'INSERT INTO {LOADS} (stream, "key", "rows") VALUES {part}' for part in _parts(values)]


def record_problem(stream: str, key: str, problem: str) -> str:
    """Note the object as put aside: without rows, and not to be loaded."""
    values = f"({literal(stream)}, {literal(key)}, 0, {prose(problem, 2000)})"
    return f'INSERT INTO {LOADS} (stream, "key", "rows", problem) VALUES {values}'


def release(stream: str) -> str:
    """Forget what was put aside, so that it is loaded again."""
    return f"DELETE FROM {LOADS} WHERE stream = {literal(stream)} AND problem IS NOT NULL"


def put_aside(stream: str) -> str:
    """Keys put aside, why and when, oldest first."""
    return (
        f'SELECT "key", problem, CAST(EXTRACT(epoch FROM loaded_at) AS bigint) FROM {LOADS}'
        f' WHERE stream = {literal(stream)} AND problem IS NOT NULL ORDER BY loaded_at, "key"'
    )


def totals(stream: str) -> str:
    """Objects with rows, rows, newest load (Unix seconds), objects put aside."""
    return (
        'SELECT count(CASE WHEN "rows" > 0 THEN 1 END), CAST(COALESCE(sum("rows"), 0) AS bigint),'
        " CAST(EXTRACT(epoch FROM max(loaded_at)) AS bigint), count(problem)"
        f" FROM {LOADS} WHERE stream = {literal(stream)}"
    )


def supersede(replay: str, keys: Sequence[str]) -> Iterator[str]:
    """Statements that list the keys which a replay's objects replace."""
    for part in _parts(f"({literal(replay)}, {literal(key)})" for key in keys):
        yield f'INSERT INTO {SUPERSEDED} (stream, "key") VALUES {part}'


def forget_superseded(replay: str) -> str:
    """Empty that list."""
    return f"DELETE FROM {SUPERSEDED} WHERE stream = {literal(replay)}"


def delete_rows(stream: str, rows: Sequence[Rows]) -> Iterator[str]:
    """Deletes by partition and position. What they leave behind is vacuumed by Redshift itself, in the background.

    https://docs.aws.amazon.com/redshift/latest/dg/t_Reclaiming_storage_space202.html
    """
    conditions = (
        f"(source_partition = {any_text(each.source_partition)}"
        f' AND "position" > {each.after:d} AND "position" <= {each.through:d})'
        for each in rows
    )
    for part in _parts(conditions, " OR "):
        yield f"DELETE FROM {table(stream)} WHERE {part}"


def count_rows(stream: str, plan: PlannedObject) -> str:
    """How many rows there are at the positions of the object, of events of its hour."""
    return f"SELECT count(*) FROM {table(stream)} WHERE {_place(plan)}"


def delete_places(stream: str, plans: Sequence[PlannedObject]) -> Iterator[str]:
    """Deletes what :func:`count_rows` counts of each of the objects."""
    for part in _parts(map(_place, plans), " OR "):
        yield f"DELETE FROM {table(stream)} WHERE {part}"


def _place(plan: PlannedObject) -> str:
    assert plan.max_time_us is not None
    hour = plan.max_time_us // HOUR * HOUR
    moments = [f"TIMESTAMP 'epoch' + {us // SECOND:d} * INTERVAL '1 second'" for us in (hour, hour + HOUR)]
    return (
        f"(source_partition = {any_text(plan.partition.id)}"
        f' AND "position" > {-1 if plan.after is None else plan.after:d} AND "position" <= {plan.through:d}'
        f" AND event_time >= {moments[0]} AND event_time < {moments[1]})"
    )


def visitors_rows(stream: str, columns: Sequence[str], values: Sequence[str]) -> Iterator[str]:
    """``FROM ... WHERE``, for the rows in which one of the columns is one of the values."""
    # Each part stands in the statement once for every column.
    for part in _parts(map(any_text, values), most=_MOST_PARTS // len(columns)):
        theirs = " OR ".join(f"{identifier(column)} IN ({part})" for column in columns)
        yield f"FROM {table(stream)} WHERE {theirs}"


def adopt(stream: str, replay: str, columns: Sequence[str]) -> list[str]:
    """Take over a replay's rows and loads; the objects on its list count as loaded, without rows.

    Its table stays: a DROP would wait for who reads it, and with it everybody who loads.
    """
    live, other = literal(stream), literal(replay)
    names = ", ".join(map(identifier, columns))
    return [
        f"INSERT INTO {table(stream)} ({names}) SELECT {names} FROM {table(replay)}",
        f"DELETE FROM {LOADS} WHERE stream = {live}"
        f' AND "key" IN (SELECT "key" FROM {SUPERSEDED} WHERE stream = {other})',
        f'INSERT INTO {LOADS} (stream, "key", "rows")'
        f' SELECT {live}, "key", 0 FROM {SUPERSEDED} WHERE stream = {other}',
        f"UPDATE {LOADS} SET stream = {live} WHERE stream = {other}",
        forget_superseded(replay),
        f'INSERT INTO {LOADS} (stream, "key", "rows") VALUES ({other}, {literal(ADOPTED)}, 0)',
    ]


def remove(stream: str) -> list[str]:
    """Drop the stream's table and its loads. The table first: for who reads it nobody else is to wait."""
    return [
        f"DROP TABLE IF EXISTS {table(stream)}",
        LOCK,
        f"DELETE FROM {LOADS} WHERE stream = {literal(stream)}",
    ]


def _parts(items: Iterable[str], separator: str = ", ", most: int = _MOST_PARTS) -> Iterator[str]:
    """The items joined, cut so that none of the parts has more than ``most`` bytes, unless one item has."""
    part: list[str] = []
    size = 0
    for item in items:
        more = len((item + separator).encode())
        if part and size + more > most:
            yield separator.join(part)
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield separator.join(part)
