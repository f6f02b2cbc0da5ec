"""How far a replay is, for a person who waits for it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from streamproc.cli.rendering import in_place

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
        done = now.done == now.positions
        if not sys.stderr.isatty() and not done and datetime.now(UTC) - self._told < _TELL_EVERY:
            return
        self._told = datetime.now(UTC)
        left = "-" if now.seconds_left is None else duration(now.seconds_left)
        done_of = f"{now.done:,} of {now.positions:,} ({now.done / now.positions:.0%})"
        in_place(f"{done_of}, {now.rate:,.0f} a second, {left} left", last=done)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
