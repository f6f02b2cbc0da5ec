"""``streamproc topics``: the broker's topics and those of the topic pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from streamproc.cli.options import Group, json_option, load_settings, load_topics, settings_options
from streamproc.cli.streams import named, topic_argument
from streamproc.embedded.broker import join_broker, start_broker
from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.quantities import show_duration
from streamproc.settings import Settings
from streamproc.sources.administration import Admin, Difference, TopicState
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.opening import Connection, admin, check_published, connection_of
from streamproc.topology import Topic

T = TypeVar("T")


@click.group(name="topics", cls=Group)
def topics_command() -> None:
    """List, compare and create the topics of the topic pages.

    A page's topic is the one it reads; topics it publishes to have the same number of partitions.
    """


@topics_command.command(name="list")
@settings_options
@json_option
def list_command(config: Path | None, topics: Path | None, as_json: bool) -> None:
    """List the broker's topics, and those the pages want that are not there."""
    settings = load_settings(config, topics)
    wanted = {topic.name: stream for stream, topic in _wanted(settings)}
    states = _with_broker(settings, lambda connection: _describe(connection, wanted))
    if as_json:
        click.echo(
            json.dumps({"topics": [_state_json(n, s, wanted.get(n)) for n, s in states.items()]}, indent=2)
        )
        return
    for name, state in states.items():
        stream = f"  stream {wanted[name]}" if name in wanted else ""
        click.echo(f"{name:<32} {_state_text(state)}{stream}")


@topics_command.command(name="diff")
@topic_argument
@settings_options
@json_option
@click.pass_context
def diff_command(
    ctx: click.Context, topic: str | None, config: Path | None, topics: Path | None, as_json: bool
) -> None:
    """Show how the broker's topics differ from the pages, or from STREAM's.

    Exits with 1 when they do in what a page says, or the broker refuses to show one. Whose clock stamps the records of
    a topic that is there already is only told: streamproc leaves it as it is.
    """
    settings = load_settings(config, topics)
    wanted = _wanted(settings, topic)
    differences, failed = _with_broker(
        settings, lambda connection: _each(connection, wanted, lambda broker, topic: broker.diff(topic))
    )
    if as_json:
        click.echo(json.dumps({"differences": [_difference_json(each) for each in differences]}, indent=2))
    else:
        for difference in differences:
            click.echo(str(difference))
        if not differences and not failed:
            click.echo("The broker's topics are as the pages say.")
    _fail(failed)
    ctx.exit(1 if any(not difference.advice for difference in differences) else 0)


@topics_command.command(name="apply")
@topic_argument
@settings_options
@json_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask before changing topics.")
def apply_command(
    topic: str | None, config: Path | None, topics: Path | None, as_json: bool, yes: bool
) -> None:
    """Create missing topics, add partitions, set retention: the broker's topics become as the pages say, or as
    STREAM's says.

    Nothing is ever shrunk or deleted. A topic that the broker refuses to change holds up no other; the exit code is 1
    then. An embedded broker has topics for as long as it runs, and the service makes
    its own there. More partitions send a visitor's later events to another partition than the earlier ones: an event
    that a producer sends again after that moment is not found to be a duplicate.
    """
    settings = load_settings(config, topics)
    wanted = _wanted(settings, topic)
    if not yes:
        differences, _ = _with_broker(
            settings, lambda connection: _each(connection, wanted, lambda broker, topic: broker.diff(topic))
        )
        possible = [difference for difference in differences if not difference.obstacle]
        for difference in differences if possible else ():
            click.echo(str(difference), err=True)
        if possible and not click.confirm("Apply?", err=True):
            raise click.Abort
    done, failed = _with_broker(
        settings,
        lambda connection: _each(connection, wanted, lambda broker, topic: broker.apply(topic)),
        told=not yes,
    )
    if as_json:
        click.echo(json.dumps({"applied": [_difference_json(each) for each in done]}, indent=2))
    elif done:
        for difference in done:
            click.echo(f"{difference.topic}: {difference.what} is now {difference.wanted}")
    elif not failed:
        click.echo("Nothing to do.")
    _fail(failed)


