"""Redshift's SQL on a PostgreSQL, as far as it is known and as strictly: the engine behind both stand-ins.

A statement is taken only if it has one of the forms below; everything else is refused, so that a test fails when
the service begins to write SQL that nobody has looked up in Redshift's manual. Where it differs from Redshift:

* PostgreSQL runs the statements. What Redshift lacks and PostgreSQL would do is refused: keys and unique
  constraints, ON CONFLICT, RETURNING, arrays, FILTER, several columns in one ALTER, IF NOT EXISTS there, DO.
* DISTKEY, SORTKEY and their styles are checked (columns must be there and of a type that may be a key) and dropped.
* SUPER is a domain over ``jsonb``, JSON_PARSE a function. VARCHAR(n) counts characters there; COPY checks bytes.
* Of Redshift's two isolations, SNAPSHOT and SERIALIZABLE, a transaction has the weaker (PostgreSQL's REPEATABLE READ)
  unless :attr:`Engine.isolation` says the other. Failures carry Redshift's words ("1023 ... Serializable isolation
  violation"). Redshift detects conflicts per table, PostgreSQL per row: Redshift aborts more.
* COPY reads manifest and Parquet from the S3 server by boto3 and pyarrow, as COPY from columnar data is documented:
  columns by place, their number equal, ``content_length`` right, types equal, no conversions. Which conversions the
  real one does is not known well, so none is done here. MAXERROR, REGION, COMPUPDATE are refused as there.
* The role must be one of :attr:`Engine.roles`. Whether it may read the bucket is not checked.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import boto3
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import ClientError

ROLE = "arn:aws:iam::123456789012:role/copy"

_NAME = r'"?[a-z_][a-z0-9_]*"?'
_TABLE = rf"(?:{_NAME}\.)?{_NAME}"
_TYPE = (
    r"character varying\(\d+\)|boolean|smallint|integer|bigint|real|double precision|numeric\(\d+,\d+\)|date"
    r"|timestamp without time zone|super"
)
_COLUMN = rf"({_NAME}) ({_TYPE})( NOT NULL)?( DEFAULT SYSDATE)?"
_CREATE = re.compile(
    rf"CREATE (TEMP )?TABLE (IF NOT EXISTS )?({_TABLE}) \((.*?)\)"
    rf"( DISTSTYLE AUTO| DISTKEY \({_NAME}\))?( SORTKEY AUTO|(?: COMPOUND)? SORTKEY \([^()]*\))?"
)
_COPY = re.compile(
    rf"COPY ({_TABLE}) \(([^()]*)\) FROM '(s3://[^']+)' IAM_ROLE (default|'[^']*')"
    r" FORMAT AS PARQUET( SERIALIZETOJSON)? MANIFEST"
)
_PLAIN = (
    re.compile(r"SELECT 1"),
    re.compile(r"SELECT 1 / \(CASE WHEN pg_last_copy_count\(\) = \d+ THEN 1 ELSE 0 END\)"),
    re.compile(rf"SELECT .+ FROM {_TABLE}.*"),
    re.compile(rf"INSERT INTO {_TABLE} \([^()]*\) (VALUES|SELECT) .+"),
    re.compile(rf"DELETE FROM {_TABLE} WHERE .+"),
    re.compile(rf"UPDATE {_TABLE} SET \w+ = '[^']*' WHERE .+"),
    re.compile(rf"DROP TABLE (IF EXISTS )?{_TABLE}"),
    re.compile(rf"CREATE SCHEMA IF NOT EXISTS {_NAME}"),
    re.compile(rf"ALTER TABLE {_TABLE} ADD COLUMN {_NAME} ({_TYPE})"),
)
#: Outside of literals.
_FOREIGN = re.compile(
    r"\bON CONFLICT\b|\bRETURNING\b|\bFILTER\b|\bunnest\b|\bjsonb?\b|\[|\bLATERAL\b|\bFOR UPDATE\b|\bgenerate_series\b"
    r"|\bPRIMARY KEY\b|\bUNIQUE\b|\btext\b|\btimestamptz\b|\bnow\(|\bclock_timestamp\b|\bto_regclass\b|;|--|/\*|\$",
    re.IGNORECASE,
)
_LITERAL = re.compile(r"'[^']*'")

_SETUP = """
    CREATE DOMAIN super AS jsonb;
    CREATE FUNCTION json_parse(t text) RETURNS super LANGUAGE sql IMMUTABLE STRICT AS 'SELECT t::jsonb::super';
    CREATE FUNCTION pg_last_copy_count() RETURNS bigint LANGUAGE sql STABLE
        AS $$ SELECT COALESCE(NULLIF(current_setting('standin.copied', true), ''), '0')::bigint $$;
