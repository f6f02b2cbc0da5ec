"""Measure streamproc on this machine, and a plain Faust agent on the same kind of events. See README.md here.

Prints a table and writes every round to ``benchmarks/results/``. Ends with 1 when an answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from contestants import PlainFaust, Streamproc
from measure import Run, Summary
from rich.console import Console
from rich.table import Table
from workloads import Workload, prepare_counting, prepare_page

from streamproc import __version__
from streamproc.embedded.broker import start_broker
from streamproc.embedded.postgres import start_postgres

_RESULTS = Path(__file__).parent / "results"
_STDERR = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, see ``--help``."""

    workload: str
    events: int
    peer_events: int
    rounds: int
    seed: int
    peer: bool


def read_options() -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", nargs="?", choices=["counting", "page", "both"], default="both")
    parser.add_argument("--events", type=int, default=2_000_000, help="events for streamproc")
    parser.add_argument("--peer-events", type=int, default=100_000, help="events for the plain Faust agent")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, alternating between the two")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="streamproc only")
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Prepare the topics, run the rounds, print."""
    options = read_options()
    with tempfile.TemporaryDirectory(prefix="streamproc-bench-") as temporary:
        folder = Path(temporary)
        with (
            start_broker(folder / "broker") as broker,
            start_postgres(folder / "postgres") as postgres,
        ):
            streamproc = Streamproc(broker.bootstrap, postgres, folder / "streamproc")
            faust = PlainFaust(broker.bootstrap, folder / "faust") if options.peer else None
            runs = measure(options, streamproc, faust)
    report(runs)
    _RESULTS.mkdir(exist_ok=True)
    written = _RESULTS / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    written.write_text(
        json.dumps({"machine": machine(), "runs": {k: [r.to_json() for r in v] for k, v in runs.items()}})
    )
    _STDERR.print(f"Every round is in {written}")
    sys.exit(0 if all(run.equal for rounds in runs.values() for run in rounds) else 1)


def measure(options: Options, streamproc: Streamproc, faust: PlainFaust | None) -> dict[str, list[Run]]:
    """All rounds of all contestants, by what the table calls them."""
    runs: dict[str, list[Run]] = {}
    bootstrap = streamproc.bootstrap
    if options.workload in {"counting", "both"}:
        large = prepared(prepare_counting(bootstrap, "counting", options.events, options.seed))
        small = None
        if faust is not None:
            small = prepared(
                prepare_counting(bootstrap, "counting-small", options.peer_events, options.seed + 1)
            )
        for number in range(options.rounds):
            take(runs, "counting: streamproc", streamproc.run(large, number))
            if faust is not None and small is not None:
                take(runs, "counting: plain Faust agent", faust.run(small, number))
    if options.workload in {"page", "both"}:
        page = prepared(prepare_page(bootstrap, "clickstream", options.events, options.seed + 2))
        for number in range(options.rounds):
            take(runs, "shipped page: streamproc", streamproc.run(page, number))
    return runs


def prepared(workload: Workload) -> Workload:
    """Say that a topic is filled."""
    _STDERR.print(f"{workload.count:,} events are in the topic {workload.topic}")
    return workload


def take(runs: dict[str, list[Run]], title: str, run: Run) -> None:
    """Keep a round and show it at once."""
    runs.setdefault(title, []).append(run)
    verdict = "right" if run.equal else "WRONG"
    _STDERR.print(
        f"{title}, round {len(runs[title])}: {run.events_per_second:,.0f} events/s, answer {verdict}"
    )


def report(runs: dict[str, list[Run]]) -> None:
    """The table on stdout: medians, the slowest and fastest round, and the ratio of the two contestants."""
    console = Console(width=110)
    table = Table(
        "", "events/s", "slowest-fastest", "CPU s per million", "peak memory", "answer", title=machine()
    )
    summaries = {title: Summary(rounds) for title, rounds in runs.items()}
    for title, summary in summaries.items():
        slowest, fastest = summary.slowest_and_fastest
        table.add_row(
            title,
            f"{summary.events_per_second:,.0f}",
            f"{slowest:,.0f}-{fastest:,.0f}",
            f"{summary.cpu_seconds_per_million:.2f}",
            f"{summary.peak_rss_bytes / 2**20:,.0f} MiB",
            "right" if summary.equal else "WRONG",
        )
    console.print(table)
    ours, peer = summaries.get("counting: streamproc"), summaries.get("counting: plain Faust agent")
    if ours is not None and peer is not None:
        console.print(
            f"streamproc / plain Faust agent: {ours.events_per_second / peer.events_per_second:,.0f} times"
        )
    for title, summary in summaries.items():
        if summary.stages_per_million:
            stages = ", ".join(f"{name} {spent:.2f}" for name, spent in summary.stages_per_million.items())
            console.print(f"{title}: seconds per million events by stage: {stages}")


def machine() -> str:
    """What the figures were measured on."""
    return f"streamproc {__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs"


if __name__ == "__main__":
    main()
