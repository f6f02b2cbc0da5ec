"""``streamproc status``: where everything stands."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime

import click

from streamproc.cli.options import json_option
from streamproc.cli.rendering import Section, drawn, plain, show
from streamproc.cli.streams import opened_streams, set_up_options, topic_argument
from streamproc.model import Counts
from streamproc.ops.status import PartitionReport, StatusReader, StreamReport
from streamproc.runtimes.attach import running_broker
from streamproc.settings import Settings


@click.command(name="status")
@topic_argument
@set_up_options
@json_option
@click.option(
    "--watch/--once",
    default=None,
    help="Again and again until Ctrl-C, which is what a terminal gets; or one look, which is what a pipe or "
    "--json gets. With --watch --json, one object a line.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.01),
    default=2.0,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
def status_command(
    settings: Settings, topic: str | None, as_json: bool, watch: bool | None, interval: float
) -> None:
    """Show positions, lag, watermarks, owners and objects, live on a terminal.

    For each partition: the committed position, the newest position of the topic, the lag in records, the
    watermark (event time up to which it is believed complete), the owner and the last commit. Then what
    became of all records, the tables with their late events, the lake's objects, the warehouse, and the
    newest epochs with their seconds by stage. Redshift is asked every five minutes.

    STREAM names a topic page; without it, all streams that ever ran are shown. Embedded servers are joined,
    and PostgreSQL is started when it is at rest. An embedded broker that does not run has no records, so
    there is no lag.
    """
    if watch is None:
        watch = sys.stdout.isatty() and not as_json
    try:
        asyncio.run(_status(settings, topic, as_json=as_json, interval=interval if watch else None))
    except KeyboardInterrupt:
        if not watch:
            raise  # click says "Aborted!"; for a watch it is the way to end it


async def _status(settings: Settings, topic: str | None, *, as_json: bool, interval: float | None) -> None:
    async with aclosing(_looks(settings, topic, interval)) as looks:
        if as_json:
            async for reports in looks:
                answer = {"streams": [as_dict(report) for report in reports]}
                click.echo(json.dumps(answer, indent=None if interval else 2))
        elif interval and sys.stdout.isatty():
            await _live(looks)
        elif interval:
            async for reports in looks:
                click.echo("\n".join(plain(_sections(reports))) + "\n")
        else:
            async for reports in looks:
                show(_sections(reports))


async def _live(looks: AsyncIterator[list[StreamReport]]) -> None:
    """On a screen of its own, so that what is longer than the terminal does not scroll again and again. The last look
    stays when it is over.
    """
    from rich.console import Console  # noqa: PLC0415 - for this case only
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    pace = Pace()
    sections: list[Section] = []
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            async for reports in looks:
                sections = [pace.section(reports, time.monotonic()), *_sections(reports)]
                live.update(drawn(sections), refresh=True)
    finally:
        console.print(drawn(sections))


class Pace:
    """Records a second of each stream, between one look and the next."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, Counts]] = {}

    def section(self, reports: Sequence[StreamReport], now: float) -> Section:
        """``now``: seconds of a monotonic clock. The first look knows no pace."""
        rows: list[list[object]] = []
        for report in reports:
            totals = report.totals
            at, past = self._before.get(report.stream, (now, totals))
            self._before[report.stream] = now, totals
            pace: list[object] = [None, None, None]
            if now > at:
                changes = [
                    totals.records - past.records,
                    totals.rejected - past.rejected,
                    totals.duplicate - past.duplicate,
                ]
                # After `offsets set` there may be fewer than before.
                pace = [max(0, change) / (now - at) for change in changes]
            lag = _sum(each.lag for each in report.partitions)
            newest = max((epoch.committed_at for epoch in report.epochs), default=None)
            rows.append([report.stream, *pace, lag, newest])
        header = ["stream", "records/s", "rejects/s", "duplicates/s", "lag", "last commit"]
        return Section("now", header, rows)


async def _looks(
    settings: Settings, topic: str | None, interval: float | None
) -> AsyncGenerator[list[StreamReport]]:
    async with opened_streams(settings, topic) as streams:
        readers = [StatusReader(each.page, each.ledger, each.endpoints.warehouse) for each in streams]
        while True:
            # Anew each time: an embedded broker may come and go while we watch.
            async with running_broker(settings) as broker:
                reports = [await reader.read(broker) for reader in readers]
            yield reports
            if interval is None:
                return
            await asyncio.sleep(interval)


# -- for programs --------------------------------------------------------------------------------------


