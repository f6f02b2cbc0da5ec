"""``streamproc rejects``: look at rejected records, and send them again."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import click
import polars as pl

from streamproc.cli.options import Group, json_option
from streamproc.cli.rendering import Section, cell_text, printable_bytes, show
from streamproc.cli.streams import (
    Time,
    microseconds,
    opened_store,
    opened_stream,
    operator,
    set_up_options,
    topic_argument,
)
from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.ledger.redrives import Coordinate, Redrives
from streamproc.model import Partition
from streamproc.ops.corrections import read_corrections
from streamproc.ops.redrive import Choice, RedriveReport, redrive
from streamproc.ops.rejects import Rejects, Selection
from streamproc.runtimes.attach import running_broker
from streamproc.settings import Settings
from streamproc.sources.kafka_redrive import RedriveProducer
from streamproc.sources.opening import kafka_only
from streamproc.topology import Topology

_reason = click.option(
    "--reason", "reasons", multiple=True, help="Only rejects with this reason; may be given several times."
)
_since = click.option(
    "--since", type=Time(), help='Only those received since: "2026-07-01T13:00:00Z", or "15m" ago.'
)


@click.group(name="rejects", cls=Group)
def rejects_command() -> None:
    """Look at rejected records and send them again.

    A reject keeps the record's coordinates, a reason, a sentence and the original bytes.
    """


@rejects_command.command(name="list")
@topic_argument
@set_up_options
@_reason
@_since
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Rejects to show.")
@click.option("--summary", is_flag=True, help="Count by reason and field instead; there is no limit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all of the original.")
def list_command(
    *,
    settings: Settings,
    topic: str | None,
    reasons: tuple[str, ...],
    since: datetime | None,
    limit: int,
    summary: bool,
    as_json: bool,
) -> None:
    """Show rejects, those received first at the top.

    Originals are shown as text; what a terminal would act on, and what is not UTF-8, is escaped. The column
    redrive says what became of a reject since: sent again, unconfirmed (a redrive was interrupted, so it may
    have been sent), or copy (it is what a redrive sent, rejected again).
    """
    selection = Selection(reasons, microseconds(since))
    if summary:
        asyncio.run(_summary(settings, topic, selection, as_json))
    else:
        asyncio.run(_list(settings, topic, selection, limit=limit, as_json=as_json))


@rejects_command.command(name="redrive")
@topic_argument
@set_up_options
@_reason
@_since
@click.option(
    "--file",
    "corrections",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Send the corrected records of this file (- for stdin) in the place of their rejects, and no others.",
)
@click.option("--force", is_flag=True, help="Send also what this topic page would reject again.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before sending.")
@json_option
@click.pass_context
def redrive_command(
    ctx: click.Context,
    *,
    settings: Settings,
    topic: str | None,
    reasons: tuple[str, ...],
    since: datetime | None,
    corrections: str | None,
    force: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send rejects again, to the partition they came from: those that are acceptable by now, or corrected.

    Without --file, the original bytes of all selected rejects that this topic page would no longer reject:
    mend the page and restart the service first. With --file, corrected records: JSON lines as `rejects list
    --json` writes them, each with the new record in "corrected" (text, or JSON of its own) or
    "corrected_base64"; lines without are passed over.

    \b
        streamproc rejects list --json --reason missing_field > rejects.ndjson
        jq -c '.corrected = (.original | fromjson | .event_type = "click")' \\
            rejects.ndjson | streamproc rejects redrive --file - --yes

    The copies are new records with new positions, without a key (the ledger does not keep it), with headers
    that name the original: streamproc.redrive.source, .partition, .position and .reason. Whoever else reads
    the topic sees them too. In lake and warehouse, redriven_from has the position of the reject.

    Each reject is sent at most once, whoever else redrives at the same time and whatever crashes: it is
    noted in the ledger before it is sent, and what is noted is never sent again. If a redrive is
    interrupted, up to 500 rejects may be noted and not sent; they count as unconfirmed, `rejects list`
    shows them, and they are not tried again. A copy that is rejected again is not sent once more.

    Exits with 1 when a reject was refused by the broker, or its fate is unknown.
    """
    selection = Selection(reasons, microseconds(since))
    if corrections == "-" and not (yes or dry_run):
        raise ConfigError([Mistake("--file -", "leaves no stdin to answer on", "Add --yes or --dry-run")])
    lines = None
    if corrections is not None:
        with click.open_file(corrections, "rb") as file:
            lines = list(file)
    if not (yes or dry_run):
        would = asyncio.run(_redrive(settings, topic, selection, lines, force=force, dry_run=True))
        if would.sent and not click.confirm(f"Send {would.sent} rejects again?", err=True):
            raise click.Abort
    report = asyncio.run(_redrive(settings, topic, selection, lines, force=force, dry_run=dry_run))
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **report.as_json()}, indent=2))
    else:
        _show_report(report, dry_run=dry_run)
    ctx.exit(1 if report.problem else 0)


