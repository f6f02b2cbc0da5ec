"""Where w2's Python peers write: Parquet files by pyarrow, rows by COPY and upsert. In each peer's own environment."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

Row = tuple[Any, ...]

_COLUMNS = {
    "page_views": ("window_start", "host", "path", "views", "visitors"),
    "site_activity": ("window_start", "host", "events", "page_views", "visitors"),
    "traffic_sources": (
        "window_start", "host", "utm_source", "utm_medium", "utm_campaign", "views", "visitors",
    ),
    "sessions": (
        "visitor_id", "session_start", "session_end", "events", "pages", "landing_page", "exit_page", "revenue",
    ),
}  # fmt: skip
_KEYS = {"page_views": 3, "site_activity": 2, "traffic_sources": 5, "sessions": 2}

_FILE = pa.schema(
    [
        ("event_id", pa.string()),
        ("event_type", pa.string()),
        ("event_time", pa.int64()),
        ("visitor_id", pa.string()),
        ("session_id", pa.string()),
        ("page_url", pa.string()),
        ("referrer", pa.string()),
        ("user_agent", pa.string()),
        ("ip", pa.string()),
        ("value", pa.float64()),
        ("properties", pa.string()),
        ("host", pa.string()),
        ("path", pa.string()),
        ("utm_source", pa.string()),
        ("utm_medium", pa.string()),
        ("utm_campaign", pa.string()),
    ]
)
#: The columns that are fields of an event.
FIELDS = tuple(name for name in _FILE.names if name not in {"host", "path"} and not name.startswith("utm_"))


class PageWriter:
    """Writes into ``folder`` and into the tables of the database at ``url``."""

    def __init__(self, folder: str, url: str) -> None:
        self._folder = Path(folder)
        self._connection = psycopg.connect(url)
        for name in _COLUMNS:
            self._connection.execute(f"CREATE TEMP TABLE new_{name} (LIKE {name}) ON COMMIT DELETE ROWS")
        self._connection.commit()

    def write_file(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """One more file, of all columns."""
        arrays = [pa.array(columns[field.name], field.type) for field in _FILE]
        table = pa.Table.from_arrays(arrays, schema=_FILE)
        pq.write_table(table, self._folder / f"{uuid.uuid4().hex}.parquet", compression="zstd")

    def write_rows(self, rows: Mapping[str, Iterable[Row]], gone: Sequence[tuple[str, int]] = ()) -> None:
        """Delete the sessions that are ``gone``, by their keys, and upsert rows by table, in one transaction."""
        with self._connection.cursor() as cursor:
            if gone:
                cursor.execute(
                    """DELETE FROM sessions USING unnest(%s::text[], %s::bigint[]) AS gone (visitor, start)
                        WHERE visitor_id = visitor AND session_start = start""",
                    [*map(list, zip(*gone, strict=True))],
                )
            for name, of_table in rows.items():
                with cursor.copy(f"COPY new_{name} FROM STDIN") as copy:
                    for row in of_table:
                        copy.write_row(row)
                cursor.execute(_upsert(name))
        self._connection.commit()


def _upsert(table: str) -> str:
    columns, keys = _COLUMNS[table], _KEYS[table]
    new = ", ".join(f"{name} = excluded.{name}" for name in columns[keys:])
    return (
        f"INSERT INTO {table} SELECT * FROM new_{table} "
        f"ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {new}"
    )
