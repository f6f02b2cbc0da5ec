"""One partition's share of an epoch."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from streamproc.model import Advance, Counts, EncodedRows
from streamproc.progress import PartitionProgress


class Encoder(Protocol):
    """Makes files of rows without writing them; the lake."""

    def encode_events(self, events: pl.DataFrame) -> list[EncodedRows]:
        """Files of one partition's accepted events."""

    def encode_rejects(self, rejects: pl.DataFrame) -> list[EncodedRows]:
        """Files of one partition's rejects."""


@dataclass(slots=True)
class PartitionEpoch:
    """One partition's share of an epoch: its range ``(after, through]``, counts, rows and the files made of rows."""

    progress: PartitionProgress
    after: int | None
    through: int
    clock_us: int | None
    counts: Counts = field(default_factory=Counts)
    #: Rows that are in no file yet, as slices of frames that all partitions share; ``since``: how many events the epoch
    #: had before the oldest of these frames.
    events: list[pl.DataFrame] = field(default_factory=list)
    since: int = 0
    rejects: list[pl.DataFrame] = field(default_factory=list)
    files: list[EncodedRows] = field(default_factory=list)
    #: Files that are being made elsewhere; they come before what is made here at the end.
    under_way: list[Future[list[EncodedRows]]] = field(default_factory=list)

    @property
    def held_rows(self) -> int:
        """Events that are not in a file yet."""
        return sum(map(len, self.events))

    def take_events(self) -> pl.DataFrame:
        """The events held, which are let go."""
        events, self.events = pl.concat(self.events), []
        return events

    def collect(self) -> None:
        """Wait for the files that are under way; raises what became of them."""
        for future in self.under_way:
            self.files += future.result()
        self.under_way = []

    def encode(self, encoder: Encoder) -> None:
        """Make files of all that is held, and let the rows go."""
        if self.events:
            self.files += encoder.encode_events(self.take_events())
        self.encode_rejects(encoder)

    def encode_rejects(self, encoder: Encoder) -> None:
        """Make files of the rejects held, and let the rows go."""
        if self.rejects:
            self.files += encoder.encode_rejects(pl.concat(self.rejects))
            self.rejects = []

    def advance(self) -> Advance:
        """What the ledger is told of this partition."""
        return Advance(
            claim=self.progress.claim,
            after=self.after,
            through=self.through,
            clock_us=self.clock_us,
            counts=self.counts,
        )
