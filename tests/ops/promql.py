"""As much of PromQL as tells which series and labels an expression names, and that it is well formed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")|(?P<duration>\d+(?:ms|[smhdwy])\b)|(?P<number>\d+(?:\.\d+)?(?:e\d+)?)"""
    r"""|(?P<name>[A-Za-z_:][\w:]*)|(?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^<>=])|(?P<bracket>[()\[\]{},])|(?P<space>\s+)"""
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset"}
_OPEN = {"(": ")", "[": "]", "{": "}"}

#: What Prometheus itself adds to each series it scrapes, and the one series that it makes.
SCRAPED, UP = {"job", "instance"}, "up"

PROMTOOL = shutil.which("promtool")


def series(expression: str) -> dict[str, set[str]]:
    """The labels that an expression asks of each metric: those of its matchers, and those of all groupings.

    Raises :class:`ValueError` when a bracket is not closed or something is no PromQL at all.
    """
    tokens = list(_tokens(expression))
    found: dict[str, set[str]] = {}
    grouped: set[str] = set()
    place = 0
    while place < len(tokens):
        kind, text = tokens[place]
        following = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        if kind == "name" and text in _GROUPING:
            place, labels = _until(tokens, place + 1, ")")
            grouped |= {label for kind_, label in labels if kind_ == "name"}
        elif kind == "name" and text not in _WORDS and following != "(" and following not in _GROUPING:
            labels = found.setdefault(text, set())
            if following == "{":
                place, inside = _until(tokens, place + 1, "}")
                labels |= {label for kind_, label in inside if kind_ == "name"}
        place += 1
    return {name: labels | grouped for name, labels in found.items()}


def _tokens(expression: str) -> Iterable[tuple[str, str]]:
    place, closing = 0, []
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None or match.lastgroup is None:
            raise ValueError(f"not PromQL from here: {expression[place:]}")
        place, text = match.end(), match[0]
        if text in _OPEN:
            closing.append(_OPEN[text])
        elif text in _OPEN.values() and (not closing or closing.pop() != text):
            raise ValueError(f"{text} closes nothing in {expression}")
        if match.lastgroup != "space":
            yield match.lastgroup, text
    if closing:
        raise ValueError(f"{closing} missing in {expression}")


def _until(tokens: list[tuple[str, str]], place: int, end: str) -> tuple[int, list[tuple[str, str]]]:
    inside = []
    while tokens[place][1] != end:
        inside.append(tokens[place])
        place += 1
    return place, inside


def unknown(expression: str, exposed: dict[str, set[str]]) -> set[str]:
    """What an expression names and no worker exposes: metrics, and labels as ``metric{label}``."""
    wrong = set()
    for metric, labels in series(expression).items():
        if metric == UP:
            continue
        if metric not in exposed:
            wrong.add(metric)
        elif not metric.startswith("process_"):  # those have none: groupings are of what they stand beside
            wrong |= {f"{metric}{{{label}}}" for label in labels - exposed[metric] - SCRAPED}
    return wrong


def promtool(*arguments: str, folder: Path) -> None:
    """Run Prometheus' own tool; the assertion shows what it says."""
    assert PROMTOOL is not None
    command = [PROMTOOL, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def as_rules(expressions: Iterable[str]) -> str:
    """A rules file that holds the expressions, which is how promtool reads them."""
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    return yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})
