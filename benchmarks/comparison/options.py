"""The command line of ``make bench-peers``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.datasets import WORKLOADS
from benchmarks.comparison.manifest import read_peers
from benchmarks.comparison.results import RESULTS

#: What ``--workloads`` takes, and what each is. Those before ``floor`` compare, the others measure streamproc alone.
TITLES = {name: workload.title for name, workload in WORKLOADS.items()} | {
    "w4": "w4: from producing an event to its row being readable, at a steady rate",
    "w6": "w6: from a cold start to no lag",
    "w6-page": "w6: the shipped page from a cold start to no lag",
    "floor": "the floor: one step alone",
    "scale": "curves over events, windows kept, partitions",
}
_DESCRIPTION = """\
Run streamproc and its peers on the same events, broker and machine, one after the other; see benchmarks/README.md.

Prints tables and writes every round to benchmarks/results/. A contestant that fails, or whose answer is wrong, is
reported and the others go on. Ends with 1 when streamproc was among those, or when nothing could be run.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run, see ``--help``. ``peers``: names, streamproc's too; ``events``: a cap, or ``None``."""

    workloads: list[str]
    peers: list[str]
    rounds: int
    events: int | None
    rates: list[int]
    seconds: int
    lag: int
    partitions: int
    broker: str
    timeout: float
    seed: int
    results: Path
    list: bool
    setup_only: bool


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """The command line. Ends the program with 2 for a name that is not known."""
    parser = argparse.ArgumentParser(
        prog="make bench-peers ARGS=...",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ["streamproc", *(peer.name for peer in read_peers())]
    add = parser.add_argument
    add(
        "--workloads",
        type=_names,
        default=["w1", "w3", "w5"],
        help=f"of {','.join(TITLES)}; default: w1,w3,w5",
    )
    add("--peers", type=_names, default=known, help="streamproc and names that --list shows; default: all")
    add("--rounds", type=int, default=3, help="rounds, in each of which every contestant runs once (3)")
    add("--events", type=int, help="at most so many for anyone; default: as each manifest says")
    add(
        "--rates",
        type=_numbers,
        default=[10_000, 50_000, 100_000],
        help="w4: events a second (10000,50000,100000)",
    )
    add(
        "--seconds",
        type=int,
        default=20,
        help="w4: how long each rate is measured, behind 15 s of warm-up (20)",
    )
    add("--lag", type=int, default=10_000_000, help="w6, w6-page: events in the topic (10000000)")
    add("--partitions", type=int, default=4)
    add("--broker", choices=["auto", "kafka", "embedded"], default="auto",
        help="auto: Apache Kafka where Java 17 and Maven are, else the embedded broker")  # fmt: skip
    add("--timeout", type=float, default=300.0, help="seconds for one run of one contestant (300)")
    add("--seed", type=int, default=1)
    add("--results", type=Path, default=RESULTS, help="folder for the results file (benchmarks/results)")
    add("--list", action="store_true", help="list the peers and what they take part in, and end")
    add("--setup-only", action="store_true", help="make the environments, and end")
    options = Options(**vars(parser.parse_args(arguments)))
    for what, chosen, there in (("workload", options.workloads, TITLES), ("peer", options.peers, known)):
        if unknown := set(chosen) - set(there):
            parser.error(f"no {what} is called {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    return options


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
