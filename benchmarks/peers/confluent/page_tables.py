"""w2's tables in the memory of the loop: what has been counted, and the rows that have changed since they were taken.

State is kept for good, so that an event counts however late it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
_GAP_MS = 1_800_000
_HOPS = 5

Row = tuple[Any, ...]


class Cell:
    """Counts of a window and key. ``changed``: since its row was taken."""

    __slots__ = ("changed", "events", "pages", "visitors")

    def __init__(self) -> None:
        self.events = self.pages = 0
        self.visitors: set[str] = set()
        self.changed = False


class Cells:
    """A cell for each tumbling window of ``size_ms`` and key."""

    def __init__(self, size_ms: int) -> None:
        self.cells: dict[tuple[int, Any], Cell] = {}
        self._size_ms = size_ms
        self._changed: list[tuple[int, Any]] = []

    def add(self, time: int, key: Any, visitor: str, is_page: bool) -> None:
        at = (time // self._size_ms, key)
        cell = self.cells.get(at)
        if cell is None:
            cell = self.cells[at] = Cell()
        cell.events += 1
        if is_page:
            cell.pages += 1
        cell.visitors.add(visitor)
        if not cell.changed:
            cell.changed = True
            self._changed.append(at)

    def take_changed(self) -> list[tuple[int, Any]]:
        """The windows (counted from the epoch) and keys of the cells that have changed."""
        changed, self._changed = self._changed, []
        for at in changed:
            self.cells[at].changed = False
        return changed


class Views(Cells):
    """page_views and traffic_sources: views and visitors by window and a tuple of texts."""

    def rows(self) -> list[Row]:
        cells = self.cells
        return [
            (window * self._size_ms, *key, (cell := cells[window, key]).events, len(cell.visitors))
            for window, key in self.take_changed()
        ]


class SiteActivity(Cells):
    """A cell for each minute and host; a row's five minutes are put together when it is taken."""

    def __init__(self) -> None:
        super().__init__(MINUTE_MS)

    def rows(self) -> list[Row]:
        windows = {
            (start, host)
            for minute, host in self.take_changed()
            for start in range(minute - _HOPS + 1, minute + 1)
        }
        return [self._row(start, host) for start, host in windows]

    def _row(self, start: int, host: str) -> Row:
        minutes = [
            cell
            for minute in range(start, start + _HOPS)
            if (cell := self.cells.get((minute, host))) is not None
        ]
        visitors = len(set().union(*(cell.visitors for cell in minutes)))
        events, pages = sum(cell.events for cell in minutes), sum(cell.pages for cell in minutes)
        return start * MINUTE_MS, host, events, pages, visitors


class Session:
    """``landing`` and ``leaving``: time and path of the first and the last page view. No ``events``: it was joined."""

    __slots__ = ("changed", "end", "events", "landing", "leaving", "pages", "revenue", "start")

    def __init__(self, time: int) -> None:
        self.start = self.end = time
        self.events = self.pages = 0
        self.landing: tuple[int, str] | None = None
        self.leaving: tuple[int, str] | None = None
        self.revenue = 0.0
        self.changed = False

    def add_page(self, page: tuple[int, str]) -> None:
        if self.landing is None or page < self.landing:
            self.landing = page
        if self.leaving is None or page > self.leaving:
            self.leaving = page

    def join(self, other: Session) -> None:
        """Take over all of a session that has turned out to be a part of this one."""
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        self.events += other.events
        self.pages += other.pages
        self.revenue += other.revenue
        for page in (other.landing, other.leaving):
            if page is not None:
                self.add_page(page)
        other.events = 0


class Sessions:
    """Sessions of visitors whose events may come in any order."""

    def __init__(self) -> None:
        self._by_visitor: dict[str, list[Session]] = {}
        self._changed: list[tuple[str, Session]] = []
        self._moved: list[tuple[str, int]] = []

    def add(self, time: int, visitor: str, path: str | None, revenue: float) -> None:
        """``path``: of a page view."""
        sessions = self._by_visitor.setdefault(visitor, [])
        for session in sessions:
            if session.start - _GAP_MS <= time <= session.end + _GAP_MS:
                break
        else:
            session = Session(time)
            sessions.append(session)
        session.events += 1
        session.revenue += revenue
        if path is not None:
            session.pages += 1
            session.add_page((time, path))
        if not session.changed:
            session.changed = True
            self._changed.append((visitor, session))
        if time > session.end:
            session.end = time
        elif time < session.start:
            self._moved.append((visitor, session.start))
            session.start = time
        if len(sessions) > 1:
            self._join(visitor, session, sessions)

    def _join(self, visitor: str, grown: Session, sessions: list[Session]) -> None:
        for other in [it for it in sessions if it is not grown]:
            if other.start - _GAP_MS <= grown.end and grown.start <= other.end + _GAP_MS:
                self._moved += [(visitor, other.start), (visitor, grown.start)]
                grown.join(other)
                sessions.remove(other)

    def rows(self) -> list[Row]:
        changed, self._changed = self._changed, []
        return list(self._taken(changed))

    def _taken(self, changed: list[tuple[str, Session]]) -> Iterator[Row]:
        for visitor, it in changed:
            it.changed = False
            if it.events:
                landing, leaving = it.landing and it.landing[1], it.leaving and it.leaving[1]
                yield visitor, it.start, it.end, it.events, it.pages, landing, leaving, it.revenue

    def moved(self) -> list[tuple[str, int]]:
        """Keys of rows that are no longer true, if they were taken: to be deleted before :meth:`rows` are put in."""
        moved, self._moved = self._moved, []
        return moved
