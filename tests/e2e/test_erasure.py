"""A visitor is forgotten while the service runs, and stays forgotten when everything is read again."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import duckdb
import psycopg
import pytest

from streamproc.generator import Generator
from tests.e2e.harness import Site, committed_records, produce, until
from tests.e2e.replays import command

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(600)]

TABLES = ("sessions", "checkout_funnel")


def objects(site: Site, kind: str) -> list[str]:
    with psycopg.connect(site.ledger) as db:
        rows = db.execute(
            "SELECT key FROM streamproc.objects WHERE stream = %s AND kind = %s AND state = 'committed'",
            [site.stream, kind],
        ).fetchall()
    return [str(site.lake / key) for (key,) in rows]


def in_lake(site: Site, visitor: str) -> int:
    answer = duckdb.execute(
        "SELECT count(*) FROM read_parquet($files, union_by_name = true) WHERE visitor_id = $visitor",
        {"files": objects(site, "events"), "visitor": visitor},
    )
    return int(answer.fetchall()[0][0])


def in_rejects(site: Site, visitor: str) -> int:
    answer = duckdb.execute("SELECT original FROM read_parquet($files)", {"files": objects(site, "rejects")})
    return sum(visitor.encode() in (original or b"") for (original,) in answer.fetchall())


def in_tables(site: Site, visitor: str) -> dict[str, int]:
    with psycopg.connect(site.ledger) as db:
        return {
            table: db.execute(f'SELECT count(*) FROM "{table}" WHERE visitor_id = %s', [visitor]).fetchone()[
                0
            ]
            for table in TABLES
            if not db.execute("SET search_path TO clickstream").description
        }


def in_state(site: Site, visitor: str) -> int:
    with psycopg.connect(site.ledger) as db:
        return sum(
            db.execute(
                f'SELECT count(*) FROM clickstream."{table}__state" WHERE visitor_id = %s', [visitor]
            ).fetchone()[0]
            for table in TABLES
        )


def in_warehouse(site: Site, visitor: str) -> int:
    with psycopg.connect(site.ledger) as db:
        return db.execute(
            "SELECT count(*) FROM warehouse.clickstream WHERE visitor_id = %s", [visitor]
        ).fetchone()[0]


def erase(site: Site, visitor: str, *options: str, check: bool = True, **more: str) -> Any:
    site.extra |= more
    done = site.run("privacy", "erase", "clickstream", visitor, *options, "--yes", "--json", check=False)
    for name in more:
        del site.extra[name]
    if not check:
        return done
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def busiest(records: list[tuple[bytes, bytes | None]]) -> str:
    """A visitor who bought something: a row in every table."""
    seen: dict[str, set[str]] = {}
    for _, value in records:
        try:
            event = json.loads(value or b"")
            if isinstance(event["visitor_id"], str):
                seen.setdefault(event["visitor_id"], set()).add(event["event_type"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return max(seen, key=lambda visitor: ("purchase" in seen[visitor], len(seen[visitor]), visitor))


async def test_a_visitor_is_forgotten_everywhere_and_does_not_come_back_with_a_replay(site, start):
    generated = Generator(seed=5, events=100_000, bad_ratio=0.02, rate=1).records()
    source = ((r.key, r.value) for r in generated if len(r.value or b"") < 900_000)
    records = list(itertools.islice(source, 2_000))
    visitor = busiest(records)
    bad = b'{"visitor_id":"%s","event_time":' % visitor.encode()
    worker = start("live")
    sent = await produce(site.broker, site.topic, [*records, (visitor.encode(), bad)])
    await until(lambda: committed_records(site.ledger) == sent, "all committed", 90, [worker])
    await until(lambda: in_warehouse(site, visitor) == in_lake(site, visitor) > 0, "all loaded", 90, [worker])
    before = {
        "lake_rows": in_lake(site, visitor),
        "reject_rows": in_rejects(site, visitor),
        "warehouse_rows": in_warehouse(site, visitor),
        "tables": in_tables(site, visitor),
    }
    assert min(before["lake_rows"], before["reject_rows"], *before["tables"].values()) > 0, before
    rows = len(duckdb.execute("SELECT 1 FROM read_parquet($f)", {"f": objects(site, "events")}).fetchall())

    counted = await asyncio.to_thread(erase, site, visitor, "--dry-run")
    assert {name: counted[name] for name in before} == before
    assert in_lake(site, visitor) == before["lake_rows"]
    for point in ("erase.put", "erase.warehouse"):
        done = await asyncio.to_thread(
            erase, site, visitor, check=False, STREAMPROC_FAILPOINTS=f"{point}=kill"
        )
        assert done.returncode == -9, done.stderr
    await asyncio.to_thread(erase, site, visitor)

    def forgotten() -> bool:
        return not (
            in_lake(site, visitor)
            or in_rejects(site, visitor)
            or in_warehouse(site, visitor)
            or any(in_tables(site, visitor).values())
            or in_state(site, visitor)
        )

    assert forgotten()
    left = len(duckdb.execute("SELECT 1 FROM read_parquet($f)", {"f": objects(site, "events")}).fetchall())
    assert left == rows - before["lake_rows"]
    with psycopg.connect(site.ledger) as db:
        whole = db.execute("SELECT string_agg(e::text, '') FROM streamproc.erasures e").fetchone()[0]
    assert visitor not in whole
    assert visitor not in worker.tail()

    sent += await produce(site.broker, site.topic, itertools.islice(source, 200))
    await until(lambda: committed_records(site.ledger) == sent, "the worker has claimed again", 90, [worker])
    at_rest = in_lake(site, visitor)  # the visitor may have come again
    done = await command(site, "--from", "earliest", "--into", "again")
    assert done["state"] == "complete"
    await command(site, "promote", "again", "--yes")
    assert worker.stop() == 0, worker.tail()
    site.run("warehouse", "load")
    assert in_lake(site, visitor) == at_rest
    assert in_warehouse(site, visitor) == at_rest
    assert in_rejects(site, visitor) == 0
    assert at_rest or forgotten()
