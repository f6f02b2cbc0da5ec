"""Draws a workload as an SVG: a dot for each median, a line from the slowest to the fastest round.

    make bench-plot [ARGS="RESULTS --workload w1 --output docs/peers.svg"]

Both axes are logarithmic, because contestants differ by two orders of magnitude. ``--workload scale`` draws the
curves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.comparison.curves import draw_curves
from benchmarks.comparison.options import TITLES
from benchmarks.comparison.report import OURS, described
from benchmarks.comparison.results import RESULTS, BadResults, Results, read_results
from benchmarks.comparison.rounds import Spread, Summary, summarise
from benchmarks.comparison.svg import FAINT, INK, OURS_INK, opened

_OUTPUT = Path(__file__).parents[2] / "docs" / "peers.svg"
_ROW, _TOP, _BOTTOM = 26, 62, 44
_NAMES, _PANEL, _GAP, _RIGHT = 250, 260, 40, 70


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of all contestants, on an axis of its own that begins ``left`` pixels from the left."""

    title: str
    figure: Callable[[Summary], Spread]
    format: str
    left: int


_PANELS = (
    Panel("events a second (more is better)", lambda it: it.events_per_second, ",.0f", _NAMES),
    Panel(
        "CPU seconds per million events (fewer are better)",
        lambda it: it.cpu_seconds_per_million,
        ",.1f",
        _NAMES + _PANEL + _GAP + _RIGHT,
    ),
)


def draw(results: Results, workload: str) -> str:
    """The SVG's text. Raises :class:`ValueError` when the results have no figures of the workload."""
    summaries = summarise(results.rounds, workload)
    if not summaries:
        raise ValueError(f"the results have no figures of {workload}")
    ordered = sorted(summaries.items(), key=lambda it: -it[1].events_per_second.median)
    width = _PANELS[-1].left + _PANEL + _RIGHT
    height = _TOP + _ROW * len(ordered) + _BOTTOM
    title = f"{TITLES[workload]}: medians of {max(len(it.rounds) for it in summaries.values())} rounds"
    parts = [
        *opened(title, width, height),
    ]
    for row, (name, summary) in enumerate(ordered):
        ink, weight = (OURS_INK, "bold") if name == OURS else (INK, "normal")
        parts.append(
            f'<text x="{_NAMES - 14}" y="{_baseline(row)}" text-anchor="end" fill="{ink}" '
            f'font-weight="{weight}">{escape(summary.title)}</text>'
        )
    for panel in _PANELS:
        parts += _drawn(panel, [(name == OURS, summary) for name, summary in ordered])
    parts.append(f'<text x="12" y="{height - 12}" font-size="10">{escape(described(results.machine))}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _drawn(panel: Panel, rows: Sequence[tuple[bool, Summary]]) -> list[str]:
    spreads = [panel.figure(summary) for _, summary in rows]
    first, last = decades([bound for it in spreads for bound in (it.smallest, it.largest)])

    def x_of(value: float) -> float:
        return panel.left + _PANEL * (math.log10(value) - first) / (last - first)

    bottom = _TOP + _ROW * len(rows)
    parts = [f'<text x="{panel.left}" y="44">{escape(panel.title)}</text>']
    for decade in range(first, last + 1):
        x = x_of(10.0**decade)
        parts += [
            f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{FAINT}"/>',
            f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle" font-size="10">{10**decade:,}</text>',
        ]
    for row, ((ours, _), spread) in enumerate(zip(rows, spreads, strict=True)):
        ink, y = (OURS_INK if ours else INK), _TOP + _ROW * row + _ROW // 2 - 2
        low, middle, high = x_of(spread.smallest), x_of(spread.median), x_of(spread.largest)
        parts += [
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{ink}" stroke-width="3"/>',
            f'<circle cx="{middle:.1f}" cy="{y}" r="5" fill="{ink}"/>',
            f'<text x="{high + 9:.1f}" y="{_baseline(row)}" fill="{ink}">{spread.median:{panel.format}}</text>',
        ]
    return parts


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around all ``values`` (positive): the last one below or at the smallest, the first one above."""
    first = math.floor(math.log10(min(values)))
    return first, max(math.ceil(math.log10(max(values))), first + 1)


def _baseline(row: int) -> int:
    return _TOP + _ROW * row + _ROW // 2 + 2


def newest_results(folder: Path = RESULTS, workload: str = "") -> Path:
    """The results file written last, by its name, of those with rounds of the workload, or of all.

    Raises :class:`FileNotFoundError`.
    """
    for path in sorted(folder.glob("peers-*.json"), reverse=True):
        if not workload or any(it.workload.startswith(workload) for it in read_results(path).rounds):
            return path
    of_it = f" of {workload}" if workload else ""
    raise FileNotFoundError(f"no results{of_it} in {folder}: make bench-peers writes some")


def main() -> None:
    """Read the results and write the SVG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", nargs="?", type=Path, help="default: the newest of the workload in benchmarks/results"
    )
    parser.add_argument("--workload", default="w1", choices=["w1", "w2", "w3", "w5", "w6", "floor", "scale"])
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    options = parser.parse_args()
    try:
        path = options.results or newest_results(workload=options.workload)
        results = read_results(path)
        drawn = draw_curves(results) if options.workload == "scale" else draw(results, options.workload)
    except (FileNotFoundError, BadResults, ValueError) as error:
        parser.error(str(error))
    options.output.write_text(drawn, encoding="utf-8")
    print(f"{options.output} shows {path}")


if __name__ == "__main__":
    main()
