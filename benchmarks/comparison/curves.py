"""Draws the curves of ``scale`` as an SVG: what an event costs over events, windows kept and partitions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from benchmarks.comparison.options import TITLES
from benchmarks.comparison.report import OURS, described
from benchmarks.comparison.results import Results
from benchmarks.comparison.rounds import summarise
from benchmarks.comparison.svg import FAINT, INK, OURS_INK, opened

_PREFIX = "scale-"
_NAMES = {"events": "events in the topic", "windows": "windows kept", "partitions": "partitions"}
_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP, _BOTTOM = 46, 64, 250, 180, 46, 64


class Point(NamedTuple):
    """A point of a curve: medians of CPU seconds per million events."""

    value: int
    worker: float
    postgresql: float


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a point of a curve lies: values on a logarithmic axis, costs on one from 0 that all curves share."""

    left: float
    first: float
    last: float
    highest: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return self.left + _WIDTH * (math.log(value) - self.first) / ((self.last - self.first) or 1.0)

    def y(self, cost: float) -> float:
        """Pixels from the top."""
        return _TOP + _HEIGHT * (1 - cost / self.highest)


def points_of(results: Results) -> dict[str, list[Point]]:
    """The points of each curve, in order. Raises :class:`ValueError` when the results have none."""
    curves: dict[str, list[Point]] = {}
    for workload in dict.fromkeys(it.workload for it in results.rounds if it.workload.startswith(_PREFIX)):
        summary = summarise(results.rounds, workload).get(OURS)
        if summary is not None:
            _, curve, value = workload.split("-")
            server = summary.more.get("postgresql_cpu_seconds_per_million", 0.0)
            point = Point(int(value), summary.cpu_seconds_per_million.median, server)
            curves.setdefault(curve, []).append(point)
    if not curves:
        raise ValueError("the results have no curves")
    return {curve: sorted(points) for curve, points in curves.items()}


def draw_curves(results: Results) -> str:
    """The SVG's text. Raises :class:`ValueError` when the results have no curves."""
    curves = points_of(results)
    costs = [cost for points in curves.values() for point in points for cost in point[1:]]
    highest = float(math.ceil(max(costs)))
    width = _LEFT + len(curves) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + _BOTTOM
    title = f"{TITLES['scale']}: CPU seconds per million events"
    parts = [
        *opened(title, width, height),
        f'<text x="12" y="44" fill="{OURS_INK}">● worker</text><text x="80" y="44">○ PostgreSQL</text>',
    ]
    for number, (curve, points) in enumerate(curves.items()):
        logs = [math.log(point.value) for point in points]
        axes = Axes(_LEFT + number * (_WIDTH + _GAP), min(logs), max(logs), highest)
        parts += _axes(axes, _NAMES.get(curve, curve), points)
        parts += _line(axes, [(point.value, point.worker) for point in points], OURS_INK, OURS_INK)
        parts += _line(axes, [(point.value, point.postgresql) for point in points], INK, "#ffffff")
    parts.append(f'<text x="12" y="{height - 10}" font-size="10">{escape(described(results.machine))}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _axes(axes: Axes, name: str, points: list[Point]) -> list[str]:
    parts = []
    for cost in range(int(axes.highest) + 1):
        y = axes.y(cost)
        parts += [
            f'<line x1="{axes.left}" y1="{y:.1f}" x2="{axes.left + _WIDTH}" y2="{y:.1f}" stroke="{FAINT}"/>',
            f'<text x="{axes.left - 8}" y="{y + 4:.1f}" text-anchor="end" font-size="10">{cost}</text>',
        ]
    bottom = _TOP + _HEIGHT
    for point in points:
        x = axes.x(point.value)
        label = f"{point.value:,}"
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle" font-size="10">{label}</text>'
        )
    middle = axes.left + _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 32}" text-anchor="middle">{escape(name)}</text>')
    return parts


def _line(axes: Axes, points: list[tuple[int, float]], ink: str, fill: str) -> list[str]:
    places = [(axes.x(value), axes.y(cost)) for value, cost in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [
        f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{ink}"/>' for x, y in places),
    ]
