"""What log lines of any format become: click events, from the parts that a format finds in them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import polars as pl

from streamproc.topology import Contract
from streamproc.transform.decode_rejects import Problem, Reason, quoted
from streamproc.transform.enrich.distinct import Remembered
from streamproc.transform.weblog_pattern import CLF_TIME
from streamproc.transform.weblog_requests import DEFAULT_SITE, Requests
from streamproc.transform.weblog_visitors import Visitors

#: What a format may find in a line; a part it does not know is null. ``microsecond``: Unix time;
#: ``target``: path and query, or a whole URL; ``vhost``, ``port``, ``scheme``: where it belongs if it is a
#: path; ``visitor``: the log's own id of the visitor; ``seconds``: from request to response.
PARTS: dict[str, type[pl.DataType]] = {
    "microsecond": pl.Int64,
    "visitor": pl.String,
    "referrer": pl.String,
    "user_agent": pl.String,
    "ip": pl.String,
    "remote_user": pl.String,
    "method": pl.String,
    "target": pl.String,
    "protocol": pl.String,
    "status": pl.Int64,
    "bytes": pl.Int64,
    "scheme": pl.String,
    "vhost": pl.String,
    "port": pl.String,
    "request_id": pl.String,
    "seconds": pl.Float64,
}

#: The columns of events, in order.
COLUMNS = (
    *("event_type", "event_time", "visitor_id", "page_url", "referrer", "user_agent", "ip", "remote_user"),
    *("method", "protocol", "status", "bytes", "host", "request_id", "seconds"),
)

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}


class ClickEvents:
    """Makes events of one contract. ``key``: see :class:`Visitors`.

    It remembers what requests and visitors of earlier batches were: several threads may call it at once.
    """

    def __init__(self, contract: Contract, key: bytes = b"") -> None:
        self.requests = Requests((contract.site or DEFAULT_SITE).rstrip("/"))
        self._visitors = Visitors(key)
        self._unit = 1_000_000 // PER_SECOND[contract.event_time.format]

    def __call__(self, parts: pl.DataFrame) -> pl.DataFrame:
        """The columns of :data:`~streamproc.transform.weblog_formats.LOG_FIELDS` for lines taken apart.

        ``parts``: some of :data:`PARTS`, texts where a number has to be read as well. ``-`` and the empty text
        are null. A status or size that is no number is null.
        """
        have = [
            (
                pl.when(~pl.col(name).is_in(["-", ""]))
                .then(pl.col(name))
                .cast(dtype, strict=False)
                .alias(name)
                if parts.schema[name] == pl.String
                else pl.col(name).cast(dtype)
            )
            if name in parts.columns
            else pl.lit(None, dtype).alias(name)
            for name, dtype in PARTS.items()
        ]
        return self.finished(parts.select(have)).with_columns(host="vhost").select(COLUMNS)

    def finished(self, parts: pl.DataFrame) -> pl.DataFrame:
        """Parts of their right types with the columns of an event that follow from them."""
        return self.requests.typed(parts).with_columns(
            self._visitors.ids(parts), event_time=pl.col("microsecond") // self._unit
        )


def moments(times: pl.Series, form: str) -> pl.Series:
    """Texts of strftime's form as ``microsecond`` of Unix time, null where one is not; without a zone it is UTC.

    A log has many lines to a second, and the next batch often goes on in the same one: each is read once. Of
    :data:`CLF_TIME` each minute is (0.12 against 0.38 µs a line in a log with two lines to a second).
    """
    if form != CLF_TIME:
        return _read(times, form)
    # 17/May/2015:10:05:03 +0000: seconds are the 19th and 20th character, or it is written in another way.
    seconds = times.str.slice(18, 2)
    usual = seconds.str.contains("^[0-5][0-9]$").fill_null(value=False)
    minutes = times.to_frame("time").select(
        pl.when(usual).then(
            pl.concat_str(pl.col("time").str.head(18), pl.lit("00"), pl.col("time").str.slice(20))
        )
    )
    found = _read(minutes.to_series(), form) + seconds.cast(pl.Int64, strict=False) * 1_000_000
    unread = found.is_null()
    if unread.any():
        found = found.zip_with(~unread, _read(times.set(~unread, None), form))
    return found.alias("microsecond")


def _read(times: pl.Series, form: str) -> pl.Series:
    return _times(form).find(times).answer(["microsecond"]).to_series()


@functools.lru_cache(maxsize=64)
def _times(form: str) -> Remembered:
    def read(times: pl.Series) -> pl.DataFrame:
        if times.is_empty():
            return pl.DataFrame(schema={"microsecond": pl.Int64})
        return (
            times.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us").to_frame("microsecond")
        )

    return Remembered("time", read)


def client_and_host(parts: pl.DataFrame) -> pl.DataFrame:
    """The first address where ``ip`` is a list, as X-Forwarded-For is; ``vhost`` without its port.

    A port of ``vhost`` goes to ``port`` unless the log has that already.
    """
    if "ip" in parts.columns:
        parts = parts.with_columns(pl.col("ip").str.extract(r"^\s*([^,\s]+)"))
    if "vhost" in parts.columns:
        own = [pl.col("port")] if "port" in parts.columns else []
        port = pl.coalesce(*own, pl.col("vhost").str.extract(r":([0-9]+)$")).alias("port")
        parts = parts.with_columns(pl.col("vhost").str.extract(r"^(\[.*\]|[^:]+)"), port)
    return parts


def line_problems(
    lines: pl.Series, matched: pl.Series, seconds: pl.Series, times: pl.Series, name: str
) -> Iterator[tuple[int, Problem]]:
    """What is wrong with some lines, by row number; of a row named twice the last counts.

    ``matched``: whether the line is in the format ``name``; ``seconds``: null where the time is none;
    ``times``: as they stand in the line.
    """
    for row in (~matched).arg_true():
        yield row, Problem(Reason.BAD_LOG_LINE, None, f"the line is not in the {name} log format")
    for row in (seconds.is_null() & matched).arg_true():
        detail = f"{quoted(times[row])} is no time as the {name} log format has it"
        yield row, Problem(Reason.BAD_EVENT_TIME, "event_time", detail)
    yield from text_problems(lines)


def text_problems(lines: pl.Series) -> Iterator[tuple[int, Problem]]:
    """Lines that are no text at all, by row number; of a row named twice the last counts."""
    for row in lines.str.contains("\0", literal=True).arg_true():
        yield row, Problem(Reason.NUL_CHARACTER, None, "the line holds U+0000")
    for row in (lines.str.strip_chars() == "").arg_true():
        yield row, Problem(Reason.EMPTY, None, "the line is blank")
    for row in lines.is_null().arg_true():
        yield row, Problem(Reason.NOT_UTF8, None, "the line is not UTF-8")
