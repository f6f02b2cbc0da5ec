"""Percent-decoding of query values, for those that need it."""

from __future__ import annotations

from urllib.parse import unquote_plus


def decode_component(text: str, charset: str = "utf-8") -> str:
    """One ``application/x-www-form-urlencoded`` value: ``+`` is a space, ``%41`` an A.

    Bytes that are not ``charset`` become U+FFFD; so does NUL, which PostgreSQL's text cannot hold.
    """
    return unquote_plus(text, encoding=charset, errors="replace").replace("\0", "\ufffd")
