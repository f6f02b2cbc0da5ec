"""``python -m tests.faults``: as many runs as asked for, a line of JSON each, the table at the end."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import logging
import random
import signal
import sys
import tempfile
from pathlib import Path

import structlog

from streamproc.errors import DependencyError
from tests.e2e.harness import REPOSITORY
from tests.faults import kinesis_faults, report
from tests.faults.bench import Bench
from tests.faults.crashes import CRASHES, Crash
from tests.faults.kinesis import KinesisBench
from tests.faults.network import NETWORK
from tests.faults.runner import Fault, run, series
from tests.faults.topics import TOPICS
from tests.faults.world import WORLD

FAULTS: list[Fault] = [*CRASHES, *WORLD, *TOPICS, *NETWORK]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, help="how many (default: each fault once)")
    parser.add_argument("--seed", type=int, default=1, help="of the order, the records and the choices")
    parser.add_argument("--fault", action="append", help="only these; * stands for anything")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time; mostly they wait")
    parser.add_argument("--long", action="store_true", help="also those that take minutes each")
    parser.add_argument("--series", type=int, default=1, help="crashes in one place, one after the other")
    parser.add_argument("--kafka", action="store_true", help="on Apache Kafka (Java 17, Maven)")
    parser.add_argument(
        "--kinesis", action="store_true", help="on a local Kinesis (Node 18, npm): other faults"
    )
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies deadlines, on a busy machine")
    parser.add_argument("--log", type=Path, help="file to append a line per run to")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="LOG", help="the table of these logs, no runs"
    )
    parser.add_argument(
        "--docs",
        action="store_true",
        help="put the tables of the kept logs into docs/faults.md and docs/kinesis.md",
    )
    parser.add_argument("--brief", action="store_true", help="a line per phase in the table, not per point")
    options = parser.parse_args()
    faults = [
        f
        for f in (kinesis_faults.FAULTS if options.kinesis else FAULTS)
        if any(fnmatch.fnmatch(f.name, p) for p in options.fault or "*")
        and (options.long or options.fault or not f.long)
    ]
    if options.list:
        for fault in faults:
            print(fault.name, f"({fault.missing})" if fault.missing else "")
        return 0
    if options.docs:
        report.into(REPOSITORY / "docs" / "faults.md", report.kept())
        report.into(REPOSITORY / "docs" / "kinesis.md", report.kept(kinesis=True))
        return 0
    if options.table:
        print(report.table(report.read(options.table), brief=options.brief))
        return 0
    for fault in faults:
        if fault.missing:
            print(f"left out: {fault.name} ({fault.missing})", flush=True)
    faults = [fault for fault in faults if not fault.missing]
    if not faults:
        parser.error(f"no fault is called {options.fault}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # end the workers too, also where a shell ignores them for us
        signal.signal(number, signal.default_int_handler)
    options.runs = options.runs or len(faults)
    runs = asyncio.run(_all(faults, options))
    print(report.table(runs))
    bad = [one for one in runs if not one.clean]
    for one in bad:
        print(f"\n{one.fault}, seed {one.seed}: {one.failure or one.notes}", file=sys.stderr)
    return 1 if bad else 0


async def _all(faults: list[Fault], options: argparse.Namespace) -> list[report.Run]:
    """The faults in random order, each before any comes again; crashes in series, if that was asked for."""
    chance = random.Random(options.seed)
    order: list[Fault] = []
    while len(order) < options.runs:
        order += chance.sample(faults, len(faults))
    waiting = list(enumerate(order[: options.runs], start=options.seed * 100_000))
    runs: list[report.Run] = []

    def note(one: report.Run) -> None:
        runs.append(one)
        outcome = "ok" if one.clean else f"FAILED: {(one.failure or str(one.notes))[:300]}"
        nothing = "" if one.fired or not one.clean else ", nothing was in flight"
        recovery = f", went on after {one.recovery:.1f} s" if one.recovery is not None else ""
        print(
            f"{len(runs)}/{options.runs} {one.fault} (seed {one.seed}): {outcome}{nothing}{recovery}, {one.seconds} s",
            flush=True,
        )
        if options.log is not None:
            with options.log.open("a") as file:
                file.write(one.line() + "\n")

    async def work(bench: Bench) -> None:
        while waiting:
            number, fault = waiting.pop(0)
            crashes = [fault]
            while len(crashes) < options.series and isinstance(fault, Crash) and _next_is_crash(waiting):
                crashes.append(waiting.pop(0)[1])
            try:
                if len(crashes) == 1:
                    note(await run(bench, fault, number))
                else:
                    async for one in series(bench, crashes, number):
                        note(one)
            except (DependencyError, OSError, RuntimeError) as error:  # no place to run in, and so no run
                print(f"not begun: {str(error)[:500]}", flush=True)

    with tempfile.TemporaryDirectory(prefix="streamproc-", ignore_cleanup_errors=True) as directory:
        bench_type = KinesisBench if options.kinesis else Bench
        place = bench_type.open(Path(directory), kafka=options.kafka, patience=options.patience)
        async with place as bench, asyncio.TaskGroup() as group:
            for _ in range(options.parallel):
                group.create_task(work(bench))
    return runs


def _next_is_crash(waiting: list[tuple[int, Fault]]) -> bool:
    return bool(waiting) and isinstance(waiting[0][1], Crash)


if __name__ == "__main__":
    sys.exit(main())
