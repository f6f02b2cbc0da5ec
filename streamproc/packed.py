"""Values of records as they lie side by side in one payload, without an object for each."""

from __future__ import annotations

import itertools
import operator
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import overload


class Packed(Sequence[bytes | None]):
    """A sequence of values that makes ``bytes`` of the ones that are asked for.

    ``spans``: int32 pairs, where each value starts in ``payload`` and how long it is; -1 is a null. ``size``: bytes of
    all values.
    """

    __slots__ = ("payload", "size", "spans")

    def __init__(self, payload: bytes, spans: memoryview[int], size: int | None = None) -> None:
        self.payload = payload
        self.spans = spans
        lengths = spans[1::2].tolist() if size is None else []
        self.size = sum(lengths) + lengths.count(-1) if size is None else size

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Packed:
        """The same values, side by side; copies them unless they are that already."""
        if isinstance(values, Packed):
            return values
        payload = b"".join(filter(None, values))
        lengths = [-1 if value is None else len(value) for value in values]
        starts = itertools.accumulate((max(length, 0) for length in lengths), initial=0)
        pairs = zip(starts, lengths, strict=False)  # one start more than there are values
        return cls(payload, memoryview(array("i", itertools.chain.from_iterable(pairs))), len(payload))

    def __len__(self) -> int:
        return len(self.spans) // 2

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> Packed: ...
    def __getitem__(self, index: int | slice) -> bytes | Packed | None:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("packed values are cut in one piece")
            return Packed(self.payload, self.spans[2 * start : 2 * max(start, stop)])
        if not -len(self) <= index < len(self):
            raise IndexError(f"value {index} of {len(self)}")
        place = 2 * (index % len(self))
        start, length = self.spans[place], self.spans[place + 1]
        return None if length < 0 else self.payload[start : start + length]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packed | list | tuple):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it compares by value and holds what can change


class Records(Sequence[bytes | None]):
    """The values of some record batches, one after the other."""

    def __init__(self, parts: Sequence[Sequence[bytes | None]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(itertools.accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes | None]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes | None] | None:
        if isinstance(index, slice):
            return self.values[index]
        number = bisect_right(self._ends, index)
        return self._parts[number][index - self._ends[number]]

    @property
    def values(self) -> list[bytes | None]:
        """An object for each."""
        return list(itertools.chain.from_iterable(self._parts))

    @property
    def packed(self) -> list[Packed]:
        """The same without objects, by record batch; copies those that had objects."""
        return list(map(Packed.of, self._parts))
