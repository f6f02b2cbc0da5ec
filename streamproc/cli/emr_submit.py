"""``streamproc emr submit``: start the job on EMR and see how it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from streamproc.cli.backfill import period_of
from streamproc.cli.options import json_option
from streamproc.errors import ConfigError, Mistake
from streamproc.quantities import DURATION_UNITS, Invalid, parse_duration, parse_size

if TYPE_CHECKING:
    from streamproc.emr import Place, State, Submission


def _pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``name=value``, as often as the option stands there."""
    pairs = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", param=option)
        pairs[name] = text
    return pairs


def bytes_of(option: str, text: str) -> int:
    """The size that the option names. Raises ConfigError when it is none."""
    try:
        return parse_size(text)
    except Invalid as error:
        raise ConfigError([Mistake(option, f"{text!r}: {error}", 'Write it like "64MiB"')]) from None


def _minutes_of(option: str, text: str) -> int:
    """The duration that the option names, in whole minutes. Raises ConfigError when it is none."""
    try:
        microseconds = parse_duration(text)
    except Invalid as error:
        raise ConfigError([Mistake(option, error.problem, error.fix)]) from None
    if not microseconds:
        raise ConfigError([Mistake(option, "leaves no time", 'Write it like "3d"')])
    return -(-microseconds // DURATION_UNITS["m"])


@click.command(name="submit")
@click.argument("place", required=False)
@click.option(
    "--serverless", "application", metavar="APPLICATION", help="Id of an EMR Serverless application."
)
@click.option("--cluster", metavar="CLUSTER", help="Id of an EMR cluster on EC2.")
@click.option("--role", metavar="ARN", help="The job's role. Serverless needs one.")
@click.option("--code", metavar="URL", required=True, help="s3:// folder with what `make emr-package` made.")
@click.option("--stream", metavar="STREAM", required=True, help="The topic page, of those in the package.")
@click.option("--rebuild", "tables", multiple=True, metavar="TABLE", help="No logs: compute this table anew.")
@click.option(
    "--from", "begin", metavar="TIME", help="Only logs that were last changed then; the first date."
)
@click.option(
    "--to", "end", metavar="TIME", help="Only logs that were last changed before; behind the last date."
)
@click.option("--epoch-size", metavar="SIZE", help="Logs in a commit, as `emr job` takes it.")
@click.option("--task-size", metavar="SIZE", help="Logs or objects in a task, as `emr job` takes it.")
@click.option("--lake", metavar="URL", required=True, help="Where Parquet goes: s3://bucket/prefix.")
@click.option("--ledger-secret", metavar="NAME", required=True, help="Secret with the ledger's URL.")
@click.option("--log-uri", metavar="URL", help="s3:// folder for what a Serverless job says.")
@click.option(
    "--timeout",
    metavar="DURATION",
    help="EMR Serverless cancels a job that takes longer, such as 3d. [default: 12h]",
)
@click.option("--region", help="AWS region. [default: the AWS profile's]")
@click.option("--conf", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="A property of Spark's.")
@click.option("--env", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="A variable of the job's.")
@click.option("--python", default="python3.11", show_default=True, help="The interpreter on EMR's machines.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until the job is over.")
@click.option("--cancel-on-interrupt", is_flag=True, help="Ctrl-C cancels the job too.")
@click.option(
    "--poll", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds between looks."
)
@json_option
def submit_command(  # noqa: PLR0917 - click hands every option over as an argument
    place: str | None,
    application: str | None,
    cluster: str | None,
    role: str | None,
    code: str,
    stream: str,
    tables: tuple[str, ...],
    begin: str | None,
    end: str | None,
    epoch_size: str | None,
    task_size: str | None,
    lake: str,
    ledger_secret: str,
    log_uri: str | None,
    timeout: str | None,
    region: str | None,
    conf: dict[str, str],
    env: dict[str, str],
    python: str,
    wait: bool,
    cancel_on_interrupt: bool,
    poll: float,
    as_json: bool,
) -> None:
    """Submit the job to EMR Serverless (`--serverless`) or as a step of a cluster (`--cluster`).

    PLACE is where the logs are, s3://bucket/prefix; with --rebuild the lake is read. The command stays until the job
    is over and says how it goes; Ctrl-C leaves the job alone unless asked otherwise. Exit code 0: it succeeded, or was
    submitted with --no-wait.
    """
    for name, value in (("PLACE", place), ("--code", code), ("--lake", lake), ("--log-uri", log_uri)):
        if value is not None and not value.startswith("s3://"):
            raise ConfigError(
                [Mistake(name, f"{value} is no place that EMR can reach", "Write s3://bucket/…")]
            )
    period_of(begin, end)
    if (place is None) == (not tables):
        raise ConfigError([Mistake("PLACE, --rebuild", "name one of them", "Say what the job is to read")])
    if place is None and (begin is None or end is None):
        raise ConfigError(
            [Mistake("--from, --to", "are missing", "Name the first date and the one behind the last")]
        )
    if place is None and epoch_size is not None:
        raise ConfigError([Mistake("--epoch-size", "a rebuild commits date by date", "Leave it out")])
    arguments = ["rebuild", stream, *tables] if place is None else ["job", place, "--stream", stream]
    arguments += ["--lake", lake, "--ledger-secret", ledger_secret, "--json"]
    sizes = (("--epoch-size", epoch_size), ("--task-size", task_size))
    for option, text in sizes:
        if text is not None:
            bytes_of(option, text)  # wrong, it would be found on EMR only
    for option, text in (("--from", begin), ("--to", end), *sizes):
        arguments += [] if text is None else [option, text]

    minutes = None if timeout is None else _minutes_of("--timeout", timeout)

    from streamproc.emr import Submission  # noqa: PLC0415 - Amazon's client takes a second

    where = _where(application, cluster, role, log_uri, region, minutes=minutes)
    job = Submission(f"streamproc {stream}", code, arguments, conf, env, python)
    answer = _run(where, job, wait=wait, cancel=cancel_on_interrupt, poll=poll)
    click.echo(
        json.dumps(answer) if as_json else f"{answer['job']}: {answer['state']}; logs: {answer['logs']}"
    )
    if wait and not answer["succeeded"]:
        raise click.exceptions.Exit(1)


def _where(
    application: str | None,
    cluster: str | None,
    role: str | None,
    log_uri: str | None,
    region: str | None,
    *,
    minutes: int | None,
) -> Place:
    from streamproc.emr import Cluster, Serverless  # noqa: PLC0415 - see above

    if (application is None) == (cluster is None):
        raise ConfigError(
            [Mistake("--serverless, --cluster", "name one of them", "Say where the job is to run")]
        )
    if application is None:
        assert cluster is not None
        if log_uri is not None:
            raise ConfigError([Mistake("--log-uri", "is the cluster's own", "Leave it out")])
        if minutes is not None:
            raise ConfigError([Mistake("--timeout", "bounds no step of a cluster", "Leave it out")])
        return Cluster(cluster, role, region)
    if role is None:
        raise ConfigError([Mistake("--role", "is missing", "Name the execution role of the job")])
    return Serverless(application, role, log_uri, region, minutes=minutes)


def _run(where: Place, job: Submission, *, wait: bool, cancel: bool, poll: float) -> dict[str, object]:
    id_ = where.submit(job)
    click.echo(f"submitted {id_}; logs: {where.logs(id_)}", err=True)
    try:
        state = _watched(lambda: where.state(id_), poll) if wait else where.state(id_)
    except KeyboardInterrupt:
        if not cancel:
            click.echo(f"{id_} goes on", err=True)
            raise
        where.cancel(id_)
        click.echo(f"{id_} is being cancelled", err=True)
        state = _watched(lambda: where.state(id_), poll)
    return {
        "job": id_,
        "state": state.name,
        "detail": state.detail,
        "succeeded": state.succeeded,
        "logs": where.logs(id_),
    }


def _watched(look: Callable[[], State], poll: float) -> State:
    """The last state; each new one is told."""
    told, began = None, time.monotonic()
    while True:
        state = look()
        if state.name != told:
            click.echo(f"{time.monotonic() - began:6.0f} s  {state.name}  {state.detail}".rstrip(), err=True)
            told = state.name
        if state.over:
            return state
        time.sleep(poll)
