"""What visitors do now: the questions of the page *Live*, for whatever tables a topic page declares.

Time is event time. "Now" is the newest event time the stream has accepted, but not later than the database's
clock, so a page of old events reads as it did when they were new, and says how old they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from psycopg import sql

from streamproc.dashboard.catalog import error_of
from streamproc.dashboard.live_panels import TOLD, Counting, Ranking, panels
from streamproc.dashboard.reading import Question, Reader
from streamproc.sinks.summaries_layout import Layout
from streamproc.tables.sketches import sketching
from streamproc.topology import Table, Topology

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)

#: Minutes that the line of page views shows, and earlier hours it is compared with.
MINUTES, EARLIER = 60, 3
#: Rows of a ranking, of the newest sessions.
RANKED, SESSIONS = 8, 8
#: Sessions that began this much before now are in the funnel.
FUNNEL_SPAN = timedelta(hours=24)


class Minute(NamedTuple):
    """Page views of a window and of the same one in earlier hours. ``None``: nobody counted them yet."""

    start: datetime
    views: int | None
    earlier: tuple[int | None, ...]
    open: bool
    filling: bool


class Hour(NamedTuple):
    """Page views of the 60 minutes to now, or of as many windows as fit into them.

    ``whole``: of as many windows that are over, ``before``: of those an hour before them, which is what compares.
    ``None``: that hour was not counted from its beginning.
    """

    views: int
    whole: int
    before: int | None


class Visitors(NamedTuple):
    """Distinct visitors of ``[since, until)``. ``error``: in words, empty where exact."""

    number: int
    since: datetime
    until: datetime
    error: str


class Ranked(NamedTuple):
    """A ranking's rows, ``(value, views)``, and since when."""

    ranking: Ranking
    since: datetime
    rows: Sequence[tuple[str | None, int]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The page at one moment. ``now``: event time, ``None`` when there never was an event.

    ``watermark``: event time up to which all partitions are complete. ``committed_at``: the newest commit,
    ``asked_at``: when this was read, both on the database's clock. ``sessions``: names of columns and rows.
    ``funnel``: sessions that came to each step.
    """

    asked_at: datetime
    now: datetime | None = None
    watermark: datetime | None = None
    committed_at: datetime | None = None
    minutes: Sequence[Minute] = ()
    visitors: Visitors | None = None
    active: int | None = None
    rankings: Sequence[Ranked] = ()
    sessions: tuple[Sequence[str], Sequence[tuple[Any, ...]]] = ((), ())
    funnel: Sequence[tuple[str, int]] = ()
    hour: Hour | None = None


#: A partition that has had no event for an hour holds no watermark up here: the pipeline's own waits, because it
#: must not be wrong; a picture of "still open" only has to be helpful.
_CLOCK = """
    SELECT clock_timestamp(),
           CASE WHEN max(clock_us) IS NOT NULL  -- least() passes over nulls
                THEN least(max(clock_us), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) END,
           min(clock_us) FILTER (WHERE clock_us > newest - 3600000000), max(updated_at) FILTER (WHERE records > 0)
    FROM (SELECT *, max(clock_us) OVER () AS newest FROM streamproc.partitions WHERE stream = %(stream)s) AS p
"""


class Live:
    """Looks at one stream's tables as the page needs it."""

    def __init__(self, topology: Topology, reader: Reader) -> None:
        self.topology = topology
        self.panels = panels(topology)
        self._reader = reader

    async def clock(self) -> Snapshot:
        """Only what time it is, which costs next to nothing. Raises as :meth:`look` does."""
        clock = Question(sql.SQL(_CLOCK).format(), {"stream": self.topology.name}, "read the clock")
        ((asked_at, now_us, low_us, committed_at),) = (await self._reader.ask(clock)).rows
        if now_us is None:
            return Snapshot(asked_at, committed_at=committed_at)
        now = _time(now_us)
        watermark = _time(min(low_us, now_us) - self.topology.contract.event_time.disorder)
        return Snapshot(asked_at, now, watermark, committed_at)

    async def look(self) -> Snapshot:
        """Ask everything, at once. Raises :class:`DependencyError` and :class:`LedgerError`."""
        clock = await self.clock()
        now, watermark = clock.now, clock.watermark
        if now is None or watermark is None:
            return clock
        (minutes, hour, visitors), (sessions, active, funnel), ranked = await asyncio.gather(
            asyncio.gather(self._minutes(now, watermark), self._hour(now), self._visitors(now)),
            asyncio.gather(self._sessions(), self._active(now), self._funnel(now)),
            asyncio.gather(*(self._ranked(ranking, now) for ranking in self.panels.rankings)),
        )
        return replace(
            clock,
            minutes=minutes,
            visitors=visitors,
            active=active,
            rankings=ranked,
            sessions=sessions,
            funnel=funnel,
            hour=hour,
        )

    async def _minutes(self, now: datetime, watermark: datetime) -> list[Minute]:
        if self.panels.views is None:
            return []
        table = self.panels.views.table
        size = timedelta(microseconds=table.window.size)
        last = floor(now, size)
        first = last - (max(1, timedelta(minutes=MINUTES) // size) - 1) * size
        # Hours are asked for one by one: what lies between them is nobody's business. Windows that do not divide an
        # hour began at other minutes in the ones before.
        comparable = EARLIER if not _HOUR % size else 0
        hours = [timedelta(hours=back) for back in range(comparable + 1)]
        found = await asyncio.gather(
            *(self._sums(self.panels.views, first - hour, last + size - hour) for hour in hours)
        )
        begun = await self._begun(self.panels.views, first - hours[-1], {at for sums in found for at in sums})
        minutes = []
        for number in range((last - first) // size + 1):
            start = first + number * size
            # From the first row on no row means no view.
            views, *earlier = (
                sums.get(start - hour, 0 if begun is not None and start - hour >= begun else None)
                for hour, sums in zip(hours, found, strict=True)
            )
            counted = [*earlier, *[None] * (EARLIER - comparable)]
            ends = start + size
            is_open = ends + timedelta(microseconds=table.lateness) > watermark
            minutes.append(Minute(start, views, tuple(counted), is_open, ends > watermark))
        return minutes

    async def _sums(self, counting: Counting, since: datetime, until: datetime) -> dict[datetime, int]:
        """By window. Of rows that are older than the measure it is null: nobody counted."""
        statement = sql.SQL(
            "SELECT window_start, sum({measure})::bigint FROM {table} WHERE window_start >= %(since)s"
            " AND window_start < %(until)s AND {measure} IS NOT NULL GROUP BY 1"
        ).format(measure=sql.Identifier(counting.measure.name), table=self._name(counting.table))
        question = Question(statement, {"since": since, "until": until}, "count page views")
        return dict((await self._reader.ask(question)).rows)

    async def _begun(
        self, counting: Counting, since: datetime, starts: Collection[datetime]
    ) -> datetime | None:
        """From when on a window without a row is one without an event, as far as what began at ``since`` or later goes.

        ``starts``: of the windows since then that have a row.
        """
        statement = sql.SQL(
            "SELECT window_start FROM {table} WHERE window_start >= %(since)s AND window_start < %(until)s"
            " AND {measure} IS NOT NULL LIMIT 1"
        ).format(measure=sql.Identifier(counting.measure.name), table=self._name(counting.table))
        question = Question(statement, {"since": since - _HOUR, "until": since}, "look for older page views")
        return since if (await self._reader.ask(question)).rows else min(starts, default=None)

    async def _hour(self, now: datetime) -> Hour | None:
        if self.panels.views is None:
            return None
        size = timedelta(microseconds=self.panels.views.table.window.size)
        last, hour = floor(now, size), _HOUR // size * size
        first = last - 2 * hour
        sums = await self._sums(self.panels.views, first, last + size)
        begun = await self._begun(self.panels.views, first, sums)

        def views(since: datetime, until: datetime) -> int:
            return sum(number for start, number in sums.items() if since <= start < until)

        before = views(first, last - hour) if begun is not None and begun <= first else None
        return Hour(views(last + size - hour, last + size), views(last - hour, last), before)

    async def _visitors(self, now: datetime) -> Visitors | None:
        """Distinct visitors of the window that holds the newest event, of all its keys together.

        Distinct counts do not add up, their sketches do: those of an open window are in its state.
        """
        if self.panels.visitors is None:
            return None
        table, measure = self.panels.visitors
        layout = Layout(table, self.topology.name)
        step = timedelta(microseconds=table.window.hop or table.window.size)
        until = floor(now, step) + step
        sketch = sql.Identifier(f"{measure.name}__sketch")
        since = until - timedelta(microseconds=table.window.size)
        statement = sql.SQL("SELECT {} FROM {} WHERE window_start = %(since)s AND {} IS NOT NULL").format(
            sketch, layout.state, sketch
        )
        microseconds = (since - _EPOCH) // timedelta(microseconds=1)
        question = Question(statement, {"since": microseconds}, "count visitors")
        images = [bytes(image) for (image,) in (await self._reader.ask(question)).rows]
        number = sketching(measure).union(images)[1] if images else 0
        return Visitors(int(number or 0), since, until, error_of(measure))

    async def _ranked(self, ranking: Ranking, now: datetime) -> Ranked:
        size = timedelta(microseconds=ranking.table.window.size)
        since = floor(now, size) + size - ranking.span
        column = sql.Identifier(ranking.column)
        statement = sql.SQL(
            "SELECT {column}::text, sum({measure})::bigint FROM {table}"
            " WHERE window_start >= %(since)s AND window_start <= %(now)s{some}"
            " GROUP BY 1 ORDER BY 2 DESC NULLS LAST, 1 LIMIT %(limit)s"
        ).format(
            column=column,
            measure=sql.Identifier(ranking.measure.name),
            table=self._name(ranking.table),
            some=sql.SQL("") if ranking.blank else sql.SQL(" AND {} IS NOT NULL").format(column),
        )
        parameters = {"since": since, "now": now, "limit": RANKED}
        answer = await self._reader.ask(Question(statement, parameters, f"rank {ranking.column}"))
        return Ranked(ranking, since, [(value, int(views or 0)) for value, views in answer.rows])

    async def _sessions(self) -> tuple[Sequence[str], Sequence[tuple[Any, ...]]]:
        """The sessions that began last."""
        table = self.panels.sessions
        if table is None:
            return (), ()
        names = {m.name for m in table.measures}
        columns = ["session_start", "session_end", *(n for n in TOLD if n in names and n != "exit_page")]
        columns += [n for n in ("pages", "events", "revenue") if n in names][:2]
        statement = sql.SQL("SELECT {} FROM {} ORDER BY session_start DESC LIMIT %(limit)s").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), self._name(table)
        )
        answer = await self._reader.ask(Question(statement, {"limit": SESSIONS}, "read the newest sessions"))
        return columns, answer.rows

    async def _active(self, now: datetime) -> int | None:
        """Sessions that an event now could still belong to."""
        table = self.panels.sessions
        if table is None:
            return None
        gap, cap = (timedelta(microseconds=us) for us in (table.window.gap, table.window.cap))
        statement = sql.SQL(
            "SELECT count(*) FROM {} WHERE session_start > %(oldest)s AND session_end >= %(since)s"
        ).format(self._name(table))
        parameters = {"oldest": now - cap, "since": now - gap}
        return int((await self._reader.ask(Question(statement, parameters, "count sessions"))).rows[0][0])

    async def _funnel(self, now: datetime) -> list[tuple[str, int]]:
        if self.panels.funnel is None:
            return []
        table, measure = self.panels.funnel
        column = sql.Identifier(f"{measure.name}_step")
        counts = sql.SQL(", ").join(
            sql.SQL("count(*) FILTER (WHERE {} >= {})").format(column, sql.Literal(number))
            for number in range(1, len(measure.steps) + 1)
        )
        statement = sql.SQL("SELECT {} FROM {} WHERE session_start > %(since)s").format(
            counts, self._name(table)
        )
        question = Question(statement, {"since": now - FUNNEL_SPAN}, "read the funnel")
        (row,) = (await self._reader.ask(question)).rows
        return [(name, count) for (name, _), count in zip(measure.steps, row, strict=True)]

    def _name(self, table: Table) -> sql.Identifier:
        return sql.Identifier(self.topology.name, table.name)


def floor(moment: datetime, step: timedelta) -> datetime:
    """The multiple of ``step`` since 1970 UTC at or before ``moment``."""
    return moment - (moment - _EPOCH) % step


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
