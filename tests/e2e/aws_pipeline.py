"""The classic pipeline on local servers: ``make demo-aws``, or ``python -m tests.e2e.aws_pipeline``.

Web logs lie in S3. Spark aggregates them into PostgreSQL, as EMR would into RDS, and writes the lake. The Lambda
function filters and enriches the same lines as Firehose would send them. The loader COPYs the lake into the warehouse
through the Data API. QuickSight gets data sets and a dashboard. At each station the lines are added up, and all sums
are compared with plain counting of the log lines, which uses nothing of the service.

S3 is moto's server, PostgreSQL is PostgreSQL, Spark is Spark (Java 17); the Data API and QuickSight are the stand-ins
of :mod:`tests.support`, whose docstrings say where they differ from the real ones.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import psycopg
import structlog
from moto.server import ThreadedMotoServer

from benchmarks.logs import written
from streamproc.embedded.postgres import start_postgres
from streamproc.runtimes.aws_lambda.function import Function
from streamproc.settings import read_settings
from streamproc.topic_pages import load_page
from tests.e2e.harness import REPOSITORY, Site
from tests.e2e.log_totals import plain_counting, site_of
from tests.emr.comparing import answer, spark
from tests.runtimes.lambda_events import Context, firehose_event
from tests.sinks.warehouses import data_api_url
from tests.support.quicksight_stub import ACCOUNT, QuickSightStub
from tests.support.redshift_data_api import FakeDataApi
from tests.support.redshift_dialect import Engine

#: Firehose sends a function 500 records at most: it buffers 1 MiB by default, and these lines are short.
_FIREHOSE = 500

_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Sums:
    """What one station has: requests by status, method and kind; lines dropped by filter and refused; visitors.

    ``None`` where a station does not know: the tables count visitors by sketches, the warehouse has the accepted
    lines only.
    """

    traffic: Counter[tuple[int, str, str]]
    visitors: int | None
    filtered: int | None = None
    rejected: int | None = None

    @property
    def accepted(self) -> int:
        return self.traffic.total()


@dataclass
class Pipeline:
    """The servers, and a site whose settings point at them."""

    site: Site
    s3: Any
    quicksight: QuickSightStub
    redshift: str

    def _command(self, *arguments: str) -> None:
        done = self.site.run(*arguments, check=False, patience=300)
        assert done.returncode == 0, f"streamproc {' '.join(arguments)}: {done.stdout}{done.stderr}"

    def upload(self, lines: Sequence[bytes], objects: int = 7) -> str:
        """The lines as gzip objects; their place."""
        self.s3.create_bucket(Bucket="weblogs")
        for number in range(objects):
            body = gzip.compress(b"\n".join(lines[number::objects]) + b"\n", mtime=0)
            self.s3.put_object(Bucket="weblogs", Key=f"site/{number}.log.gz", Body=body)
        return "s3://weblogs/site/"

    def aggregate(self, place: str) -> Sums:
        """Spark: tables into PostgreSQL, events into the lake."""
        told = answer(spark(self.site, place, PYTHONPATH=str(REPOSITORY)))
        with psycopg.connect(self.site.ledger) as db:
            rows = db.execute(
                "SELECT status::int, method, event_type, sum(requests)::int FROM weblogs.traffic GROUP BY 1, 2, 3"
            ).fetchall()
        counts = told["counts"]
        traffic = Counter({tuple(key): number for *key, number in rows})
        return Sums(traffic, None, counts["filtered"], counts["rejected"])

    def transform(self, lines: Sequence[bytes]) -> Sums:
        """The Lambda function, called as Firehose calls it."""
        environment = {
            name: value for name, value in self.site.environment().items() if name.startswith("STREAMPROC_")
        }
        page = load_page(self.site.topics / "weblogs.toml")
        function = Function(read_settings(environ=environment), page, self.site.topics)
        results: Counter[str] = Counter()
        traffic: Counter[tuple[int, str, str]] = Counter()
        visitors: set[str] = set()
        try:
            for first in range(0, len(lines), _FIREHOSE):
                event = firehose_event(lines[first : first + _FIREHOSE], int(time.time() * 1000))
                replied = function(event, Context())
                assert replied is not None
                assert [each["recordId"] for each in replied["records"]] == [
                    each["recordId"] for each in event["records"]
                ]
                for record in replied["records"]:
                    results[record["result"]] += 1
                    if record["result"] == "Ok":
                        row = json.loads(base64.b64decode(record["data"]))
                        traffic[row["status"], row["method"], row["event_type"]] += 1
                        visitors.add(row["visitor_id"])
        finally:
            function.close()
        return Sums(traffic, len(visitors), results["Dropped"], results["ProcessingFailed"])

    def load(self) -> Sums:
        """The loader, through the Data API; twice, which must load nothing more."""
        self._command("warehouse", "init")
        self._command("warehouse", "load")
        first = self._loaded()
        self._command("warehouse", "load")
        assert self._loaded() == first, "loaded again"
        return first

    def _loaded(self) -> Sums:
        with psycopg.connect(self.redshift) as db:
            rows = db.execute(
                "SELECT status::int, method, event_type, count(*)::int FROM warehouse.weblogs GROUP BY 1, 2, 3"
            ).fetchall()
            row = db.execute("SELECT count(DISTINCT visitor_id) FROM warehouse.weblogs").fetchone()
        assert row is not None
        return Sums(Counter({tuple(key): number for *key, number in rows}), row[0])

    def publish(self) -> tuple[int, int]:
        """Data sets and the dashboard; how many data sets and sheets QuickSight has then."""
        self._command("quicksight", "publish", "--yes")
        [versions] = self.quicksight.dashboards.values()
        newest = versions[-1]
        return len(self.quicksight.data_sets), len(newest["asked"]["Definition"]["Sheets"])


@contextmanager
def pipeline(directory: Path) -> Iterator[Pipeline]:
    """Everything started, and stopped again."""
    with ExitStack() as stack:
        # The function and the stand-ins run in this process, and read Amazon's own variables like the commands do.
        stack.enter_context(mock.patch.dict(os.environ, _CREDENTIALS))
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's: a line per request otherwise
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        stack.callback(moto.stop)
        host, port = moto.get_host_and_port()
        s3_url = f"http://{host}:{port}"
        stack.enter_context(mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": s3_url}))
        # Short: a Unix socket's path may have 107 characters.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamproc-"))
        postgres = stack.enter_context(start_postgres(Path(sockets) / "postgres", durable=False))
        with psycopg.connect(postgres.url, autocommit=True) as db:
            db.execute("CREATE DATABASE redshift")
        redshift = postgres.database_url("redshift")
        api = FakeDataApi(Engine(redshift, s3_url))
        stack.callback(api.close)
        quicksight = stack.enter_context(QuickSightStub((host, port)))
        owner = f"arn:aws:quicksight:us-east-1:{ACCOUNT}:user/default/owner"
        secret = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:tables-AbCdEf"
        site = site_of(
            directory,
            postgres.url,
            "s3://weblogs/site/",
            **_CREDENTIALS,
            AWS_ENDPOINT_URL=s3_url,
            AWS_ENDPOINT_URL_REDSHIFT_DATA=api.url,
            STREAMPROC_LAKE="s3://lake/events",
            STREAMPROC_WAREHOUSE=data_api_url(region="us-east-1"),
            STREAMPROC_QUICKSIGHT_ENDPOINT_URL=quicksight.url,
            STREAMPROC_QUICKSIGHT_SUMMARIES="aurora-postgresql://tables.internal:5432/streamproc",
            STREAMPROC_QUICKSIGHT_SUMMARIES_SECRET=secret,
            STREAMPROC_QUICKSIGHT_OWNERS=owner,
        )
        s3 = boto3.client(
            "s3",
            endpoint_url=s3_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        stack.callback(s3.close)
        s3.create_bucket(Bucket="lake")
        yield Pipeline(site, s3, quicksight, redshift)


def expected(pipe: Pipeline, lines: Sequence[bytes]) -> Sums:
    """By plain counting."""
    with psycopg.connect(pipe.site.ledger) as db:
        [(key,)] = db.execute("SELECT value FROM streamproc.keys WHERE name = 'visitors'").fetchall()
    totals = plain_counting(list(lines), bytes(key))
    return Sums(totals.traffic, len(totals.visitors), totals.filtered, totals.rejected)


def run(directory: Path, lines: Sequence[bytes], tell: Callable[[str], None]) -> dict[str, Sums]:
    """All stations, in order; what each has. Raises ``AssertionError`` when they do not agree."""
    begun = time.monotonic()

    def say(text: str) -> None:
        tell(f"{time.monotonic() - begun:5.1f} s  {text}")

    with pipeline(directory) as pipe:
        say("servers are up: S3, PostgreSQL, the Data API, QuickSight")
        place = pipe.upload(lines)
        say(f"{len(lines):,} lines in 7 objects of {place}")
        found = {"EMR -> RDS": pipe.aggregate(place)}
        say("Spark has read them, with tables in PostgreSQL and Parquet in the lake")
        counted = expected(pipe, lines)
        found["Firehose -> Lambda"] = pipe.transform(lines)
        say("the Lambda function has answered Firehose's batches")
        found["lake -> Redshift"] = pipe.load()
        say("the loader has copied the lake into the warehouse")
        data_sets, sheets = pipe.publish()
        tables = len(load_page(pipe.site.topics / "weblogs.toml").tables)
        assert data_sets >= tables, f"{data_sets} data sets for {tables} tables"
        say(f"QuickSight has {data_sets} data sets, and a dashboard with {sheets} sheets")
    for station, sums in found.items():
        for name in ("traffic", "visitors", "filtered", "rejected"):
            mine, plain = getattr(sums, name), getattr(counted, name)
            assert mine is None or mine == plain, f"{station}: {name} is {mine}, counting says {plain}"
    return {"plain counting": counted, **found}


def main() -> None:
    """Print what each station has."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.aws_pipeline", description=__doc__)
    parser.add_argument(
        "--input", type=Path, help="combined-format log, gzip or plain [default: invented lines]"
    )
    parser.add_argument("--mib", type=int, default=2, help="invented lines, this much")
    options = parser.parse_args()
    for program in ("java", "spark-submit"):
        if shutil.which(program) is None and not Path(sys.executable).with_name(program).exists():
            sys.exit(f"{program} is not there: Java 17 or newer runs Spark, and make demo-aws installs Spark")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    lines = read(options.input) if options.input else list(written(options.mib * 2**20, seed=7))
    with tempfile.TemporaryDirectory(prefix="streamproc-demo-aws-") as folder:
        found = run(
            Path(folder), [line.rstrip(b"\n") for line in lines], lambda text: print(text, flush=True)
        )
    print(f"\n{'':20}{'lines':>10}{'accepted':>10}{'filtered':>10}{'refused':>10}{'visitors':>10}")
    for station, sums in found.items():
        known = [sums.filtered, sums.rejected]
        total = sums.accepted + sum(known) if None not in known else None  # type: ignore[arg-type]  # see the condition
        cells = [total, sums.accepted, *known, sums.visitors]
        print(f"{station:20}" + "".join(f"{'' if cell is None else f'{cell:,}':>10}" for cell in cells))
    print("\nThe requests by status, method and kind are the same at every station.")


def read(path: Path) -> list[bytes]:
    """The lines of a log."""
    body = path.read_bytes()
    return (gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body).splitlines()


if __name__ == "__main__":
    main()
