"""Visitors as a log can tell them apart: by address and agent."""

from __future__ import annotations

import hashlib

import polars as pl

from streamproc.transform.enrich.distinct import Remembered

#: Visitors remembered from batch to batch: those who are here at a time.
_MOST = 100_000


class Visitors:
    """The visitors of one contract's logs.

    A visitor's id is the BLAKE2b-128 of address and agent under ``key``, in 32 hexadecimal digits. Without the
    key (64 bytes at most; empty: none) nobody can try a list of addresses.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known = Remembered("visitor", self._hashed, _MOST)

    def ids(self, events: pl.DataFrame) -> pl.Series:
        """``visitor_id`` of events with ``ip`` and ``user_agent``; a ``visitor`` the log has goes before."""
        # As Python writes a null address in a text: ids stay what they were.
        text = pl.concat_str(
            pl.col("ip").fill_null("None"), pl.col("user_agent").fill_null(""), separator="\0"
        )
        if "visitor" in events.columns:
            text = pl.when(pl.col("visitor").is_null()).then(text)
        found = self._known.find(events.select(visitor_id=text).to_series()).answer(["visitor_id"])
        if "visitor" in events.columns:
            return events.select(visitor_id=pl.coalesce("visitor", found["visitor_id"])).to_series()
        return found["visitor_id"]

    def _hashed(self, texts: pl.Series) -> pl.DataFrame:
        hashed = [hashlib.blake2b(text.encode(), digest_size=16, key=self._key).hexdigest() for text in texts]
        return pl.Series("visitor_id", hashed, dtype=pl.String).to_frame()
