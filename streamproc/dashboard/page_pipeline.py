"""The page *Pipeline*: whether everything moves, and where it does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from html import escape

from nicegui import ui
from starlette.requests import Request

from streamproc.dashboard import charts, markup
from streamproc.dashboard.pipeline_view import PartitionRow, PipelineSnapshot
from streamproc.dashboard.reading import Seen, explain
from streamproc.dashboard.reject_samples import OBJECTS, RejectSamples, Sample
from streamproc.dashboard.shell import Site, frame, keep_fresh, notices, pulse

#: Seconds between two looks.
REFRESH = 2.0
#: Partitions that are listed, those furthest behind first: web logs have one for each object.
LISTED = 64
#: A worker that has not written this long is called quiet.
QUIET = timedelta(minutes=1)


async def pipeline_page(site: Site, request: Request) -> None:
    """Build the page; it keeps itself up to date."""
    stream = site.stream(request)
    with frame(site, stream, request) as banner:
        tiles = ui.html("", sanitize=False).classes("tiles")
        drawn: list[ui.echart] = []
        with ui.element("div").classes("half"):
            for title, sub in (
                (
                    "Throughput",
                    "records a second by what became of them, from commits of the last 15 minutes",
                ),
                ("Freshness", "how old things were when their epoch was committed, the worst in 10 seconds"),
            ):
                with ui.element("section").classes("card"):
                    ui.html(f'<h2>{title}</h2><p class="sub">{sub}</p>', sanitize=False)
                    drawn.append(ui.echart({}).classes("chart low").props(f'role="img" aria-label="{title}"'))
        for chart in drawn:
            ui.on("theme", chart.update)
        partitions = _card()
        with ui.element("div").classes("wide"):
            epochs, workers = _card(), _card()
        with ui.element("div").classes("half"):
            rejects = _card()
            with ui.element("div").classes("stack"):
                late, sinks, replays = _card(), _card(), _card()

    async def refresh() -> None:
        seen = await stream.pipeline.get()
        found = seen.value
        committed = max((row.status.updated_at for row in found.partitions), default=None) if found else None
        banner.content = notices(seen, committed) + (_notes(found) if found else "")
        if found is None:
            return
        ui.run_javascript(pulse(committed, well=not banner.content))
        tiles.content = _tiles(found)
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
            (partitions, _partitions),
            (epochs, _epochs),
            (workers, _workers),
            (late, _late),
            (sinks, _sinks),
            (replays, _replays),
        ]
        for place, show in parts:
            place.content = show(found)
        rejects.content = _rejects(await stream.rejects.get() if stream.rejects else None)

    await keep_fresh(refresh, REFRESH)


def _card() -> ui.html:
    return ui.html("", sanitize=False, tag="section").classes("card")


def _notes(found: PipelineSnapshot) -> str:
    return "".join(markup.banner("info", "Not everything is known.", note) for note in found.notes)


def _tiles(found: PipelineSnapshot) -> str:
    recent = [b for b in found.bins if b.start > found.asked_at - timedelta(seconds=70)][:-1]
    rate = sum(b.records for b in recent) / (10 * len(recent)) if recent else 0
    lags = [row.lag for row in found.partitions]
    behind = [row.behind for row in found.partitions if row.behind is not None]
    lag = (
        markup.number(sum(x for x in lags if x is not None))
        if any(x is not None for x in lags)
        else "\N{EN DASH}"
    )
    lag_note = "records that wait at the source"
    if behind:
        lag, lag_note = f"{max(behind):,.1f} s", "behind the newest record, the worst shard"
    freshness = f"{found.freshness[-1][1]:,.1f} s" if found.freshness else "\N{EN DASH}"
    totals = [
        sum(getattr(row.status.counts, name) for row in found.partitions)
        for name in ("records", "rejected", "duplicate")
    ]
    share = f"{100 * totals[1] / totals[0]:.2f} % of {totals[0]:,}" if totals[0] else "of none"
    return "".join(
        [
            markup.tile("Throughput", f"{rate:,.0f}/s", "records committed, the last minute"),
            markup.tile("Freshness", freshness, "newest event to commit"),
            markup.tile("Lag", lag, lag_note),
            markup.tile("Rejected", f"{totals[1]:,}", share),
            markup.tile("Duplicates", f"{totals[2]:,}", "dropped, since the beginning"),
            markup.tile(
                "Late",
                f"{sum(found.late.values()):,}",
                "events too late for a table, in the lake all the same",
            ),
        ]
    )


def _partitions(found: PipelineSnapshot) -> str:
    head = "<h2>Partitions</h2>"
    if not found.partitions:
        return head + markup.empty(
            "No partition yet", "No worker has claimed one: is `streamproc run` running?"
        )
    rows = sorted(found.partitions, key=lambda row: -(row.lag or row.behind or 0))
    more = "" if len(rows) <= LISTED else f" · the {LISTED} furthest behind of {len(rows):,}"
    shown = sorted(
        rows[:LISTED],
        key=lambda r: (r.status.partition.source, len(r.status.partition.id), r.status.partition.id),
    )
    timed = any(row.behind is not None for row in shown)
    header = [
        "partition",
        "committed through",
        "lag (s)" if timed else "lag",
        "watermark",
        "last commit",
        "worker",
    ]
    header += ["records", "rejected", "duplicate"]
    return (
        f'{head}<p class="sub">watermark: event time up to which it is believed complete{more}</p>'
        + markup.table("Partitions", header, [_partition(row, timed=timed) for row in shown], right=(1, 2))
    )


def _partition(row: PartitionRow, *, timed: bool) -> list[markup.Cell]:
    status = row.status
    owner = status.owner or markup.Raw('<span class="none">nobody</span>')
    lag = row.behind if timed else row.lag
    return [
        str(status.partition),
        status.position,
        lag if lag is not None else markup.Raw('<span class="none">unknown</span>'),
        markup.when(row.watermark),
        markup.when(status.updated_at, "ago"),
        owner,
        status.counts.records,
        status.counts.rejected,
        status.counts.duplicate,
    ]


def _epochs(found: PipelineSnapshot) -> str:
    head = '<h2>Newest epochs</h2><p class="sub">one commit each; seconds by stage</p>'
    if not found.epochs:
        return head + markup.empty("No epoch yet")
    stages = list(dict.fromkeys(stage for epoch in found.epochs for stage in epoch.seconds))
    rows = []
    for epoch in found.epochs:
        records = sum(part.counts.records for part in epoch.ranges)
        took = (epoch.committed_at - epoch.started_at).total_seconds()
        rows.append(
            [
                markup.when(epoch.committed_at),
                records,
                len(epoch.ranges),
                _s(took),
                *(_s(epoch.seconds.get(s)) for s in stages),
            ]
        )
    header = ["committed", "records", "partitions", "open for", *stages]
    return head + markup.table("Newest epochs", header, rows, right=range(3, len(header)))


def _s(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.2f}"


def _workers(found: PipelineSnapshot) -> str:
    head = '<h2>Workers</h2><p class="sub">and the partitions they hold</p>'
    held: defaultdict[str, list[PartitionRow]] = defaultdict(list)
    for row in found.partitions:
        if row.status.owner:
            held[row.status.owner].append(row)
    if not held:
        return head + markup.empty("No worker", "Nobody holds a partition: nothing is processed.")
    rows = []
    for worker, parts in sorted(held.items()):
        newest = max(part.status.updated_at for part in parts)
        state = "quiet" if found.asked_at - newest > QUIET else "working"
        numbers = ", ".join(part.status.partition.id for part in parts[:12]) + (
            " …" if len(parts) > 12 else ""
        )
        rows.append(
            [worker, numbers, markup.Raw(f'<span class="tag">{state}</span>'), markup.when(newest, "ago")]
        )
    return head + markup.table("Workers", ["worker", "partitions", "state", "last commit"], rows)


def _rejects(seen: Seen[RejectSamples] | None) -> str:
    head = "<h2>Rejects</h2>"
    if seen is None:
        return head + markup.empty(
            "Not shown", "The dashboard was started without the lake, where the rejects are."
        )
    if seen.value is None:
        return head + markup.empty(
            "The lake does not answer", explain(seen.problem)[1] if seen.problem else ""
        )
    if not seen.value.reasons:
        return head + markup.empty("None", "The lake holds no rejects of this stream.")
    since = markup.when(seen.value.since).html
    most = seen.value.reasons[0][1]
    return (
        f'{head}<p class="sub">of the newest {OBJECTS} objects, since {since} · a reason opens to samples; '
        "<code>streamproc rejects list</code> has all</p>"
        + "".join(
            _reason(name, number, number / most, samples) for name, number, samples in seen.value.reasons
        )
    )


def _reason(name: str, number: int, part: float, samples: Sequence[Sample]) -> str:
    lines = "".join(
        f"<li><strong>{escape(sample.field)}</strong> {escape(markup.visible(sample.detail))} "
        f'<span class="none">({escape(sample.place)})</span>'
        f'<div class="sample">{escape(markup.visible(sample.original))}</div></li>'
        for sample in samples
    )
    bar = f'<span class="bar" style="--part:{100 * part:.1f}%"></span>'
    return (
        f'<details class="reason" data-keep="{escape(name)}"><summary>{bar}<span class="name">{escape(name)}</span>'
        f"<span>{number:,}</span></summary><ul>{lines}</ul></details>"
    )


def _late(found: PipelineSnapshot) -> str:
    head = (
        '<h2>Late events</h2><p class="sub">by table, since the beginning; not folded, kept in the lake</p>'
    )
    if not found.late:
        return head + markup.empty("None", "No event came too late for a table.")
    rows = [(name, n, f"{n:,}") for name, n in sorted(found.late.items(), key=lambda item: -item[1])]
    return head + markup.bars("Late events", rows, "events")


def _sinks(found: PipelineSnapshot) -> str:
    rows: list[list[markup.Cell]] = [
        [f"lake: {t.kind}", t.state, t.objects, t.rows, f"{t.bytes / 1_048_576:,.1f} MiB"]
        for t in found.objects
    ]
    head = '<h2>Sinks</h2><p class="sub">counted every half minute</p>'
    if found.warehouse is not None:
        w = found.warehouse
        rows.append(
            ["warehouse", markup.Raw(f"loaded {markup.when(w.loaded_at, 'ago').html}"), w.objects, w.rows, ""]
        )
    if not rows:
        return head + markup.empty("Nothing written yet")
    return head + markup.table("Sinks", ["sink", "state", "objects", "rows", "size"], rows, right=(4,))


def _replays(found: PipelineSnapshot) -> str:
    head = '<h2>Replays</h2><p class="sub">ranges that are processed again beside the stream</p>'
    if not found.replays:
        return head + markup.empty("None in progress")
    rows = [
        [
            replay.name,
            replay.state,
            replay.asked,
            markup.Raw(
                f"{100 * (replay.done or 0) / replay.records:.0f} %" if replay.records else "\N{EN DASH}"
            ),
            f"{replay.done or 0:,} of {replay.records or 0:,}",
            replay.operator,
            markup.when(replay.created_at, "ago"),
        ]
        for replay in found.replays
    ]
    return head + markup.table(
        "Replays", ["name", "state", "range", "done", "records", "by", "begun"], rows, right=(3, 4)
    )
