"""The cards of the page *Pipeline*, as HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape

from streamproc.dashboard import markup
from streamproc.dashboard.pipeline_view import SPAN, PartitionRow, PipelineSnapshot
from streamproc.dashboard.reading import Seen, explain
from streamproc.dashboard.reject_samples import OBJECTS, RejectSamples, Sample

#: Partitions that are listed, those furthest behind first: web logs have one for each object.
LISTED = 64
#: A worker that has not written this long is called quiet.
QUIET = timedelta(minutes=1)


def standstill(found: PipelineSnapshot) -> str:
    """Why the charts have nothing to draw; empty when they have."""
    if found.bins:
        return ""
    waiting = _waiting(found.partitions)
    held = sum(1 for row in found.partitions if row.status.owner)
    if (committed := last_commit(found.partitions)) is not None:
        last = markup.when(committed, "ago").html
        why = "" if held else "No worker holds a partition: is <code>streamproc run</code> running?"
        if waiting and held:
            why = "The log of the workers tells why."
        text = " ".join(filter(None, (f"The last commit was {last}.", waiting, why)))
        minutes = int(SPAN.total_seconds() / 60)
        return markup.empty(f"Nothing committed in the last {minutes} minutes", markup.Raw(text))
    if not held:
        why = "No worker holds a partition: is `streamproc run` running?"
    elif waiting:
        why = "They are committed when an epoch is full, or after `flush_interval`."
    else:
        why = "The workers wait for the first records."
    return markup.empty("No epoch committed yet", f"{waiting} {why}".strip())


def last_commit(rows: Sequence[PartitionRow]) -> datetime | None:
    """When something of these was committed last. The ledger notes when a partition was claimed first, too."""
    return max((row.status.updated_at for row in rows if row.status.counts.records), default=None)


def _waiting(rows: Sequence[PartitionRow]) -> str:
    """What is known of records that are not committed; empty where there are none or nobody knows."""
    if lag := sum(row.lag or 0 for row in rows):
        return f"{lag:,} records wait at the source."
    if behind := max((row.behind or 0 for row in rows), default=0):
        return f"Records wait at the source, the oldest {markup.duration(behind)} behind the newest."
    return ""


def partitions(found: PipelineSnapshot) -> str:
    """Each partition: how far, how far behind, and by whom."""
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
        markup.when(last_commit([row]), "ago"),
        owner,
        status.counts.records,
        status.counts.rejected,
        status.counts.duplicate,
    ]


def epochs(found: PipelineSnapshot) -> str:
    """The newest commits, with their stages."""
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


def workers(found: PipelineSnapshot) -> str:
    """Workers and what they hold."""
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
            [
                worker,
                numbers,
                markup.Raw(f'<span class="tag">{state}</span>'),
                markup.when(last_commit(parts), "ago"),
            ]
        )
    return head + markup.table("Workers", ["worker", "partitions", "state", "last commit"], rows)


def rejects(seen: Seen[RejectSamples] | None) -> str:
    """Rejects by reason, with samples; ``None`` where the lake cannot be read."""
    head = "<h2>Rejects</h2>"
    if seen is None:
        return head + markup.empty(
            "Not shown", "The dashboard was started without the lake, where the rejects are."
        )
    if seen.value is None:
        return head + markup.empty(
            "The lake does not answer", explain(seen.problem)[1] if seen.problem else ""
        )
    unread = f"{seen.value.unread:,} more are in objects too large to be looked into here"
    if not seen.value.reasons:
        if seen.value.unread:
            return head + markup.empty("Not shown", f"{unread}. `streamproc rejects list` has them.")
        return head + markup.empty("None", "The lake holds no rejects of this stream.")
    since = markup.when(seen.value.since).html
    most = seen.value.reasons[0][1]
    return (
        f'{head}<p class="sub">of the newest {OBJECTS} objects, since {since} · a reason opens to samples; '
        f"<code>streamproc rejects list</code> has all{f' · {unread}' if seen.value.unread else ''}</p>"
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


def late(found: PipelineSnapshot) -> str:
    """Late events by table."""
    head = (
        '<h2>Late events</h2><p class="sub">by table, since the beginning; not folded, kept in the lake</p>'
    )
    if found.late is None:
        return head + markup.empty("Not known")
    if not found.late:
        return head + markup.empty("None", "No event came too late for a table.")
    rows = [(name, n, f"{n:,}") for name, n in sorted(found.late.items(), key=lambda item: -item[1])]
    return head + markup.bars("Late events", rows, "events")


def sinks(found: PipelineSnapshot) -> str:
    """What lake and warehouse hold."""
    rows: list[list[markup.Cell]] = [
        [f"lake: {t.kind}", t.state, t.objects, t.rows, f"{t.bytes / 1_048_576:,.1f} MiB"]
        for t in found.objects or ()
    ]
    if found.objects is None:
        rows.append(["lake", "not known", None, None, None])
    head = '<h2>Sinks</h2><p class="sub">counted every half minute</p>'
    if isinstance(w := found.warehouse, str):
        rows.append(["warehouse", w, None, None, None])
    elif w is not None:
        rows.append(
            [
                "warehouse",
                markup.Raw(f"loaded {markup.when(w.loaded_at, 'ago').html}"),
                w.objects,
                w.rows,
                None,
            ]
        )
    if not rows:
        return head + markup.empty("Nothing written yet")
    return head + markup.table("Sinks", ["sink", "state", "objects", "rows", "size"], rows, right=(4,))


def replays(found: PipelineSnapshot) -> str:
    """Replays in progress."""
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
