"""How far a replay is, for a person who waits for it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from streamproc.runtimes.replay.run import ProgressReport

#: Where it is not drawn in place.
_TELL_EVERY = timedelta(seconds=5)


class Progress:
    """Says how far it is: in one line of a terminal, every few seconds elsewhere."""

    def __init__(self) -> None:
        self._told = datetime.min.replace(tzinfo=UTC)

    def __call__(self, now: ProgressReport) -> None:
        """Tell, if it is time."""
        terminal = sys.stderr.isatty()
        done = now.done == now.positions
        if not terminal and not done and datetime.now(UTC) - self._told < _TELL_EVERY:
            return
        self._told = datetime.now(UTC)
        left = "-" if now.seconds_left is None else duration(now.seconds_left)
        done_of = f"{now.done:,} of {now.positions:,} ({now.done / now.positions:.0%})"
        line = f"{done_of}, {now.rate:,.0f} a second, {left} left"
        click.echo(f"\r{line}\x1b[K" if terminal else line, err=True, nl=done or not terminal)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
