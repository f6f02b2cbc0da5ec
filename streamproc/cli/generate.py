"""``streamproc generate``: synthetic events on stdout."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime

import click

from streamproc.cli.rendering import in_place
from streamproc.generator import DEFAULT_START, Generator

_BATCH = 10_000

#: Seconds between two words of how far it is, on a terminal and elsewhere.
_TELL_TERMINAL, _TELL_EVERY = 0.5, 5.0


class _Instant(click.ParamType):
    """A point in time, ISO 8601; UTC when no offset is given."""

    name = "ISO"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            parsed = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an ISO 8601 time, like 2025-01-06T09:00:00Z", param, ctx)
        return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


class _Progress:
    """Says how many are sent: in one line of a terminal, every few seconds elsewhere."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._told = time.monotonic()

    def __call__(self, sent: int) -> None:
        now = time.monotonic()
        if now - self._told < (_TELL_TERMINAL if sys.stderr.isatty() else _TELL_EVERY):
            return
        self._told = now
        in_place(f"{sent:,} of {self._events:,} ({sent / self._events:.0%})", end="\r")


@click.command(name="generate")
@click.option("--events", type=click.IntRange(min=0), required=True, help="How many records to write.")
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--bad-ratio",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="How many of the records are no good: cut off, of wrong types, no JSON, not UTF-8...",
)
@click.option(
    "--start",
    type=_Instant(),
    default=DEFAULT_START,
    show_default=False,
    help=f"Event time of the first events. [default: {DEFAULT_START:%Y-%m-%dT%H:%M:%SZ}]",
)
@click.option(
    "--rate",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Events a second of event time, on the average of a day.",
)
@click.option("--steady", is_flag=True, help="As many at night as in the evening.")
@click.option(
    "--to",
    metavar="URL",
    help="Send them to kinesis://REGION/STREAM or kafka://HOST:PORT/TOPIC instead of stdout.",
)
def generate_command(  # noqa: PLR0917 - click hands every option over as an argument
    events: int, seed: int, bad_ratio: float, start: datetime, rate: int, steady: bool, to: str | None
) -> None:
    """Write synthetic events of believable visitors.

    One JSON object to a line, with the fields of the shipped topic page (topics/clickstream.toml). The same
    options give the same bytes on any machine and day: event time starts at a fixed instant, not now.

    Bad records that are not a line of text (with a line feed in them, or without a value) are left out here;
    `streamproc demo` sends those too, and so does --to.
    """
    if to is not None:
        from streamproc.runtimes.sending import send  # noqa: PLC0415 - only for this case

        generator = Generator(seed, events, bad_ratio=bad_ratio, start=start, rate=rate, steady=steady)
        sent = asyncio.run(send(to, generator.batches(_BATCH), _Progress(events)))
        click.echo(f"{sent} records sent to {to}", err=True)
        return
    generator = Generator(
        seed, events, bad_ratio=bad_ratio, start=start, rate=rate, steady=steady, one_line=True
    )
    out = sys.stdout.buffer
    for batch in generator.batches(_BATCH):
        out.writelines(b"%b\n" % value for _, value in batch if value is not None)
    out.flush()
