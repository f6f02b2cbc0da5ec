"""Logs of JSON objects, one to a line: nginx with ``escape=json``, and API Gateway.

Keys are the servers' own names of the values (nginx: its variables; API Gateway: ``$context`` without its
prefix), as their documentation's examples have them. Values may be numbers or texts, whichever the user wrote
in the format.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import orjson
import polars as pl

from streamproc.transform.decode_batch import Batch
from streamproc.transform.decode_rejects import Problem, Reason
from streamproc.transform.weblog_events import (
    ClickEvents,
    client_and_host,
    text_problems,
)
from streamproc.transform.weblog_format import microseconds
from streamproc.transform.weblog_pattern import CLF_TIME

#: Parts by the keys they are read from; the first that has a value. A time's form stands behind its key.
_NGINX: dict[str, tuple[str, ...]] = {
    "ip": ("remote_addr", "http_x_forwarded_for"),
    "remote_user": ("remote_user",),
    "request": ("request",),
    "method": ("request_method",),
    "target": ("request_uri", "uri"),
    "protocol": ("server_protocol",),
    "status": ("status",),
    "bytes": ("body_bytes_sent", "bytes_sent"),
    "seconds": ("request_time",),
    "referrer": ("http_referer", "http_referrer"),
    "user_agent": ("http_user_agent",),
    "vhost": ("http_host", "host", "server_name"),
    "port": ("server_port",),
    "scheme": ("scheme",),
    "request_id": ("request_id",),
    "visitor": ("uid_got", "cookie_visitor_id"),
}
_NGINX_TIMES = {"msec": "seconds", "time_iso8601": "iso8601", "time_local": CLF_TIME}

_GATEWAY: dict[str, tuple[str, ...]] = {
    "ip": ("ip", "sourceIp"),
    "remote_user": ("user",),
    "method": ("httpMethod",),
    "target": ("path", "resourcePath"),
    "protocol": ("protocol",),
    "status": ("status",),
    "bytes": ("responseLength",),
    "milliseconds": ("responseLatency",),
    "user_agent": ("userAgent",),
    "vhost": ("domainName",),
    "request_id": ("requestId", "extendedRequestId"),
}
_GATEWAY_TIMES = {"requestTimeEpoch": "msec", "requestTime": CLF_TIME}

#: Escapes that polars reads in its own way: NUL, and half of a surrogate pair, which it makes NUL of.
_MISREAD = (b"\\u0000", b"\\ud", b"\\uD")


class _Line(msgspec.Struct, gc=False):
    """An object, whatever is in it."""


_decode_lines = msgspec.json.Decoder(_Line).decode_lines


class JsonLogParser:
    """Objects whose keys are known by name: ``nginx_json`` or ``api_gateway``."""

    def __init__(self, decoder: str, events: ClickEvents) -> None:
        nginx = decoder == "nginx_json"
        self._parts, self._times = (_NGINX, _NGINX_TIMES) if nginx else (_GATEWAY, _GATEWAY_TIMES)
        self._events = events
        self._keys = dict.fromkeys(key for keys in (*self._parts.values(), self._times) for key in keys)
        self._type = pl.Struct(dict.fromkeys(self._keys, pl.String))

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of a log's events for the lines that stay in ``batch``; the others get a problem."""
        batch.drop(dict(text_problems(batch.text)))
        values = self._values(batch)
        blank = pl.all().replace(["-", ""], None)
        values = values.with_columns(blank)
        second = pl.select(
            pl.coalesce(microseconds(values[key], form) for key, form in self._times.items())
        ).to_series()
        keep = batch.drop(dict(self._untimed(values, second)))
        parts = values.select(
            pl.coalesce(keys).alias(part) for part, keys in self._parts.items()
        ).with_columns(second.alias("microsecond"))
        return self._events(self._completed(parts.filter(keep)))

    def _values(self, batch: Batch) -> pl.DataFrame:
        """The known keys' values as texts. Lines that are no JSON object are dropped with a problem."""
        if _are_plain(batch):
            try:
                return batch.text.str.json_decode(self._type).struct.unnest()
            except pl.exceptions.ComputeError:
                pass  # for one line of all of them: only then are they looked at one by one
        rows: list[dict[str, str | None]] = []
        problems: dict[int, Problem] = {}
        for row, value in enumerate(batch.values):
            found = self._value(value)
            if isinstance(found, Problem):
                problems[row] = found
            else:
                rows.append(found)
        batch.drop(problems)
        return pl.DataFrame(rows, schema=self._type.to_schema())

    def _value(self, line: bytes) -> dict[str, str | None] | Problem:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Problem(Reason.NOT_JSON, None, str(error))
        if not isinstance(found, dict):
            return Problem(Reason.NOT_AN_OBJECT, None, f"it is a {type(found).__name__}")
        values: dict[str, str | None] = {}
        for key in self._keys:
            value = found.get(key)
            if isinstance(value, dict | list):
                return Problem(Reason.WRONG_TYPE, None, f"{key} is a {type(value).__name__}")
            if isinstance(value, str) and "\0" in value:
                return Problem(Reason.NUL_CHARACTER, None, f"{key} holds U+0000")
            if isinstance(value, bool):
                value = "true" if value else "false"
            values[key] = None if value is None else str(value)
        return values

    def _untimed(self, values: pl.DataFrame, second: pl.Series) -> Iterator[tuple[int, Problem]]:
        keys = " or ".join(self._times)
        for row in second.is_null().arg_true():
            given = [values[key][row] for key in self._times if values[key][row] is not None]
            if given:
                detail = f"{given[0]!r} is no time as the log format has it"
                yield row, Problem(Reason.BAD_EVENT_TIME, "event_time", detail)
            else:
                yield row, Problem(Reason.MISSING_FIELD, "event_time", f"the line has no {keys}")

    def _completed(self, parts: pl.DataFrame) -> pl.DataFrame:
        """Method, target and protocol from the request line where there are none of their own."""
        if "request" in parts.columns:
            request = self._events.requests.parts(parts["request"])
            own = [pl.coalesce(pl.col(name), request[name]).alias(name) for name in request.columns]
            parts = parts.with_columns(own)
        if "milliseconds" in parts.columns:
            parts = parts.with_columns(seconds=pl.col("milliseconds").cast(pl.Float64, strict=False) / 1_000)
        return client_and_host(parts)


def _are_plain(batch: Batch) -> bool:
    """Whether polars reads the lines as they are meant, if it takes them.

    It reads all of them as the items of one list, so each has to be one object by itself. Of the lines `{…},{…}`,
    `{"a":[1` and `{"b":2}]}` it makes three objects too, but not one of each.
    """
    lines = batch.lines
    if lines.count(b"\n") != len(batch) - 1 or any(batch.holding(each) is not None for each in _MISREAD):
        return False
    try:
        return len(_decode_lines(lines)) == len(batch)
    except (msgspec.DecodeError, RecursionError):
        return False
