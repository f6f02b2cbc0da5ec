"""Raw records to typed columns: the first step of the transform.

Every record becomes one row of :attr:`Decoded.frame` or one of :attr:`Decoded.rejects`, never both, never
neither, and which of them depends on that record alone. Bad data does not raise.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import polars as pl

from streamproc.model import SYSTEM_COLUMNS, RecordBatch
from streamproc.packed import Records
from streamproc.topology import Contract
from streamproc.transform.decode_batch import Batch
from streamproc.transform.decode_fields import FieldChecks
from streamproc.transform.decode_json import JsonParser
from streamproc.transform.decode_rejects import Problem, Reason, reject_frame
from streamproc.transform.scanner import scanner_of
from streamproc.transform.weblog_formats import PARSERS as LOG_PARSERS


@dataclass(frozen=True, slots=True)
class Decoded:
    """Both frames are in input order.

    ``frame``: the contract's columns, ``event_time``, :data:`~streamproc.model.SYSTEM_COLUMNS`.
    ``rejects``: :data:`~streamproc.model.REJECT_SCHEMA`.
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame


def decode(batches: Sequence[RecordBatch], contract: Contract, visitor_key: bytes = b"") -> Decoded:
    """Decode some record batches by a contract.

    ``visitor_key``: under which the visitors of web logs get their ids; other decoders have no use for it.
    ``event_time`` takes the place of a contract field of that name, and stands behind the fields otherwise.
    Raises ValueError for a contract that reads two types from one key; a loaded topic page has none.
    """
    records = Records([batch.values for batch in batches])
    decoded = _decoder(contract, visitor_key).decode(records, _system_columns(batches), _damaged(batches))
    lost = len(records) - decoded.frame.height - decoded.rejects.height
    if lost:
        raise AssertionError(f"decoding lost {lost} of {len(records)} records")
    return decoded


class Parser(Protocol):
    """One format of records."""

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The contract's columns for the records it leaves in the batch; the others it drops."""


_PARSERS: Mapping[str, Callable[[Contract, bytes], Parser]] = {
    "json": lambda contract, _: JsonParser(contract),
    **LOG_PARSERS,
}


@functools.lru_cache(maxsize=64)
def _decoder(contract: Contract, visitor_key: bytes) -> _Decoder:
    return _Decoder(contract, visitor_key)


class _Read(NamedTuple):
    """What was read of some records: the contract's columns, and the row of each among all records, ascending.

    ``problems``: of those that are in no row of ``columns``, by row among all records. ``escaped_nul``: which of the
    columns' rows may hold a NUL, ``None`` for none.
    """

    columns: pl.DataFrame
    rows: pl.Series
    problems: dict[int, Problem]
    escaped_nul: pl.Series | None


class _Decoder:
    """A contract's scanner, parser and checks, compiled."""

    def __init__(self, contract: Contract, visitor_key: bytes) -> None:
        self._contract = contract
        self._scanner = scanner_of(contract)
        self._parser: Parser = _PARSERS[contract.decoder](contract, visitor_key)
        self._checks = FieldChecks(contract)

    def decode(self, records: Records, system: pl.DataFrame, damaged: Mapping[int, Problem]) -> Decoded:
        """``system``: the system columns of the records; ``damaged``: those that are bad whatever they hold."""
        read = self._read(records, damaged)
        received = system["received_at"]
        if len(read.rows) < len(received):
            received = received.gather(read.rows)
        columns, broken = self._checks.apply(read.columns, received, read.escaped_nul)
        problems = read.problems | {read.rows[row]: problem for row, problem in broken.items()}
        frame = _leave_out(columns, broken).hstack(_leave_out(system, problems))
        return Decoded(frame, reject_frame(system, records, problems))

    def _read(self, records: Records, damaged: Mapping[int, Problem]) -> _Read:
        scanned = None if self._scanner is None or damaged else self._scanner.scan(records.packed)
        if scanned is None:
            return self._parse(records.values, damaged)
        plain = _Read(scanned.columns, _row_numbers(len(records)), {}, None)
        if not scanned.doubtful:
            return plain
        rows = plain.rows.filter(_others(scanned.doubtful, len(records)))
        doubtful = self._parse([records[row] for row in scanned.doubtful], {})
        return _merged(plain._replace(rows=rows), _among_all(doubtful, scanned.doubtful))

    def _parse(self, values: Sequence[bytes | None], damaged: Mapping[int, Problem]) -> _Read:
        """Read records by the parser. Rows are numbered among ``values``."""
        original = pl.Series("original", values, dtype=pl.Binary)
        problems = {**self._unreadable(original), **damaged}
        if problems:
            readable = _others(problems, len(original))
            batch = Batch(values, original.filter(readable), readable.arg_true())
        else:
            batch = Batch(values, original)
        columns = self._parser.parse(batch)
        return _Read(columns, batch.rows, problems | batch.problems, batch.holding(b"\\u0000"))

    def _unreadable(self, original: pl.Series) -> dict[int, Problem]:
        """Records not to be looked into at all."""
        limit = self._contract.max_record_bytes
        tombstone = Problem(Reason.TOMBSTONE, None, "the record has no value")
        found = dict.fromkeys(original.is_null().arg_true(), tombstone)
        sizes = original.bin.size()
        for row in (sizes > limit).arg_true():
            found[row] = Problem(Reason.TOO_LARGE, None, f"{sizes[row]} bytes, {limit} are allowed")
        return found


