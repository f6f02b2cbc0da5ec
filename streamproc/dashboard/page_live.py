"""The page *Live*: what visitors do now."""

from __future__ import annotations

from datetime import timedelta
from html import escape

from nicegui import ui
from starlette.requests import Request

from streamproc.dashboard import charts, markup
from streamproc.dashboard.live import Hour, Ranked, Snapshot
from streamproc.dashboard.shell import Site, Stream, frame, keep_fresh, notices, pulse

#: Seconds between two looks.
REFRESH = 2.0

_FIRST = "The page fills by itself when `streamproc run` has committed the first ones."
_BLANK = {"Referrers": "direct or unknown", "Countries": "unknown", "Devices": "unknown"}


async def live_page(site: Site, request: Request) -> None:
    """Build the page; it keeps itself up to date."""
    stream = site.stream(request)
    panels = stream.live.panels
    views = f"{panels.counted} per {_span(_size(stream))}"
    with frame(site, stream, request) as banner:
        tiles = ui.html("", sanitize=False).classes("tiles")
        with ui.element("section").classes("card") as line:
            sub = ui.html("", sanitize=False)
            chart = ui.echart({}).classes("chart").props(f'role="img" aria-label="{views}"')
        line.set_visibility(False)
        ui.on("theme", chart.update)
        with ui.element("div").classes("grid"):
            rankings = [
                ui.html("", sanitize=False, tag="section").classes("card")
                for _ in [*panels.rankings, panels.funnel]
            ]
        sessions = ui.html("", sanitize=False, tag="section").classes("card")

    async def refresh() -> None:
        seen = await stream.snapshot.get()
        found = seen.value
        banner.content = notices(seen, found.committed_at if found else None)
        if found is None:
            return
        if found.now is None and not banner.content:
            banner.content = markup.banner("info", "No events yet.", _FIRST)
        ui.run_javascript(pulse(seen, found.committed_at))
        line.set_visibility(True)
        chart.set_visibility(bool(found.minutes))
        tiles.content = _tiles(stream, found)
        sub.content = _minutes_head(stream, found)
        options = charts.minutes(found.minutes, _size(stream))
        if found.minutes and options != chart.options:
            chart.options.clear()
            chart.options.update(options)
            chart.update()
        for place, ranked in zip(rankings, found.rankings, strict=False):
            place.content = _ranking(ranked)
        rankings[-1].content = _funnel(stream, found)
        sessions.content = _sessions(stream, found)

    await keep_fresh(refresh, REFRESH)


def _tiles(stream: Stream, found: Snapshot) -> str:
    tiles, size, counted = [], _size(stream), stream.live.panels.counted
    if found.visitors is not None:
        v, counting = found.visitors, stream.live.panels.visitors
        window = f"last {_span(v.until - v.since)}"
        if counting is not None and counting.table.window.kind == "tumbling":  # it has only begun
            window = f"since {markup.when(v.since, 'minute').html}"
        note = markup.Raw(window + escape(f", {v.error}" if v.error else ""))
        tiles.append(markup.tile("Visitors now", markup.approximate(v.number, v.error), note))
    if found.minutes:
        whole = next((row for row in reversed(found.minutes) if not row.filling), None)
        if whole is not None:
            since = markup.when(whole.start, "time" if size % timedelta(minutes=1) else "minute").html
            of = markup.Raw(f"in the {_span(size)} from {since}")
            tiles.append(markup.tile(f"{counted} per {_span(size)}", markup.number(whole.views), of))
    if found.hour is not None:
        asked = timedelta(hours=1) // size * size
        label = f"{counted} in {asked / timedelta(minutes=1):.0f} min"
        tiles.append(markup.tile(label, markup.number(found.hour.views), _change(found.hour)))
    if found.active is not None and stream.live.panels.sessions is not None:
        gap = _span(timedelta(microseconds=stream.live.panels.sessions.window.gap))
        tiles.append(markup.tile("Open sessions", markup.number(found.active), f"an event in the last {gap}"))
    if found.now is not None:
        tiles.append(markup.tile("Newest event", markup.when(found.now), markup.when(found.now, "ago")))
    return "".join(tiles)


def _size(stream: Stream) -> timedelta:
    """How long the windows are that page views are counted in."""
    views = stream.live.panels.views
    return timedelta(minutes=1) if views is None else timedelta(microseconds=views.table.window.size)


