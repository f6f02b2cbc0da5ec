"""The headers by which a redriven record says which reject it is a copy of.

Names that no producer's own headers are likely to have. Whoever may write to the topic may write them too:
they are believed where they name an earlier position of the partition they stand in, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamproc.model import Partition

#: What the names of all of them begin with.
PREFIX = "streamproc.redrive."
_POSITION = f"{PREFIX}position"


def origin_headers(partition: Partition, position: int, reason: str) -> list[tuple[str, bytes]]:
    """Headers for the copy of the reject at these coordinates."""
    return [
        (f"{PREFIX}source", partition.source.encode()),
        (f"{PREFIX}partition", partition.id.encode()),
        (_POSITION, str(position).encode()),
        (f"{PREFIX}reason", reason.encode()),
    ]


def origin_of(headers: Sequence[tuple[str, bytes | None]], partition: Partition, position: int) -> int | None:
    """The position of the reject of which the record at ``position`` is the copy; ``None`` if it is not one."""
    found = {name: value for name, value in headers if name.startswith(PREFIX)}
    text = found.get(_POSITION) or b""
    if not text.isdigit() or len(text) > len(str(2**63 - 1)):
        return None
    there = (found.get(f"{PREFIX}source"), found.get(f"{PREFIX}partition"))
    origin = int(text)
    mine = (partition.source.encode(), partition.id.encode())
    return origin if there == mine and origin < position else None
