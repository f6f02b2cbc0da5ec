"""``streamproc backfill``: logs that lie in a bucket or a folder."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli.options import json_option, load_settings, load_topics, settings_options
from streamproc.cli.rendering import in_place
from streamproc.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from streamproc.log_objects import Period
    from streamproc.runtimes.backfill import BackfillReport
    from streamproc.topology import Topology

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@click.command(name="backfill")
@click.argument("place")
@click.option("--stream", metavar="STREAM", help="The topic page. [default: the only one that reads logs]")
@click.option("--from", "begin", metavar="TIME", help="Only logs that were last changed then or later.")
@click.option("--to", "end", metavar="TIME", help="Only logs that were last changed before that.")
@json_option
@settings_options
def backfill_command(
    place: str,
    *,
    stream: str | None,
    begin: str | None,
    end: str | None,
    as_json: bool,
    config: Path | None,
    topics: Path | None,
) -> None:
    """Read the logs that lie in a bucket or a folder.

    PLACE is s3://bucket/prefix or file:///folder. Each log is read once, by whoever comes first: this command,
    or `streamproc run` on the same place. Broken off, it goes on where it was when it is started again. TIME is
    ISO 8601, UTC unless it says otherwise.
    """
    settings = load_settings(config, topics, {"broker": place})
    if settings.broker.scheme not in {"s3", "file"}:
        raise ConfigError([Mistake("PLACE", f"{place} is no place of logs", "Write s3://… or file:///…")])
    page = page_of_logs(load_topics(settings), stream)
    period = period_of(begin, end)

    # Imported late: they take a second, and wrong arguments should be told at once.
    from streamproc.runtimes.backfill import backfill  # noqa: PLC0415 - see above
    from streamproc.topic_pages import find_pages  # noqa: PLC0415 - see above

    found = find_pages(settings.topics)
    running = backfill(settings, page, found if found.is_dir() else found.parent, period, _Progress())
    if sys.platform == "win32":
        report = asyncio.run(running)
    else:
        import uvloop  # noqa: PLC0415 - not there on Windows

        report = uvloop.run(running)
    click.echo(json.dumps(_as_json(report)) if as_json else _sentence(report))
    if not report.complete:
        click.echo("Not everything is read. The same command goes on.", err=True)
        raise click.exceptions.Exit(1)


def page_of_logs(pages: dict[str, Topology], name: str | None) -> Topology:
    """The page named, or the only one that reads logs. Raises ConfigError."""
    if name is not None:
        if name not in pages:
            fix = f"Choose among {', '.join(sorted(pages))}"
            raise ConfigError([Mistake("--stream", f"there is no page named {name}", fix)])
        return pages[name]
    logs = [page for page in pages.values() if page.contract.decoder != "json"]
    if len(pages) == 1 or len(logs) == 1:
        return [*logs, *pages.values()][0]
    fix = f"Name one with --stream: {', '.join(sorted(pages))}"
    raise ConfigError([Mistake("--stream", f"{len(logs)} of the pages read logs", fix)])


def period_of(begin: str | None, end: str | None) -> Period:
    """The period between two times as ISO 8601 tells them. Raises ConfigError."""
    from streamproc.log_objects import Period  # noqa: PLC0415 - keeps --help fast

    period = Period(_milliseconds("--from", begin), _milliseconds("--to", end))
    if period.since_ms is not None and period.until_ms is not None and period.since_ms >= period.until_ms:
        raise ConfigError([Mistake("--to", "is not behind --from", "Give a time behind it")])
    return period


def _milliseconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        fix = 'Write it like "2026-07-01" or "2026-07-01T13:00:00Z"'
        raise ConfigError([Mistake(option, f"{text!r} is no time", fix)]) from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


class _Progress:
    """Says how far it is: in one line of a terminal, every few seconds elsewhere."""

    def __init__(self) -> None:
        self._told = datetime.min.replace(tzinfo=UTC)

    def __call__(self, report: BackfillReport) -> None:
        if not sys.stderr.isatty() and datetime.now(UTC) - self._told < timedelta(seconds=5):
            return
        self._told = datetime.now(UTC)
        in_place(_sentence(report))


def _sentence(report: BackfillReport) -> str:
    totals = report.totals
    return (
        f"{totals.done:,} of {totals.logs:,} logs ({totals.done_size / 2**20:,.1f} of {totals.size / 2**20:,.1f} MiB), "
        f"{report.records:,} lines: {report.accepted:,} accepted, {report.filtered:,} filtered, "
        f"{report.rejected:,} rejected, {report.duplicate:,} duplicate; {report.rate:,.0f} lines a second"
    )


def _as_json(report: BackfillReport) -> dict[str, object]:
    totals = report.totals
    return {
        "complete": report.complete,
        "logs": totals.logs,
        "done": totals.done,
        "bytes": totals.size,
        "done_bytes": totals.done_size,
        "records": report.records,
        "accepted": report.accepted,
        "filtered": report.filtered,
        "rejected": report.rejected,
        "duplicate": report.duplicate,
        "seconds": round(report.seconds, 3),
        "records_per_second": round(report.rate),
    }
