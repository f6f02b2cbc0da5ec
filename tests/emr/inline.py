"""The stages of a job without Spark: the same functions, one task after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.lake_reading import LakeWork
from streamproc.runtimes.spark.putting import Keys, put
from streamproc.runtimes.spark.reading import LogWork, read_all, work_of
from streamproc.runtimes.spark.setup import Setup
from streamproc.runtimes.spark.uniting import unite


class InlineStage:
    def __init__(self, setup: Setup, pieces: list[Piece]) -> None:
        self.setup = setup
        self.pieces = pieces

    def told(self) -> list[Piece]:
        return [piece._replace(payload=b"") for piece in self.pieces if piece.kind not in {"rows", "events"}]

    def united(self) -> list[Piece]:
        tables = [piece for piece in self.pieces if piece.kind in {"rows", "events"}]
        return [
            piece
            for bucket in range(self.setup.buckets)
            for piece in unite(self.setup.folds(), [one for one in tables if one.bucket == bucket])
        ]

    def put(self, keys: Keys) -> list[Piece]:
        return list(put(self.setup, keys, [piece for piece in self.pieces if piece.kind == "file"]))

    def close(self) -> None:
        self.pieces = []


class Inline:
    """``slots``: in how many buckets tables are united. ``tasks``: how many there were, of each read."""

    def __init__(self, slots: int = 3) -> None:
        self.slots = slots
        self.tasks: list[int] = []

    def cancel(self) -> None:
        raise AssertionError("nobody else takes these logs")

    def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> InlineStage:
        self.tasks.append(len(tasks))
        works = [[work_of(work.as_json()) for work in task] for task in tasks]
        return InlineStage(setup, [piece for task in works for piece in read_all(setup, task)])
