"""How the verbs that look at a set-up find it: settings, a stream of the topic pages, its ledger."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from streamproc.cli.options import load_settings, load_topics, settings_options
from streamproc.errors import ConfigError, Mistake
from streamproc.quantities import Invalid, parse_duration

if TYPE_CHECKING:
    from streamproc.ledger import Ledger
    from streamproc.runtimes.endpoints import Endpoints
    from streamproc.settings import Settings
    from streamproc.sinks.object_store import ObjectStore
    from streamproc.topology import Topology

F = TypeVar("F", bound=Callable[..., object])

_DATA_DIR_HELP = "Look at the embedded set-up in DIR (a demo's --dir), whatever the settings say."


def set_up_options(command: Callable[..., None], level: str = "error") -> Callable[..., None]:
    """Adds ``--config``, ``--topics`` and ``--data-dir``; the command gets the ``settings`` they make.

    ``level``: least severe messages to show, when the environment does not say. The settings are read when the
    command is called; ConfigError is raised from there.
    """

    @wraps(command)
    def with_settings(
        config: Path | None, topics: Path | None, data_dir: Path | None, **others: object
    ) -> None:
        from streamproc.runtimes.attach import embedded_in  # noqa: PLC0415 - keeps --help fast
        from streamproc.settings import variable  # noqa: PLC0415

        overrides = embedded_in(data_dir) if data_dir else {}
        # Whoever asks a question wants the answer; what an embedded server does on the way is for a service.
        if variable("log.level") not in os.environ:
            overrides["log.level"] = level
        settings = load_settings(config, topics, overrides)
        command(settings=settings, **others)

    path = click.Path(path_type=Path, file_okay=False)
    option = click.option("--data-dir", metavar="DIR", type=path, help=_DATA_DIR_HELP)
    return settings_options(option(with_settings))


def topic_argument(command: F) -> F:
    """Adds an optional ``STREAM`` as ``topic``, see :func:`opened_streams`."""
    return click.argument("topic", metavar="[STREAM]", required=False)(command)


@dataclass(frozen=True, slots=True)
class OpenedStream:
    """A stream at which a verb looks: its topic page, its open ledger, and the servers behind them."""

    page: Topology
    ledger: Ledger
    endpoints: Endpoints


@asynccontextmanager
async def opened_streams(settings: Settings, topic: str | None) -> AsyncIterator[list[OpenedStream]]:
    """The stream that ``topic`` names. Without it, those of the topic pages that ever ran, or else all.

    Raises ConfigError when there is no such page or nothing ever ran here, LedgerError when the ledger is
    not of this release, DependencyError when it does not answer.
    """
    from streamproc.ledger import Ledger  # noqa: PLC0415 - keeps --help fast
    from streamproc.ledger.reading import require_ledger, streams  # noqa: PLC0415
    from streamproc.runtimes.attach import attached  # noqa: PLC0415

    pages = named(load_topics(settings), topic)
    async with AsyncExitStack() as stack:
        endpoints = await stack.enter_async_context(attached(settings))
        opened = []
        for page in pages:
            ledger = Ledger(endpoints.ledger, page.name, operator(), pool_size=2)
            await stack.enter_async_context(ledger)
            opened.append(OpenedStream(page, ledger, endpoints))
        await require_ledger(opened[0].ledger.database)
        if topic is None:
            ran = await streams(opened[0].ledger.database)
            opened = [each for each in opened if each.page.name in ran] or opened
        yield opened


@asynccontextmanager
async def opened_stream(settings: Settings, topic: str | None) -> AsyncIterator[OpenedStream]:
    """Like :func:`opened_streams`; ConfigError unless it comes to one."""
    async with opened_streams(settings, topic) as opened:
        if len(opened) != 1:
            names = ", ".join(each.page.name for each in opened)
            raise ConfigError([Mistake("STREAM", "there are several streams", f"Name one of {names}")])
        yield opened[0]


def named(pages: Mapping[str, Topology], topic: str | None) -> list[Topology]:
    """The pages that ``topic`` names (by their name, or their Kafka topic), or all. ConfigError for none."""
    found = [page for page in pages.values() if topic in {None, page.name}]
    found = found or [page for page in pages.values() if topic == page.topic.name]
    if not found:
        there = ", ".join(pages) or "none"
        raise ConfigError([Mistake(topic or "STREAM", "there is no such topic page", f"There are: {there}")])
    return found


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The lake's object store."""
    from streamproc.sinks.object_store import lake_store  # noqa: PLC0415 - keeps --help fast

    store = lake_store(settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def operator() -> str:
    """Who is at work, for the ledger's notes: ``user@host``. Says what the environment says; no proof."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class Time(click.ParamType):
    """A point in time: ISO 8601 (UTC unless it says otherwise), or a duration, which means that long ago."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | None:
        """Text → aware datetime."""
        if value is None or isinstance(value, datetime):
            return value
        try:
            return read_time(str(value))
        except Invalid as error:
            self.fail(f"{error.problem}. {error.fix}", param, ctx)


def read_time(text: str) -> datetime:
    """What :class:`Time` accepts. Raises Invalid."""
    try:
        return datetime.now(UTC) - timedelta(microseconds=parse_duration(text))
    except Invalid:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fix = 'Write "2026-07-01T13:00:00Z", "2026-07-01", or "15m" for a quarter of an hour ago'
        raise Invalid(f"{text!r} is not a time", fix) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def microseconds(moment: datetime | None) -> int | None:
    """Unix microseconds, exactly."""
    if moment is None:
        return None
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
