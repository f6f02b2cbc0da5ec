"""How long the dashboard makes a viewer wait, on a table of 1,000,000 rows, in headless Chromium.

``python -m benchmarks.dashboard [--rows N] [--rounds N]``

Prints medians: milliseconds to the first paint of a page, to its numbers, and from a click to its answer; the
milliseconds of CPU that the dashboard takes for them; and those that PostgreSQL takes for the statements of *Explore*.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg
from playwright.sync_api import Browser, Page

from streamproc.dashboard.catalog import explorable
from streamproc.dashboard.choice import read_choice
from streamproc.dashboard.explore import chart, rows
from streamproc.embedded.postgres import start_postgres
from streamproc.ledger import Ledger
from streamproc.sinks.summaries_layout import Layout
from streamproc.sinks.summaries_schema import ensure
from streamproc.topic_pages import load_page
from streamproc.topology import Topology
from tests.dashboard.screenshots import browser, settle
from tests.dashboard.serving import serving

PAGE = Path(__file__).parents[1] / "topics" / "clickstream.toml"

#: A week of minutes, as many paths a minute as it takes.
_FILL = """
    INSERT INTO clickstream.page_views (window_start, window_end, host, path, views, visitors)
    SELECT start, start + interval '1 minute', 'www.example.com', '/page/' || path,
           1 + (hashint4(path) & 63), 1 + (hashint4(path) & 31)
    FROM generate_series(date_trunc('minute', now()) - 10079 * interval '1 minute', now(), interval '1 minute')
             AS start,
         generate_series(1, %(paths)s) AS path
    LIMIT %(rows)s
"""
_PARTITION = """
    INSERT INTO streamproc.partitions (stream, source, partition, position, fence, token, owner, clock_us, records,
                                       accepted, claimed_at, updated_at)
    VALUES ('clickstream', 'clickstream', '0', 1, 1, gen_random_uuid(), 'bench',
            (extract(epoch FROM now()) * 1000000)::bigint, 1, 1, now(), now())
"""

#: Query strings of the page *Explore* whose statements are timed.
_CHOICES = {
    "a day, rows as they are": "table=page_views&by=host,path&grain=minute&range=24 hours",
    "a day by path": "table=page_views&by=path&grain=&range=24 hours",
    "a day by path and hour": "table=page_views&by=path&grain=hour&range=24 hours",
    "a week by path": "table=page_views&by=path&grain=&range=7 days",
    "a week by path and day": "table=page_views&by=path&grain=day&range=7 days",
}


async def _tables(url: str, topology: Topology) -> None:
    async with Ledger(url, topology.name, "bench") as ledger:
        await ledger.migrate()
        async with ledger.database.connection("make tables") as conn:
            await ensure(conn, [Layout(table, topology.name) for table in topology.tables], topology.name)


def cpu(process: psutil.Process) -> float:
    """Milliseconds of CPU so far."""
    times = process.cpu_times()
    return 1000 * float(times.user + times.system)


@contextmanager
def served(url: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The dashboard's address and process."""
    settings = {"STREAMPROC_LEDGER": url, "STREAMPROC_TOPICS": str(PAGE.parent)}
    with serving(folder, settings) as (address, process):
        yield address, psutil.Process(process)


def paints(chrome: Browser, address: str, server: psutil.Process, rounds: int) -> tuple[float, float, float]:
    """Medians of first contentful paint, of the first numbers and of the server's CPU; a new profile each time,
    nothing cached there.
    """
    first, numbers, costs = [], [], []
    for _ in range(rounds):
        before = cpu(server)
        context = chrome.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        began = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_selector("#main .tile, #main tbody tr")
        numbers.append(1000 * (time.perf_counter() - began))
        first.append(
            page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
            or numbers[-1]
        )
        context.close()
        costs.append(cpu(server) - before)
    return statistics.median(first), statistics.median(numbers), statistics.median(costs)


#: From a click to the frame that shows other rows, measured in the page.
_CLICK = """
    async column => {
        const body = document.querySelector('#main tbody'), before = body.innerHTML, began = performance.now();
        document.querySelector(`button.sort[data-column="${column}"]`).click();
        while (document.querySelector('#main tbody').innerHTML === before)
            await new Promise(done => requestAnimationFrame(done));
        return performance.now() - began;
    }
"""


def clicks(page: Page, address: str, server: psutil.Process, rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds from a click on a column to its rows, and the server's CPU for one."""
    found = {}
    for name, query in _CHOICES.items():
        page.goto(f"{address}explore?{query.replace(' ', '+')}")
        settle(page)
        columns = ["views", "path"] * rounds
        before = cpu(server)
        took = statistics.median(page.evaluate(_CLICK, column) for column in columns)
        found[name] = (took, (cpu(server) - before) / len(columns))
    return found


def statements(url: str, topology: Topology, rounds: int) -> dict[str, tuple[float, float]]:
    """CPU milliseconds that PostgreSQL takes for the rows' and the chart's statement, means of the rounds."""
    tables, now = explorable(topology), datetime.now(UTC)
    found = {}
    with psycopg.connect(
        url, autocommit=True, options="-c jit=off -c max_parallel_workers_per_gather=0"
    ) as conn:
        backend = psutil.Process(conn.info.backend_pid)
        for name, query in _CHOICES.items():
            choice = read_choice(dict(part.split("=") for part in query.split("&")), tables, now)
            costs = []
            for question in (rows(choice), chart(choice)):
                conn.execute(question.statement, question.parameters).fetchall()  # the first one warms up
                before = cpu(backend)
                for _ in range(rounds):
                    conn.execute(question.statement, question.parameters).fetchall()
                costs.append((cpu(backend) - before) / rounds)
            found[name] = (costs[0], costs[1])
    return found


def read_numbers(description: str | None, **defaults: int) -> argparse.Namespace:
    """The command line's options, each a number."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    options = read_numbers(__doc__, rows=1_000_000, rounds=5)
    topology = load_page(PAGE)
    with (
        tempfile.TemporaryDirectory(prefix="dash") as folder,
        start_postgres(Path(folder) / "postgres", durable=False) as postgres,
    ):
        Path(folder).chmod(0o755)
        asyncio.run(_tables(postgres.url, topology))
        with psycopg.connect(postgres.url, autocommit=True) as conn:
            conn.execute(_FILL, {"paths": -(-options.rows // 10_080), "rows": options.rows})
            conn.execute(_PARTITION)
            conn.execute("VACUUM ANALYZE clickstream.page_views")
        print(f"{options.rows:,} rows, milliseconds, {options.rounds} rounds")
        for name, (table, drawn) in statements(postgres.url, topology, options.rounds).items():
            print(f"  PostgreSQL's CPU, {name}: rows {table:.0f}, chart {drawn:.0f}")
        with served(postgres.url, Path(folder)) as (address, server), browser() as chrome:
            for path in ("", "explore", "pipeline"):
                first, numbers, cost = paints(chrome, address + path, server, options.rounds)
                print(f"  /{path}: first paint {first:.0f}, numbers {numbers:.0f}, CPU {cost:.0f}")
            for name, (took, cost) in clicks(chrome.new_page(), address, server, options.rounds).items():
                print(f"  click, {name}: {took:.0f}, CPU {cost:.0f}")


if __name__ == "__main__":
    main()
