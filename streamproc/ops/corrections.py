"""Corrected records, read from a file, and whether today's topic page would take a record."""

from __future__ import annotations

import base64
import binascii
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson

from streamproc.errors import ConfigError, Mistake
from streamproc.ledger.redrives import Coordinate
from streamproc.model import Partition, RecordBatch
from streamproc.topology import Contract
from streamproc.transform.decode import decode

#: Mistakes that are told at once; more would scroll the first away.
_TOLD = 20

_FIX = "Write lines as `streamproc rejects list --json` does, with the new record in corrected"


class Problem(NamedTuple):
    """Why a record would be rejected: ``reason`` and ``detail`` as in :data:`streamproc.model.REJECT_SCHEMA`."""

    reason: str
    detail: str


def judge(contract: Contract, partition: Partition, values: Sequence[bytes | None]) -> dict[int, Problem]:
    """Which of the values, by place, ``contract`` would reject if they came now, and why."""
    batch = RecordBatch(
        partition=partition,
        after=-1,
        through=len(values) - 1,
        values=values,
        positions=range(len(values)),
        received_ms=time.time_ns() // 1_000_000,
        size=sum(len(value) for value in values if value is not None),
    )
    refused = decode([batch], contract).rejects.select("position", "reason", "detail")
    return {place: Problem(reason, detail) for place, reason, detail in refused.iter_rows()}


def read_corrections(lines: Iterable[bytes], source: str) -> dict[Coordinate, bytes]:
    """The corrected record of each reject that a file of JSON lines names.

    A line is an object as ``rejects list --json`` writes them, or with ``partition`` and ``position`` alone,
    and has one of

    * ``corrected``: the record as text, or as a JSON value of its own;
    * ``corrected_base64``: its bytes.

    Lines with neither are passed over: they were not corrected. ``source``: of lines that do not name theirs.
    Raises :class:`ConfigError` with the mistakes of all lines.
    """
    found: dict[Coordinate, bytes] = {}
    mistakes: list[Mistake] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            read = _read(line, source)
            if read is not None and read[0] in found:
                raise ValueError(
                    f"partition {read[0].partition.id}, position {read[0].position} stands twice"
                )
        except ValueError as error:
            mistakes.append(Mistake(f"--file, line {number}", str(error), _FIX))
            continue
        if read is not None:
            found[read[0]] = read[1]
    if len(mistakes) > _TOLD:
        more = Mistake("--file", f"{len(mistakes) - _TOLD} more lines are wrong", _FIX)
        mistakes = [*itertools.islice(mistakes, _TOLD), more]
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _read(line: bytes, source: str) -> tuple[Coordinate, bytes] | None:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    if fields.get("corrected") is None and fields.get("corrected_base64") is None:
        return None
    return _coordinate(fields, source), _corrected(fields)


def _coordinate(fields: Mapping[str, object], source: str) -> Coordinate:
    partition, position = fields.get("partition"), fields.get("position")
    if not isinstance(partition, str | int) or isinstance(partition, bool):
        raise ValueError("partition is not that of a reject")
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise ValueError("position is not that of a reject")
    return Coordinate(Partition(str(fields.get("source") or source), str(partition)), position)


def _corrected(fields: Mapping[str, object]) -> bytes:
    text, encoded = fields.get("corrected"), fields.get("corrected_base64")
    if text is not None and encoded is not None:
        raise ValueError("it has both corrected and corrected_base64")
    if encoded is None:
        return text.encode() if isinstance(text, str) else orjson.dumps(text)
    try:
        return base64.b64decode(str(encoded), validate=True)
    except binascii.Error as error:
        raise ValueError(f"corrected_base64 is not base64: {error}") from error
