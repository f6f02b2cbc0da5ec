"""Events as AWS sends them, and what a function needs around it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamproc.runtimes.aws_lambda.function import Function
from streamproc.settings import read_settings
from streamproc.topic_pages import read_page
from streamproc.topology import Topology

ACCOUNT = "123456789012"
REGION = "us-east-1"


class Context:
    """Lambda's context with so many seconds left."""

    def __init__(self, seconds: float = 300.0) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


def page(topic: str = "clicks", **changes: Any) -> Topology:
    """A small stream: events with an id, a kind and a time; robots are dropped; counts by kind and minute."""
    raw = {
        "stream": {"name": "clicks"},
        "topic": {"name": topic},
        "contract": {
            "decoder": "json",
            "fields": {
                "id": {"type": "string", "required": True, "max_length": 64},
                "kind": {"type": "string", "required": True, "max_length": 200},
                "at": {"type": "integer", "required": True},
            },
            "event_time": {"field": "at", "format": "ms", "future_skew": "10m", "disorder": "30s"},
            "duplicates": {"field": "id", "horizon": "10m"},
        },
        "filters": [{"name": "robots", "drop": "kind = 'robot'"}],
        "tables": {
            "kinds": {
                "window": {"kind": "tumbling", "size": "1m"},
                "by": ["kind"],
                "lateness": "10m",
                "measures": {"events": {"kind": "count"}},
            }
        },
        "sinks": {"warehouse": False},
        **changes,
    }
    return read_page(raw, "clicks.toml")


def click(number: int, kind: str = "view", at: int = 1_700_000_000_000) -> bytes:
    """One record of :func:`page`."""
    return json.dumps({"id": f"e{number}", "kind": kind, "at": at + number}).encode()


def function(topology: Topology, environ: Mapping[str, str], folder: Path) -> Function:
    """A function with those settings."""
    return Function(read_settings(environ=environ), topology, folder)


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def firehose_event(values: Sequence[bytes], arrived_ms: int = 1_700_000_100_000) -> dict[str, Any]:
    return {
        "invocationId": "i1",
        "deliveryStreamArn": f"arn:aws:firehose:{REGION}:{ACCOUNT}:deliverystream/clicks",
        "region": REGION,
        "records": [
            {"recordId": f"r{n}", "approximateArrivalTimestamp": arrived_ms, "data": b64(value)}
            for n, value in enumerate(values)
        ],
    }


def kinesis_event(
    stream: str, records: Sequence[tuple[str, bytes]], shard: str = "shardId-000000000000"
) -> dict[str, Any]:
    """``records``: sequence numbers and data."""
    return {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "k",
                    "sequenceNumber": sequence,
                    "data": b64(data),
                    "approximateArrivalTimestamp": 1_700_000_100.25,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"{shard}:{sequence}",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": f"arn:aws:iam::{ACCOUNT}:role/r",
                "awsRegion": REGION,
                "eventSourceARN": f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{stream}",
            }
            for sequence, data in records
        ]
    }


def kafka_event(
    topic: str,
    partitions: Mapping[int, Sequence[tuple[int, bytes | None]]],
    headers: Sequence[Mapping[str, Sequence[int]]] = (),
) -> dict[str, Any]:
    """``partitions``: offsets and values of each; ``headers``: of every record."""
    return {
        "eventSource": "aws:kafka",
        "eventSourceArn": f"arn:aws:kafka:{REGION}:{ACCOUNT}:cluster/c/0-1",
        "bootstrapServers": "b-1.example:9092",
        "records": {
            f"{topic}-{number}": [
                {
                    "topic": topic,
                    "partition": number,
                    "offset": offset,
                    "timestamp": 1_700_000_100_000,
                    "timestampType": "CREATE_TIME",
                    **({} if value is None else {"value": b64(value)}),
                    **({"headers": headers} if headers else {}),
                }
                for offset, value in records
            ]
            for number, records in partitions.items()
        },
    }


def s3_event(bucket: str, key: str, etag: str, size: int) -> dict[str, Any]:
    """What S3 sends; ``key`` as it is."""
    from urllib.parse import quote_plus

    return {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "awsRegion": REGION,
                "eventTime": "2026-05-17T10:00:00.000Z",
                "eventName": "ObjectCreated:Put",
                "s3": {
                    "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
                    "object": {
                        "key": quote_plus(key, safe="/"),
                        "size": size,
                        "eTag": etag,
                        "sequencer": "0",
                    },
                },
            }
        ]
    }


def sqs_event(bodies: Mapping[str, object]) -> dict[str, Any]:
    """Messages by id."""
    return {
        "Records": [
            {"messageId": name, "receiptHandle": "h", "body": json.dumps(body), "eventSource": "aws:sqs"}
            for name, body in bodies.items()
        ]
    }
