"""``streamproc lake compact``: merge the small objects of hours that are over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import click

from streamproc.cli.options import json_option
from streamproc.cli.rendering import Section, show
from streamproc.cli.streams import (
    OpenedStream,
    opened_store,
    opened_streams,
    set_up_options,
    topic_argument,
)
from streamproc.errors import StreamprocError
from streamproc.runtimes.compaction import CompactionReport, Compactor
from streamproc.runtimes.compaction_runs import TARGET, CompactionLimits, Run
from streamproc.settings import Settings
from streamproc.sinks.warehouse import warehouse_of

_MIB = 1024 * 1024


@click.command(name="compact")
@topic_argument
@set_up_options
@click.option(
    "--target",
    type=click.IntRange(1, 1024),
    default=TARGET // _MIB,
    show_default=True,
    metavar="MIB",
    help="Objects that come to this much together become one.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be merged.")
@json_option
def compact_command(
    *, settings: Settings, topic: str | None, target: int, dry_run: bool, as_json: bool
) -> None:
    """Merge the small objects of hours that are over, in the ledger: readers see the old ones or the new one.

    Objects that were merged are deleted a day later, for readers that hold an older list. Workers go on
    meanwhile. Killed at any moment, nothing is lost; the next run does the rest. Waits for replays that are
    neither promoted nor discarded, and for the warehouse to have loaded what is to be merged.
    """
    asyncio.run(_Command(settings, topic, CompactionLimits(bytes=target * _MIB), as_json).run(dry=dry_run))


@dataclass(frozen=True)
class _Command:
    settings: Settings
    topic: str | None
    limits: CompactionLimits
    as_json: bool

    async def run(self, *, dry: bool) -> None:
        """Every stream that can be; then raises what was wrong with the first of the others."""
        failed: StreamprocError | None = None
        async with opened_streams(self.settings, self.topic) as streams:
            answers = []
            for stream in streams:
                if not stream.page.sinks.lake:
                    continue
                try:
                    async with self._compactor(stream) as compactor:
                        if dry:
                            answers.append(self._plan(stream, await compactor.plan()))
                        else:
                            answers.append(self._done(stream, await compactor.compact(self._tell)))
                except StreamprocError as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        if self.as_json:
            click.echo(json.dumps({"streams": answers}, indent=2))

    @asynccontextmanager
    async def _compactor(self, stream: OpenedStream) -> AsyncIterator[Compactor]:
        async with opened_store(self.settings) as store:
            warehouse = warehouse_of(stream.page, stream.endpoints.warehouse)
            compactor = Compactor(stream.page, stream.ledger, store, warehouse, self.limits)
            try:
                if warehouse is not None:
                    await warehouse.open()
                    await warehouse.ensure(stream.page.columns)
                yield compactor
            finally:
                if warehouse is not None:
                    await warehouse.close()

    def _tell(self, run: Run, report: CompactionReport) -> None:
        if not self.as_json:
            click.echo(
                f"{run.partition} {_hour(run.hour)}: {run.objects} objects, {report.objects_before} in all",
                err=True,
            )

    def _plan(self, stream: OpenedStream, runs: Sequence[Run]) -> dict[str, object]:
        if not self.as_json:
            header = ["partition", "hour", "after", "through", "commits", "objects", "bytes", "rows"]
            rows = [
                [str(r.partition), _hour(r.hour), r.after, r.through, r.commits, r.objects, r.bytes, r.rows]
                for r in runs
            ]
            show([Section(f"{stream.page.name}: {len(runs)} runs to be merged", header, rows)])
        return {"stream": stream.page.name, "runs": [_as_dict(run) for run in runs]}

    def _done(self, stream: OpenedStream, report: CompactionReport) -> dict[str, object]:
        if not self.as_json:
            header = ["runs", "objects before", "objects after", "bytes before", "bytes after", "rows"]
            row = [
                report.runs,
                report.objects_before,
                report.objects_after,
                report.bytes_before,
                report.bytes_after,
                report.rows,
            ]
            waiting = [[why, runs] for why, runs in report.waiting.items()]
            sections = [Section(f"{stream.page.name}: merged", header, [row])]
            show([*sections, *([Section("left alone", ["why", "runs"], waiting)] if waiting else [])])
        return {"stream": stream.page.name, **asdict(report)}


def _as_dict(run: Run) -> dict[str, object]:
    return {
        **asdict(run),
        "partition": run.partition.id,
        "source": run.partition.source,
        "hour": _hour(run.hour),
    }


def _hour(hour: int | None) -> str | None:
    """The hour as ISO 8601 writes it."""
    if hour is None:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)).isoformat()
