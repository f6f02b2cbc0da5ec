"""What is in a stream, read with Amazon's client and nothing of ours: the oracle of what has to come out."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import boto3

_MAGIC = bytes([0xF3, 0x89, 0x9A, 0xC2])


class Read(NamedTuple):
    """One user record. ``timestamp``: Unix milliseconds of its arrival."""

    value: bytes
    timestamp: float


def read_stream(url: str, stream: str, region: str = "us-east-1") -> dict[tuple[str, int], Read]:
    """Every user record, by its shard and its number there from 0."""
    client = boto3.client("kinesis", endpoint_url=url, region_name=region)
    found: dict[tuple[str, int], Read] = {}
    for shard in client.list_shards(StreamName=stream)["Shards"]:
        name, keys = shard["ShardId"], shard["HashKeyRange"]
        iterator = client.get_shard_iterator(
            StreamName=stream, ShardId=name, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        number = 0
        while iterator:
            answer = client.get_records(ShardIterator=iterator)
            for record in answer["Records"]:
                at = record["ApproximateArrivalTimestamp"].timestamp() * 1000
                for value in unpacked(
                    record["Data"], int(keys["StartingHashKey"]), int(keys["EndingHashKey"])
                ):
                    found[name, number] = Read(value, at)
                    number += 1
            iterator = answer.get("NextShardIterator")
            if not answer["Records"] and answer["MillisBehindLatest"] == 0:
                break
    client.close()
    return found


def unpacked(data: bytes, first: int, last: int) -> list[bytes]:
    """The records packed in one, those whose keys are from ``first`` to ``last``."""
    if data[:4] != _MAGIC or hashlib.md5(data[4:-16]).digest() != data[-16:]:
        return [data]
    message = _message(data[4:-16])
    keys = [int(hashlib.md5(key).hexdigest(), 16) for key in message.get(1, [])]
    records = [_message(record) for record in message.get(3, [])]
    return [record[3][0] for record in records if first <= keys[record[1][0]] <= last]


def _message(data: bytes) -> dict[int, list[Any]]:
    """A protobuf message's fields by number."""
    fields: dict[int, list[Any]] = {}
    rest = data
    while rest:
        tag, rest = _number(rest)
        value: Any
        value, rest = _number(rest)
        if tag % 8 == 2:
            value, rest = rest[:value], rest[value:]
        fields.setdefault(tag // 8, []).append(value)
    return fields


def _number(data: bytes) -> tuple[int, bytes]:
    value = 0
    for place, byte in enumerate(data):
        value += (byte % 128) * 128**place
        if byte < 128:
            return value, data[place + 1 :]
    raise ValueError("cut off")