def _among_all(read: _Read, rows: Sequence[int]) -> _Read:
    """The same, numbered among all records. ``rows``: where each of those that were read stands there."""
    problems = {rows[place]: problem for place, problem in read.problems.items()}
    return read._replace(rows=pl.Series(rows, dtype=pl.UInt32).gather(read.rows), problems=problems)


def _merged(plain: _Read, doubtful: _Read) -> _Read:
    """Both in the order of the records. ``plain`` has no problems, and no escapes."""
    rows = plain.rows.append(doubtful.rows)
    order = rows.arg_sort()
    escaped = doubtful.escaped_nul
    if escaped is not None:
        escaped = pl.repeat(False, plain.columns.height, dtype=pl.Boolean, eager=True).append(escaped)[order]
    columns = pl.concat([plain.columns, doubtful.columns])
    return _Read(columns[order], rows[order], doubtful.problems, escaped)


_REASONS = {str(reason): reason for reason in Reason}


def _damaged(batches: Sequence[RecordBatch]) -> dict[int, Problem]:
    """The records at which a source broke off."""
    if not any(batch.damage for batch in batches):
        return {}
    ends = itertools.accumulate(len(batch) for batch in batches)
    return {
        end - 1: Problem(_REASONS[batch.damage.reason], None, batch.damage.detail)
        for batch, end in zip(batches, ends, strict=True)
        if batch.damage is not None
    }


def _leave_out(frame: pl.DataFrame, rows: Collection[int]) -> pl.DataFrame:
    # Filtered: to gather nearly all rows takes ten times as long.
    return frame.filter(_others(rows, frame.height)) if rows else frame


def _others(rows: Collection[int], height: int) -> pl.Series:
    """The mask of the rows that are not among these."""
    return pl.repeat(True, height, dtype=pl.Boolean, eager=True).scatter(list(rows), False)


def _row_numbers(count: int) -> pl.Series:
    return pl.int_range(count, dtype=pl.UInt32, eager=True)


#: The latest that a record can have been received, Unix milliseconds: 1 January 9999, for which every time zone has a
#: date. Producers may write any number as a record's timestamp, nanoseconds for one; Kafka takes it before version 4.
_LATEST_MS = 253_370_764_800_000


def _system_columns(batches: Sequence[RecordBatch]) -> pl.DataFrame:
    """The system columns, one row per record."""
    filled = [batch for batch in batches if len(batch)]
    if not filled:
        return pl.DataFrame(schema=SYSTEM_COLUMNS)
    sizes = pl.Series([len(batch) for batch in filled], dtype=pl.UInt32)
    per_batch = pl.DataFrame(
        {
            "source_partition": pl.Series([b.partition.id for b in filled], dtype=pl.String),
            "received_at": pl.Series([min(b.received_ms, _LATEST_MS) * 1000 for b in filled], dtype=pl.Int64),
        }
    ).with_columns(pl.col("received_at").cast(SYSTEM_COLUMNS["received_at"]))
    batch_of = pl.select(pl.int_range(len(filled), dtype=pl.UInt32).repeat_by(sizes).explode()).to_series()
    positions = pl.concat([_positions(batch.positions) for batch in filled], rechunk=True)
    return per_batch[batch_of].select(
        "source_partition",
        positions.alias("position"),
        "received_at",
        _origins(filled, len(positions)).alias("redriven_from"),
    )


def _positions(positions: Sequence[int]) -> pl.Series:
    if isinstance(positions, range):
        return pl.int_range(positions.start, positions.stop, positions.step, eager=True)
    return pl.Series(positions, dtype=pl.Int64)


def _origins(batches: Sequence[RecordBatch], count: int) -> pl.Series:
    """Of which reject each record is the copy; hardly ever any is."""
    if not any(batch.redriven for batch in batches):
        return pl.repeat(None, count, dtype=pl.Int64, eager=True)
    found = (batch.redriven.get(position) for batch in batches for position in batch.positions)
    return pl.Series(found, dtype=pl.Int64)
