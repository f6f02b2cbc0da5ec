"""Durations and sizes as people write them: ``"30s"``, ``"10m"``, ``"1MiB"``."""

from __future__ import annotations

import re

#: Microseconds in each unit a duration may be written in. No months or years: they have no fixed length.
DURATION_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}

#: Bytes in each unit a size may be written in; ``MB`` is decimal and ``MiB`` binary, as IEC 80000-13 has it.
SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}

#: A century. Longer is a slip, and the sum with any event time still fits 64 bits of microseconds.
LONGEST = 36_525 * DURATION_UNITS["d"]

_QUANTITY = re.compile(r"([0-9]{1,15})\s?([A-Za-z]+)", re.ASCII)


class Invalid(ValueError):
    """A value that cannot be read. ``problem`` says what is wrong with it, ``fix`` what to write instead."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}. {fix}")
        self.problem = problem
        self.fix = fix


def shown(value: object) -> str:
    """A value as a message quotes it: strings in quotes, anything long cut, one line.

    It is for values whose place is known not to hold secrets.
    """
    text = repr(value) if isinstance(value, str | list | dict) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_duration(value: object) -> int:
    """``"500ms"``, ``"30s"``, ``"10m"``, ``"1h"``, ``"7d"`` as microseconds.

    Raises:
        Invalid: not text of that form, a number without its unit, or longer than a century.
    """
    fix = 'Write a whole number and its unit: "500ms", "30s", "10m", "1h" or "7d"'
    if isinstance(value, int) and not isinstance(value, bool):
        raise Invalid(f"{shown(value)} has no unit", fix)
    if not isinstance(value, str):
        raise Invalid(f"{shown(value)} is not a duration", fix)
    match = _QUANTITY.fullmatch(value.strip())
    if match is None or match[2] not in DURATION_UNITS:
        problem = "has no unit" if value.strip().isdigit() else "is not a duration"
        raise Invalid(f"{shown(value)} {problem}", fix)
    microseconds = int(match[1]) * DURATION_UNITS[match[2]]
    if microseconds > LONGEST:
        raise Invalid(f"{shown(value)} is longer than a century", "Write a shorter duration")
    return microseconds


def parse_size(value: object) -> int:
    """A number of bytes, or text such as ``"512KiB"`` or ``"64MiB"``, as bytes.

    Raises:
        Invalid: not a number or text of that form.
    """
    fix = 'Write a number of bytes, or text such as "512KiB" or "64MiB"'
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdigit() and len(text) <= 15:
            return int(text)
        match = _QUANTITY.fullmatch(text)
        if match is not None and match[2] in SIZE_UNITS:
            return int(match[1]) * SIZE_UNITS[match[2]]
    raise Invalid(f"{shown(value)} is not a size in bytes", fix)


def show_duration(microseconds: int) -> str:
    """The shortest way to write a duration: ``5_400_000_000`` is ``"90m"``.

    The inverse of :func:`parse_duration`. A part below a millisecond has no way to be written and is cut.
    """
    for unit, size in sorted(DURATION_UNITS.items(), key=lambda item: -item[1]):
        if microseconds % size == 0 and microseconds:
            return f"{microseconds // size}{unit}"
    return f"{microseconds // 1_000}ms" if microseconds else "0s"
