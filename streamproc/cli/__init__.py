"""The ``streamproc`` command: one verb per module, imported only when it is asked for.

Exit codes: 0 fine, 1 something failed while running, 2 usage or configuration is wrong.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from streamproc import __version__, allocators
from streamproc.cli.options import Group
from streamproc.errors import ConfigError, Inconsistent, StreamprocError

#: Verb → (module of this package, attribute, one-line help). The help stands here too, because polars and
#: Faust take a second to import and ``streamproc --help`` must not: a test compares it with the command's.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo_command", "Run the whole pipeline here, with nothing else running."),
    "run": ("run", "run_command", "Run the service."),
    "generate": ("generate", "generate_command", "Write synthetic events of believable visitors."),
    "transform": ("transform", "transform_command", "Decode, filter and enrich events from stdin to stdout."),
    "check": ("check", "check_command", "Check settings, topic pages and endpoints."),
    "topics": ("topics", "topics_command", "List, compare and create the topics of the topic pages."),
    "status": ("status", "status_command", "Show positions, lag, watermarks, owners and objects."),
    "offsets": ("offsets", "offsets_command", "Show and set committed positions."),
    "replay": ("replay", "replay_command", "Process a range again beside the live service."),
    "backfill": ("backfill", "backfill_command", "Read the logs that lie in a bucket or a folder."),
    "emr": ("emr", "emr_command", "Read logs of the past, or compute tables anew, by Spark on EMR."),
    "rejects": ("rejects", "rejects_command", "Look at rejected records and send them again."),
    "lake": ("lake", "lake_command", "List the lake's objects, merge small ones, delete the abandoned."),
    "warehouse": ("warehouse", "warehouse_command", "Set up, load and look at the warehouse."),
    "quicksight": ("quicksight", "quicksight_command", "Publish data sets and dashboards to QuickSight."),
    "dashboard": ("dashboard", "dashboard_command", "Serve the pages: visitors, tables, the pipeline."),
    "privacy": ("privacy", "privacy_command", "Forget a visitor."),
    "sql": ("sql", "sql_command", "Run a read-only query in the ledger's database."),
}


class Verbs(Group):
    """A group that imports a verb's module when the verb is used, and turns our errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        allocators.tune()  # before a verb loads polars
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs and their help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, help_) for verb, (_, _, help_) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; our own errors are printed without a traceback and end with their exit code."""
        try:
            return super().invoke(ctx)
        except StreamprocError as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            else:
                # By its name an alarm finds in the log what must never happen.
                kind = f"{type(error).__name__}: " if isinstance(error, Inconsistent) else ""
                click.echo(f"streamproc: {kind}{error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except BrokenPipeError:
            # The reader of our output has left (`streamproc … | head`): not our failure.
            _give_stdout_up()
            ctx.exit(0)
        except OSError as error:  # a file or folder that cannot be used, a disk that is full
            if ctx.params["debug"]:
                traceback.print_exc()
            else:
                where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
                what = error.strerror or str(error) or type(error).__name__
                click.echo(f"streamproc: {where}{what} (--debug says where it happened)", err=True)
            try:
                sys.stdout.flush()
            except OSError:
                _give_stdout_up()
            ctx.exit(1)


def _give_stdout_up() -> None:
    """What is still buffered goes nowhere, or the interpreter would fail to write it on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    name="streamproc",
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="streamproc")
@click.option("--debug", is_flag=True, envvar="STREAMPROC_DEBUG", help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Clickstream from Kafka, Kinesis or web logs into S3, a warehouse and PostgreSQL, exactly once.

    Settings come from streamproc.toml and STREAMPROC_* variables (docs/settings.md), streams from the
    topic pages in topics/ (docs/topic-files.md).

    Exit codes: 0 fine, 1 something failed while running, 2 usage or configuration is wrong.
    """
