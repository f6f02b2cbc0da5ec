"""CPU seconds per million events of each stage of the shipped page, one stage at a time, in one process.

    make bench-stages [ARGS="--events N --rate EVENTS_PER_SECOND_OF_EVENT_TIME --bad-ratio R"]

Generated events; polars' own threads are counted. ``commit`` is the merge of the tables in PostgreSQL:
client and server process apart. Prints medians over the epochs of 200,000 events after the first, which
warms the caches.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import struct
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import psutil
import psycopg
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from rich.console import Console
from rich.table import Table

from streamproc.embedded.postgres import start_postgres
from streamproc.epoch import FOLD_AT
from streamproc.generator import Generator
from streamproc.model import REJECT_SCHEMA, Claim, Partition, RecordBatch, Transformed
from streamproc.progress import PartitionProgress, RecentIds
from streamproc.sinks.lake import encode, lake_schema
from streamproc.sinks.summaries import Summaries
from streamproc.sources.kafka_fetch import Fetched, KeptRecords, stored_batches
from streamproc.sources.kafka_partition import PartitionReader
from streamproc.tables.fold import TableFold
from streamproc.tables.hyperloglog import with_coupons
from streamproc.topic_pages import load_page
from streamproc.transform import Resources, Transform
from streamproc.transform.decode import decode

_PAGE = Path(__file__).parents[1] / "topics" / "clickstream.toml"
_EPOCH = 200_000
_FOLD = 25_000
_KAFKA_BATCH = 2_000
_PARTITION = Partition("clicks", "0")
#: The broker's clock: after all events, so that none is from the future.
_RECEIVED_MS = 1_950_000_000_000


class Stages:
    """CPU seconds by stage, of the epoch under way and of those before."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.epochs[-1][stage] += time.process_time() - begin


def fetched(values: list[bytes], base: int) -> Fetched:
    """A fetch's answer: the values in lz4 record batches as a producer sends them, from offset ``base`` on."""
    stored = bytearray()
    for start in range(0, len(values), _KAFKA_BATCH):
        builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=3, is_transactional=False, producer_id=-1, producer_epoch=-1,
            base_sequence=-1, batch_size=2**30,
        )  # fmt: skip
        for offset, value in enumerate(values[start : start + _KAFKA_BATCH]):
            builder.append(offset, _RECEIVED_MS, b"visitor", value, [])
        batch = builder.build()
        struct.pack_into(">q", batch, 0, base + start)  # what a broker writes into it
        stored += batch
    records = KeptRecords(bytes(stored))
    return Fetched(deque(stored_batches(records)), [], records.size_in_bytes())


async def measure(events: int, rate: int, bad_ratio: float) -> Stages:
    """Run every stage over every epoch."""
    stages = Stages()
    page = load_page(_PAGE)
    transform = Transform(page, Resources({}, _PAGE.parent))
    folds = {table.name: TableFold(table) for table in page.tables}
    hashed = {column for fold in folds.values() for column in fold.hashed}
    progress = PartitionProgress(Claim(_PARTITION, 1, "", None, None), None, None, RecentIds(600_000_000))
    generator = Generator(seed=3, events=events, rate=rate, bad_ratio=bad_ratio).batches(_EPOCH)
    with (
        tempfile.TemporaryDirectory(prefix="streamproc-stages-") as folder,
        start_postgres(Path(folder)) as postgres,
    ):
        connection = await psycopg.AsyncConnection.connect(postgres.url, autocommit=True)
        server = psutil.Process(connection.info.backend_pid)
        summaries = Summaries(page.tables, page.name)
        await summaries.ensure(connection)
        reader = PartitionReader(_PARTITION, -1, compacted=False)
        for epoch in generator:
            stages.epochs.append(defaultdict(float))
            values = [value for _, value in epoch if value is not None]
            reader.add(fetched(values, reader.after + 1))
            kept, refused, unfolded, partials = [], [], [], {name: [] for name in folds}
            while reader.queued_bytes:
                batches: list[RecordBatch] = []
                with stages.measure("fetch (check, decompress, walk)"):
                    while sum(map(len, batches)) < _FOLD and (batch := reader.next()) is not None:
                        batches.append(batch)
                with stages.measure("decode"):
                    decode(batches, page.contract)
                with stages.measure("decode, enrich, filter"):
                    out: Transformed = transform(batches)
                with stages.measure("duplicates, watermark"):
                    rows, _ = progress.accept(out.events, "event_id", page.contract.event_time.disorder)
                unfolded.append(rows)
                if sum(map(len, unfolded)) >= FOLD_AT or not reader.queued_bytes:
                    with stages.measure("fold"):
                        together, unfolded = with_coupons(pl.concat(unfolded), hashed), []
                        for name, fold in folds.items():
                            partials[name].append(fold.partial(together)[0])
                kept.append(rows.drop("watermark"))
                if len(out.rejects):
                    refused.append(out.rejects)
            with stages.measure("fold"):
                deltas = {name: fold.seal(fold.merge(partials[name])) for name, fold in folds.items()}
            with stages.measure("Parquet"):
                encode(pl.concat(kept), lake_schema(page.columns))
                if refused:
                    encode(pl.concat(refused), REJECT_SCHEMA)
            before = sum(server.cpu_times()[:2])
            with stages.measure("commit (client)"):
                await connection.execute("BEGIN")
                await summaries.apply(connection, deltas)
                await connection.execute("COMMIT")
            stages.epochs[-1]["commit (PostgreSQL)"] = sum(server.cpu_times()[:2]) - before
        await connection.close()
    return stages


def medians(stages: Stages) -> dict[str, float]:
    """CPU seconds per million events by stage, over the epochs after the first."""
    warm = stages.epochs[1:] or stages.epochs
    per_million = {
        stage: statistics.median(epoch[stage] for epoch in warm) / _EPOCH * 1e6 for stage in warm[0]
    }
    # The transform decodes as well: what it takes beyond that is enriching and filtering.
    per_million["enrich, filter"] = per_million.pop("decode, enrich, filter") - per_million["decode"]
    return per_million


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--bad-ratio", type=float, default=0.0, help="share of broken records")
    options = parser.parse_args()
    stages = asyncio.run(measure(options.events, options.rate, options.bad_ratio))
    table = Table(
        "stage",
        "CPU s per million events",
        title=f"{options.rate} events a second of event time, {options.bad_ratio:.0%} broken",
    )
    total = 0.0
    for stage, per_million in medians(stages).items():
        total += per_million
        table.add_row(stage, f"{per_million:.2f}")
    table.add_row("sum", f"{total:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
