"""CPU of each stage of the shipped page now, beside a stored baseline. It reports and never fails: a person judges.

    make bench-ci [ARGS="--rounds 5"]    measure and compare with benchmarks/baseline.json
    make bench-ci ARGS=--write           measure and store as the new baseline

CPU seconds differ from machine to machine, so each is divided by that of a yardstick, a fixed piece of work that no
change of streamproc touches, measured in turns with the stages. What is compared is that quotient.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import orjson
import polars as pl
from rich.console import Console
from rich.table import Table

from benchmarks import stages
from streamproc import __version__

BASELINE = Path(__file__).parent / "baseline.json"
_EVENTS = 600_000
_RATE = 500


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """CPU seconds per million events by stage; ``yardstick``: those of the fixed work. Medians of ``rounds``."""

    streamproc: str
    python: str
    polars: str
    rounds: int
    yardstick: float
    stages: dict[str, float]


def measured(rounds: int) -> Costs:
    """The costs now, on this machine."""
    taken: list[dict[str, float]] = []
    yardsticks = []
    for _ in range(rounds):
        yardsticks.append(yardstick_seconds())
        taken.append(stages.medians(asyncio.run(stages.measure(_EVENTS, _RATE, 0.0))))
    return Costs(
        streamproc=__version__,
        python=platform.python_version(),
        polars=pl.__version__,
        rounds=rounds,
        yardstick=statistics.median(yardsticks),
        stages={stage: statistics.median(it[stage] for it in taken) for stage in taken[0]},
    )


def yardstick_seconds() -> float:
    """CPU seconds of fixed work of the same kinds: JSON in C, a group-by in polars, a loop in Python."""
    line = orjson.dumps(
        {"event_id": "x" * 32, "event_time": 1, "page_url": "https://example.com/" + "p" * 200}
    )
    begin = time.process_time()
    for _ in range(200_000):
        orjson.loads(line)
    frame = pl.DataFrame({"key": pl.int_range(0, 2_000_000, eager=True) % 1_000, "value": 1})
    for _ in range(5):
        frame.group_by("key").agg(pl.col("value").sum())
    sum(number % 7 for number in range(2_000_000))
    return time.process_time() - begin


def changes(now: Costs, baseline: Costs) -> Mapping[str, float | None]:
    """Stage → how many times its baseline it costs, in yardsticks; ``None`` where there is nothing to compare."""
    names = dict.fromkeys([*now.stages, *baseline.stages])
    return {name: _change(now, baseline, name) for name in names}


def _change(now: Costs, baseline: Costs, stage: str) -> float | None:
    then = baseline.stages.get(stage, 0.0)
    if stage not in now.stages or then <= 0:
        return None
    return (now.stages[stage] / now.yardstick) / (then / baseline.yardstick)


def comparison_table(now: Costs, baseline: Costs) -> Table:
    """A row for each stage: CPU seconds per million events now and then, and the change in yardsticks."""
    table = Table(
        "stage",
        "now",
        "baseline",
        "times the baseline",
        title="CPU seconds per million events of the shipped page",
    )
    for stage, change in changes(now, baseline).items():
        table.add_row(
            stage,
            _shown(now.stages.get(stage)),
            _shown(baseline.stages.get(stage)),
            _shown(change),
        )
    table.add_row("yardstick (seconds)", _shown(now.yardstick), _shown(baseline.yardstick), "")
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    """Measure, and write or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many (3)")
    parser.add_argument("--write", action="store_true", help="store what was measured as the baseline")
    options = parser.parse_args()
    now = measured(options.rounds)
    if options.write:
        BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(now), indent=1) + b"\n")
        print(f"{BASELINE} is what was measured now")
        return
    baseline = msgspec.json.decode(BASELINE.read_bytes(), type=Costs)
    Console().print(comparison_table(now, baseline))
    print(
        f"The baseline is of streamproc {baseline.streamproc}, Python {baseline.python}, polars {baseline.polars}"
    )


if __name__ == "__main__":
    main()
