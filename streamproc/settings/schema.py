"""Every setting: name, type, parser, default, meaning. A test compares ``docs/settings.md`` with it."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from streamproc.redaction import Secret, Url
from streamproc.settings import parse
from streamproc.settings.parse import Bind

PREFIX = "STREAMPROC_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, declared beside its field.

    ``default`` is written as a user would write it; ``None``: not set unless the user sets it.
    ``computed`` says in words where the default comes from when it depends on other settings.
    ``secret``: may hold a password, so it can also be read from the file that ``<VARIABLE>_FILE`` names.
    """

    parse: parse.Parse
    default: str | None
    meaning: str
    computed: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """How to talk to ``kafka://`` brokers; the names are those of Kafka's own clients."""

    security_protocol: Annotated[
        str,
        Setting(
            parse.one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
            "PLAINTEXT",
            "Encryption and authentication of brokers: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`",
        ),
    ]
    ca_file: Annotated[
        Path | None,
        Setting(
            parse.existing_file,
            None,
            "PEM file of the authorities that sign the broker's certificate",
            computed="the system's",
        ),
    ]
    cert_file: Annotated[
        Path | None, Setting(parse.existing_file, None, "PEM file of this client's certificate (mutual TLS)")
    ]
    key_file: Annotated[Path | None, Setting(parse.existing_file, None, "PEM file of its key, not encrypted")]
    sasl_mechanism: Annotated[
        str | None,
        Setting(
            parse.one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "AWS_MSK_IAM"),
            None,
            "`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `AWS_MSK_IAM` (credentials as AWS tools find them)",
        ),
    ]
    username: Annotated[str | None, Setting(parse.text, None, "SASL user")]
    password: Annotated[Secret | None, Setting(parse.secret, None, "SASL password", secret=True)]
    aws_region: Annotated[str | None, Setting(parse.identifier, None, "Region of the MSK cluster")]
    session_timeout: Annotated[
        float,
        Setting(
            parse.duration("6s", "5m"),
            "15s",
            "A worker whose heartbeats stay away this long loses its partitions to the others",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinesis:
    """How to read ``kinesis://`` streams. Credentials come from the usual AWS places."""

    endpoint_url: Annotated[
        str | None,
        Setting(parse.web_address, None, "Another server that speaks Kinesis", computed="Amazon's"),
    ]
    start_timestamp: Annotated[
        int | None,
        Setting(
            parse.moment,
            None,
            "Where a stream that was never read begins, instead of `start`: the first record that arrived at "
            "this time or later, like `2026-07-01T13:00:00Z`",
        ),
    ]
    lease_timeout: Annotated[
        float,
        Setting(
            parse.duration("1s", "5m"),
            "10s",
            "A worker that is not heard of this long loses its shards to the others",
        ),
    ]
    poll_interval: Annotated[
        float,
        Setting(
            parse.duration("200ms", "1m"),
            "500ms",
            "Time between two reads of a shard that has nothing new; all its readers together have five a second",
        ),
    ]
    fan_out: Annotated[
        str | None,
        Setting(
            parse.identifier,
            None,
            "Name of the consumer to register and read by (enhanced fan-out, which Amazon charges for); shards are "
            "polled where that is not possible",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """How to read logs, when `broker` is a bucket or a folder."""

    queue: Annotated[
        str | None,
        Setting(
            parse.web_address,
            None,
            "URL of the SQS queue that gets the bucket's notifications (S3's own or EventBridge's)",
        ),
    ]
    list_every: Annotated[
        float | None,
        Setting(
            parse.duration("100ms", "1d"),
            None,
            "Time between two listings, which find what no notification told of",
            computed="`5m` for a bucket, `1s` for a folder",
        ),
    ]
    lease_timeout: Annotated[
        float,
        Setting(
            parse.duration("1s", "5m"),
            "30s",
            "A worker that is not heard of this long loses the logs it reads to the others",
        ),
    ]
    max_ratio: Annotated[
        int,
        Setting(
            parse.count(10, 1_000_000),
            "250",
            "A log that unpacks to more than this many times its size (and 64 MiB) is not read on",
        ),
    ]
    max_size: Annotated[
        int,
        Setting(
            parse.size(1024, 2**50),
            "64GiB",
            "A packed log that unpacks to more bytes than this is not read on",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """How to talk to S3. Credentials come from the usual AWS places (environment, profile, role)."""

    endpoint_url: Annotated[
        str | None, Setting(parse.web_address, None, "Another server that speaks S3", computed="Amazon's")
    ]
    region: Annotated[
        str | None,
        Setting(parse.identifier, None, "Region of the lake's bucket", computed="the AWS profile's"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What the service says on stderr."""

    format: Annotated[
        str,
        Setting(
            parse.one_of("auto", "json", "console"),
            "auto",
            "`json` lines, readable `console` lines, or `auto`: console on a terminal, else JSON",
        ),
    ]
    level: Annotated[
        str,
        Setting(parse.one_of("debug", "info", "warning", "error"), "info", "Least severe messages to show"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, checked. Durations are seconds, sizes bytes. Prints without secrets.

    ``lake``, ``warehouse`` and ``worker`` have their computed defaults filled in.
    """

    broker: Annotated[
        Url,
        Setting(
            parse.broker,
            "embedded:",
            "Where records come from: `embedded:`, `kafka://host:port,…`, `kinesis://region`, or logs in "
            "`s3://bucket/prefix` or `file:///folder`",
        ),
    ]
    ledger: Annotated[
        Url,
        Setting(
            parse.postgres,
            "embedded:",
            "PostgreSQL of ledger and summaries: `embedded:` or `postgresql://user:password@host:port/database`",
            secret=True,
        ),
    ]
    lake: Annotated[
        Url,
        Setting(
            parse.lake,
            None,
            "Where Parquet goes: `file:///folder` or `s3://bucket/prefix`",
            computed="`lake` in `data_dir`",
        ),
    ]
    warehouse: Annotated[
        Url,
        Setting(
            parse.warehouse,
            None,
            "`none`, `embedded:` (a schema beside the ledger), `postgresql://…`, or a Redshift: `redshift-data://…`, "
            "`redshift://…` ([Redshift](redshift.md))",
            computed="`embedded:` with an embedded ledger, else `none`",
            secret=True,
        ),
    ]
    data_dir: Annotated[
        Path, Setting(parse.path, "./streamproc-data", "Folder of everything embedded: database, lake")
    ]
    topics: Annotated[
        Path | None,
        Setting(
            parse.path,
            None,
            "Folder of topic pages",
            computed="`./topics`, else the pages that ship with streamproc",
        ),
    ]
    group: Annotated[
        str, Setting(parse.identifier, "streamproc", "Consumer group; the stream's name is added to it")
    ]
    worker: Annotated[
        str,
        Setting(
            parse.identifier,
            None,
            "This worker's name in claims and logs",
            computed="host name and process id",
        ),
    ]
    start: Annotated[
        str,
        Setting(
            parse.one_of("earliest", "latest"),
            "earliest",
            "Where a partition that was never committed begins: `earliest` or `latest`",
        ),
    ]
    flush_interval: Annotated[
        float,
        Setting(
            parse.duration("100ms", "1h"),
            "5s",
            "Longest time between two commits of a worker that keeps up; five times as long while it does not",
        ),
    ]
    max_epoch_records: Annotated[
        int,
        Setting(parse.count(1, 100_000_000), "600000", "Commit earlier when this many records are waiting"),
    ]
    max_epoch_bytes: Annotated[
        int,
        Setting(
            parse.size(1024, 2**36), "384MiB", "Commit earlier when this many bytes of records are waiting"
        ),
    ]
    batch_records: Annotated[
        int,
        Setting(
            parse.count(1, 1_000_000),
            "25000",
            "About how many records go through the transform at once when that many are waiting",
        ),
    ]
    drain_deadline: Annotated[
        float,
        Setting(
            parse.duration("0s", "1h"),
            "30s",
            "Time to finish the open epoch after SIGTERM; nothing is lost when it passes",
        ),
    ]
    health: Annotated[
        Bind,
        Setting(
            parse.bind,
            "127.0.0.1:8080",
            "Address of health checks and metrics: `host:port`, port 0 for any free one",
        ),
    ]
    kafka: Kafka
    kinesis: Kinesis
    logs: Logs
    s3: S3
    log: Log


def declared(section: type = Settings, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every setting's dotted key and declaration, in the order in which they are documented."""
    hints = typing.get_type_hints(section, include_extras=True)
    for field in fields(section):
        hint = hints[field.name]
        if typing.get_origin(hint) is Annotated:
            yield prefix + field.name, hint.__metadata__[0]
        else:
            yield from declared(hint, f"{prefix}{field.name}.")


def variable(key: str) -> str:
    """The environment variable of a setting: ``kafka.username`` → ``STREAMPROC_KAFKA_USERNAME``."""
    return PREFIX + key.upper().replace(".", "_")
