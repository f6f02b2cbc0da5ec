"""``streamproc emr``: logs of the past by Spark, on EMR."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli.backfill import page_of_logs, period_of
from streamproc.cli.emr_submit import submit_command
from streamproc.cli.options import json_option, load_settings, load_topics, settings_options
from streamproc.errors import ConfigError, Mistake
from streamproc.quantities import Invalid, parse_size

if TYPE_CHECKING:
    from streamproc.runtimes.spark.history import Done


@click.group(name="emr")
def emr_command() -> None:
    """Read logs of the past by Spark, on EMR."""


emr_command.add_command(submit_command)


@emr_command.command(name="job")
@click.argument("place")
@click.option("--stream", metavar="NAME", help="The topic page. [default: the only one that reads logs]")
@click.option("--from", "begin", metavar="TIME", help="Only logs that were last changed then or later.")
@click.option("--to", "end", metavar="TIME", help="Only logs that were last changed before that.")
@click.option("--lake", metavar="URL", help="Where Parquet goes. [default: the setting]")
@click.option("--ledger-secret", metavar="NAME", help="Secret of Secrets Manager with the ledger's URL.")
@click.option(
    "--epoch-size", default="64GiB", show_default=True, help="Logs, as they lie there, in a commit."
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
    epoch_size: str,
    task_size: str,
    as_json: bool,
    config: Path | None,
    topics: Path | None,
) -> None:
    """The driver of a Spark job: what `spark-submit deploy/emr/job.py` runs.

    It is `streamproc backfill` on as many machines as Spark has: the same logs, tables, lake and ledger. PLACE is
    s3://bucket/prefix, or file:///folder where all machines see the same one.
    """
    overrides: dict[str, object] = {"broker": place, "lake": lake}
    if ledger_secret is not None:
        from streamproc.emr import secret  # noqa: PLC0415 - Amazon's client takes a second

        overrides["ledger"] = secret(ledger_secret)
    settings = load_settings(config, topics, overrides)
    if settings.broker.scheme not in {"s3", "file"}:
        raise ConfigError([Mistake("PLACE", f"{place} is no place of logs", "Write s3://… or file:///…")])
    page = page_of_logs(load_topics(settings), stream)
    period = period_of(begin, end)

    from streamproc.runtimes.spark.engine import session  # noqa: PLC0415 - needs Spark
    from streamproc.runtimes.spark.history import Sizes  # noqa: PLC0415 - see above
    from streamproc.runtimes.spark.job import history  # noqa: PLC0415 - see above

    sizes = Sizes(_bytes("--epoch-size", epoch_size), _bytes("--task-size", task_size))
    with session(f"streamproc {page.name}") as engine:
        done = asyncio.run(history(settings, page, period, engine, sizes=sizes, tell=_tell))
    click.echo(json.dumps(asdict(done)) if as_json else _sentence(done))


def _bytes(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except Invalid as error:
        raise ConfigError([Mistake(option, f"{text!r}: {error}", 'Write it like "64MiB"')]) from None


def _tell(day: str, done: Done) -> None:
    click.echo(f"{day}: {_sentence(done)}", err=True)


def _sentence(done: Done) -> str:
    counts = done.counts
    return (
        f"{done.logs:,} logs ({done.bytes / 2**20:,.1f} MiB) in {done.epochs:,} commits, {counts.records:,} records: "
        f"{counts.accepted:,} accepted, {counts.filtered:,} filtered, {counts.rejected:,} rejected, "
        f"{counts.duplicate:,} duplicate"
    )
