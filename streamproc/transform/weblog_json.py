"""Logs of JSON objects, one to a line: nginx with ``escape=json``, and API Gateway.

Keys are the servers' own names of the values (nginx: its variables; API Gateway: ``$context`` without its
prefix), as their documentation's examples have them. Values may be numbers or texts, whichever the user wrote
in the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec
import orjson
import polars as pl

from streamproc.transform.decode_batch import Batch
from streamproc.transform.decode_inspect import MAX_DEPTH, is_too_deep
from streamproc.transform.decode_rejects import Problem, Reason, quoted
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


_decode_line = msgspec.json.Decoder(_Line).decode
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
        """The known keys' values as texts, the first of each. Lines that are no JSON object are dropped with a problem.

        What polars takes counts as it says, and what it does not take is looked at one by one. That is decided about
        each line by itself: what a line says depends on no other one.
        """
        text = batch.text
        if _are_plain(batch) and (read := self._read(text)) is not None:
            return read
        plain = [place for place, line in enumerate(batch.values) if _is_plain(line)]
        pieces = self._pieces(batch, text, plain)
        rest = set(range(len(batch))).difference(*(places for places, _ in pieces))
        found = {place: self._value(batch[place]) for place in sorted(rest)}
        rows = {place: row for place, row in found.items() if not isinstance(row, Problem)}
        pieces.append((list(rows), pl.DataFrame(list(rows.values()), schema=self._type.to_schema())))
        batch.drop({place: problem for place, problem in found.items() if isinstance(problem, Problem)})
        order = pl.Series([place for places, _ in pieces for place in places], dtype=pl.UInt32).arg_sort()
        return pl.concat([frame for _, frame in pieces])[order]

    def _read(self, text: pl.Series) -> pl.DataFrame | None:
        """What polars makes of plain lines; ``None``: it refuses one of them."""
        try:
            return text.str.json_decode(self._type).struct.unnest()
        except pl.exceptions.ComputeError:
            return None

    def _pieces(
        self, batch: Batch, text: pl.Series, places: list[int]
    ) -> list[tuple[list[int], pl.DataFrame]]:
        """Those of the plain lines at these places that polars does not refuse, and what it makes of them."""
        if (read := self._read(text.gather(places))) is not None:
            return [(places, read)]
        if len(places) == 1:
            return []
        left = [place for place in places if not self._has_wrong_type(batch[place])]
        if len(left) < len(places):
            return self._pieces(batch, text, left)
        middle = len(places) // 2
        return self._pieces(batch, text, places[:middle]) + self._pieces(batch, text, places[middle:])

    def _has_wrong_type(self, line: bytes) -> bool:
        """What polars always refuses. Where there is much of it, asking polars about halves takes for ever."""
        found = self._value(line)
        return isinstance(found, Problem) and found.reason is Reason.WRONG_TYPE

    def _value(self, line: bytes) -> dict[str, str | None] | Problem:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Problem(Reason.NOT_JSON, None, str(error))
        if not isinstance(found, dict):
            return Problem(Reason.NOT_AN_OBJECT, None, f"it is a {type(found).__name__}")
        if is_too_deep(line):
            return Problem(Reason.TOO_DEEP, None, f"nested deeper than {MAX_DEPTH} levels")
        # orjson refuses more that is no JSON, and gives the last of two members of a name.
        found = json.loads(line, object_pairs_hook=_first, parse_int=str, parse_float=_as_polars_writes)
        values: dict[str, str | None] = {}
        for key in self._keys:
            value = found.get(key)
            if isinstance(value, dict | list):
                return Problem(Reason.WRONG_TYPE, None, f"{key} is a {type(value).__name__}")
            if isinstance(value, str) and "\0" in value:
                return Problem(Reason.NUL_CHARACTER, None, f"{key} holds U+0000")
            if isinstance(value, bool):
                value = "true" if value else "false"
            values[key] = value
        return values

    def _untimed(self, values: pl.DataFrame, second: pl.Series) -> Iterator[tuple[int, Problem]]:
        keys = " or ".join(self._times)
        for row in second.is_null().arg_true():
            given = [values[key][row] for key in self._times if values[key][row] is not None]
            if given:
                detail = f"{quoted(given[0])} is no time as the log format has it"
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


def _first(members: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(members))


def _as_polars_writes(number: str) -> str:
    return f"{Decimal(repr(float(number))):f}".removesuffix(".0")


def _is_plain(line: bytes) -> bool:
    """:func:`_are_plain` of one line."""
    if b"\n" in line or any(each in line for each in _MISREAD):
        return False
    try:
        _decode_line(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


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