def _span(size: timedelta) -> str:
    """What stands behind *per*: minute, 5 minutes, 10 seconds."""
    return _length(size).removeprefix("1 ")


def _length(size: timedelta) -> str:
    seconds = size.total_seconds()
    number, unit = (seconds, "second") if seconds % 60 else (seconds / 60, "minute")
    return f"{number:g} {unit}" + ("" if number == 1 else "s")


def _change(hour: Hour) -> str:
    if hour.before is None:
        return "no hour before to compare with"
    if not hour.before:
        return "none in the hour before"
    change = 100 * (hour.whole - hour.before) / hour.before
    sign = "▲" if change > 0 else "▼" if change < 0 else "="
    return f"{sign} {abs(change):.0f} % against the hour before"


def _minutes_head(stream: Stream, found: Snapshot) -> str:
    size = _size(stream)
    head = f"<h2>{stream.live.panels.counted} per {_span(size)}</h2>"
    views = stream.live.panels.views
    if views is None:
        return head + markup.empty(
            "No table counts per minute", "Declare one with a window of up to 5 minutes."
        )
    if not found.minutes:
        return head + markup.empty("No events yet", "The line begins with the first one.")
    lateness = f"{views.table.lateness / 60_000_000:g} min"
    earlier = sum(any(row.earlier[back] is not None for row in found.minutes) for back in range(3))
    compared = (
        "grey: the same time in the hours before" if earlier else "earlier hours appear once there are some"
    )
    if timedelta(hours=1) % size:
        compared = "no hour before beside it, since an hour is no multiple of the windows"
    return (
        f'{head}<p class="sub">Blue: the last 60 minutes; {compared}. Dashed: still open, late events may be '
        f"added for {lateness}; hollow: still filling.</p>"
    )


def _ranking(ranked: Ranked) -> str:
    ranking = ranked.ranking
    since = markup.when(ranked.since, "minute").html
    head = f'<h2>{ranking.title}</h2><p class="sub">since {since} · {markup.cell(ranking.measure.name)}</p>'
    if not ranked.rows:
        return head + markup.empty("Nothing yet", f"No event had a {ranking.column} since then.")
    rows = [
        (
            markup.Raw(f'<span class="none">{_BLANK.get(ranking.title, "none")}</span>')
            if value is None
            else value,
            n,
            f"{n:,}",
        )
        for value, n in ranked.rows
    ]
    return head + markup.bars(ranking.title, rows, ranking.measure.name)


def _funnel(stream: Stream, found: Snapshot) -> str:
    if stream.live.panels.funnel is None:
        return "<h2>Funnel</h2>" + markup.empty("No funnel", "No session table of this stream declares one.")
    name = stream.live.panels.funnel.measure.name
    head = (
        f"<h2>Funnel: {markup.cell(name.replace('_', ' '))}</h2>"
        '<p class="sub">sessions begun in the last 24 h that came to each step · open ones still move on</p>'
    )
    if not found.funnel or not found.funnel[0][1]:
        return head + markup.empty("Nobody yet", "No session has come to the first step.")
    first = found.funnel[0][1]
    rows = [(step.replace("_", " "), n, f"{n:,} · {100 * n / first:.0f} %") for step, n in found.funnel]
    return head + markup.bars("Funnel", rows, "sessions")


def _sessions(stream: Stream, found: Snapshot) -> str:
    columns, rows = found.sessions
    table = stream.live.panels.sessions
    if table is None:
        return "<h2>Newest sessions</h2>" + markup.empty(
            "No sessions", "This stream declares no session table."
        )
    settles = timedelta(microseconds=table.window.gap + table.lateness)
    gap = _length(timedelta(microseconds=table.window.gap))
    head = (
        '<h2>Newest sessions</h2><p class="sub">those that began last · open: an event within '
        f"{gap} of the last one still belongs to it</p>"
    )
    if not rows:
        return head + markup.empty("No sessions yet")
    shown = [name.removesuffix("_class").replace("session_", "").replace("_", " ") for name in columns]
    tag = markup.Raw('<span class="tag">open</span>')
    may_grow = [found.watermark is None or row[1] + settles > found.watermark for row in rows]
    marked = [[*row, tag if grows else "done"] for row, grows in zip(rows, may_grow, strict=True)]
    return head + markup.table("Newest sessions", [*shown, "state"], marked)
