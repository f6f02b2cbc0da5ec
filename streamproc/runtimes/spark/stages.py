"""What a driver asks of Spark. Its parts know this much of it, and tests put something else in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.lake_reading import LakeWork
from streamproc.runtimes.spark.putting import Keys
from streamproc.runtimes.spark.reading import LogWork
from streamproc.runtimes.spark.setup import Setup


class Stages(Protocol):
    """See :class:`streamproc.runtimes.spark.engine.Stage`."""

    def told(self) -> list[Piece]: ...  # noqa: D102
    def united(self) -> list[Piece]: ...  # noqa: D102
    def put(self, keys: Keys) -> list[Piece]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Reads(Protocol):
    """See :class:`streamproc.runtimes.spark.engine.Engine`."""

    @property
    def slots(self) -> int: ...  # noqa: D102
    def cancel(self) -> None: ...  # noqa: D102
    def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> Stages: ...  # noqa: D102
