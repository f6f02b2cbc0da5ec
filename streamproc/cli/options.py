"""Options that several verbs have, and how they become settings and topic pages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from streamproc.settings import Settings
    from streamproc.topology import Topology

F = TypeVar("F", bound=Callable[..., object])

_CONFIG_HELP = "Settings file. [default: streamproc.toml, if there is one]"
_TOPICS_HELP = "Folder of topic pages, or one page. [default: ./topics, else those shipped with streamproc]"


class Group(click.Group):
    """Verbs below a verb. A misspelt one is told with the one that may have been meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises click's UsageError for a verb that there is not."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if near := difflib.get_close_matches(args[0], self.list_commands(ctx), n=1):
                error.message += f" Did you mean {near[0]}?"
            raise


def only_itself(command: F) -> F:
    """For a group that does something itself: do nothing, and read no settings, when a verb of it follows.

    That verb has options of its own, and would not see those that stand before it: click's UsageError says so.
    """

    @wraps(command)
    def unless_followed(**options: object) -> None:
        context = click.get_current_context()
        verb = context.invoked_subcommand
        if verb is None:
            command(**options)
            return
        given = [
            parameter.opts[0]
            for parameter in context.command.params
            if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(f"{verb} would not see {', '.join(given)}: options stand behind {verb}.")

    return unless_followed  # type: ignore[return-value]


def settings_options(command: F) -> F:
    """Adds ``--config FILE`` and ``--topics DIR`` as the arguments ``config`` and ``topics``."""
    topics = click.option("--topics", type=click.Path(path_type=Path), help=_TOPICS_HELP)
    config = click.option("--config", "-c", type=click.Path(path_type=Path), help=_CONFIG_HELP)
    return config(topics(command))


def json_option(command: F) -> F:
    """Adds ``--json`` as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")(command)


def form_option(word: str, text: str) -> Callable[[F], F]:
    """Adds ``--word``, one of the forms that an answer can have, as the argument ``form``: its word, or ``None``.

    Two of them together are a mistake: click's UsageError.
    """

    def choose(context: click.Context, _: click.Parameter, given: bool) -> None:
        other = context.params.setdefault("form", None)
        if given and other is not None:
            raise click.UsageError(f"--{other} and --{word} are two forms of one answer: leave one out.")
        if given:
            context.params["form"] = word

    return click.option(f"--{word}", is_flag=True, expose_value=False, callback=choose, help=text)


def load_settings(
    config: Path | None, topics: Path | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """The settings, with logging set up as they say. Raises ConfigError."""
    from streamproc.ops.logging import configure_logging  # noqa: PLC0415 - keeps --help fast
    from streamproc.settings import read_settings  # noqa: PLC0415 - keeps --help fast

    settings = read_settings(
        config, overrides={"topics": str(topics) if topics else None, **(overrides or {})}
    )
    configure_logging(settings.log)
    return settings


def load_topics(settings: Settings) -> dict[str, Topology]:
    """The topic pages of the settings, by stream name. Raises ConfigError."""
    from streamproc.topic_pages import find_pages, load_pages  # noqa: PLC0415 - keeps --help fast

    return load_pages(find_pages(settings.topics))
