"""Whether the lake still has what the windows and sessions at the edges of a range need from outside it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from streamproc.errors import ConfigError, Mistake
from streamproc.ledger import Ledger, replay_edges
from streamproc.ledger.replay_spans import Span
from streamproc.model import Partition
from streamproc.sinks.summaries_beside import Beside, region
from streamproc.topology import HOUR, MINUTE, Topology

#: Beyond the page's disorder: the page may have had a larger one when the range was live.
_SLACK = HOUR

#: What expires between this look and the beginning of the replay, after which nothing does.
_MEANWHILE = 10 * MINUTE


def patience(page: Topology) -> int:
    """How far behind the clocks at the beginning of the ranges tables are rebuilt, see :meth:`Replays.complete`; µs."""
    return page.contract.event_time.disorder + _SLACK


async def refuse_expired(page: Topology, ledger: Ledger, spans: Mapping[Partition, Span]) -> None:
    """Raises :class:`ConfigError` when a window that a replay of ``spans`` would rebuild had events outside of them
    that ``retention.events``, today's or an earlier one, has let go of: its promotion would take them out of the
    tables.
    """
    if not page.tables:
        return
    found = await replay_edges.edges(ledger.database, ledger.stream, spans, patience(page))
    if found.since_us is None or found.clock_us is None or found.missing <= 0:
        return
    left = found.clock_us if found.left_us is None else found.left_us
    if (kept := page.retention.events) is not None:
        left = max(left, found.clock_us - page.contract.event_time.disorder - kept + _MEANWHILE)
    needed = await _needed(page, ledger, found.since_us)
    if needed >= left:
        return
    begin = left + found.since_us - needed + patience(page)
    problem = (
        f"windows at its beginning need events from outside it, and the lake has those from {_moment(left)} on only "
        "(retention.events, now or before): what live has counted of older ones would go from the tables"
    )
    fix = f"Begin at {_moment(begin)} or later; to keep events longer helps ranges of later on only"
    raise ConfigError([Mistake("--from", problem, fix)])


async def _needed(page: Topology, ledger: Ledger, since_us: int) -> int:
    """The time of the oldest event that the tables need when they are rebuilt from ``since_us`` on."""
    needed: list[int] = []
    async with ledger.database.connection("look at the live tables") as conn:
        for table in page.tables:
            beside = Beside(table, page.name, page.name)
            found = region(table, since_us, await beside.lateness(conn, page.name, since_us))
            needed.append(found.events)
            if table.window.kind == "session":
                needed += (await beside.session_starts(conn, found))["__start"].to_list()
    return min(needed)


def _moment(microseconds: int) -> str:
    return f"{datetime.fromtimestamp(microseconds // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
