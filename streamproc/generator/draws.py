"""Weighted draws that give the same answer everywhere.

Only integer arithmetic and ``Random.getrandbits``, whose sequence Python guarantees: logarithms and the like
may differ in the last bit between C libraries, and with it the bytes of a whole stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Generic, TypeVar

Item = TypeVar("Item")

_SLOTS = 4096


class Weighted(Generic[Item]):
    """Draws items in proportion to integer weights, each at least once in 4,096: one table look-up a draw."""

    def __init__(self, items: Sequence[Item], weights: Sequence[int]) -> None:
        total = sum(weights)
        self._slots: list[Item] = []
        for item, weight in zip(items, weights, strict=True):
            self._slots.extend([item] * max(1, weight * _SLOTS // total))
        self._count = len(self._slots)

    def draw(self, random: Random) -> Item:
        """One of the items."""
        return self._slots[random.getrandbits(24) % self._count]


def popular_first(items: Sequence[Item]) -> Weighted[Item]:
    """Zipf's law: the n-th item is drawn in proportion to 1/n."""
    return Weighted(items, [1_000_000 // rank for rank in range(1, len(items) + 1)])


def pick(random: Random, items: Sequence[Item]) -> Item:
    """Any of the items, all alike."""
    return items[random.getrandbits(24) % len(items)]


def chance(random: Random, percent: int) -> bool:
    """True in so many of a hundred draws."""
    return random.getrandbits(24) % 100 < percent
