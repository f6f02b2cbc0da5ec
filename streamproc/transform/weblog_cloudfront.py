"""CloudFront's logs: fields between tabs, in an order that the page may name.

Standard: https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/standard-logs-reference.html;
real-time: https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/real-time-logs.html#understand-real-time-log-config-fields.

CloudFront percent-encodes what it writes, so an escape that the browser sent stands there twice encoded
(``%2520``). One layer is CloudFront's and is undone. Of the user agent both are: it never had one itself.
"""

from __future__ import annotations

import polars as pl

from streamproc.quantities import Invalid
from streamproc.transform.decode_batch import Batch
from streamproc.transform.weblog_escapes import percent_decoded
from streamproc.transform.weblog_events import ClickEvents, line_problems
from streamproc.transform.weblog_format import microseconds

STANDARD_FIELDS = (
    "date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) cs(User-Agent) "
    "cs-uri-query cs(Cookie) x-edge-result-type x-edge-request-id x-host-header cs-protocol cs-bytes time-taken "
    "x-forwarded-for ssl-protocol ssl-cipher x-edge-response-result-type cs-protocol-version fle-status "
    "fle-encrypted-fields c-port time-to-first-byte x-edge-detailed-result-type sc-content-type sc-content-len "
    "sc-range-start sc-range-end"
)

REALTIME_FIELDS = (
    "timestamp c-ip time-to-first-byte sc-status sc-bytes cs-method cs-protocol cs-host cs-uri-stem cs-bytes "
    "x-edge-location x-edge-request-id x-host-header time-taken cs-protocol-version c-ip-version cs-user-agent "
    "cs-referer cs-cookie cs-uri-query x-edge-response-result-type x-forwarded-for ssl-protocol ssl-cipher "
    "x-edge-result-type fle-encrypted-fields fle-status sc-content-type sc-content-len sc-range-start sc-range-end "
    "c-port x-edge-detailed-result-type c-country cs-accept-encoding cs-accept cache-behavior-path-pattern "
    "cs-headers cs-header-names cs-headers-count"
)

#: Parts by the fields they are read from; the first that the log has.
_SOURCES = {
    "ip": ("c-ip",),
    "method": ("cs-method",),
    "status": ("sc-status",),
    "bytes": ("sc-bytes",),
    "scheme": ("cs-protocol",),
    "protocol": ("cs-protocol-version",),
    "vhost": ("x-host-header", "cs(Host)", "cs-host"),
    "referrer": ("cs(Referer)", "cs-referer"),
    "user_agent": ("cs(User-Agent)", "cs-user-agent"),
    "request_id": ("x-edge-request-id",),
    "seconds": ("time-taken",),
    "path": ("cs-uri-stem",),
    "query": ("cs-uri-query",),
}


def checked_fields(text: str, needed: str) -> str:
    """A list of fields, once each, that tells the time. Raises :class:`Invalid`."""
    names = text.split()
    if missing := [name for name in needed.split() if name not in names]:
        raise Invalid(f"has no field {missing[0]}", "List the fields in the log's order, with spaces between")
    if len(names) != len(set(names)):
        raise Invalid("names a field twice", "List the fields in the log's order, with spaces between")
    return " ".join(names)


class CloudFrontParser:
    """Lines of these fields (names with spaces between). Lines that begin with ``#`` are no events."""

    def __init__(self, fields: str, events: ClickEvents) -> None:
        self._fields = fields.split()
        self._events = events

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of a log's events for the lines that stay in ``batch``; the others get a problem."""
        lines = batch.text
        values = _split(lines, len(self._fields))
        complete = (lines.str.count_matches("\t", literal=True) >= len(self._fields) - 1).fill_null(False)
        complete &= ~lines.str.starts_with("#").fill_null(False)
        at = {name: values[number] for number, name in enumerate(self._fields)}
        if "timestamp" in at:
            times = at["timestamp"]
            second = microseconds(times, "seconds")
        else:
            times = at["date"] + " " + at["time"]
            second = microseconds(times, "%Y-%m-%d %H:%M:%S")
        problems = line_problems(lines, complete, second, times, "CloudFront")
        keep = batch.drop(dict(problems))
        columns = [second.filter(keep).alias("microsecond")]
        for part, sources in _SOURCES.items():
            if found := [at[source] for source in sources if source in at]:
                columns.append(found[0].filter(keep).alias(part))
        return self._events(_decoded(pl.DataFrame(columns)))


def _split(lines: pl.Series, fields: int) -> list[pl.Series]:
    """The fields as columns; what stands behind the last one that is known is cut off."""
    split = lines.str.strip_chars_end("\r\n").str.split("\t")
    return [split.list.get(number, null_on_oob=True) for number in range(fields)]


def _decoded(parts: pl.DataFrame) -> pl.DataFrame:
    for name, times in (("user_agent", 2), ("referrer", 1), ("path", 1), ("query", 1)):
        if name in parts.columns:
            parts = parts.with_columns(percent_decoded(parts[name], times=times))
    if "path" not in parts.columns:
        return parts
    target = pl.col("path")
    if "query" in parts.columns:
        query = pl.when(~pl.col("query").is_in(["-", ""])).then("?" + pl.col("query")).otherwise(pl.lit(""))
        target += query.fill_null("")
    return parts.with_columns(target.alias("target"))
