"""Looks at every commit of the database while it happens, and keeps a journal for the oracle.

What is left in the end could have been painted over: a write by a worker that had lost its claim, a position
that went back and forth. This shares no code with the statements' model and none with the ledger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

Change = tuple[str, tuple[Any, ...], dict[str, Any] | None, dict[str, Any] | None]


class Move(NamedTuple):
    """A partition's position changed from ``after`` to ``through``; by an operator or by an epoch."""

    after: int | None
    through: int | None
    by_operator: bool


class Audit:
    """``wrong``: what must not be. ``moves``: by partition number, in the order of the commits."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.wrong: list[str] = []
        self.moves: dict[str, list[Move]] = defaultdict(list)
        self._owner: dict[tuple[Any, ...], str | None] = {}
        self._note = note

    def commit(self, who: str, changes: list[Change]) -> None:
        """``who``: the application name of the connection that commits."""
        moved: dict[str, tuple[int | None, int]] = {}
        ranges: dict[str, tuple[int | None, int]] = {}
        by_operator = any(table == "position_changes" for table, *_ in changes)
        for table, key, before, after in changes:
            if table == "partitions":
                self._partition(who, key, before, after, by_operator, moved)
            elif table == "objects":
                self._object(who, key[0], before, after)
            elif table == "epoch_ranges" and after is not None:
                ranges[after["partition"]] = (after["after"], after["through"])
        if not by_operator and moved != ranges:
            self.wrong.append(f"{who} moved {moved} and wrote down {ranges}")

    def _partition(
        self,
        who: str,
        key: tuple[Any, ...],
        before: dict[str, Any] | None,
        after: dict[str, Any] | None,
        by_operator: bool,
        moved: dict[str, tuple[int | None, int]],
    ) -> None:
        assert after is not None
        position = None if before is None else before["position"]
        if before is None or before["fence"] != after["fence"]:
            if after["fence"] != (0 if before is None else before["fence"]) + 1:
                self.wrong.append(f"{who}: the fence of {key[2]} jumps to {after['fence']}")
            self._owner[key] = after["owner"]
        elif before["token"] != after["token"] and after["owner"] is None:
            self._owner[key] = None
        if after["position"] != position:
            self.moves[key[2]].append(Move(position, after["position"], by_operator))
            self._note(f"{who} moves {key[2]} from {position} to {after['position']}")
            if by_operator:
                self._owner[key] = None
                return
            moved[key[2]] = (position, after["position"])
            if self._owner.get(key) != who:
                self.wrong.append(f"{who} moved {key[2]}, which belongs to {self._owner.get(key)}")
            if position is not None and after["position"] <= position:
                self.wrong.append(f"{who} moved {key[2]} back from {position} to {after['position']}")

    def _object(
        self, who: str, name: str, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> None:
        if after is None:
            self.wrong.append(f"{who} forgot {name}")
            return
        if after["state"] in ("intended", "committed"):
            owner = self._owner.get((after["stream"], after["source"], after["partition"]))
            if owner != who:
                self.wrong.append(f"{who} wrote {name} as {after['state']}, its partition belongs to {owner}")
        if before is not None and before["state"] in ("committed", "swept"):
            self.wrong.append(f"{who}: {name} was {before['state']} and became {after['state']}")
