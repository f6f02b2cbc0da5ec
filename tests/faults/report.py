"""One JSON line per run, and the table of all of them."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: The end of a crash's name: the phase and the point in it.
_PHASE = re.compile(r"(?<= at )([a-z]+)\.[a-z]+$")


#: Stands before the table in a page.
MARKER = "<!-- python -m tests.faults --docs: the lines of tests/faults/results -->"

#: The lines of runs that were made by hand and are kept.
RESULTS = Path(__file__).parent / "results"


@dataclass
class Run:
    """What became of one run.

    ``fired``: the fault happened, ``times`` over, and ``in_flight`` records were not committed at the last.
    ``failure``: why it did not come to the checks, or what they found beside lost and duplicated rows.
    ``recovery``: seconds until every partition was committed again. ``seconds``: the whole run.
    """

    fault: str
    seed: int
    fired: bool = False
    in_flight: int = 0
    times: int = 1
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    recovery: float | None = None
    seconds: float = 0.0
    records: int = 0
    failure: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong or self.failure)

    def line(self) -> str:
        """As JSON, without what is as it should be."""
        usual = asdict(Run(self.fault, self.seed, fired=True))
        found = {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in asdict(self).items()
            if name in {"fault", "seed"} or value != usual[name]
        }
        return json.dumps(found)


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs of these logs."""
    return [
        Run(**{"fired": True, **json.loads(line)}) for path in paths for line in path.read_text().splitlines()
    ]


def kept(*, kinesis: bool = False) -> list[Run]:
    """The runs in the logs that are kept: those on Kafka, or those on Kinesis."""
    logs = sorted(RESULTS.glob("*.jsonl"))
    return read(log for log in logs if log.stem.endswith("-kinesis") == kinesis)


def table(runs: Iterable[Run], *, brief: bool = False) -> str:
    """Runs by fault, with percentiles of the recovery, as Markdown.

    *Not finished*: never came to the checks, so nothing is known of loss.

    ``brief``: the points of one phase together, ``put.first`` and ``put.last`` as ``put.*``.
    """
    by_fault: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda one: one.fault):
        by_fault[_PHASE.sub(r"\1.*", run.fault) if brief else run.fault].append(run)
    everything = [run for some in by_fault.values() for run in some]
    lines = [
        "| fault | runs | fired | not finished | lost | duplicated | wrong | recovery p50 / p95 / max, s |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
        *(_row(fault, some) for fault, some in by_fault.items()),
        _row("**all**", everything),
    ]
    return "\n".join(lines)


def _row(fault: str, runs: list[Run]) -> str:
    times = sorted(run.recovery for run in runs if run.recovery is not None)
    recovery = " / ".join(f"{percentile(times, p):.1f}" for p in (0.5, 0.95, 1.0)) if times else "-"
    unfinished = sum(run.failure is not None for run in runs)
    return (
        f"| {fault} | {len(runs)} | {sum(run.fired for run in runs)} | {unfinished}"
        f" | {sum(run.lost for run in runs)} | {sum(run.duplicated for run in runs)}"
        f" | {sum(run.wrong for run in runs)} | {recovery} |"
    )


def percentile(ordered: list[float], part: float) -> float:
    """Nearest rank."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def into(page: Path, runs: Iterable[Run]) -> None:
    """Put the brief table of ``runs`` behind the marker of ``page``, in the place of the one that is there."""
    before, marker, after = page.read_text().partition(MARKER)
    assert marker, f"{page} has no place for a table"
    lines = after.lstrip("\n").splitlines()
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    rest = "\n".join(lines).lstrip("\n")
    page.write_text(f"{before}{marker}\n\n{table(runs, brief=True)}\n\n{rest}\n")
