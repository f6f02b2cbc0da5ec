"""w2 for a peer: the shipped page, as far as it goes, into tables of PostgreSQL and Parquet files on local disk.

Each part that its manifest says it does is compared with :mod:`.page_reference`, row for row.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, LiteralString

import polars as pl
import psutil
import psycopg
from psycopg import sql

from benchmarks.comparison.answers import WrongAnswer, compare, compare_on_time, keyed
from benchmarks.comparison.datasets import Dataset
from benchmarks.comparison.page_reference import LakeRow, PageAnswer
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.measure import cpu_seconds
from streamproc.embedded.postgres import EmbeddedPostgres

#: The tables a peer finds, empty: columns, how many of them are the key, and the statement that reads the answer.
_TABLES: dict[str, tuple[LiteralString, int, LiteralString]] = {
    "page_views": (
        """window_start bigint, host text, path text, views bigint, visitors bigint,
           PRIMARY KEY (window_start, host, path)""",
        3,
        "SELECT window_start, host, path, views, visitors FROM page_views",
    ),
    "site_activity": (
        """window_start bigint, host text, events bigint, page_views bigint, visitors bigint,
           PRIMARY KEY (window_start, host)""",
        2,
        "SELECT window_start, host, events, page_views, visitors FROM site_activity",
    ),
    "traffic_sources": (
        """window_start bigint, host text, utm_source text, utm_medium text, utm_campaign text, views bigint,
           visitors bigint, PRIMARY KEY (window_start, host, utm_source, utm_medium, utm_campaign)""",
        5,
        """SELECT window_start, host, utm_source, utm_medium, utm_campaign, views, visitors
             FROM traffic_sources""",
    ),
    "sessions": (
        """visitor_id text, session_start bigint, session_end bigint, events bigint, pages bigint,
           landing_page text, exit_page text, revenue double precision, PRIMARY KEY (visitor_id, session_start)""",
        2,
        """SELECT visitor_id, session_start, session_end, events, pages, coalesce(landing_page, ''),
                  coalesce(exit_page, ''), round(revenue * 100)::bigint
             FROM sessions""",
    ),
}


def measure_peer(program: PeerProgram, postgres: EmbeddedPostgres, dataset: Dataset) -> Round:
    """One round of a peer. Raises :class:`Failed`."""
    participation = program.participation("w2")
    assert participation is not None and isinstance(dataset.answer, PageAnswer)
    database = sql.Identifier(f"w2_{program.name}")
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
        admin.execute(sql.SQL("CREATE DATABASE {}").format(database))
        url = postgres.database_url(f"w2_{program.name}")
        with psycopg.connect(url, autocommit=True) as connected:
            create_tables(connected, participation.does)
            server = psutil.Process(connected.info.backend_pid).ppid()
            with tempfile.TemporaryDirectory(prefix=f"bench-{program.name}-") as folder:
                lake = Path(folder) / "lake"
                lake.mkdir()
                options = [
                    "--answer",
                    str(Path(folder) / "answer.jsonl"),
                    "--postgres",
                    url,
                    "--lake",
                    str(lake),
                ]
                server_begin = cpu_seconds(server)
                result, sampler = program.start_and_wait(dataset, Path(folder), options)
                server_spent = cpu_seconds(server) - server_begin
                try:
                    check_lake(lake, dataset.answer, participation.does)
                    check_tables(connected, dataset.answer, participation.does)
                except WrongAnswer as error:
                    raise Failed(f"wrong answer: {error}") from error
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
    result["postgresql_cpu_seconds_per_million"] = server_spent / dataset.count * 1e6
    return program.round_of(dataset, result, sampler)


def create_tables(database: psycopg.Connection[Any], does: Collection[str]) -> None:
    """The tables among the parts that a peer does, empty."""
    for name, (columns, _, _) in _TABLES.items():
        if name in does:
            database.execute(sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(name), sql.SQL(columns)))


def check_lake(folder: Path, answer: PageAnswer, does: Collection[str]) -> None:
    """Return if the Parquet files hold each accepted event. Raises :class:`WrongAnswer`."""
    found = lake_rows(folder)
    wanted = answer.lake(repeats="duplicates" not in does)
    if found != wanted:
        missing, more = wanted - found, found - wanted
        examples = [f"{row} is missing" for row in list(missing)[:2]]
        examples += [f"{row} should not be there" for row in list(more)[:2]]
        raise WrongAnswer(
            f"the lake has {found.total():,} of {wanted.total():,} rows, {missing.total():,} are missing and "
            f"{more.total():,} too many; e.g. {'; '.join(examples)}"
        )


def lake_rows(folder: Path) -> Counter[LakeRow]:
    """The rows of all Parquet files, as far as they are compared. Raises :class:`WrongAnswer` without any."""
    files = [file for file in folder.rglob("*.parquet") if not file.name.startswith((".", "_"))]
    if not files:
        raise WrongAnswer("there is no Parquet file")
    columns = ("event_id", "event_time", "visitor_id", "host", "path", pl.col("utm_campaign").fill_null(""))
    try:
        return Counter(pl.read_parquet(files).select(columns).iter_rows())
    except pl.exceptions.PolarsError as error:
        raise WrongAnswer(f"the Parquet files cannot be read: {error}") from error


def check_tables(database: psycopg.Connection[Any], answer: PageAnswer, does: Collection[str]) -> None:
    """Return if each table that a peer does holds the right rows. Raises :class:`WrongAnswer`."""
    for name, (_, keys, statement) in _TABLES.items():
        if name not in does:
            continue
        repeats = "duplicates" not in does
        wanted = answer.table(name, repeats=repeats, late=True)
        try:
            found = keyed(database.execute(statement), keys)
            if "late" in does:
                compare(found, wanted)
            else:
                on_time = answer.table(name, repeats=repeats, late=False)
                unsettled = answer.late_visitors() if name == "sessions" else None
                compare_on_time(found, on_time, wanted, unsettled)
        except WrongAnswer as error:
            raise WrongAnswer(f"{name}: {error}") from error
