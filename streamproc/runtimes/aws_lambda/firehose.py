"""Firehose's transformation: each record Ok with the enriched event, Dropped, or ProcessingFailed.

No ledger and no state: the pure transform, as ``streamproc transform``. What is asked and answered:
https://docs.aws.amazon.com/firehose/latest/dev/data-transformation-status-model.html and
https://docs.aws.amazon.com/firehose/latest/dev/dynamic-partitioning-partitioning-keys.html
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import polars as pl
import structlog

from streamproc.errors import ConfigError, Mistake
from streamproc.model import Partition, RecordBatch
from streamproc.sinks.lake import lake_schema
from streamproc.topology import Topology
from streamproc.transform import Transform

log = structlog.get_logger(__name__)

#: Bytes of an answer that Lambda takes, https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
ANSWER_LIMIT = 6 * 1024 * 1024

#: How times are written: as ``streamproc transform`` does, or for the JSON readers of Firehose's Parquet
#: conversion, which know https://docs.aws.amazon.com/firehose/latest/dev/enable-record-format-conversion.html
_TIMES = {"json": "%Y-%m-%dT%H:%M:%S%.6fZ", "parquet": "%Y-%m-%d %H:%M:%S%.6f"}

#: Of the hour that an event is of, as in the lake: see :mod:`streamproc.sinks.lake`.
_OF_TIME = {"date": "%Y-%m-%d", "hour": "%H"}

#: What Hive, and so Athena, calls a partition of rows without a value.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

#: Columns that say where a record stood, which nobody can go back to.
_COORDINATES = {"source_partition", "position", "redriven_from"}

#: Longer values are cut: a key of S3 has 1,024 bytes for all of them.
_LONGEST_KEY = 100

#: A record that fills the answer beyond the limit; the reasons of rejects are in :mod:`streamproc.transform`.
_FULL = "answer_full"


@dataclass(frozen=True, slots=True)
class Output:
    """How events are handed on. ``times``: ``json`` or ``parquet``; ``partition_keys``: ``date``, ``hour``, columns."""

    times: str = "json"
    partition_keys: tuple[str, ...] = ()


class Firehose:
    """Answers Firehose's events. Raises :class:`ConfigError` for a partition key that is no column."""

    def __init__(self, transform: Transform, output: Output) -> None:
        self._transform = transform
        self._output = output
        check_keys(transform.topology, output.partition_keys)
        #: What Parquet's conversion is told of a column by the table in Glue: the lake's types.
        columns = lake_schema(transform.topology.columns)
        self._schema = {name: dtype for name, dtype in columns.items() if name not in _COORDINATES}

    def __call__(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The answer: every record's id once, in the order of the event.

        Raises what the transform raises: then Firehose asks again, and delivers the records as failed at last.
        """
        records = event["records"]
        batches = list(_batches(records))
        out = self._transform(batches)
        answers: list[dict[str, Any]] = [
            {"recordId": record["recordId"], "result": "Dropped"} for record in records
        ]
        reasons: dict[str, int] = {}
        for position, reason in out.rejects.select("position", "reason").iter_rows():
            answers[position]["result"] = "ProcessingFailed"
            reasons[reason] = reasons.get(reason, 0) + 1
        for position in out.events["position"]:  # until there is room for it
            answers[position]["result"] = "ProcessingFailed"
        room = ANSWER_LIMIT - _length({"records": answers})
        for position, line, keys in self._lines(out.events):
            name = "kafkaRecordValue" if "kafkaRecordValue" in records[position] else "data"
            full = answers[position] | {"result": "Ok", name: base64.b64encode(line).decode()}
            if keys:
                full["metadata"] = {"partitionKeys": keys}
            cost = _length(full) - _length(answers[position])
            if cost > room:
                reasons[_FULL] = reasons.get(_FULL, 0) + 1
            else:
                room -= cost
                answers[position] = full
        log.info("firehose_transformed", records=len(records), accepted=out.events.height, failed=reasons)
        return {"records": answers}

    def _lines(self, events: pl.DataFrame) -> Iterator[tuple[int, bytes, dict[str, str]]]:
        """Position, JSON line and partition keys of each event."""
        if events.is_empty():
            return
        keys = self._keys(events)
        written = events.select(pl.col(name).cast(dtype) for name, dtype in self._schema.items())
        times = [name for name, dtype in written.schema.items() if isinstance(dtype, pl.Datetime)]
        text = written.with_columns(pl.col(times).dt.strftime(_TIMES[self._output.times])).write_ndjson()
        lines = text.encode().split(b"\n")[:-1]
        for position, line, key in zip(events["position"].to_list(), lines, keys, strict=True):
            yield position, line + b"\n", key

    def _keys(self, events: pl.DataFrame) -> Sequence[dict[str, str]]:
        """The partition keys of each event. Raw values never reach a key of S3: they are quoted as Hive does."""
        names = self._output.partition_keys
        if not names:
            return [{}] * events.height
        columns = {
            name: events["event_time"].dt.strftime(_OF_TIME[name])
            if name in _OF_TIME
            else events[name].cast(pl.String)
            for name in names
        }
        return [
            {name: _quoted(value) for name, value in row.items()}
            for row in pl.DataFrame(columns).iter_rows(named=True)
        ]


def check_keys(page: Topology, names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless each is ``date``, ``hour`` or a column of single values."""
    unknown = [name for name in names if name not in _OF_TIME and not _single(page.columns.get(name))]
    if unknown:
        problem = f"names {', '.join(unknown)}, of which the page {page.name!r} has no values to partition by"
        raise ConfigError([Mistake("function.partition_keys", problem, "Name date, hour or columns")])


def _single(dtype: pl.DataType | None) -> bool:
    return dtype is not None and not dtype.is_nested()


def _quoted(value: str | None) -> str:
    if not value:
        return _NO_VALUE
    value = value[:_LONGEST_KEY]
    while len(quoted := quote(value, safe="")) > _LONGEST_KEY:
        value = value[:-1]
    return quoted


def _batches(records: Sequence[Mapping[str, Any]]) -> Iterator[RecordBatch]:
    """The records with their places in the event as positions.

    Those that follow each other and arrived in the same second share a batch, by a rule of the record alone: an
    event asked twice gets the same answer. Data that is no base64 is an empty record, and so a reject.
    """
    now = time.time_ns() // 1_000_000
    arrived = [_ceil(record.get("approximateArrivalTimestamp") or now) for record in records]
    borders = [0, *(n for n in range(1, len(records)) if arrived[n] != arrived[n - 1]), len(records)]
    for first, after in pairwise(borders):
        values = [_value(record) for record in records[first:after]]
        if values:
            yield RecordBatch(
                Partition("firehose", "firehose"),
                first - 1,
                after - 1,
                values,
                range(first, after),
                received_ms=arrived[first],
                size=sum(map(len, values)),
            )


def _length(answer: object) -> int:
    """Bytes of it as Lambda's runtime writes it, with a space behind each comma and colon."""
    return len(json.dumps(answer))


def _ceil(milliseconds: int) -> int:
    return -(-milliseconds // 1000) * 1000


def _value(record: Mapping[str, Any]) -> bytes:
    try:
        data = base64.b64decode(record.get("data") or record.get("kafkaRecordValue") or "", validate=True)
    except binascii.Error:
        return b""
    return data.removesuffix(b"\n")  # senders end records with it, since Firehose joins them
