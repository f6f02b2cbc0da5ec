"""Sends records to a topic that a URL names: for ``streamproc generate --to``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from streamproc.errors import ConfigError, Mistake
from streamproc.ops.logging import configure_logging
from streamproc.settings import read_settings
from streamproc.sources.opening import connection_of, producer

Keyed = tuple[bytes | None, bytes | None]


async def send(url: str, chunks: Iterable[Sequence[Keyed]], told: Callable[[int], None]) -> int:
    """Send all keyed values to ``kinesis://REGION/STREAM`` or ``kafka://HOST:PORT/TOPIC``; returns how many.

    ``told`` gets the number of those that are on their way, again and again.

    Raises :class:`ConfigError` for another URL, :class:`DependencyError` when the records are not taken.
    """
    broker, _, topic = url.rpartition("/")
    if not topic or broker.partition("://")[0] not in {"kafka", "kinesis"} or broker.endswith(":/"):
        fix = "Write kinesis://REGION/STREAM or kafka://HOST:PORT/TOPIC"
        raise ConfigError([Mistake("--to", "names no broker and topic", fix)])
    try:
        settings = read_settings(overrides={"broker": broker})
    except ConfigError as error:
        raise ConfigError([_of_option(mistake) for mistake in error.mistakes]) from error
    configure_logging(settings.log)
    sent = 0
    async with producer(connection_of(settings)) as out:
        for chunk in chunks:
            await out.send(topic, [value for _, value in chunk], [key for key, _ in chunk])
            sent += len(chunk)
            told(sent)
        await out.flush()
    return sent


def _of_option(mistake: Mistake) -> Mistake:
    """A mistake of the broker that ``--to`` names; those of other settings are what they are."""
    return replace(mistake, where="--to") if mistake.where == "--broker" else mistake
