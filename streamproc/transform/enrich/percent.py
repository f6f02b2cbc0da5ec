"""Percent-decoding of query values, for those that need it."""

from __future__ import annotations

from urllib.parse import unquote_plus

import polars as pl


def decode_component(text: str, charset: str = "utf-8") -> str:
    """One ``application/x-www-form-urlencoded`` value: ``+`` is a space, ``%41`` an A.

    Bytes that are not ``charset`` become U+FFFD; so does NUL, which PostgreSQL's text cannot hold.
    """
    return unquote_plus(text, encoding=charset, errors="replace").replace("\0", "\ufffd")


def decode_components(values: pl.Series) -> pl.Series:
    """:func:`decode_component` for a series. Few values hold ``%`` or ``+``: only those are looked at."""
    encoded = values.filter(values.str.contains(r"[%+]")).unique()
    if encoded.is_empty():
        return values
    plain = pl.Series([decode_component(text) for text in encoded.to_list()], dtype=pl.String)
    return values.replace(encoded, plain)
