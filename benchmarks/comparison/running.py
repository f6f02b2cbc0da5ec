"""Runs the rounds of each workload, in which the contestants take turns, and keeps what each gives."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.comparison import floor, freshness, lag, page, scaling
from benchmarks.comparison.brokers import Broker
from benchmarks.comparison.datasets import WORKLOADS, Workload, fill_topics
from benchmarks.comparison.options import Options
from benchmarks.comparison.peer_process import PeerProgram
from benchmarks.comparison.results import ResultsFile
from benchmarks.comparison.rounds import Failed, Round
from benchmarks.comparison.stamping import make_templates
from benchmarks.comparison.streamproc_worker import StreamprocWorker
from streamproc.embedded.postgres import EmbeddedPostgres

Contestant = StreamprocWorker | PeerProgram

_BEGIN = time.monotonic()
#: A peer that is given fewer events than that in w1 would take hours for w6.
_FAST_ENOUGH = 1_000_000


def say(message: str) -> None:
    """Show progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGIN:5.0f} s] {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a run needs: ``contestants`` in the order in which they take turns."""

    options: Options
    broker: Broker
    postgres: EmbeddedPostgres
    contestants: Sequence[Contestant]
    results: ResultsFile

    def run(self, name: str) -> None:
        """All rounds of the workload, curve or floor called ``name``."""
        special = {
            "w4": self.run_rates,
            "w6": self.run_lag,
            "w6-page": self.run_page_lag,
            "floor": self.run_floor,
            "scale": self.run_curves,
        }
        if name in special:
            special[name]()
        else:
            self.run_datasets(WORKLOADS[name])

    def run_datasets(self, workload: Workload) -> None:
        """Rounds over topics that are full before they start."""
        wanted = {
            it.name: size for it in self.contestants if (size := self.size_for(it, workload)) is not None
        }
        if not wanted:
            return
        say(f"{workload.name}: making events")
        datasets = fill_topics(
            self.broker.connection,
            workload,
            wanted.values(),
            seed=self.options.seed,
            partitions=self.options.partitions,
        )
        for dataset in datasets.values():
            say(f"{dataset.count:,} events are in the topic {dataset.topic}")
        for number in range(1, self.options.rounds + 1):
            for contestant in self.contestants:
                if contestant.name in wanted:
                    dataset = datasets[wanted[contestant.name]]
                    run = partial(contestant.run, dataset)
                    if workload.name == "w2" and isinstance(contestant, PeerProgram):
                        run = partial(page.measure_peer, contestant, self.postgres, dataset)
                    self.take(number, workload.name, contestant, run)

    def size_for(self, contestant: Contestant, workload: Workload) -> tuple[int, str] | None:
        """How many events a contestant is given and by what they are keyed; ``None`` if it does not take part."""
        key = "visitor"
        if isinstance(contestant, StreamprocWorker):
            if not workload.stream:
                return None
            count = workload.events
        else:
            participation = contestant.participation(workload.name)
            if participation is None:
                return None
            count = participation.events
            if workload.name == "w1":
                key = contestant.peer.partition_key
        return min(count, self.options.events or count), key

    def run_rates(self) -> None:
        """w4: streamproc, and the peers that take part, at each rate."""
        templates = make_templates(self.options.seed)
        taking_part = [it for it in self.contestants if _takes_part(it, "w4")]
        for number in range(1, self.options.rounds + 1):
            for rate in self.options.rates:
                steady = freshness.Steady(rate, self.options.seconds, self.options.partitions, templates)
                for contestant in taking_part:
                    topic = f"{steady.workload}-{number}-{contestant.name}"
                    self.take(
                        number, steady.workload, contestant, partial(self._at_rate, contestant, steady, topic)
                    )

    def _at_rate(self, contestant: Contestant, steady: freshness.Steady, topic: str) -> Round:
        connection = self.broker.connection
        if isinstance(contestant, StreamprocWorker):
            return freshness.measure_streamproc(contestant, connection, steady, topic)
        return freshness.measure_peer(contestant, self.postgres, connection, steady, topic)

    def run_lag(self) -> None:
        """w6: streamproc, and the peers that are fast enough in w1."""
        count = self.options.lag
        say(f"w6: making {count:,} events")
        templates = make_templates(self.options.seed)
        topic = lag.fill_lag(self.broker.connection, lag.Lag("w6", count, self.options.partitions), templates)
        for number in range(1, self.options.rounds + 1):
            for contestant in self.contestants:
                if isinstance(contestant, StreamprocWorker):
                    self.take(number, "w6", contestant, partial(lag.measure_streamproc, contestant, topic))
                elif (part := contestant.participation("w1")) is not None and part.events >= _FAST_ENOUGH:
                    self.take(number, "w6", contestant, partial(lag.measure_peer, contestant, topic))

    def run_page_lag(self) -> None:
        """w6 with the shipped page, which is streamproc's alone."""
        for contestant in self.contestants:
            if isinstance(contestant, StreamprocWorker):
                say(f"w6-page: making {self.options.lag:,} events")
                wanted = lag.Lag("w6-page", self.options.lag, self.options.partitions)
                topic = lag.fill_page_lag(self.broker.connection, wanted, self.options.seed)
                for number in range(1, self.options.rounds + 1):
                    self.take(number, "w6-page", contestant, partial(lag.measure_page, contestant, topic))

    def run_floor(self) -> None:
        """Each step alone, on the events of w1."""
        self.run_datasets(_FLOOR)
        values = [value for _, value in _FLOOR.generate(self.events_of_a_point, self.options.seed)]
        for number in range(1, self.options.rounds + 1):
            for it in floor.measure(values, self.postgres):
                self.keep(number, it)

    def run_curves(self) -> None:
        """streamproc's cost of an event, over events, windows and partitions."""
        templates = make_templates(self.options.seed)
        points = scaling.points(self.events_of_a_point)
        for contestant in self.contestants:
            if isinstance(contestant, StreamprocWorker):
                filled = scaling.fill(self.broker.connection, templates, points)
                for number in range(1, self.options.rounds + 1):
                    for it in scaling.measure(contestant, filled):
                        self.keep(number, it)

    @property
    def events_of_a_point(self) -> int:
        """Events of a step of the floor, and of a point of a curve."""
        return self.options.events or 1_000_000

    def take(self, number: int, workload: str, contestant: Contestant, run: Callable[[], Round]) -> None:
        """Run a round and keep it, or why it failed."""
        try:
            it = run()
        except Failed as error:
            it = Round(
                workload=workload, contestant=contestant.name, title=contestant.title, failed=str(error)
            )
        self.keep(number, it)

    def keep(self, number: int, it: Round) -> None:
        """Write a round down and show it."""
        self.results.add(it)
        if it.failed:
            outcome = f"FAILED: {it.failed}"
        else:
            outcome = (
                f"{it.events_per_second:,.0f} events/s, {it.cpu_seconds_per_million:.2f} CPU s per million"
            )
        say(f"{it.workload} round {number}: {it.title}: {outcome}")


#: The peers' part of the floor: w1's events, and nothing to compare.
_FLOOR = Workload(
    name="floor",
    title="",
    stream="",
    page=WORKLOADS["w1"].page,
    events=0,
    generate=WORKLOADS["w1"].generate,
)


def _takes_part(contestant: Contestant, workload: str) -> bool:
    return isinstance(contestant, StreamprocWorker) or contestant.participation(workload) is not None
