"""What an open dashboard takes from the worker under full load: events a second with and without it.

``python -m benchmarks.dashboard_cost [--events N] [--rounds N]``

A worker goes through a full topic of the shipped page, again and again; every second time *Live* is open in headless
Chromium, which asks for new numbers as an analyst's would. The browser runs only when nobody else wants a
processor (``SCHED_IDLE``): it belongs on another machine. The dashboard's own process and PostgreSQL's share are on
this one, as in ``streamproc demo``, and they are what is measured. Linux only.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page

from benchmarks.comparison.brokers import running_broker
from benchmarks.comparison.datasets import WORKLOADS, Dataset, fill_topics
from benchmarks.comparison.streamproc_worker import StreamprocWorker, compare_tables
from benchmarks.dashboard import read_numbers, served
from benchmarks.measure import cpu_seconds
from streamproc.embedded.postgres import start_postgres
from tests.dashboard.screenshots import browser, settle


@dataclass(frozen=True, slots=True)
class Run:
    """Events a second; CPU seconds of the worker, of PostgreSQL and of the dashboard's process."""

    rate: float
    worker: float
    server: float
    dashboard: float


def run(worker: StreamprocWorker, dataset: Dataset, folder: Path, chrome: Browser | None) -> Run:
    """The whole topic once; with the dashboard open in ``chrome``, if there is one."""
    viewers = ExitStack()
    watching: list[tuple[psutil.Process, Page]] = []

    def watch(url: str) -> None:
        """Before the worker starts: what the dashboard takes to start is not what it takes to be open."""
        assert chrome is not None
        address, process = viewers.enter_context(served(url, folder))
        page = viewers.enter_context(chrome.new_page())
        page.set_default_timeout(300_000)  # it may get what others leave of the processors
        page.goto(address)
        page.wait_for_selector("#main")
        watching.append((process, page))

    first = watch if chrome is not None else None
    with worker.started(dataset.workload, dataset.topic, first) as running, viewers:
        server = running.server()
        others = [server, *(process.pid for process, _ in watching)]
        before = list(map(cpu_seconds, others))
        end = running.wait_for(dataset.count, worker.timeout)
        taken, *looked = [cpu_seconds(pid) - spent for pid, spent in zip(others, before, strict=True)]
        begin = running.claimed_at()
        compare_tables(running.database, dataset)
        for _, page in watching:
            settle(page)  # it shows numbers: what was measured is a page that works
            assert page.locator("#main .tile").count() > 0
        return Run(dataset.count / (end - begin), running.sampler.cpu_between(begin, end), taken, sum(looked))


@contextmanager
def out_of_the_way() -> Iterator[None]:
    """Processes started within run only when no other wants a processor; this one goes on as it was."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def main() -> None:
    options = read_numbers(__doc__, events=2_000_000, rounds=5)
    workload = WORKLOADS["w2"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dash")))
        folder.chmod(0o755)
        broker = stack.enter_context(running_broker("embedded", folder / "broker"))
        postgres = stack.enter_context(start_postgres(folder / "postgres"))
        datasets = fill_topics(
            broker.connection, workload, [(options.events, "visitor")], seed=1, partitions=4
        )
        with out_of_the_way():  # after asyncio.run: Playwright leaves a loop running
            chrome = stack.enter_context(browser())
        dataset = datasets[options.events, "visitor"]
        worker = StreamprocWorker(broker.bootstrap, postgres, timeout=600.0)
        found: dict[str, list[Run]] = {"without": [], "with": []}
        for number in range(options.rounds):
            for name, runs in found.items():
                runs.append(run(worker, dataset, folder, chrome if name == "with" else None))
                print(f"round {number + 1}, {name} the dashboard: {runs[-1].rate:,.0f} events/s", flush=True)
    print(f"medians of {options.rounds} rounds, {options.events:,} events; CPU seconds of each round")
    for name, runs in found.items():
        figures = {part: statistics.median(getattr(it, part) for it in runs) for part in Run.__slots__}
        print(
            f"  {name:7} {figures['rate']:,.0f} events/s; worker {figures['worker']:.2f}, "
            f"PostgreSQL {figures['server']:.2f}, dashboard {figures['dashboard']:.2f}"
        )
    ratios = [seen.rate / alone.rate for alone, seen in zip(found["without"], found["with"], strict=True)]
    print(
        f"  with / without: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, by round)"
    )


if __name__ == "__main__":
    main()
