"""What combined-format lines add up to: by plain splitting, and as the service's tables, ledger and lake have it.

Nothing of the service is used to count; crawlers are told by the published patterns, one after the other.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psycopg
from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from tests.e2e.harness import REPOSITORY, Site, settled_files

#: What the shipped page's filter drops, but for errors.
STATIC = frozenset(
    [
        "css",
        "js",
        "mjs",
        "map",
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "avif",
        "ico",
        "bmp",
        "woff",
        "woff2",
        "ttf",
        "otf",
        "eot",
    ]
)
#: Downloads and assets that are no static files of pages, as far as the real lines have any.
DOWNLOADS = frozenset(
    [
        "pdf",
        "gz",
        "zip",
        "tgz",
        "jar",
        "bz2",
        "rpm",
        "deb",
        "mp3",
        "mp4",
        "exe",
        "tar",
        "mov",
        "avi",
        "csv",
        "bin",
        "doc",
    ]
)
ASSETS = frozenset(["xml", "txt", "json"])


@dataclass
class Totals:
    """What the lines add up to. ``traffic``: requests by status, method and kind; ``visitors``: ids in the lake."""

    traffic: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    pages: Counter[tuple[str, bool]] = field(default_factory=Counter)
    size: int = 0
    crawlers: int = 0
    filtered: int = 0
    rejected: int = 0
    visitors: set[str] = field(default_factory=set)


@functools.cache
def is_crawler(agent: str) -> bool:
    return any(re.search(each["pattern"], agent) for each in CRAWLER_USER_AGENTS_DATA)


def kind_of(method: str, path: str, status: int) -> str:
    extension = path.rpartition(".")[2].lower() if "." in path else ""
    if status >= 400:
        return "error"
    if 300 <= status != 304:
        return "redirect"
    if method != "GET":
        return "request"
    if extension in DOWNLOADS:
        return "download"
    return "asset" if extension in ASSETS | STATIC else "page_view"


def plain_counting(lines: list[bytes], key: bytes) -> Totals:
    """By splitting each line; one that is cut off is a reject."""
    totals = Totals()
    for line in lines:
        if line.count(b'"') != 6:
            totals.rejected += 1
            continue
        head, request, numbers, _, _, agent, _ = line.decode().split('"')
        status, size = int(numbers.split()[0]), numbers.split()[1]
        method, target = request.split()[:2]
        path = re.split("[?#]", target)[0]
        kind = kind_of(method, path, status)
        if kind != "error" and "." in path and path.rpartition(".")[2].lower() in STATIC:
            totals.filtered += 1
            continue
        agent = "" if agent == "-" else agent
        totals.traffic[status, method, kind] += 1
        totals.size += int(size) if size != "-" else 0
        totals.crawlers += is_crawler(agent)
        if kind == "page_view":
            totals.pages[path, is_crawler(agent)] += 1
        visitor = f"{head.split()[0]}\0{agent}".encode()
        totals.visitors.add(hashlib.blake2b(visitor, digest_size=16, key=key).hexdigest())
    return totals


def counted(site: Site) -> Totals:
    """The same from the tables, the ledger and the lake."""
    with psycopg.connect(site.ledger) as db:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return db.execute(sql).fetchall()

        [(size,)] = rows("SELECT sum(bytes)::bigint FROM weblogs.traffic")
        [(crawlers,)] = rows("SELECT coalesce(sum(requests), 0)::int FROM weblogs.crawlers")
        [(filtered, rejected)] = rows(
            "SELECT sum(filtered)::int, sum(rejected)::int FROM streamproc.partitions"
        )
        traffic = rows(
            "SELECT status::int, method, event_type, sum(requests)::int FROM weblogs.traffic GROUP BY 1, 2, 3"
        )
        pages = rows("SELECT path, is_bot, sum(views)::int FROM weblogs.page_views GROUP BY 1, 2")
        files = [str(file) for file in settled_files(db, site.lake)]
    in_lake = duckdb.execute("SELECT DISTINCT visitor_id FROM read_parquet(?)", [files]).fetchall()
    return Totals(
        traffic=Counter({tuple(key): number for *key, number in traffic}),
        pages=Counter({tuple(key): number for *key, number in pages}),
        size=size,
        crawlers=crawlers,
        filtered=filtered,
        rejected=rejected,
        visitors={visitor for (visitor,) in in_lake},
    )


def assert_counted(site: Site, lines: list[bytes]) -> None:
    with psycopg.connect(site.ledger) as db:
        [(key,)] = db.execute("SELECT value FROM streamproc.keys WHERE name = 'visitors'").fetchall()
    assert counted(site) == plain_counting(lines, bytes(key))


def site_of(tmp_path: Path, ledger: str, broker: str, **extra: str) -> Site:
    pages = tmp_path / "topics"
    pages.mkdir(exist_ok=True)
    page = (REPOSITORY / "topics" / "weblogs.toml").read_text()
    (pages / "weblogs.toml").write_text(page)
    return Site(tmp_path, "", broker, ledger, pages, stream="weblogs", topic="weblogs", extra=extra)