"""

_ARROW = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "date": pa.date32(),
}


class Refused(Exception):
    """What Redshift says of a statement it does not run."""


@dataclass
class Engine:
    """A database. ``fail``: ``(pattern, message)``, taken once by the first statement that fits."""

    conninfo: str
    s3_endpoint: str
    roles: set[str] = field(default_factory=lambda: {ROLE, "default"})
    fail: list[tuple[str, str]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    isolation: str = "REPEATABLE READ"

    def __post_init__(self) -> None:
        self.s3 = boto3.client("s3", endpoint_url=self.s3_endpoint)
        with psycopg.connect(self.conninfo) as connection:
            connection.execute(_SETUP)

    def close(self) -> None:
        """Close what the engine itself holds open."""
        self.s3.close()

    def refuse_or_translate(self, statement: str) -> str | Copy:
        """PostgreSQL's statement, or what to COPY. Raises :class:`Refused`."""
        self.ran.append(statement)
        for planned in self.fail:
            if re.match(planned[0], statement):
                self.fail.remove(planned)
                raise Refused(planned[1])
        return translate(statement)

    def copy(self, connection: psycopg.Connection[Any], copy: Copy) -> int:
        """Load what the manifest lists, in the connection's transaction; the rows."""
        rows = self.rows(copy, dict(connection.execute(types_query(copy.table).encode()).fetchall()))
        names = ", ".join(f'"{name}"' for name in copy.columns)
        with connection.cursor().copy(f"COPY {copy.table} ({names}) FROM STDIN".encode()) as writing:
            for row in rows:
                writing.write_row(row)
        connection.execute("SELECT set_config('standin.copied', %s, false)", [str(len(rows))])
        return len(rows)

    def rows(self, copy: Copy, types: Mapping[str, str]) -> list[tuple[Any, ...]]:
        """What a COPY would put into a table with columns of these types. Raises :class:`Refused`."""
        if copy.role not in self.roles:
            raise Refused(f"User is not authorized to assume IAM Role {copy.role}")
        unknown = [name for name in copy.columns if name not in types]
        if unknown:
            raise Refused(f'column "{unknown[0]}" of relation does not exist')
        wanted = [types[name] for name in copy.columns]
        return [row for url, body in self._manifest(copy.url) for row in _rows(copy, wanted, url, body)]

    def _manifest(self, url: str) -> list[tuple[str, bytes]]:
        found = []
        for entry in json.loads(self._object(url))["entries"]:
            if set(entry) != {"url", "mandatory", "meta"} or entry["mandatory"] is not True:
                raise Refused("File entry does not have 'meta' key.")
            body = self._object(entry["url"])
            if entry["meta"] != {"content_length": len(body)}:
                raise Refused(f"Spectrum Scan Error: content_length of {entry['url']} is wrong")
            found.append((entry["url"], body))
        if not found:
            raise Refused("The manifest lists no files")
        return found

    def _object(self, url: str) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            body: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            raise Refused(f"The specified S3 object {url} does not exist") from error
        return body


@dataclass(frozen=True)
class Copy:
    """A COPY statement."""

    table: str
    columns: tuple[str, ...]
    url: str
    role: str
    nested: bool


