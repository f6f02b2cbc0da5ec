"""``streamproc quicksight``: data sets and dashboards of the topic pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import click

from streamproc.cli.options import Group, json_option, load_settings, load_topics, settings_options
from streamproc.cli.rendering import Section, show
from streamproc.cli.streams import topic_argument
from streamproc.errors import ConfigError, Mistake
from streamproc.quicksight.checks import check
from streamproc.quicksight.data_sets import data_sets
from streamproc.quicksight.publishing import Change, Publisher
from streamproc.quicksight.resources import Resource, engine, resources
from streamproc.quicksight.service import Service, connected
from streamproc.quicksight.sheets import sheets
from streamproc.settings import Settings
from streamproc.topology import Topology

_DONE = {
    "create": "created",
    "replace": "made anew",
    "update": "updated",
    "share": "permissions and tags set",
    "delete": "deleted",
}


@click.group(name="quicksight", cls=Group)
def quicksight_command() -> None:
    """Publish data sets and dashboards to QuickSight.

    They are made from the topic pages: a table is a data set, a stream a dashboard. What has to be set, and what it
    needs to be allowed, is in docs/quicksight.md.
    """


@quicksight_command.command(name="show")
@topic_argument
@settings_options
@json_option
def show_command(topic: str | None, config: Path | None, topics: Path | None, as_json: bool) -> None:
    """Show the sheets and visuals that the pages give, without asking anybody."""
    settings = load_settings(config, topics)
    warehouse = engine(settings.quicksight.warehouse)
    found = [
        [page.name, sheet.name, *_drawn(each.visual)]
        for page in _pages(settings, topic).values()
        for sheet in sheets(data_sets(page, warehouse=warehouse))
        for each in sheet.elements
    ]
    header = ["stream", "sheet", "visual", "title"]
    if as_json:
        click.echo(json.dumps({"visuals": [dict(zip(header, row, strict=True)) for row in found]}, indent=2))
    else:
        show([Section("quicksight", header, found)])


@quicksight_command.command(name="diff")
@topic_argument
@settings_options
@json_option
@click.pass_context
def diff_command(
    ctx: click.Context, topic: str | None, config: Path | None, topics: Path | None, as_json: bool
) -> None:
    """Show how QuickSight differs from what the pages say. Exits with 1 when it does."""
    settings = load_settings(config, topics)
    changes = asyncio.run(_diff(settings, _pages(settings, topic)))
    if as_json:
        click.echo(json.dumps({"differences": [_as_dict(*each) for each in changes]}, indent=2))
    else:
        for _, change in changes:
            click.echo(str(change))
        if not changes:
            click.echo("QuickSight is as the pages say.")
    ctx.exit(1 if changes else 0)


@quicksight_command.command(name="publish")
@topic_argument
@settings_options
@json_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask before changing anything.")
@click.option("--prune", is_flag=True, help="Delete what was published and is not in the pages any more.")
@click.option("--wait", is_flag=True, help="Wait until the rows are imported.")
def publish_command(  # noqa: PLR0917 - click calls it by name
    topic: str | None,
    config: Path | None,
    topics: Path | None,
    as_json: bool,
    yes: bool,
    prune: bool,
    wait: bool,
) -> None:
    """Create or update data sources, data sets, refresh schedules and dashboards: only what differs.

    A dashboard that is updated stays as it was until its new version is made. When something fails, what was
    done stays; run it again, and it goes on there.
    """
    settings = load_settings(config, topics)
    pages = _pages(settings, topic)
    if not yes:
        changes = [
            each for _, each in asyncio.run(_diff(settings, pages)) if prune or each.action != "delete"
        ]
        for change in changes:
            click.echo(str(change), err=True)
        if changes and not click.confirm("Publish?", err=True):
            raise click.Abort
    done = asyncio.run(_publish(settings, pages, prune=prune, wait=wait, quiet=as_json))
    if as_json:
        click.echo(json.dumps({"published": [_as_dict(*each) for each in done]}, indent=2))
    elif not done:
        click.echo("Nothing to do.")


@quicksight_command.command(name="delete")
@click.argument("topic", metavar="STREAM")
@settings_options
@json_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask before deleting.")
def delete_command(topic: str, config: Path | None, topics: Path | None, as_json: bool, yes: bool) -> None:
    """Delete what was published of a stream, and nothing else.

    It is told by its tags, so the stream's page need not be there any more.
    """
    settings = load_settings(config, topics)
    if not yes:
        there = asyncio.run(_owned(settings, topic))
        for change in there:
            click.echo(str(change), err=True)
        if there and not click.confirm("Delete?", err=True):
            raise click.Abort
    done = asyncio.run(_delete(settings, topic, quiet=as_json))
    if as_json:
        click.echo(json.dumps({"deleted": [_as_dict(topic, each) for each in done]}, indent=2))
    elif not done:
        click.echo("Nothing to do.")


def _pages(settings: Settings, topic: str | None) -> Mapping[str, Topology]:
    pages = load_topics(settings)
    if topic is None:
        return pages
    if topic not in pages:
        raise ConfigError([Mistake(topic, "there is no such topic page", f"There are {', '.join(pages)}")])
    return {topic: pages[topic]}


@asynccontextmanager
async def _publishers(
    settings: Settings, pages: Mapping[str, Topology]
) -> AsyncIterator[list[tuple[str, Publisher, list[Resource]]]]:
    """Each stream, its publisher, and what it should be, all of it checked before anything is asked."""
    async with connected(settings.quicksight) as service:
        wanted = {name: resources(page, settings, service.place) for name, page in pages.items()}
        for each in wanted.values():
            check(each, service.place.account)
        yield [(name, _publisher(service, settings, name), each) for name, each in wanted.items()]


def _publisher(service: Service, settings: Settings, stream: str) -> Publisher:
    return Publisher(service, settings.quicksight.prefix, stream, dict(settings.quicksight.tags or ()))


async def _diff(settings: Settings, pages: Mapping[str, Topology]) -> list[tuple[str, Change]]:
    async with _publishers(settings, pages) as publishers:
        return [
            (name, change)
            for name, publisher, wanted in publishers
            for change in await publisher.changes(wanted)
        ]


async def _publish(
    settings: Settings, pages: Mapping[str, Topology], *, prune: bool, wait: bool, quiet: bool
) -> list[tuple[str, Change]]:
    done: list[tuple[str, Change]] = []
    async with _publishers(settings, pages) as publishers:
        for name, publisher, wanted in publishers:
            async for change in publisher.publish(wanted, prune=prune):
                done.append((name, change))
                _tell(change, quiet=quiet)
        if wait:
            for _, change in done:
                if change.ingestion:
                    rows = await publishers[0][1].imported(change)
                    if not quiet:
                        click.echo(f"{change.kind} {change.id}: {rows} rows imported")
    return done


async def _owned(settings: Settings, stream: str) -> list[Change]:
    async with connected(settings.quicksight) as service:
        return await _publisher(service, settings, stream).owned()


async def _delete(settings: Settings, stream: str, *, quiet: bool) -> list[Change]:
    done = []
    async with connected(settings.quicksight) as service:
        async for change in _publisher(service, settings, stream).remove():
            done.append(change)
            _tell(change, quiet=quiet)
    return done


def _tell(change: Change, *, quiet: bool) -> None:
    """Said as soon as it is done, so that a failure later leaves no doubt about what is there."""
    if not quiet:
        click.echo(f"{change.kind} {change.id}: {_DONE[change.action]}")


def _drawn(visual: Mapping[str, Mapping[str, object]]) -> tuple[str, str]:
    ((kind, content),) = visual.items()
    title = content["Title"]
    assert isinstance(title, Mapping)
    return kind.removesuffix("Visual"), str(title["FormatText"]["PlainText"])


def _as_dict(stream: str, change: Change) -> dict[str, object]:
    return {
        "stream": stream,
        "kind": str(change.kind),
        "id": change.id,
        "action": change.action,
        "details": list(change.details),
        "obstacle": change.obstacle or None,
    }
