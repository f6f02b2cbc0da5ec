"""What the tests of replays share: commands, what the oracle expects of a comparison, what readers see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import psycopg

from tests.e2e import oracle
from tests.e2e.harness import Site, settled_files

#: The shipped page's tables, and the key columns of each as the oracle orders them.
TABLES = {
    "page_views": ("window_start", "host", "path"),
    "site_activity": ("window_start", "host"),
    "traffic_sources": (
        "window_start",
        "host",
        "referrer_medium",
        "referrer_source",
        "utm_source",
        "utm_medium",
        "utm_campaign",
    ),
    "audience": ("window_start", "country", "device_class"),
    "sessions": ("visitor_id", "session_start"),
    "checkout_funnel": ("visitor_id", "session_start"),
}

#: Makes ``replay diff`` name every row.
ALL_ROWS = ("--rows", str(10**9))


def replay(site: Site, *arguments: str, patience: float = 100) -> Any:
    """A ``streamproc replay`` command that has to succeed; its answer."""
    done = site.run("replay", *arguments, "--json", check=False, patience=patience)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


async def command(site: Site, *arguments: str, patience: float = 100) -> Any:
    """:func:`replay` while the test's own traffic flows."""
    return await asyncio.to_thread(replay, site, *arguments, patience=patience)


def superseded_files(site: Site, name: str) -> list[Path]:
    """The live ``events`` objects of a replay's range, before it is promoted."""
    with psycopg.connect(site.ledger) as db:
        rows = db.execute(
            "select o.key from streamproc.objects o join streamproc.replay_ranges g using (source, partition)"
            " where o.stream = %s and g.stream = %s and g.name = %s and o.kind = 'events'"
            " and o.state = 'committed' and o.through > g.after and o.through <= g.through",
            [site.stream, site.stream, name],
        )
        return sorted(site.lake / key for (key,) in rows)


def expected_differences(site: Site, name: str, as_of: str) -> dict[str, set[tuple[str, ...]]]:
    """By table, what the oracle finds different between the two lakes at the time ``as_of``: ``missing`` (only
    live has the row), ``added`` or ``changed``, and the row's key as text."""
    gone = set(superseded_files(site, name))
    with psycopg.connect(site.ledger) as db:
        later = "select key from streamproc.objects where stream = %s and committed_at > %s"
        since = {site.lake / key for (key,) in db.execute(later, [site.stream, as_of])}
        live = [file for file in settled_files(db, site.lake, stream=site.stream) if file not in since]
        own = settled_files(db, site.lake, stream=f"{site.stream}__replay_{name}")
    before = _exact(oracle.expect(live))
    after = _exact(oracle.expect([file for file in live if file not in gone] + own))
    found: dict[str, set[tuple[str, ...]]] = {}
    for table in TABLES:
        old, new = before[table], after[table]
        rows = {("missing", *key) for key in old.keys() - new.keys()}
        rows |= {("added", *key) for key in new.keys() - old.keys()}
        rows |= {("changed", *key) for key in old.keys() & new.keys() if old[key] != new[key]}
        found[table] = {tuple(map(str, row)) for row in rows}
    return found


def named_differences(difference: Any) -> dict[str, set[tuple[str, ...]]]:
    """The same of the answer to ``replay diff`` with :data:`ALL_ROWS`; its counts count them."""
    for table in difference["tables"].values():
        kinds = Counter(row["what"] for row in table["keys"])
        assert kinds == {kind: table[kind] for kind in ("missing", "added", "changed") if table[kind]}
    return {
        name: {(row["what"], *(str(row[column]) for column in TABLES[name])) for row in table["keys"]}
        for name, table in difference["tables"].items()
    }


def _exact(expected: oracle.Expected) -> dict[str, dict[tuple[Any, ...], Any]]:
    """The oracle's tables without what is approximate: by table, key → values."""
    found = asdict(expected)
    found["checkout_funnel"] = found.pop("funnel")
    for name in ("page_views", "site_activity", "traffic_sources"):
        found[name] = {key: row[:-1] for key, row in found[name].items()}
    found["audience"] = {key: (row[0], round(row[2] or 0, 6)) for key, row in found["audience"].items()}
    found["sessions"] = {
        key: (*row[:-1], None if row[-1] is None else round(row[-1], 6))
        for key, row in found["sessions"].items()
    }
    return found


