"""w4 for the loop by hand: once a second the rows that changed go to PostgreSQL, then the offsets to Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
from confluent_kafka import Consumer

_FLUSH_SECONDS = 1.0

_UPSERT = """
    INSERT INTO page_counts SELECT * FROM changed
    ON CONFLICT (window_start, path) DO UPDATE SET views = excluded.views, visitors = excluded.visitors
"""


class PostgresRows:
    """Writes totals, not differences: a crash between the two commits counts nothing twice in the rows."""

    def __init__(self, url: str, consumer: Consumer, row_of: Callable[[Any], tuple[Any, ...]]) -> None:
        self._connection = psycopg.connect(url)
        self._connection.execute(
            "CREATE TEMP TABLE changed (window_start bigint, path text, views bigint, visitors bigint)"
            " ON COMMIT DELETE ROWS"
        )
        self._connection.commit()
        self._consumer = consumer
        self._row_of = row_of
        self._flushed_at = time.monotonic()
        #: Keys of the rows that have changed since the last flush.
        self.changed: set[Any] = set()

    def flush_when_due(self) -> None:
        if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.changed:
            with self._connection.cursor() as cursor:
                with cursor.copy("COPY changed FROM STDIN") as copy:
                    for key in self.changed:
                        copy.write_row(self._row_of(key))
                cursor.execute(_UPSERT)
            self._connection.commit()
            self._consumer.commit(asynchronous=True)
            self.changed.clear()
        self._flushed_at = time.monotonic()
