"""Walks the tables of a parsed page, noting every mistake with its dotted path instead of stopping at one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from streamproc.errors import Mistake
from streamproc.quantities import Invalid, parse_duration, parse_size, show_duration, shown

T = TypeVar("T")
D = TypeVar("D")

#: Reads one raw TOML value. Raises :class:`streamproc.quantities.Invalid`.
Parse = Callable[[object], T]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def suggestion(word: str, known: Iterable[str], otherwise: str) -> str:
    """What to write instead of an unknown ``word``."""
    options = list(dict.fromkeys(known))
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return otherwise or f"Known: {', '.join(options)}"


@dataclass(slots=True)
class Mistakes:
    """The mistakes of one file so far."""

    file: str
    found: list[Mistake] = field(default_factory=list)

    def add(self, path: str, problem: str, fix: str) -> None:
        """Note a mistake at a dotted path (the file itself when empty)."""
        self.found.append(Mistake(f"{self.file}: {path}" if path else self.file, problem, fix))


class Reader:
    """One TOML table. Reading a key marks it as known; :meth:`finish` reports the keys nothing has read.

    After a mistake a reader answers with the default (or ``None``) and goes on, so that one run reports
    everything; whoever builds something from the answers has to look at the mistakes first.
    """

    def __init__(self, raw: Mapping[str, object], path: str, mistakes: Mistakes) -> None:
        self.raw = raw
        self.path = path
        self.mistakes = mistakes
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.raw

    def at(self, key: str) -> str:
        """The dotted path of a key, quoted where TOML would quote it."""
        name = key if _BARE_KEY.fullmatch(key) else '"' + key.replace('"', '\\"') + '"'
        return f"{self.path}.{name}" if self.path else name

    def mistake(self, key: str, problem: str, fix: str) -> None:
        """Note a mistake at ``key`` (the table itself when empty)."""
        self.mistakes.add(self.at(key) if key else self.path, problem, fix)

    def optional(self, key: str, parse: Parse[T], default: D) -> T | D:
        """The value of ``key``; the default when it is absent or wrong."""
        self._known.append(key)
        if key not in self.raw:
            return default
        try:
            return parse(self.raw[key])
        except Invalid as error:
            self.mistake(key, error.problem, error.fix)
            return default

    def required(self, key: str, parse: Parse[T], fix: str) -> T | None:
        """The value of ``key``; ``None`` when it is absent or wrong, which is noted."""
        if key not in self.raw:
            self._known.append(key)
            self.mistake(key, "is missing", fix)
            return None
        return self.optional(key, parse, None)

    def table(self, key: str) -> Reader:
        """The table at ``key``; an empty one when it is absent or not a table."""
        value = self.optional(key, _as_table, {})
        return Reader(value, self.at(key), self.mistakes)

    def tables(self) -> Iterator[tuple[str, Reader]]:
        """Every key of this table with the table at it; other values are noted."""
        for key in self.raw:
            value = self.optional(key, _as_table, None)
            if value is not None:
                yield key, Reader(value, self.at(key), self.mistakes)

    def array(self, key: str) -> Iterator[Reader]:
        """The tables of the array at ``key`` (``[[key]]``)."""
        for index, value in enumerate(self.optional(key, _as_array, [])):
            path = f"{self.at(key)}[{index}]"
            if isinstance(value, dict):
                yield Reader(value, path, self.mistakes)
            else:
                self.mistakes.add(
                    path, f"{shown(value)} is not a table", f"Write [[{key}]] with keys below it"
                )

    def finish(self, allowed_elsewhere: Iterable[str] = ()) -> None:
        """Note the keys that nothing has asked for."""
        known = [*self._known, *allowed_elsewhere]
        for key in self.raw:
            if key not in known:
                self.mistake(key, "is not a known key", suggestion(key, known, ""))


def _as_table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Invalid(
            f"{shown(value)} is not a table", "Write it as a table, [in.brackets] or { in = 'braces' }"
        )
    return value


def _as_array(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Invalid(f"{shown(value)} is not an array", "Write it in square brackets")
    return value


def text(value: object) -> str:
    """One line or more of text, without NUL (PostgreSQL cannot hold it)."""
    if not isinstance(value, str):
        raise Invalid(f"{shown(value)} is not text", "Write it in quotes")
    if not value.strip() or "\0" in value or len(value) > 10_000:
        raise Invalid("is empty, very long or holds a NUL", "Write 1 to 10,000 characters")
    return value


def texts(value: object) -> tuple[str, ...]:
    """An array of texts."""
    return tuple(text(item) for item in _as_array(value))


def flag(value: object) -> bool:
    """``true`` or ``false``."""
    if not isinstance(value, bool):
        raise Invalid(f"{shown(value)} is not true or false", "Write true or false, without quotes")
    return value


def whole(minimum: int, maximum: int) -> Parse[int]:
    """A whole number within bounds."""

    def parse(value: object) -> int:
        fix = f"Write a whole number from {minimum:,} to {maximum:,}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(f"{shown(value)} is not a whole number", fix)
        if not minimum <= value <= maximum:
            raise Invalid(f"{shown(value)} is out of range", fix)
        return value

    return parse


def fraction(value: object) -> float:
    """A number from 0 to 1."""
    fix = "Write a number from 0 to 1, such as 0.95"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Invalid(f"{shown(value)} is not a number", fix)
    if not 0 <= value <= 1:
        raise Invalid(f"{shown(value)} is out of range", fix)
    return float(value)


def one_of(options: Iterable[str], what: str) -> Parse[str]:
    """One of some words."""
    words = list(options)

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            fix = suggestion(str(value), words, f"Write one of {', '.join(words)}")
            raise Invalid(f"{shown(value)} is not a {what}", fix)
        return value

    return parse


def duration(minimum: int, maximum: int) -> Parse[int]:
    """A duration within bounds, all in microseconds."""

    def parse(value: object) -> int:
        microseconds = parse_duration(value)
        if not minimum <= microseconds <= maximum:
            bounds = f"{show_duration(minimum)} to {show_duration(maximum)}"
            raise Invalid(f"{shown(value)} is out of range", f"Write a duration from {bounds}")
        return microseconds

    return parse


def duration_or_forever(minimum: int, maximum: int) -> Parse[int | None]:
    """A duration within bounds, or ``"forever"``, which is ``None``."""
    bounded = duration(minimum, maximum)
    return lambda value: None if value == "forever" else bounded(value)


def size(minimum: int, maximum: int) -> Parse[int]:
    """A number of bytes within bounds."""

    def parse(value: object) -> int:
        amount = parse_size(value)
        if not minimum <= amount <= maximum:
            raise Invalid(f"{shown(value)} is out of range", f"Write {minimum:,} to {maximum:,} bytes")
        return amount

    return parse