_WAREHOUSE = "select source_partition, position, event_type, referrer_medium from"


def check_warehouse(site: Site) -> None:
    """The warehouse has the lake's rows: the same positions with the same values."""
    with psycopg.connect(site.ledger) as db:
        found = Counter(db.execute(f"{_WAREHOUSE} warehouse.clickstream").fetchall())
        files = [str(file) for file in settled_files(db, site.lake, stream=site.stream)]
    assert found == Counter(duckdb.connect().execute(f"{_WAREHOUSE} read_parquet(?)", [files]).fetchall())


def digest(site: Site) -> list[tuple[Any, ...]]:
    """All that a promotion may change, each as a count and a sum of hashes: table rows, the list of objects,
    counts and commits, warehouse rows."""
    sources = [f"{site.stream}.{table}" for table in TABLES]
    sources += [
        "(select key, stream, state, rows, committed_at, superseded_at from streamproc.objects)",
        "(select stream, source, partition, position, clock_us, records, accepted, filtered, rejected, duplicate"
        " from streamproc.partitions)",
        "streamproc.epoch_ranges",
        "warehouse.clickstream",
        "warehouse.loads",
    ]
    with psycopg.connect(site.ledger) as db:
        return [
            db.execute(
                f"select count(*), sum(hashtextextended(t::text, 0)::numeric) from {source} t"
            ).fetchone()
            or ()
            for source in sources
        ]


def links_to_itself(event: dict[str, Any]) -> bool:
    """Whether a raw event's referrer is of the site of its page; ``www.`` does not count."""
    hosts = []
    for name in ("referrer", "page_url"):
        try:
            host = urlsplit((event.get(name) or "").strip()).hostname
        except ValueError:
            host = None
        hosts.append((host or "").removeprefix("www."))
    return hosts[0] == hosts[1] != ""


def coordinates(files: list[Path]) -> set[tuple[str, int]]:
    """Partition and position of every event in these objects."""
    rows = duckdb.connect().execute(
        "select source_partition, position from read_parquet(?)", [[str(file) for file in files]]
    )
    return set(rows.fetchall())


def altered_rows(old: list[Path], new: list[Path]) -> tuple[set[tuple[str, int]], int]:
    """Coordinates of the events whose referrer's columns differ between two lakes, and how many events
    differ in anything else, or are in one of them only."""
    db = duckdb.connect()
    referrer = [f"referrer_{part}" for part in ("host", "medium", "source", "term")]
    for name, files in (("old", old), ("new", new)):
        paths = ", ".join(f"'{file}'" for file in files)
        db.execute(
            f"create table {name}_rows as select source_partition, position, hash(r) as r, hash(o) as o from"
            f" (select source_partition, position, struct_pack({', '.join(f'{c} := {c}' for c in referrer)}) as r"
            f" from read_parquet([{paths}])) join"
            f" (select source_partition, position, o from (select * exclude ({', '.join(referrer)})"
            f" from read_parquet([{paths}])) o) using (source_partition, position)"
        )
    both = "from old_rows full join new_rows using (source_partition, position)"
    (elsewhere,) = db.execute(
        f"select count(*) {both} where old_rows.o is distinct from new_rows.o"
    ).fetchone()
    changed = db.execute(
        f"select source_partition, position {both} where old_rows.r is distinct from new_rows.r"
    )
    return set(changed.fetchall()), elsewhere


@contextlib.asynccontextmanager
async def watched(site: Site, *queries: str) -> AsyncIterator[list[set[Any]]]:
    """What a reader sees meanwhile: the answers to each query, asked all the time, each in one statement.

    One process of PostgreSQL, with a pause between: the reader is not to take the machine from what it watches.
    """
    seen: list[set[Any]] = [set() for _ in queries]
    stop = threading.Event()

    def look() -> None:
        with psycopg.connect(site.ledger, autocommit=True) as db:
            db.execute("SET max_parallel_workers_per_gather = 0")
            while not stop.wait(0.02):
                for query, answers in zip(queries, seen, strict=True):
                    answers.add(db.execute(query).fetchone())

    looking = asyncio.create_task(asyncio.to_thread(look))
    try:
        yield seen
    finally:
        stop.set()
        await looking
