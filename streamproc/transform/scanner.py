"""Plain JSON records to columns in compiled code, where that is there.

A record is *plain* when it can be judged without knowing any rule of the contract but names and types: nearly all
are. The others, doubtful ones and bad ones alike, are left to :mod:`streamproc.transform.decode_json`, which takes
any record and gives the same columns for a plain one; tests compare the two on whatever hypothesis comes up with.

A record of the shipped page costs 0.3 µs here, and 2.6 µs there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl

from streamproc import native
from streamproc.packed import Packed
from streamproc.topology import Contract, FieldType
from streamproc.transform.decode_layout import Node, layout_of

#: ``enum kind`` of ``native/records.h``.
_KINDS = {
    FieldType.STRING: 0,
    FieldType.INTEGER: 1,
    FieldType.NUMBER: 2,
    FieldType.BOOLEAN: 3,
    FieldType.JSON: 4,
}
_OBJECT = 5

_Member = tuple[bytes, int, tuple[Any, ...]]


class Scanned(NamedTuple):
    """``columns``: the contract's, of the plain records, in order. ``doubtful``: rows of the others, ascending."""

    columns: pl.DataFrame
    doubtful: list[int]


class Scanner:
    """The scan of one contract. Keeps nothing between calls; several threads may call it at once.

    Raises ValueError for a contract that reads two types from one key.
    """

    def __init__(self, contract: Contract, compiled: Any) -> None:
        layout = layout_of(contract)
        self._plan = compiled.Plan(_members(layout.root))
        self._most_bytes = contract.max_record_bytes
        leaves = [node for node in layout.nodes if not node.children]
        by_field = {field.name: number for number, node in enumerate(leaves) for field in node.fields}
        #: The plan's columns stand in reading order, the contract's in its own; two fields may read one key.
        self._columns = [(field.name, by_field[field.name]) for field in contract.fields]

    def scan(self, values: Sequence[Packed]) -> Scanned | None:
        """Read all records of ``values``; ``None`` when they are more than 2 GiB together."""
        try:
            marks, columns = self._plan.scan(
                [(part.payload, part.spans) for part in values], self._most_bytes
            )
        except OverflowError:
            return None
        found = [pl.Series(column) for column in columns]
        frame = pl.DataFrame([found[number].alias(name) for name, number in self._columns])
        return Scanned(frame, list(_marked(marks)))


def scanner_of(contract: Contract) -> Scanner | None:
    """``None`` for a decoder or a contract that it cannot serve, and where there is no compiled code."""
    if native.records is None or contract.decoder != "json":
        return None
    if any(node.children and node.fields for node in layout_of(contract).nodes):
        return None  # an object that is kept as text and read as well
    return Scanner(contract, native.records)


def _members(node: Node) -> tuple[_Member, ...]:
    return tuple(
        (key.encode(), _OBJECT if child.children else _KINDS[child.fields[0].type], _members(child))
        for key, child in node.children.items()
    )


def _marked(marks: bytes) -> Iterator[int]:
    """Where there is a 1: hardly anywhere, so it is searched for."""
    at = marks.find(1)
    while at >= 0:
        yield at
        at = marks.find(1, at + 1)
