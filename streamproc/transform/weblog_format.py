"""Log lines in a format that the page names or writes out: ``common`` and ``log_format``."""

from __future__ import annotations

import polars as pl

from streamproc.transform.decode_batch import Batch
from streamproc.transform.weblog_escapes import unescape
from streamproc.transform.weblog_events import (
    ClickEvents,
    client_and_host,
    line_problems,
    moments,
)
from streamproc.transform.weblog_pattern import UNIX, LogFormat, Meaning

#: The largest number of a column.
_MOST = 2**63 - 1

#: Parts that servers escape with backslashes.
_ESCAPED = ("target", "referrer", "user_agent", "remote_user")


class FormatParser:
    """Reads lines by a compiled format. ``name``: for messages."""

    def __init__(self, log_format: LogFormat, events: ClickEvents, name: str) -> None:
        self._format = log_format
        self._events = events
        self._name = name

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of a log's events for the lines that stay in ``batch``; the others get a problem."""
        lines = batch.text
        found = lines.str.extract_groups(self._format.pattern).struct.unnest()
        # Groups that may be missing in a line that fits are the virtual host's.
        group, meaning = self._best("time")
        times = found[group]
        parts = self._parts(found).with_columns(microseconds(times, meaning.unit))
        problems = line_problems(lines, times.is_not_null(), parts["microsecond"], times, self._name)
        keep = batch.drop(dict(problems))
        parts = parts.filter(keep)
        for name in _ESCAPED:
            if name in parts.columns:
                parts = parts.with_columns(unescape(parts[name]))
        return self._events(parts)

    def _best(self, part: str) -> tuple[str, Meaning]:
        best = self._format.best(part)
        assert best is not None, f"the format has no {part}"
        return best

    def _parts(self, found: pl.DataFrame) -> pl.DataFrame:
        parts: dict[str, pl.Series] = {}
        for part in {meaning.part for meaning in self._format.meanings.values()} - {"time"}:
            group, meaning = self._best(part)
            parts[part] = found[group]
            if part == "seconds":
                parts[part] = found[group].cast(pl.Float64, strict=False) * float(meaning.unit)
        if "request" in parts:
            request = self._events.requests.parts(parts.pop("request"))
            parts = {**parts, **{name: request[name] for name in request.columns}}
        elif "path" in parts:
            parts["target"] = _target(parts["path"], parts.get("query"))
        return client_and_host(pl.DataFrame([column.alias(name) for name, column in parts.items()]))


def _target(paths: pl.Series, queries: pl.Series | None) -> pl.Series:
    """Path and query; the query with or without its question mark, ``-`` if there is none."""
    if queries is None:
        return paths
    bare = queries.str.strip_prefix("?").replace("-", "")
    return (
        pl.DataFrame({"path": paths, "query": bare})
        .select(
            pl.when((pl.col("query") != "") & ~pl.col("path").str.contains("?", literal=True))
            .then(pl.col("path") + "?" + pl.col("query"))
            .otherwise(pl.col("path"))
        )
        .to_series()
    )


def microseconds(times: pl.Series, form: str) -> pl.Series:
    """Unix time, named ``microsecond``, null where a text has not the form, or no column has room for its number.

    ``form``: strftime's (UTC if it has no zone), a key of :data:`UNIX`, ``seconds`` (with a fraction) or
    ``iso8601``.
    """
    if form == "seconds":
        # By halves: as one float, microseconds of today's time would not all be exact.
        halves = times.str.extract_groups(r"^([0-9]{1,12})(?:\.([0-9]{1,6}))?$").struct.unnest()
        fraction = halves["2"].fill_null("").str.pad_end(6, "0").cast(pl.Int64)
        found = halves["1"].cast(pl.Int64) * 1_000_000 + fraction
    elif form in UNIX:
        number = times.cast(pl.Int64, strict=False).to_frame("number")
        # Bounded before it is multiplied: the product of a wild number would wrap around into a believable one.
        bound = _MOST // UNIX[form]
        inside = pl.when(pl.col("number").is_between(-bound, bound)).then(pl.col("number"))
        found = number.select(inside * UNIX[form]).to_series()
    elif form == "iso8601":
        found = moments(times.str.replace("Z$", "+00:00"), "%Y-%m-%dT%H:%M:%S%.f%:z")
    else:
        found = moments(times, form)
    return found.alias("microsecond")
