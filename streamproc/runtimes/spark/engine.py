"""The job's side of Spark: three stages over the same rows. The only module that imports pyspark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyspark import StorageLevel
from pyspark.sql import SparkSession

from streamproc.runtimes.spark import exchange
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.lake_reading import LakeWork
from streamproc.runtimes.spark.putting import Keys, putter
from streamproc.runtimes.spark.reading import LogWork, reader
from streamproc.runtimes.spark.setup import Setup
from streamproc.runtimes.spark.uniting import uniter

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: A row can have a payload of megabytes; Spark hands rows on in batches of ten thousand unless told otherwise.
_ROWS_A_BATCH = "8"


@contextmanager
def session(name: str) -> Iterator[Engine]:
    """Spark as ``spark-submit`` has set it up, until the block ends."""
    spark = (
        SparkSession.builder.appName(name)
        # A task has one core: more threads than that would only take turns.
        .config("spark.executorEnv.POLARS_MAX_THREADS", "1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", _ROWS_A_BATCH)
        # The driver takes a commit's rows together, and the epoch's size bounds them: Spark's own bound, 1 GiB of
        # what all tasks give, would end the job at the same date each time.
        .config("spark.driver.maxResultSize", "0")
        .getOrCreate()
    )
    try:
        yield Engine(spark)
    finally:
        spark.stop()


class Engine:
    """Runs the stages. Every method waits for Spark, and raises what it raises."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    @property
    def slots(self) -> int:
        """Tasks that can run at once."""
        return int(self._spark.sparkContext.defaultParallelism)

    def cancel(self) -> None:
        """Cancel what is under way."""
        self._spark.sparkContext.cancelAllJobs()

    def read(self, setup: Setup, tasks: Sequence[Sequence[LogWork | LakeWork]]) -> Stage:
        """Read logs or the lake, each sequence in one task. Nothing happens before the stage is asked."""
        rows = [[(work.as_json(),) for work in works] for works in tasks]
        context = self._spark.sparkContext
        spread = context.parallelize(rows, len(rows)).flatMap(list)
        frame = self._spark.createDataFrame(spread, "work string").mapInArrow(reader(setup), exchange.SCHEMA)
        # On disk: everything behind it reads it again. A lost part is read again from its logs.
        return Stage(setup, frame.persist(StorageLevel.DISK_ONLY), len(rows))


class Stage:
    """What the executors have read, and keep. ``tasks``: how many there were for it."""

    def __init__(self, setup: Setup, frame: DataFrame, tasks: int) -> None:
        self._setup = setup
        self._frame = frame
        self._tasks = tasks

    def told(self) -> list[Piece]:
        """Everything but the payloads: what became of the logs, which files there are to be."""
        rows = self._frame.select("kind", "name", "bucket", "about")
        return [Piece(*row) for row in rows.where("kind NOT IN ('rows', 'events')").collect()]

    def united(self) -> list[Piece]:
        """The tables' deltas, one for each bucket."""
        tables = self._frame.where("kind IN ('rows', 'events')")
        # A task can take several buckets: what few have read is not worth many more.
        spread = tables.repartition(min(self._setup.buckets, self._tasks), "name", "bucket")
        return _collected(spread.mapInArrow(uniter(self._setup), exchange.SCHEMA))

    def put(self, keys: Keys) -> list[Piece]:
        """Puts the files."""
        files = self._frame.where("kind = 'file'")
        return _collected(files.mapInArrow(putter(self._setup, keys), exchange.SCHEMA))

    def close(self) -> None:
        """Let the executors forget it."""
        self._frame.unpersist()


def _collected(frame: Any) -> list[Piece]:
    return [
        Piece(kind, name, bucket, about, bytes(payload))
        for kind, name, bucket, about, payload in frame.collect()
    ]
