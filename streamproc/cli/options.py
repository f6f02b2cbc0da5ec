"""Options that several verbs have, and how they become settings and topic pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from streamproc.settings import Settings
    from streamproc.topology import Topology

F = TypeVar("F", bound=Callable[..., object])

_CONFIG_HELP = "Settings file. [default: streamproc.toml, if there is one]"
_TOPICS_HELP = "Folder of topic pages, or one page. [default: ./topics, else those shipped with streamproc]"


def settings_options(command: F) -> F:
    """Adds ``--config FILE`` and ``--topics DIR`` as the arguments ``config`` and ``topics``."""
    topics = click.option("--topics", type=click.Path(path_type=Path), help=_TOPICS_HELP)
    config = click.option("--config", "-c", type=click.Path(path_type=Path), help=_CONFIG_HELP)
    return config(topics(command))


def json_option(command: F) -> F:
    """Adds ``--json`` as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")(command)


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
