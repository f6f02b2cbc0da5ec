"""The settings ``kafka.*``, ``kinesis.*`` and ``logs.*``: how the places that records come from are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from streamproc.redaction import Secret
from streamproc.settings import parse
from streamproc.settings.setting import Setting


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