def translate(statement: str) -> str | Copy:
    """PostgreSQL's form of the statement. Raises :class:`Refused` when it is not one of those above."""
    sql = " ".join(statement.split()).replace("( ", "(").replace(" )", ")")
    if "\\" in sql or len(_LITERAL.sub("", sql).split("'")) > 1:
        raise Refused("a backslash or an open quote")
    if foreign := _FOREIGN.search(_LITERAL.sub("''", sql)):
        raise Refused(f"syntax error or unsupported feature at or near {foreign[0]!r}")
    if lock := re.fullmatch(rf"LOCK ({_TABLE})", sql):
        return f"LOCK TABLE {lock[1]} IN ACCESS EXCLUSIVE MODE"
    if copy := _COPY.fullmatch(sql):
        columns = tuple(name.strip('"') for name in copy[2].split(", "))
        return Copy(copy[1], columns, copy[3], copy[4].strip("'"), copy[5] is not None)
    if create := _CREATE.fullmatch(sql):
        return _create(create)
    if any(form.fullmatch(sql) for form in _PLAIN):
        return sql
    raise Refused(f"syntax error in {sql[:200]!r}")


def redshift_message(error: psycopg.Error) -> str:
    """PostgreSQL's message in Redshift's words where the service goes by them."""
    if error.sqlstate == "40001":
        return "1023 DETAIL: Serializable isolation violation on table - 100173"
    if error.sqlstate == "22012":
        return "Divide by zero"
    if error.sqlstate == "57014":
        return "Query cancelled on user's request"
    return " ".join(str(error).split())


def _create(found: re.Match[str]) -> str:
    temporary, exists, table, inside, spread, order = found.groups()
    columns: dict[str, str] = {}
    parts = []
    for part in re.split(r", (?=\"?[a-z_])", inside):
        column = re.fullmatch(_COLUMN, part)
        if column is None:
            raise Refused(f"syntax error in column {part!r}")
        columns[column[1].strip('"')] = column[2]
        default = " DEFAULT (now() AT TIME ZONE 'utc')" if column[4] else ""
        parts.append(f"{column[1]} {column[2]}{column[3] or ''}{default}")
    keys = re.findall(r"\(([^()]*)\)", (spread or "") + (order or ""))
    for key in (name.strip('"') for names in keys for name in names.split(", ")):
        if key not in columns or columns[key] == "super":
            raise Refused(f"column {key!r} cannot be a key")
    return f"CREATE {temporary or ''}TABLE {exists or ''}{table} ({', '.join(parts)})"


def types_query(table: str) -> str:
    """PostgreSQL's query for the columns of a table, and their types."""
    return (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        f" WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped"
    )


def _rows(copy: Copy, types: Sequence[str], url: str, body: bytes) -> list[tuple[Any, ...]]:
    try:
        data = pq.read_table(io.BytesIO(body))
    except pa.ArrowException as error:
        raise Refused(f"Spectrum Scan Error. File '{url}' is not a Parquet file: {error}") from error
    if data.num_columns != len(types):
        raise Refused(f"Unmatched number of columns between table and file. File '{url}'")
    values = [
        _column(kind, data.column(place), copy.nested, url, copy.columns[place])
        for place, kind in enumerate(types)
    ]
    return list(zip(*values, strict=True))


def _column(kind: str, column: pa.ChunkedArray, nested: bool, url: str, name: str) -> list[Any]:
    """The values as PostgreSQL's COPY takes them. Raises :class:`Refused` for another type than the table's."""
    wrong = Refused(
        f"Spectrum Scan Error. File '{url}' has an incompatible Parquet schema for column {name!r}. Column type: {kind}"
    )
    found = column.type
    values = column.to_pylist()
    if kind == "super":
        if pa.types.is_nested(found) and not nested:
            raise wrong
        return [None if value is None else json.dumps(value) for value in values]
    if varying := re.fullmatch(r"character varying\((\d+)\)", kind):
        if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
            raise wrong
        if any(value is not None and len(value.encode()) > int(varying[1]) for value in values):
            raise Refused(
                f"Spectrum Scan Error. The length of the data column {name} is longer than the length"
                f" defined in the table. File '{url}'"
            )
        return values
    if kind == "timestamp without time zone":
        if not pa.types.is_timestamp(found):
            raise wrong
        return [None if value is None else value.replace(tzinfo=None) for value in values]
    if kind.startswith("numeric"):
        if not pa.types.is_decimal(found):
            raise wrong
        return values
    if _ARROW.get(kind) != found:
        raise wrong
    return values