def as_dict(report: StreamReport) -> dict[str, object]:
    """The report as ``--json`` shows it. Times are ISO 8601 in UTC."""
    warehouse = report.warehouse
    return {
        "stream": report.stream,
        "topic": report.topic,
        "partitions": [partition_dict(partition) for partition in report.partitions],
        "lag": _sum(partition.lag for partition in report.partitions),
        "totals": counts_dict(report.totals),
        "tables": [
            {
                "table": table.name,
                "rows": table.rows,
                "rows_estimated": table.estimated,
                "newest_window": _iso(table.newest_window),
                "late": table.late,
            }
            for table in report.tables
        ],
        "objects": [total._asdict() for total in report.objects],
        "lake_rows": report.lake_rows,
        "warehouse": None
        if warehouse is None
        else {
            "rows": warehouse.rows,
            "objects": warehouse.objects,
            "loaded_at": _iso(warehouse.loaded_at),
            "rows_behind_lake": report.rows_behind,
        },
        "epochs": [
            {
                "id": str(epoch.id),
                "worker": epoch.worker,
                "started_at": _iso(epoch.started_at),
                "committed_at": _iso(epoch.committed_at),
                "partitions": len(epoch.ranges),
                "records": sum(part.counts.records for part in epoch.ranges),
                "late": dict(epoch.late),
                "seconds": dict(epoch.seconds),
            }
            for epoch in report.epochs
        ],
        "notes": list(report.notes),
    }


def partition_dict(report: PartitionReport) -> dict[str, object]:
    """One partition as ``--json`` shows it."""
    status, span = report.status, report.span
    return {
        "partition": report.partition.id,
        "source": report.partition.source,
        "position": status.position if status else None,
        "first": span.first if span else None,
        "end": span.last if span else None,
        "lag": report.lag,
        "behind_seconds": report.behind,
        "watermark": _iso(report.watermark),
        "owner": status.owner if status else None,
        "fence": status.fence if status else None,
        "updated_at": _iso(status.updated_at) if status else None,
        **counts_dict(status.counts if status else Counts()),
    }


def counts_dict(counts: Counts) -> dict[str, int]:
    """Records and what became of them."""
    return {
        "records": counts.records,
        "accepted": counts.accepted,
        "filtered": counts.filtered,
        "rejected": counts.rejected,
        "duplicate": counts.duplicate,
    }


# -- for people ----------------------------------------------------------------------------------------


def _sections(reports: Sequence[StreamReport]) -> list[Section]:
    parts: tuple[Callable[[StreamReport], Section], ...] = (_partitions, _tables, _objects, _epochs, _notes)
    return [section for report in reports for part in parts if (section := part(report)).rows]


def _partitions(report: StreamReport) -> Section:
    rows: list[list[object]] = []
    past = Counts()
    for each in report.partitions:
        status, span = each.status, each.span
        if each.past and status is not None:
            past.add(status.counts)
            continue
        counts = status.counts if status else Counts()
        where = [status.position if status else None, span.last if span else None, each.lag, each.watermark]
        who = [status.owner if status else None, status.updated_at if status else None]
        rows.append([each.partition.id, *where, *who, *counts_dict(counts).values()])
    if past.records:
        rows.append(["of earlier brokers", *[None] * 6, *counts_dict(past).values()])
    totals = report.totals
    lag = _sum(each.lag for each in report.partitions)
    rows.append(["all", None, None, lag, None, None, None, *counts_dict(totals).values()])
    columns = ["partition", "committed", "end", "lag", "watermark", "owner", "updated"]
    behind = [each.behind for each in report.partitions if not each.past]
    if any(seconds is not None for seconds in behind):  # a source that tells time, not records
        columns[2:4] = ["seconds behind"]
        for row, seconds in itertools.zip_longest(rows, behind):
            row[2:4] = [seconds]
    return Section(f"{report.stream}: partitions", [*columns, *counts_dict(totals)], rows)


def _tables(report: StreamReport) -> Section:
    rows: list[list[object]] = [
        [t.name, f"about {t.rows}" if t.estimated else t.rows, t.newest_window, t.late] for t in report.tables
    ]
    return Section(f"{report.stream}: tables", ["table", "rows", "newest window", "late"], rows)


def _objects(report: StreamReport) -> Section:
    rows: list[list[object]] = [
        [f"lake {t.kind}", t.state, t.objects, t.rows, t.bytes] for t in report.objects
    ]
    if report.warehouse is not None:
        rows.append(["warehouse events", "loaded", report.warehouse.objects, report.warehouse.rows, None])
    return Section(f"{report.stream}: objects", ["kind", "state", "objects", "rows", "bytes"], rows)


def _epochs(report: StreamReport) -> Section:
    rows: list[list[object]] = [
        [
            epoch.committed_at,
            epoch.worker,
            sum(part.counts.records for part in epoch.ranges),
            "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in epoch.seconds.items()),
        ]
        for epoch in report.epochs
    ]
    header = ["committed", "worker", "records", "seconds by stage"]
    return Section(f"{report.stream}: newest epochs", header, rows)


def _notes(report: StreamReport) -> Section:
    return Section(f"{report.stream}: notes", ["note"], [[note] for note in report.notes])


def _sum(lags: Iterable[int | None]) -> int | None:
    """The total lag; unknown when one is."""
    total = 0
    for lag in lags:
        if lag is None:
            return None
        total += lag
    return total


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
