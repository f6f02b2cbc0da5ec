"""Put records into a topic from a process of its own: ``python -m streamproc.runtimes.feed`` (for the demo).

Writes one JSON object a second to stdout, ``{"produced": n}``, and a last one with ``"done": true``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from streamproc.generator import Generator
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.log_store import LogConnection
from streamproc.sources.opening import Connection, producer

#: Records handed to the producer at a time.
_CHUNK = 2_000

Keyed = tuple[bytes | None, bytes | None]


def lines(path: Path, limit: int | None) -> Iterator[list[Keyed]]:
    """The lines of a file as records without a key, in chunks. ``.gz`` files are unpacked."""
    import gzip  # noqa: PLC0415 - only for this kind of input

    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        chunk: list[Keyed] = []
        for number, line in enumerate(file):
            if limit is not None and number >= limit:
                break
            chunk.append((None, line.rstrip(b"\r\n")))
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


async def feed(
    connection: Connection, topic: str, chunks: Iterator[Sequence[Keyed]], rate: float | None
) -> int:
    """Produce everything; ``rate`` in records a second, ``None`` as fast as possible. Returns how many."""
    produced = 0
    begin = told = time.monotonic()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with producer(connection) as out:
        for chunk in chunks:
            if stop.is_set():
                break
            await out.send(topic, [value for _, value in chunk], [key for key, _ in chunk])
            produced += len(chunk)
            now = time.monotonic()
            if rate is not None and (ahead := produced / rate - (now - begin)) > 0:
                await out.flush()
                await asyncio.sleep(ahead)
            if now - told >= 1:
                await out.flush()
                say(produced=produced)
                told = now
        await out.flush()
    return produced


def say(**facts: object) -> None:
    """One line of JSON for the parent."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def arguments(connection: Connection) -> list[str]:
    """The options that name this broker to a feeder: an embedded Kafka, or Kinesis."""
    assert not isinstance(connection, LogConnection), "opening a producer refuses logs before this"
    if isinstance(connection, KafkaConnection):
        return ["--bootstrap", connection.bootstrap]
    endpoint = [] if connection.endpoint_url is None else ["--endpoint-url", connection.endpoint_url]
    return ["--region", connection.region, *endpoint]


def main() -> None:
    """Read the options and feed."""
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--bootstrap", help="of an embedded broker")
    where.add_argument("--region", help="of Kinesis")
    parser.add_argument("--endpoint-url", help="another server that speaks Kinesis")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bad-ratio", type=float, default=0.0)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--live", action="store_true", help="event times begin now and advance with --rate")
    options = parser.parse_args()
    chunks: Iterator[Sequence[Keyed]]
    if options.input is not None:
        chunks = lines(options.input, options.events)
    else:
        times = {"start": datetime.now(UTC), "rate": options.rate} if options.live else {}
        generator = Generator(
            seed=options.seed, events=options.events or 10**12, bad_ratio=options.bad_ratio, **times
        )
        chunks = generator.batches(min(_CHUNK, max(1, int((options.rate or 1e9) / 10))))
    connection: Connection
    if options.region is not None:
        connection = KinesisConnection(options.region, options.endpoint_url)
    else:
        connection = KafkaConnection(options.bootstrap, embedded=True)
    done = asyncio.run(feed(connection, options.topic, chunks, options.rate))
    say(produced=done, done=True)


if __name__ == "__main__":
    main()
