"""Run streamproc and its peers on the same events, broker and machine, one after the other. See ../README.md.

Prints tables and writes every round to ``benchmarks/results/``. A contestant that fails, or whose answer is wrong, is
reported and the others go on. Ends with 1 when streamproc was among those, or when nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.comparison import environment
from benchmarks.comparison.brokers import Broker, choose_broker, running_broker
from benchmarks.comparison.datasets import WORKLOADS, Dataset, Workload, fill_topics
from benchmarks.comparison.manifest import Peer, read_peers
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.report import print_report
from benchmarks.comparison.results import ResultsFile, new_results
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.streamproc_worker import StreamprocWorker
from streamproc.embedded.postgres import start_postgres

_BEGIN = time.monotonic()


def say(message: str) -> None:
    """Show progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGIN:5.0f} s] {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Options:
    """What to run, see ``--help``. An empty ``peers`` means all."""

    workloads: list[str]
    peers: list[str]
    rounds: int
    events: int | None
    partitions: int
    broker: str
    timeout: float
    seed: int
    list: bool
    setup_only: bool


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench-peers ARGS=...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = lambda text: text.split(",")  # noqa: E731 - said where it is used
    parser.add_argument("--workloads", type=names, default=["w1", "w3", "w5"], help=f"of {','.join(WORKLOADS)}")
    parser.add_argument("--peers", type=names, default=[], help="names as --list shows them, and streamproc; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in each of which every contestant runs once")
    parser.add_argument("--events", type=int, help="at most so many for anyone; default: as each manifest says")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--broker", choices=["auto", "kafka", "embedded"], default="auto",
                        help="auto: Apache Kafka where Java 17 and Maven are, else the embedded broker")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one run of one contestant")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="list the peers and what they take part in, and end")
    parser.add_argument("--setup-only", action="store_true", help="make the environments, and end")
    options = Options(**vars(parser.parse_args(arguments)))
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"no workload is called {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    known = {peer.name for peer in read_peers()} | {"streamproc"}
    if unknown := set(options.peers) - known:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return options


def main() -> None:
    """Make the environments, fill the topics, run the rounds, print."""
    options = read_options()
    peers = [peer for peer in read_peers() if not options.peers or peer.name in options.peers]
    if options.list:
        for peer in peers:
            print(f"{peer.name:20} {peer.title}: {', '.join(peer.workloads)}")
        return
    kind = choose_broker(options.broker)
    with tempfile.TemporaryDirectory(prefix="streamproc-bench-") as folder:
        with running_broker(kind, Path(folder) / "broker") as broker:
            results = new_results(broker.title)
            programs = prepared(peers, broker, results, options)
            if options.setup_only:
                return
            with start_postgres(Path(folder) / "postgres") as postgres:
                contestants: list[StreamprocWorker | PeerProgram] = [*programs]
                if not options.peers or "streamproc" in options.peers:
                    contestants.insert(0, StreamprocWorker(broker.bootstrap, postgres, options.timeout))
                for name in options.workloads:
                    run_workload(WORKLOADS[name], contestants, broker, results, options)
    titles = {name: WORKLOADS[name].title for name in options.workloads}
    print_report(results.results, titles, Console(width=150))
    say(f"Every round is in {results.path}")
    rounds = results.results.rounds
    ours_failed = any(it.failed for it in rounds if it.contestant == "streamproc")
    sys.exit(1 if ours_failed or all(it.failed for it in rounds) else 0)


def prepared(peers: Sequence[Peer], broker: Broker, results: ResultsFile, options: Options) -> list[PeerProgram]:
    """The peers that can run here, in their environments; the others are noted as skipped."""
    programs = []
    for peer in peers:
        if not set(options.workloads) & set(peer.workloads) and not options.setup_only:
            continue
        try:
            if peer.broker == "kafka" and broker.kind != "kafka":
                raise environment.Unusable("it runs on Apache Kafka only, which needs Java 17 and Maven here")
            made = environment.prepare(peer, say)
        except environment.Unusable as error:
            say(f"{peer.name} is skipped: {error}")
            results.skip(peer.name, str(error))
        else:
            programs.append(PeerProgram(peer, made, broker.bootstrap, options.timeout))
    return programs


def run_workload(
    workload: Workload,
    contestants: Sequence[StreamprocWorker | PeerProgram],
    broker: Broker,
    results: ResultsFile,
    options: Options,
) -> None:
    """All rounds of a workload, in which the contestants take turns."""
    wanted = {it.name: chosen for it in contestants if (chosen := needs(it, workload, options)) is not None}
    if not wanted:
        return
    datasets = fill_topics(
        broker.connection, workload, wanted.values(), seed=options.seed, partitions=options.partitions
    )
    for dataset in datasets.values():
        say(f"{dataset.count:,} events are in the topic {dataset.topic}")
    for number in range(1, options.rounds + 1):
        for contestant in contestants:
            if contestant.name in wanted:
                it = taken(contestant, datasets[wanted[contestant.name]])
                results.add(it)
                outcome = f"FAILED: {it.failed}" if it.failed else (
                    f"{it.events_per_second:,.0f} events/s, {it.cpu_seconds_per_million:.2f} CPU s per million"
                )  # fmt: skip
                say(f"{workload.name} round {number}: {it.title}: {outcome}")


def needs(contestant: StreamprocWorker | PeerProgram, workload: Workload, options: Options) -> tuple[int, str] | None:
    """How many events a contestant is given and by what they are keyed; ``None`` if it does not take part."""
    if isinstance(contestant, StreamprocWorker):
        count, key = workload.events, "visitor"
    else:
        participation = {str(name): it for name, it in contestant.peer.workloads.items()}.get(workload.name)
        if participation is None:
            return None
        count = participation.events
        key = contestant.peer.partition_key if workload.name == "w1" else "visitor"
    return min(count, options.events or count), key


def taken(contestant: StreamprocWorker | PeerProgram, dataset: Dataset) -> Round:
    """A round, or why it failed."""
    try:
        return contestant.run(dataset)
    except Failed as error:
        failed = str(error)
    return Round(
        workload=dataset.workload.name, contestant=contestant.name, title=contestant.title, failed=failed
    )


if __name__ == "__main__":
    main()
