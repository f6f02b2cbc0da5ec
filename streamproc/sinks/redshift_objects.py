"""What Redshift has to be told of the lake's objects before it COPYs them: their columns, in groups."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from streamproc.concurrency import each
from streamproc.errors import Inconsistent
from streamproc.model import CommittedObject
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.redshift_statements import identifier

#: Requests to the store at once.
_PARALLEL = 8

#: Bytes fetched of an object's end. Footers of a hundred columns and a few row groups have 20 to 40 KiB.
_TAIL = 64 * 1024

#: A Parquet file ends with its footer, four bytes of that one's length, and four that say Parquet.
_TRAILER = 8
_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class SchemaGroup:
    """Objects with the same columns in the same order: what one COPY can take."""

    columns: dict[str, pl.DataType]
    objects: list[CommittedObject]

    @property
    def rows(self) -> int:
        """Rows in all of them, as the ledger says."""
        return sum(each.plan.rows for each in self.objects)


async def group_by_schema(objects: Sequence[CommittedObject], store: ObjectStore) -> list[SchemaGroup]:
    """The objects in groups, in the order of each group's first.

    Raises :class:`Inconsistent` when the store has not what the ledger says, or no Parquet.
    """
    schemas = await each(lambda committed: _schema(committed, store), objects, at_once=_PARALLEL)
    groups: list[SchemaGroup] = []
    for committed, schema in zip(objects, schemas, strict=True):
        items = list(schema.items())
        group = next((known for known in groups if list(known.columns.items()) == items), None)
        if group is None:
            groups.append(SchemaGroup(schema, [committed]))
        else:
            group.objects.append(committed)
    return groups


def manifest_keys(stream: str) -> Iterator[str]:
    """Keys for manifests, each of them new."""
    token = secrets.token_hex(16)
    number = 0
    while True:
        yield f"manifests/{stream}/{token}-{number}.json"
        number += 1


async def _schema(committed: CommittedObject, store: ObjectStore) -> dict[str, pl.DataType]:
    key = committed.plan.key
    found = await store.head(key)
    if found is None:
        raise Inconsistent(f"{key}: not in the store, {committed.size} bytes in the ledger")
    if found.size != committed.size:
        raise Inconsistent(f"{key}: {found.size} bytes in the store, {committed.size} in the ledger")
    tail = await store.tail(key, _TAIL)
    if len(tail) < _TRAILER or tail[-4:] != _MAGIC:
        raise Inconsistent(f"{key}: not a Parquet file")
    needed = int.from_bytes(tail[-8:-4], "little") + _TRAILER
    if len(tail) < needed <= found.size:
        tail = await store.tail(key, needed)
    try:
        # Only the footer is read, from the end; the four bytes in front make it a file.
        schema = await asyncio.to_thread(pl.read_parquet_schema, _MAGIC + tail)
    except pl.exceptions.PolarsError as error:
        raise Inconsistent(f"{key}: not a Parquet file: {' '.join(str(error).split())}") from error
    for name in schema:
        try:
            identifier(name)
        except ValueError as error:
            raise Inconsistent(f"{key}: a column is {error}") from error
    return dict(schema)
