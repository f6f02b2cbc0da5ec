"""What a cold start of the Lambda function costs: loading the code, the first batch of each kind, and the next ones.

Each round is a fresh process, as a new instance is, which loads the handler, then answers three events of new records:
of Firehose, which needs no server, or of Kafka, with PostgreSQL and a lake in a folder beside it.
Times are seconds on the clock and of CPU; a function's share of a processor follows its memory (1,769 MB are a whole
one). ``--zip FOLDER`` measures the unpacked zip of ``make lambda-zip`` in a bare interpreter, else this checkout.

Run it as a module of the project: ``.venv/bin/python -m benchmarks.lambda_cold_start [--rounds N] [--zip FOLDER]``.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from streamproc.embedded.postgres import start_postgres
from streamproc.generator import Generator

ROOT = Path(__file__).resolve().parents[1]
RECORDS = 500
STEPS = ("load", "first", "second", "third")

_PROGRAM = """if True:
    import json, sys, time
    marks = [(time.perf_counter(), time.process_time())]
    if sys.argv[1]:
        sys.path.insert(0, sys.argv[1])
    from streamproc.runtimes.aws_lambda.entry import handler
    marks.append((time.perf_counter(), time.process_time()))

    class Context:
        def get_remaining_time_in_millis(self):
            return 300_000

    for line in sys.stdin:
        event = json.loads(line)
        begin = (time.perf_counter(), time.process_time())
        handler(event, Context())
        marks.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    load = (marks[1][0] - marks[0][0], marks[1][1])  # CPU of the interpreter's own start is in it
    print(json.dumps([load, *marks[2:]]))
"""


def events(trigger: str) -> Iterator[str]:
    """Three events with records of the shipped page."""
    records = [record.value or b"" for record in Generator(seed=1, events=3 * RECORDS).records()]
    for first in range(0, len(records), RECORDS):
        some = [(n, base64.b64encode(records[n]).decode()) for n in range(first, first + RECORDS)]
        if trigger == "firehose":
            made: dict[str, object] = {
                "deliveryStreamArn": "arn:aws:firehose:us-east-1:123456789012:deliverystream/clickstream",
                "records": [{"recordId": str(n), "data": data} for n, data in some],
            }
        else:
            rows = [
                {
                    "topic": "clickstream",
                    "partition": 0,
                    "offset": n,
                    "timestamp": 1_760_000_000_000,
                    "value": data,
                }
                for n, data in some
            ]
            made = {"eventSource": "aws:kafka", "records": {"clickstream-0": rows}}
        yield json.dumps(made)


def measure(trigger: str, folder: Path | None, ledger: str, lake: Path) -> list[tuple[float, float]]:
    """One fresh process: seconds and CPU seconds of each step."""
    options = [] if folder is None else ["-I", "-S", "-B"]
    done = subprocess.run(
        [sys.executable, *options, "-c", _PROGRAM, "" if folder is None else str(folder)],
        input="\n".join(events(trigger)),
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")},
            "STREAMPROC_FUNCTION_STREAM": "clickstream",
            "STREAMPROC_LEDGER": ledger,
            "STREAMPROC_LAKE": lake.as_uri(),
            "STREAMPROC_LOG_LEVEL": "warning",
        },
        cwd=ROOT if folder is None else folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return [(seconds, cpu) for seconds, cpu in json.loads(done.stdout)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the function's cold start in fresh processes.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--zip", type=Path, help="folder of an unpacked zip, else this checkout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, start_postgres(Path(directory) / "postgres") as server:
        rounds: dict[str, list[list[tuple[float, float]]]] = {"firehose": [], "kafka": []}
        for number in range(options.rounds):
            for trigger, measured in rounds.items():
                name = f"{trigger}_{number}"
                with psycopg.connect(server.url, autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {name}".encode())
                lake = Path(directory) / "lakes" / name
                measured.append(measure(trigger, options.zip, server.database_url(name), lake))
    for trigger, measured in rounds.items():
        print(f"{trigger}, {RECORDS} records an event, medians of {options.rounds} processes")
        for number, step in enumerate(STEPS):
            seconds, cpu = (statistics.median(one[number][kind] for one in measured) for kind in (0, 1))
            slowest = max(one[number][0] for one in measured)
            print(f"  {step:8} {seconds:6.2f} s ({slowest:.2f} at most), {cpu:5.2f} s CPU")


if __name__ == "__main__":
    main()
