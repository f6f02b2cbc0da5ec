"""The third tasks of a job: the files that the first have made are put into the lake, under keys that are intended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from streamproc.concurrency import each
from streamproc.runtimes.spark import exchange
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.setup import Setup

if TYPE_CHECKING:
    import pyarrow as pa

#: Puts at once of a task: they mostly wait for the store.
_PARALLEL = 4

#: Of a log and the number of a file of it.
Keys = Mapping[tuple[str, int], str]


def putter(setup: Setup, keys: Keys) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """For ``mapInArrow``, over pieces with files. A task that Spark runs twice puts the same files again."""

    def put_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from exchange.batches(put(setup, keys, exchange.pieces(batches)))

    return put_all


def put(setup: Setup, keys: Keys, files: Iterable[Piece]) -> Iterator[Piece]:
    """Puts the files, a few at once; tells key, size, checksum and rows of each."""
    waiting = iter(files)
    with asyncio.Runner() as runner:
        store = setup.open_store()
        runner.run(store.open())

        async def put_one(file: Piece) -> Piece:
            stored = await store.put(keys[file.name, file.bucket], file.payload)
            about = {"size": stored.size, "checksum": stored.checksum, "rows": file.told["rows"]}
            return Piece("put", stored.key, about=json.dumps(about))

        try:
            while some := list(islice(waiting, _PARALLEL)):
                yield from runner.run(each(put_one, some, at_once=_PARALLEL))
        finally:
            runner.run(store.close())