async def _list(
    settings: Settings, topic: str | None, selection: Selection, *, limit: int, as_json: bool
) -> None:
    rows: list[list[object]] = []
    left = limit
    async with _opened(settings, topic, selection) as (page, rejects):
        redrives = Redrives(rejects.ledger.database, page.name, operator())
        async for source, found in rejects.pages():
            shown = found.head(left)
            left -= shown.height
            states = await redrives.states(_coordinates(source, shown))
            for at, reject in zip(_coordinates(source, shown), shown.iter_rows(named=True), strict=True):
                state = states.get(at)
                if as_json:
                    click.echo(json.dumps(_as_dict(source, reject, state)))
                else:
                    rows.append(_row(reject, state))
            if left == 0:
                click.echo(f"Stopped after {limit}; --limit shows more, --summary counts all.", err=True)
                break
    if not as_json:
        header = ["received", "partition", "position", "reason", "field", "detail", "redrive", "original"]
        show([Section(f"{page.name}: {len(rows)} rejects", header, rows)])


async def _summary(settings: Settings, topic: str | None, selection: Selection, as_json: bool) -> None:
    async with _opened(settings, topic, selection) as (page, rejects):
        counts = await rejects.count_by_reason()
    if as_json:
        for each in counts.iter_rows(named=True):
            times = {name: each[name].isoformat() for name in ("first", "last")}
            click.echo(json.dumps({**each, **times}))
    else:
        title = f"{page.name}: {counts['rejects'].sum()} rejects"
        show([Section(title, counts.columns, [list(row) for row in counts.iter_rows()])])


async def _redrive(
    settings: Settings,
    topic: str | None,
    selection: Selection,
    lines: list[bytes] | None,
    *,
    force: bool,
    dry_run: bool,
) -> RedriveReport:
    async with _opened(settings, topic, selection) as (page, rejects), running_broker(settings) as broker:
        if broker is None:
            hint = "it lives as long as the service: redrive while `streamproc run` or the demo runs"
            raise DependencyError("embedded broker", f"is not running in {settings.data_dir}", hint)
        run = f"{operator()} {uuid.uuid4()}"
        kafka = kafka_only(broker, "rejects are sent again")
        async with RedriveProducer(kafka, page.topic.name) as producer:
            redrives = Redrives(rejects.ledger.database, page.name, run)
            corrected = None if lines is None else read_corrections(lines, page.topic.name)
            choice = Choice(corrected, None if force else page.contract)
            return await redrive(rejects, redrives, producer, choice=choice, dry_run=dry_run)


@asynccontextmanager
async def _opened(
    settings: Settings, topic: str | None, selection: Selection
) -> AsyncIterator[tuple[Topology, Rejects]]:
    async with opened_stream(settings, topic) as stream, opened_store(settings) as store:
        rejects = Rejects(stream.ledger, store, selection)
        yield stream.page, rejects
        if rejects.missing:
            count = len(rejects.missing)
            click.echo(
                f"{count} objects of rejects are not in the lake any more, {rejects.missing[0]} first.",
                err=True,
            )


def _coordinates(source: str, rejects: pl.DataFrame) -> list[Coordinate]:
    places = rejects.select("source_partition", "position").iter_rows()
    return [Coordinate(Partition(source, number), position) for number, position in places]


def _as_dict(source: str, reject: dict[str, object], state: str | None) -> dict[str, object]:
    """``original`` as text for reading, ``original_base64`` for its exact bytes; null for a tombstone."""
    original, received = reject["original"], reject["received_at"]
    assert isinstance(received, datetime)
    return {
        "source": source,
        "partition": reject["source_partition"],
        "position": reject["position"],
        "received_at": received.isoformat(),
        "reason": reject["reason"],
        "field": reject["field"],
        "detail": reject["detail"],
        "redrive": state,
        "original": printable_bytes(original) if isinstance(original, bytes) else None,
        "original_base64": base64.b64encode(original).decode() if isinstance(original, bytes) else None,
    }


def _row(reject: dict[str, object], state: str | None) -> list[object]:
    where = [reject["received_at"], reject["source_partition"], reject["position"]]
    return [*where, reject["reason"], reject["field"], reject["detail"], state, _cut(reject["original"])]


def _cut(original: object) -> object:
    """Enough to recognise a record by; a 10 MB one would fill the screen for an hour."""
    limit = 300
    if isinstance(original, bytes) and len(original) > limit:
        return f"{cell_text(original[:limit])}… ({len(original)} bytes)"
    return original


def _show_report(report: RedriveReport, *, dry_run: bool) -> None:
    meanings = {
        "selected": "selected",
        "sent": "would be sent" if dry_run else "sent",
        "sent_before": "sent before",
        "still_rejected": "would be rejected again by this topic page: not sent",
        "copies": "copies made by a redrive, rejected again: left alone",
        "unconfirmed": "unconfirmed: may have been sent, not tried again",
        "refused": "refused by the broker: not sent, may be tried again",
        "no_partition": "of a partition that the topic no longer has",
    }
    for name, meaning in meanings.items():
        count = report.as_json()[name]
        if count or name in {"selected", "sent"}:
            click.echo(f"{count:>8} {meaning}")
    if report.example:
        click.echo(f"Would be rejected again: {report.example}", err=True)
    if report.problem:
        click.echo(f"The broker said: {report.problem}", err=True)
