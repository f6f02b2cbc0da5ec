#!/usr/bin/env python
"""Web logs: how fast ``streamproc backfill`` reads combined-format lines, tables and Parquet included.

Writes invented lines of one day (``--mib``, plain size) as some gzip files, reads them with the shipped page
``weblogs``, and prints lines a second, from the first record to the last commit, and CPU seconds: ``worker`` of the
worker process from its start to its end (some 2.5 of it are the imports and the end), ``postgres`` of the server.
``--warehouse``: with a PostgreSQL warehouse, which ``postgres`` includes then. ``--parse``: only the decoder, without
files and databases. The same seed gives the same lines.

Run it as a module of the project: ``.venv/bin/python -m benchmarks.logs [--mib 100] [--files 8] [--parse]``.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import psutil
import psycopg

from streamproc.embedded.postgres import start_postgres
from streamproc.topology import Contract, EventTime
from streamproc.transform.decode_batch import Batch
from streamproc.transform.weblog_formats import PARSERS, fields_of

BEGIN = datetime(2026, 5, 17, tzinfo=UTC)

AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{} Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_{} like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:{}) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html) {}",
)


#: Visits under way at any time, and how likely the next line is to be the last of its visit: a visit has some three
#: pages, and what they are made of. The mix of pages and files is that of a real site's log, and pages are asked for
#: by Zipf's law as they are there (the hundred pages asked for most: 66 % here, 74 % there).
_VISITS, _LAST = 300, 0.13


def written(size: int, seed: int) -> Iterator[bytes]:
    """Lines of one day, in order, ``size`` bytes with their line feeds."""
    draw = random.Random(seed)
    agents = [draw.choice(AGENTS).format(number) for number in range(400)]
    visitors = [
        (
            f"{draw.randrange(1, 224)}.{draw.randrange(256)}.{draw.randrange(256)}.{number % 256}",
            draw.choice(agents),
        )
        for number in range(20_000)
    ]
    pages = [f"/section-{number % 37}/article-{number}" for number in range(1_500)]
    assets = [f"/static/{number}.{kind}" for number in range(80) for kind in ("css", "js", "png")]
    referrers = [
        "-",
        "https://www.google.com/",
        "https://www.example.org/section-1/article-1?utm_source=news",
    ]
    ranks = list(itertools.accumulate(1 / rank for rank in range(1, len(pages) + 1)))
    visits = [draw.choice(visitors) for _ in range(_VISITS)]
    step = timedelta(days=1) / max(size // 200, 1)
    now = BEGIN
    while size > 0:
        visit = draw.randrange(_VISITS)
        ip, agent = visits[visit]
        if draw.random() < _LAST:
            visits[visit] = draw.choice(visitors)
        if draw.random() < 0.4:
            [path] = draw.choices(pages, cum_weights=ranks)
        else:
            path = draw.choice(assets)
        status = draw.choices((200, 304, 404, 301), (90, 5, 3, 2))[0]
        line = (
            f"{ip} - - [{now:%d/%b/%Y:%H:%M:%S} +0000] "
            f'"GET {path} HTTP/1.1" {status} {draw.randrange(100, 90_000)} "{draw.choice(referrers)}" "{agent}"'
        ).encode()
        yield line
        size -= len(line) + 1
        now += step


def parse(lines: list[bytes]) -> dict[str, object]:
    """CPU of the decoder, the best of three."""
    parser = PARSERS["combined"](
        Contract(fields_of("combined"), EventTime("event_time"), decoder="combined"), b""
    )
    spent = []
    for _ in range(3):
        before = time.process_time()
        for first in range(0, len(lines), 25_000):
            some = lines[first : first + 25_000]
            parser.parse(Batch(list(some), pl.Series(some, dtype=pl.Binary)))
        spent.append(time.process_time() - before)
    return {"lines": len(lines), "cpu_seconds_per_million": round(min(spent) / len(lines) * 1e6, 2)}


def backfill(lines: list[bytes], files: int, *, warehouse: bool) -> dict[str, object]:
    """Read the lines as so many gzip files; ``warehouse``: load them into one as well."""
    with tempfile.TemporaryDirectory(prefix="streamproc-") as name:
        root = Path(name)
        (root / "logs").mkdir()
        share = -(-len(lines) // files)
        for number in range(files):
            body = b"\n".join(lines[number * share : (number + 1) * share]) + b"\n"
            (root / "logs" / f"access.log.{files - number}.gz").write_bytes(gzip.compress(body, 6))
        with start_postgres(root / "postgres", durable=False) as server, psycopg.connect(server.url) as db:
            environment = {
                **os.environ,
                "STREAMPROC_LEDGER": server.url,
                "STREAMPROC_WAREHOUSE": server.url if warehouse else "none",
                "STREAMPROC_DATA_DIR": str(root / "data"),
                "STREAMPROC_LOG_LEVEL": "warning",
                "STREAMPROC_HEALTH": "127.0.0.1:0",
            }
            postmaster = psutil.Process(db.info.backend_pid).parent()
            assert postmaster is not None
            served = _cpu(postmaster)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-m", "streamproc", "backfill", (root / "logs").as_uri(), "--json"]
            done = subprocess.run(command, env=environment, cwd=root, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            served = _cpu(postmaster) - served
    report = json.loads(done.stdout)
    assert report["complete"] and report["records"] == len(lines), report
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "lines": len(lines),
        "seconds": report["seconds"],
        "lines_per_second": report["records_per_second"],
        "cpu_seconds": {"worker": round(cpu, 1), "postgres": round(served, 1)},
        "peak_mib": after.ru_maxrss // 1024,
    }


def _cpu(server: psutil.Process) -> float:
    """Of the server and all its processes, those that have ended among them."""
    living = (each.cpu_times() for each in (server, *server.children()))
    ended = server.cpu_times()
    return sum(each.user + each.system for each in living) + ended.children_user + ended.children_system


def main() -> None:
    """Write, read, print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--mib", type=int, default=100)
    arguments.add_argument("--files", type=int, default=8)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--parse", action="store_true")
    arguments.add_argument("--warehouse", action="store_true", help="load a PostgreSQL warehouse as well")
    chosen = arguments.parse_args()
    lines = list(written(chosen.mib << 20, chosen.seed))
    print(
        json.dumps(
            parse(lines) if chosen.parse else backfill(lines, chosen.files, warehouse=chosen.warehouse)
        )
    )


if __name__ == "__main__":
    main()
