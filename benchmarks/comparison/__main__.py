"""``make bench-peers``: see :mod:`benchmarks.comparison.options` and ../README.md."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.comparison import environment
from benchmarks.comparison.brokers import Broker, choose_broker, running_broker
from benchmarks.comparison.freshness import postgres_with_commit_times
from benchmarks.comparison.manifest import Peer, read_peers
from benchmarks.comparison.options import Options, read_options
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.report import print_report
from benchmarks.comparison.results import ResultsFile, new_results
from benchmarks.comparison.running import Comparison, Contestant, say
from benchmarks.comparison.streamproc_worker import StreamprocWorker


def main() -> None:
    """Make the environments, run the rounds, print."""
    options = read_options()
    peers = [peer for peer in read_peers() if peer.name in options.peers]
    if options.list:
        for peer in peers:
            print(f"{peer.name:24} {peer.title}: {', '.join(peer.workloads)}")
        return
    kind = choose_broker(options.broker)
    signal.signal(signal.SIGTERM, _stop)
    # What the producer's client tries again it tells as well; what it gives up is raised.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory(prefix="streamproc-bench-") as folder,
        running_broker(kind, Path(folder) / "broker") as broker,
        postgres_with_commit_times(Path(folder) / "postgres") as postgres,
    ):
        results = new_results(broker.title, options.results)
        contestants: list[Contestant] = [*prepared(peers, broker, results, options)]
        if options.setup_only:
            return
        if "streamproc" in options.peers:
            contestants.insert(0, StreamprocWorker(broker.bootstrap, postgres, options.timeout))
        comparison = Comparison(options, broker, postgres, contestants, results)
        for name in options.workloads:
            comparison.run(name)
    print_report(results.results, Console(width=150))
    say(f"Every round is in {results.path}")
    rounds = results.results.rounds
    ours_failed = any(it.failed for it in rounds if it.contestant == "streamproc")
    sys.exit(1 if ours_failed or all(it.failed for it in rounds) else 0)


def _stop(*_: object) -> None:
    """End in order: Python's default would leave the broker's data, PostgreSQL and a peer behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break off the clearing up
    sys.exit(128 + signal.SIGTERM)


def prepared(
    peers: Sequence[Peer], broker: Broker, results: ResultsFile, options: Options
) -> list[PeerProgram]:
    """The peers that can run here, in their environments; the others are noted as skipped."""
    programs = []
    for peer in peers:
        asked_for = set(options.workloads) | ({"w1"} if "w6" in options.workloads else set())
        if not asked_for & set(peer.workloads) and not options.setup_only:
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


if __name__ == "__main__":
    main()
