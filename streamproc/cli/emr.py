"""``streamproc emr``: logs of the past by Spark, on EMR."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli.backfill import page_of_logs, period_of
from streamproc.cli.emr_submit import bytes_of, submit_command
from streamproc.cli.options import Group, json_option, load_settings, load_topics, settings_options
from streamproc.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from streamproc.runtimes.spark.history import Done
    from streamproc.runtimes.spark.rebuild import Rebuilt

_DATE = click.DateTime(["%Y-%m-%d"])


@click.group(name="emr", cls=Group)
def emr_command() -> None:
    """Read logs of the past, or compute tables anew, by Spark on EMR."""


emr_command.add_command(submit_command)


@emr_command.command(name="job")
@click.argument("place")
@click.option("--stream", metavar="STREAM", help="The topic page. [default: the only one that reads logs]")
@click.option("--from", "begin", metavar="TIME", help="Only logs that were last changed then or later.")
@click.option("--to", "end", metavar="TIME", help="Only logs that were last changed before that.")
@click.option("--lake", metavar="URL", help="Where Parquet goes. [default: the setting]")
@click.option("--ledger-secret", metavar="NAME", help="Secret of Secrets Manager with the ledger's URL.")
@click.option(
    "--epoch-size",
    metavar="SIZE",
    help="Logs, as they lie there, in a commit. [default: 64GiB, or 1GiB where the page has a table of sessions]",
)
@click.option("--task-size", default="64MiB", show_default=True, help="Logs, as they lie there, in a task.")
@json_option
@settings_options
def job_command(
    place: str,
    *,
    stream: str | None,
    begin: str | None,
    end: str | None,
    lake: str | None,
    ledger_secret: str | None,
    epoch_size: str | None,
    task_size: str,
    as_json: bool,
    config: Path | None,
    topics: Path | None,
) -> None:
    """The driver of a Spark job: what `spark-submit deploy/emr/job.py` runs.

    It is `streamproc backfill` on as many machines as Spark has: the same logs, tables, lake and ledger. PLACE is
    s3://bucket/prefix, or file:///folder where all machines see the same one.
    """
    settings = load_settings(config, topics, {"broker": place, **_places(lake, ledger_secret)})
    if settings.broker.scheme not in {"s3", "file"}:
        raise ConfigError([Mistake("PLACE", f"{place} is no place of logs", "Write s3://… or file:///…")])
    page = page_of_logs(load_topics(settings), stream)
    period = period_of(begin, end)
    if epoch_size is None:
        # The driver holds the events of a commit's sessions; of other tables only the rows.
        epoch_size = "1GiB" if any(table.window.kind == "session" for table in page.tables) else "64GiB"
    epoch_bytes, task_bytes = bytes_of("--epoch-size", epoch_size), bytes_of("--task-size", task_size)

    from streamproc.runtimes.spark.engine import session  # noqa: PLC0415 - needs Spark
    from streamproc.runtimes.spark.history import Sizes  # noqa: PLC0415 - see above
    from streamproc.runtimes.spark.job import history  # noqa: PLC0415 - see above

    sizes = Sizes(epoch_bytes, task_bytes)
    with session(f"streamproc {page.name}") as engine:
        done = asyncio.run(history(settings, page, period, engine, sizes=sizes, tell=_tell))
    click.echo(json.dumps(asdict(done)) if as_json else _sentence(done))


@emr_command.command(name="rebuild")
@click.argument("stream")
@click.argument("tables", nargs=-1, required=True)
@click.option("--from", "begin", type=_DATE, required=True, help="First date of windows' starts, UTC.")
@click.option("--to", "end", type=_DATE, required=True, help="The date behind the last one.")
@click.option("--lake", metavar="URL", help="Where Parquet is. [default: the setting]")
@click.option("--ledger-secret", metavar="NAME", help="Secret of Secrets Manager with the ledger's URL.")
@click.option(
    "--task-size", default="64MiB", show_default=True, help="Objects, as they lie there, in a task."
)
@json_option
@settings_options
def rebuild_command(
    stream: str,
    tables: tuple[str, ...],
    *,
    begin: datetime,
    end: datetime,
    lake: str | None,
    ledger_secret: str | None,
    task_size: str,
    as_json: bool,
    config: Path | None,
    topics: Path | None,
) -> None:
    """Compute windowed TABLES of STREAM anew from its lake, by Spark.

    Each date's rows are replaced in one transaction; doing it again changes nothing. Late events, which the lake has
    and the tables have not, count. Run by `spark-submit deploy/emr/job.py rebuild`.
    """
    settings = load_settings(config, topics, _places(lake, ledger_secret))
    pages = load_topics(settings)
    if stream not in pages:
        raise ConfigError(
            [Mistake("STREAM", f"there is no page named {stream}", f"Choose among {', '.join(pages)}")]
        )
    if begin >= end:
        raise ConfigError([Mistake("--to", "is not behind --from", "Give a date behind it")])

    from streamproc.runtimes.spark.engine import session  # noqa: PLC0415 - needs Spark
    from streamproc.runtimes.spark.job import rebuild  # noqa: PLC0415 - see above

    dates = (_midnight(begin), _midnight(end))
    size = bytes_of("--task-size", task_size)
    with session(f"streamproc rebuild {stream}") as engine:
        done = asyncio.run(
            rebuild(settings, pages[stream], engine, tables, dates=dates, task_bytes=size, tell=_tell_date)
        )
    told = asdict(done)
    click.echo(
        json.dumps(told) if as_json else ", ".join(f"{number:,} {name}" for name, number in told.items())
    )


def _places(lake: str | None, ledger_secret: str | None) -> dict[str, object]:
    """What an option says instead of the settings."""
    places: dict[str, object] = {"lake": lake}
    if ledger_secret is not None:
        from streamproc.emr import secret  # noqa: PLC0415 - Amazon's client takes a second

        places["ledger"] = secret(ledger_secret)
    return places


def _midnight(date: datetime) -> int:
    return int(date.replace(tzinfo=UTC).timestamp()) * 1_000_000


def _tell_date(what: str, done: Rebuilt) -> None:
    click.echo(f"{what}: {done.dates:,} dates, {done.rows:,} rows of {done.objects:,} objects", err=True)


def _tell(day: str, done: Done) -> None:
    click.echo(f"{day}: {_sentence(done)}", err=True)


def _sentence(done: Done) -> str:
    counts = done.counts
    return (
        f"{done.logs:,} logs ({done.bytes / 2**20:,.1f} MiB) in {done.epochs:,} commits, {counts.records:,} records: "
        f"{counts.accepted:,} accepted, {counts.filtered:,} filtered, {counts.rejected:,} rejected, "
        f"{counts.duplicate:,} duplicate"
    )
