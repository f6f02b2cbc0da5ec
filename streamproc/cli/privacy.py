"""``streamproc privacy``: forget a visitor."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TextIO

import click

from streamproc.cli.options import Group, json_option
from streamproc.cli.rendering import Section, show
from streamproc.cli.streams import OpenedStream, opened_store, opened_stream, set_up_options
from streamproc.errors import ConfigError, Mistake
from streamproc.runtimes.erasing import Eraser, ErasureReport, visitor
from streamproc.settings import Settings
from streamproc.sinks.warehouse import warehouse_of
from streamproc.topic_pages import find_pages
from streamproc.transform import Resources


@click.group(name="privacy", cls=Group)
def privacy_command() -> None:
    """Forget a visitor."""


@privacy_command.command(name="erase")
@click.argument("topic", metavar="STREAM")
@click.argument("visitors", nargs=-1)
@set_up_options
@click.option("--file", type=click.File("r"), help="Read ids from a file, one a line; - is standard input.")
@click.option("--dry-run", is_flag=True, help="Only count what would be erased.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before erasing.")
@json_option
def erase_command(
    *,
    settings: Settings,
    topic: str,
    visitors: tuple[str, ...],
    file: TextIO | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase everything of these visitors' past: lake, warehouse, sessions, rejects, and what is read again later.

    VISITORS are ids as producers send them, or as they are stored. The topic page's [erasure] says which columns they
    stand in. An id on the command line can be read by others on this machine: --file keeps it from them.

    Killed at any moment, the same command does the rest. Replaced objects are deleted from the store a day later.
    docs/privacy.md says what cannot be erased.
    """
    if file is not None and file.name == sys.stdin.name and not (yes or dry_run):
        raise ConfigError([Mistake("--file -", "leaves no stdin to answer on", "Add --yes or --dry-run")])
    lines = (line.strip().removeprefix("\ufeff") for line in file or ())  # a mark is no part of the first id
    ids = [*visitors, *lines]
    ids = [each for each in dict.fromkeys(ids) if each]
    if not ids:
        raise click.UsageError("Name a visitor, or a --file with ids.")
    report, stream = asyncio.run(_erase(settings, topic, ids, dry=dry_run, ask=not (yes or dry_run)))
    if as_json:
        click.echo(json.dumps({"stream": stream, "visitors": len(ids), **asdict(report)}, indent=2))
        return
    rows = [["lake", report.lake_rows], ["rejects", report.reject_rows], ["warehouse", report.warehouse_rows]]
    rows += [[f"table {name}", count] for name, count in report.tables.items()]
    verb = "would be erased" if dry_run else "erased"
    title = f"{stream}: {len(ids)} visitors, {report.objects} objects of the lake"
    show([Section(title, ["where", f"rows {verb}"], rows)])
    if report.missing:
        problem = "are on the list and not in the lake any more: should they come back, erase again"
        click.echo(f"{report.missing} objects {problem}.", err=True)


async def _erase(
    settings: Settings, topic: str, ids: list[str], *, dry: bool, ask: bool
) -> tuple[ErasureReport, str]:
    async with AsyncExitStack() as stack:
        stream: OpenedStream = await stack.enter_async_context(opened_stream(settings, topic))
        page = stream.page
        store = await stack.enter_async_context(opened_store(settings)) if page.sinks.lake else None
        warehouse = warehouse_of(page, stream.endpoints.warehouse)
        eraser = Eraser(page, stream.ledger, store, warehouse)
        resources = Resources(os.environ, find_pages(settings.topics))
        visitors = [visitor(each, page, resources) for each in ids]
        if ask:
            who = "this visitor" if len(ids) == 1 else f"these {len(ids):,} visitors"
            click.confirm(f"Erase the past of {who} from {page.name}, for good?", abort=True, err=True)
        if warehouse is not None:
            stack.push_async_callback(warehouse.close)
            await warehouse.open()
            await warehouse.ensure(page.columns)
        return await eraser.erase(visitors, dry=dry), page.name
