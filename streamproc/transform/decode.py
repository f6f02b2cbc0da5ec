"""Raw records to typed columns: the first step of the transform.

Every record becomes one row of :attr:`Decoded.frame` or one of :attr:`Decoded.rejects`, never both, never
neither, and which of them depends on that record alone. Bad data does not raise.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import polars as pl

from streamproc.model import SYSTEM_COLUMNS, RecordBatch
from streamproc.topology import Contract
from streamproc.transform.decode_batch import Batch
from streamproc.transform.decode_fields import FieldChecks
from streamproc.transform.decode_json import JsonParser
from streamproc.transform.decode_rejects import Problem, Reason, reject_frame
from streamproc.transform.weblog import LineParser


@dataclass(frozen=True, slots=True)
class Decoded:
    """Both frames are in input order.

    ``frame``: the contract's columns, ``event_time``, :data:`~streamproc.model.SYSTEM_COLUMNS`.
    ``rejects``: :data:`~streamproc.model.REJECT_SCHEMA`.
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame


def decode(batches: Sequence[RecordBatch], contract: Contract) -> Decoded:
    """Decode some record batches by a contract.

    ``event_time`` takes the place of a contract field of that name, and stands behind the fields otherwise.
    Raises ValueError for a contract that reads two types from one key; a loaded topic page has none.
    """
    values = list(itertools.chain.from_iterable(batch.values for batch in batches))
    records = _records(batches, values)
    decoded = _decoder(contract).decode(values, records)
    lost = records.height - decoded.frame.height - decoded.rejects.height
    if lost:
        raise AssertionError(f"decoding lost {lost} of {records.height} records")
    return decoded


class Parser(Protocol):
    """One format of records."""

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The contract's columns for the records it leaves in the batch; the others it drops."""


_PARSERS: Mapping[str, Callable[[Contract], Parser]] = {"json": JsonParser, "combined": LineParser}


@functools.lru_cache(maxsize=64)
def _decoder(contract: Contract) -> _Decoder:
    return _Decoder(contract)


class _Decoder:
    """A contract's parser and checks, compiled."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._parser: Parser = _PARSERS[contract.decoder](contract)
        self._checks = FieldChecks(contract)

    def decode(self, values: Sequence[bytes | None], records: pl.DataFrame) -> Decoded:
        """``records``: the system columns and ``original``, which is ``values``."""
        problems = self._unreadable(records["original"])
        readable = _without(problems, records.height)
        original = records["original"].gather(readable) if problems else records["original"]
        # What is left has a value: tombstones are among the problems.
        present = cast(list[bytes], [values[row] for row in readable.to_list()] if problems else list(values))
        batch = Batch(present, original)
        columns = self._parser.parse(batch)
        kept = readable.gather(batch.rows)
        problems |= {readable[row]: problem for row, problem in batch.problems.items()}

        system = records.select(*SYSTEM_COLUMNS)
        if problems:
            system = system[kept]
        nul = batch.has(b"\\u0000") or b"\0" in batch.lines
        columns, broken = self._checks.apply(columns, system["received_at"], nul)
        frame = columns.hstack(system)
        if broken:
            frame = frame[_without(broken, frame.height)]
            problems |= {kept[row]: problem for row, problem in broken.items()}
        return Decoded(frame, reject_frame(records, problems))

    def _unreadable(self, original: pl.Series) -> dict[int, Problem]:
        """Records not to be looked into at all."""
        limit = self._contract.max_record_bytes
        tombstone = Problem(Reason.TOMBSTONE, None, "the record has no value")
        found = dict.fromkeys(original.is_null().arg_true(), tombstone)
        sizes = original.bin.size()
        for row in (sizes > limit).arg_true():
            found[row] = Problem(Reason.TOO_LARGE, None, f"{sizes[row]} bytes, {limit} are allowed")
        return found


def _without(rows: Collection[int], height: int) -> pl.Series:
    """The other row numbers, ascending."""
    numbers = pl.int_range(height, dtype=pl.UInt32, eager=True)
    return numbers.filter(~numbers.is_in(list(rows))) if rows else numbers


def _records(batches: Sequence[RecordBatch], values: Sequence[bytes | None]) -> pl.DataFrame:
    """The system columns and ``original``, one row per record."""
    sizes = [len(batch) for batch in batches]
    per_batch = pl.DataFrame(
        {
            "source_partition": pl.Series([b.partition.id for b in batches], dtype=pl.String),
            "received_at": pl.Series([b.received_ms * 1000 for b in batches], dtype=pl.Int64),
        }
    ).with_columns(pl.col("received_at").cast(SYSTEM_COLUMNS["received_at"]))
    batch_of = pl.Series(
        list(itertools.chain.from_iterable(map(itertools.repeat, range(len(sizes)), sizes))), dtype=pl.UInt32
    )
    positions = list(itertools.chain.from_iterable(batch.positions for batch in batches))
    return per_batch[batch_of].select(
        "source_partition",
        pl.Series("position", positions, dtype=pl.Int64),
        "received_at",
        pl.Series("original", values, dtype=pl.Binary),
    )
