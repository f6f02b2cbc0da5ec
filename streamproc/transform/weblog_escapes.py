"""Escapes in the texts of logs, undone: the servers' backslashes, and percent signs."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

import polars as pl

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_CONTROLS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"v": b"\v", b"f": b"\f"}


def percent_decoded(texts: pl.Series, *, times: int = 1) -> pl.Series:
    """Percent escapes undone; ``times``: also those that come out, while there are any.

    A text that would not be UTF-8, or would hold NUL, stays as it is. Only distinct texts with an escape are
    looked at.
    """
    return _mapped(texts, "%", lambda text: _percent_decoded(text, times))


def unescape(texts: pl.Series) -> pl.Series:
    """Backslash escapes undone; only texts that have one are looked at."""
    return _mapped(texts, "\\", _unescaped)


def _percent_decoded(text: str, times: int) -> str:
    for _ in range(times):
        if "%" not in text:
            break
        try:
            plain = unquote(text, errors="strict")
        except UnicodeDecodeError:
            break
        if "\0" in plain:
            break
        text = plain
    return text


def _unescaped(text: str) -> str:
    def one(escape: re.Match[bytes]) -> bytes:
        code, other = escape.groups()
        return bytes([int(code, 16)]) if code else _CONTROLS.get(other, other)

    try:
        plain = _ESCAPE.sub(one, text.encode()).decode()
    except UnicodeDecodeError:  # of a charset nobody told us: the escapes lose nothing
        return text
    return text if "\0" in plain else plain


def _mapped(texts: pl.Series, sign: str, change: Callable[[str], str]) -> pl.Series:
    found = texts.filter(texts.str.contains(sign, literal=True)).unique()
    if found.is_empty():
        return texts
    return texts.replace(found, pl.Series(map(change, found.to_list()), dtype=pl.String))
