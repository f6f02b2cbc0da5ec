"""The physical floor: what one step alone takes of the same events, with nothing before or behind it, in this process.

Fetching alone, and fetching with parsing, are programs of the peer ``confluent``.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

import msgspec
import orjson
import polars as pl
import psutil
import psycopg

from benchmarks.comparison.rounds import Round
from benchmarks.measure import cpu_seconds
from streamproc.embedded.postgres import EmbeddedPostgres

_SCHEMA = {
    "event_id": pl.String,
    "event_type": pl.String,
    "event_time": pl.Int64,
    "visitor_id": pl.String,
    "session_id": pl.String,
    "page_url": pl.String,
    "referrer": pl.String,
    "user_agent": pl.String,
    "ip": pl.String,
}
_TABLE = """
    CREATE TEMP TABLE floor (event_id text, event_type text, event_time bigint, visitor_id text, session_id text,
                             page_url text, referrer text, user_agent text, ip text)
"""
_PIECE = 1 << 20


class _Event(msgspec.Struct, gc=False):
    event_id: str
    event_type: str
    event_time: int
    visitor_id: str
    session_id: str
    page_url: str
    referrer: str | None
    user_agent: str
    ip: str


def measure(values: Sequence[bytes], postgres: EmbeddedPostgres) -> Iterator[Round]:
    """A round of each step over all ``values``."""
    lines = b"\n".join(values)
    frame = pl.read_ndjson(lines, schema=_SCHEMA)
    assert len(frame) == len(values)
    decode = msgspec.json.Decoder(_Event).decode
    steps: dict[str, Callable[[], object]] = {
        "parse only, polars (columns)": lambda: pl.read_ndjson(lines, schema=_SCHEMA),
        "parse only, msgspec (objects)": lambda: _each(decode, values),
        "parse only, orjson (dictionaries)": lambda: _each(orjson.loads, values),
        "Parquet only, polars, zstd": lambda: frame.write_parquet(BytesIO(), compression="zstd"),
    }
    for title, step in steps.items():
        yield _timed(title, len(values), step, _own_cpu_seconds)
    with psycopg.connect(postgres.url) as connection:
        server = int(psutil.Process(connection.info.backend_pid).pid)
        connection.execute(_TABLE)
        rows = frame.write_csv(include_header=False).encode()
        yield _timed(
            "COPY only, all fields, client and PostgreSQL",
            len(values),
            lambda: _copy(connection, rows),
            lambda: _own_cpu_seconds() + cpu_seconds(server),
        )


def _each(parse: Callable[[bytes], object], values: Sequence[bytes]) -> None:
    for value in values:
        parse(value)


def _copy(connection: psycopg.Connection[tuple[object, ...]], rows: bytes) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY floor FROM STDIN (FORMAT csv)") as copy:
        for start in range(0, len(rows), _PIECE):
            copy.write(rows[start : start + _PIECE])
    connection.commit()


def _timed(title: str, count: int, step: Callable[[], object], cpu: Callable[[], float]) -> Round:
    begin, cpu_begin = time.monotonic(), cpu()
    step()
    seconds, spent = time.monotonic() - begin, cpu() - cpu_begin
    return Round(
        workload="floor",
        contestant=title,
        title=title,
        events=count,
        seconds=seconds,
        cpu_seconds=spent,
        cpu_seconds_in_all=spent,
    )


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