def _wanted(settings: Settings, stream: str | None = None) -> list[tuple[str, Topic]]:
    """Each topic of the pages, or of the stream's, with its stream's name. Raises ConfigError."""
    pages = named(load_topics(settings), stream)
    if not settings.broker.embedded:
        check_published(connection_of(settings), pages)
    return [(page.name, topic) for page in pages for topic in page.topics]


def _with_broker(
    settings: Settings, action: Callable[[Connection], Coroutine[Any, Any, T]], *, told: bool = False
) -> T:
    """What ``action`` returns; says if its broker ends with it, unless that is ``told``."""
    if not settings.broker.embedded:
        return asyncio.run(action(connection_of(settings)))
    # The broker of a service that runs on the same data folder, or one that lives as long as this command.
    folder = settings.data_dir / "broker"
    joined = join_broker(folder)
    if joined is None and not told:
        click.echo(
            f"No embedded broker runs in {settings.data_dir}: this one ends with the command.", err=True
        )
    with joined or start_broker(folder) as embedded:
        return asyncio.run(action(KafkaConnection(embedded.bootstrap, embedded=True)))


async def _describe(connection: Connection, wanted: Mapping[str, str]) -> dict[str, TopicState | None]:
    async with admin(connection) as broker:
        return {name: await broker.describe(name) for name in sorted({*await broker.topics(), *wanted})}


async def _each(
    connection: Connection,
    wanted: list[tuple[str, Topic]],
    ask: Callable[[Admin, Topic], Awaitable[list[Difference]]],
) -> tuple[list[Difference], dict[str, ConfigError | DependencyError]]:
    """What ``ask`` gives for each topic, and why it gives nothing for some: rights may be those for one topic only."""
    found: list[Difference] = []
    failed: dict[str, ConfigError | DependencyError] = {}
    for _, topic in wanted:
        try:
            async with admin(connection) as broker:
                found += await ask(broker, topic)
        except (ConfigError, DependencyError) as error:
            failed[topic.name] = error
    return found, failed


def _fail(failed: Mapping[str, ConfigError | DependencyError]) -> None:
    """Say what failed, if anything did, and end with 1. Raises ConfigError when topics cannot be as their pages say."""
    mistakes: list[Mistake] = []
    for topic, error in failed.items():
        if isinstance(error, ConfigError):
            mistakes += error.mistakes
        else:
            click.echo(f"{topic}: {error}", err=True)
    if mistakes:
        raise ConfigError(mistakes)
    if failed:
        raise click.exceptions.Exit(1)


def _state_json(name: str, state: TopicState | None, stream: str | None) -> dict[str, object]:
    return {
        "name": name,
        "stream": stream,
        "exists": state is not None,
        "partitions": state.partitions if state else None,
        "replication": state.replication if state else None,
        "retention_ms": _milliseconds(state) if state else None,
        "cleanup_policy": state.cleanup_policy if state else None,
    }


def _difference_json(difference: Difference) -> dict[str, object]:
    return {
        "topic": difference.topic,
        "what": difference.what,
        "wanted": difference.wanted,
        "actual": difference.actual,
        "obstacle": difference.obstacle or None,
    }


def _milliseconds(state: TopicState) -> int | None:
    return None if state.retention_ms in {None, "", "-1"} else int(state.retention_ms or 0)


def _state_text(state: TopicState | None) -> str:
    if state is None:
        return "missing"
    kept = _milliseconds(state)
    retention = "for ever" if kept is None else show_duration(kept * 1000)
    policy = "" if state.cleanup_policy == "delete" else f", {state.cleanup_policy}"
    return f"{state.partitions} partitions, replication {state.replication}, kept {retention}{policy}"
