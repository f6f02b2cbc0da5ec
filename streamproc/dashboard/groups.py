"""Answers of the page *Explore* that are kept whole: sorted, paged and drawn without asking again.

A choice that groups reads every row of its range, however few it shows: a week of minutes is a million rows for a
hundred paths. All groups of it are asked for at once, and kept if they are few. Then a click on a heading, the next
page, the chart and the next viewer cost nothing: on a million rows 200 ms of the database's CPU each.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from streamproc.dashboard.choice import Choice
from streamproc.dashboard.explore import BARS, POINTS, SERIES, ordered_by, rows
from streamproc.dashboard.reading import Answer, Reader

Row = tuple[Any, ...]

#: Most groups of an answer that is kept, and most answers: some ten megabytes.
GROUPS, ANSWERS = 5_000, 16

#: Seconds after which an answer is asked for anew also when nothing was committed: rows expire, replays are promoted.
KEPT = 60.0


@dataclass(frozen=True, slots=True)
class Whole:
    """The first groups of ``choice`` in its order; all there are when it is ``complete``."""

    choice: Choice
    rows: Sequence[Row]
    complete: bool

    def in_order_of(self, choice: Choice) -> bool:
        """Whether the rows are the first ones in the order of ``choice`` too."""
        return ordered_by(choice) == ordered_by(self.choice)

    def page(self, choice: Choice, first: int, limit: int) -> list[Row]:
        """``limit`` rows from the ``first`` in the order of ``choice``, as :func:`~.explore.rows` puts them.

        Texts are compared by their code points.
        """
        found = list(self.rows)
        for name, down in reversed(ordered_by(choice)):
            found = _sorted(found, choice.columns.index(name), down=down)
        return found[first : first + limit]

    def drawn(self, choice: Choice) -> Answer:
        """What :func:`~.explore.chart` would answer."""
        assert choice.charted is not None, "there is nothing to draw"
        measure, names = choice.columns.index(choice.charted.name), choice.keys
        cut = [(*row[: len(names)], row[measure]) for row in self.rows]
        columns = (*names, choice.charted.name)
        if not choice.grain:
            return Answer(columns, _sorted(cut, len(names), down=True)[:BARS])
        if choice.by:
            shown = _biggest(cut, choice.charted.fold)
            cut = [row for row in cut if row[1:-1] in shown]
        return Answer(columns, _sorted(cut, 0, down=True)[:POINTS])


class Groups:
    """Whole answers for all viewers, while nothing new was committed; the one that was used longest ago goes first."""

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._asked: OrderedDict[object, tuple[float, asyncio.Task[Whole]]] = OrderedDict()

    async def of(self, choice: Choice, as_of: datetime | None) -> Whole:
        """The groups of ``choice``, as they were when the stream's newest commit was ``as_of``.

        Who asks the same meanwhile waits for the same answer. Raises what :meth:`Reader.ask` does.
        """
        key = (
            choice.table.name,
            choice.measures,
            choice.keys,
            choice.grain,
            choice.since,
            choice.until,
            as_of,
        )
        at, task = self._asked.get(key, (float("-inf"), None))
        if task is None or self._clock() - at > KEPT:
            task = asyncio.create_task(self._ask(choice))
            task.add_done_callback(partial(self._forget_failed, key))
            self._asked[key] = (self._clock(), task)
        self._asked.move_to_end(key)
        if len(self._asked) > ANSWERS:
            self._asked.popitem(last=False)
        return await asyncio.shield(task)

    async def _ask(self, choice: Choice) -> Whole:
        found = (await self._reader.ask(rows(choice, None, GROUPS))).rows
        return Whole(choice, found, complete=len(found) <= GROUPS)

    def _forget_failed(self, key: object, task: asyncio.Task[Whole]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._asked.get(key, (0.0, None))[1] is task:
            del self._asked[key]


def _biggest(cut: Sequence[Row], fold: str) -> set[Row]:
    """Dimensions of the groups that are drawn."""
    values: dict[Row, list[Any]] = {}
    for row in cut:
        values.setdefault(row[1:-1], []).append(row[-1])
    folds: dict[str, Callable[[list[Any]], Any]] = {"sum": sum, "count": sum, "min": min, "max": max}
    whole = [(group, _folded(folds[fold], each)) for group, each in values.items()]
    return {group for group, _ in _sorted(whole, 1, down=True)[:SERIES]}


def _sorted(found: Sequence[Row], column: int, *, down: bool) -> list[Row]:
    """By one column; nulls last, rows that are equal in it stay as they are. NaN is the largest, as in PostgreSQL."""
    there = [row for row in found if row[column] is not None]
    there.sort(key=lambda row: (row[column] != row[column], row[column]), reverse=down)
    return there + [row for row in found if row[column] is None]


def _folded(fold: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    there = [value for value in values if value is not None]
    return fold(there) if there else None
