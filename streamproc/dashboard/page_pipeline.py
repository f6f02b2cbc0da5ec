"""The page *Pipeline*: whether everything moves, and where it does not."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui
from starlette.requests import Request

from streamproc.dashboard import charts, markup
from streamproc.dashboard import pipeline_cards as cards
from streamproc.dashboard.pipeline_view import PipelineSnapshot, rate
from streamproc.dashboard.shell import Site, frame, keep_fresh, notices, pulse

#: Seconds between two looks.
REFRESH = 2.0


async def pipeline_page(site: Site, request: Request) -> None:
    """Build the page; it keeps itself up to date."""
    stream = site.stream(request)
    with frame(site, stream, request) as banner:
        tiles = ui.html("", sanitize=False).classes("tiles")
        drawn: list[ui.echart] = []
        instead: list[ui.html] = []
        with ui.element("div").classes("half") as moving:
            for title, sub in (
                (
                    "Throughput",
                    "records a second by what became of them, from commits of the last 15 minutes",
                ),
                ("Freshness", "how old things were when their epoch was committed, the worst in 10 seconds"),
            ):
                with ui.element("section").classes("card"):
                    ui.html(f'<h2>{title}</h2><p class="sub">{sub}</p>', sanitize=False)
                    instead.append(ui.html("", sanitize=False))
                    drawn.append(ui.echart({}).classes("chart low").props(f'role="img" aria-label="{title}"'))
        moving.set_visibility(False)
        for chart in drawn:
            ui.on("theme", chart.update)
        partitions = _card()
        with ui.element("div").classes("wide"):
            epochs, workers = _card(), _card()
        with ui.element("div").classes("half apart"):
            rejects = _card()
            with ui.element("div").classes("stack"):
                late, sinks, replays = _card(), _card(), _card()

    async def refresh() -> None:
        seen = await stream.pipeline.get()
        found = seen.value
        committed = cards.last_commit(found.partitions) if found else None
        banner.content = notices(seen, committed, "the lag and the workers below tell which") + (
            _notes(found) if found else ""
        )
        if found is None:
            return
        ui.run_javascript(pulse(seen, committed))
        moving.set_visibility(True)
        tiles.content = _tiles(found)
        still = cards.standstill(found)
        for place, chart in zip(instead, drawn, strict=True):
            place.content = still
            chart.set_visibility(not still)
        for chart, options in zip(
            drawn,
            (
                charts.throughput(found.bins, found.asked_at),
                charts.freshness(found.bins, found.freshness, found.asked_at),
            ),
            strict=True,
        ):
            chart.options.clear()
            chart.options.update(options)
            chart.update()
        parts: list[tuple[ui.html, Callable[[PipelineSnapshot], str]]] = [
            (partitions, cards.partitions),
            (epochs, cards.epochs),
            (workers, cards.workers),
            (late, cards.late),
            (sinks, cards.sinks),
            (replays, cards.replays),
        ]
        for place, show in parts:
            place.content = show(found)
        rejects.content = cards.rejects(await stream.rejects.get() if stream.rejects else None)

    await keep_fresh(refresh, REFRESH)


def _card() -> ui.html:
    return ui.html("", sanitize=False, tag="section").classes("card")


def _notes(found: PipelineSnapshot) -> str:
    return "".join(markup.banner("info", "Not everything is known.", note) for note in found.notes)


def _tiles(found: PipelineSnapshot) -> str:
    pace = rate(found.bins, found.asked_at)
    lags = [row.lag for row in found.partitions]
    behind = [row.behind for row in found.partitions if row.behind is not None]
    lag = (
        markup.number(sum(x for x in lags if x is not None))
        if any(x is not None for x in lags)
        else "\N{EN DASH}"
    )
    lag_note = "records that wait at the source"
    if behind:
        lag, lag_note = markup.duration(max(behind)), "behind the newest record, the worst shard"
    freshness = markup.duration(found.freshness[-1][1] if found.freshness else None)
    totals = [
        sum(getattr(row.status.counts, name) for row in found.partitions)
        for name in ("records", "rejected", "duplicate")
    ]
    share = f"{100 * totals[1] / totals[0]:.2f} % of {totals[0]:,}" if totals[0] else "of none"
    return "".join(
        [
            markup.tile(
                "Throughput",
                "\N{EN DASH}" if pace is None else f"{pace:,.0f}/s",
                "records committed, the last minute",
            ),
            markup.tile("Freshness", freshness, "newest event to commit"),
            markup.tile("Lag", lag, lag_note),
            markup.tile("Rejected", f"{totals[1]:,}", share),
            markup.tile("Duplicates", f"{totals[2]:,}", "dropped, since the beginning"),
            markup.tile(
                "Late",
                "\N{EN DASH}" if found.late is None else f"{sum(found.late.values()):,}",
                "events too late for a table, in the lake all the same",
            ),
        ]
    )
