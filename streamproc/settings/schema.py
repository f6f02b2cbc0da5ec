"""Every setting: name, type, parser, default, meaning. A test compares ``docs/settings.md`` with it."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from streamproc.redaction import Secret, Url
from streamproc.settings import parse
from streamproc.settings.dashboard import Dashboard
from streamproc.settings.function import Function
from streamproc.settings.parse import Bind
from streamproc.settings.quicksight import QuickSight
from streamproc.settings.setting import Setting
from streamproc.settings.sources import Kafka, Kinesis, Logs

PREFIX = "STREAMPROC_"


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
            "Where a topic that was never read begins: `earliest` or `latest`, decided once",
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
    sweep: Annotated[
        str,
        Setting(
            parse.one_of("on", "off"),
            "on",
            "Whether workers delete the lake's abandoned objects; `off` where `streamproc lake sweep` does and "
            "workers may not delete",
        ),
    ]
    compact_every: Annotated[
        float,
        Setting(
            parse.duration("1s", "7d"),
            "10m",
            "How often workers look for small objects to merge, where the topic page says `sinks.compact`",
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
    api_token: Annotated[
        Secret | None,
        Setting(
            parse.secret,
            None,
            "What `/api/v1/tables` and `/api/v1/events` ask for (`Authorization: Bearer …`); without it they "
            "answer only on an address that no other machine reaches",
            secret=True,
        ),
    ]
    traces: Annotated[
        str | None,
        Setting(
            parse.web_address,
            None,
            "OpenTelemetry collector that gets a trace of each epoch, by OTLP over HTTP (extra `otel`)",
            computed="`OTEL_EXPORTER_OTLP_ENDPOINT`, else no traces",
        ),
    ]
    kafka: Kafka
    kinesis: Kinesis
    logs: Logs
    s3: S3
    function: Function
    quicksight: QuickSight
    dashboard: Dashboard
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
