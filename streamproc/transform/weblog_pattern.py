"""Log-format strings of Apache and nginx as one regular expression and what its groups mean.

Apache: https://httpd.apache.org/docs/2.4/mod/mod_log_config.html#formats; nginx:
https://nginx.org/en/docs/http/ngx_http_log_module.html. A directive that says nothing of use is read past.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl
from polars.exceptions import PolarsError

from streamproc.quantities import Invalid

COMMON = '%h %l %u %t "%r" %>s %b'

#: strftime's form of Apache's ``%t`` and nginx's ``$time_local``.
CLF_TIME = "%d/%b/%Y:%H:%M:%S %z"

#: Not strftime forms: Unix time in these units.
UNIX = {"sec": 1_000_000, "msec": 1_000, "usec": 1}

#: Apache's fractions of a second, as polars writes them in a form.
_FRACTIONS = {"msec_frac": "%3f", "usec_frac": "%6f"}

#: Directives of strftime that stand for several, in the C locale, in which servers run.
_SHORT = {
    "%c": "%a %b %e %H:%M:%S %Y",
    **dict.fromkeys(("%D", "%x"), "%m/%d/%y"),
    "%F": "%Y-%m-%d",
    "%R": "%H:%M",
    "%r": "%I:%M:%S %p",
    **dict.fromkeys(("%T", "%X"), "%H:%M:%S"),
}
#: What other directives write; where nothing is said here, digits.
_WRITTEN = {
    **dict.fromkeys(("%a", "%A", "%b", "%B", "%h", "%p", "%P"), "[A-Za-z]+"),
    **dict.fromkeys(("%e", "%k", "%l"), " ?[0-9]+"),
    "%z": "[+-][0-9]{4}",
    "%n": r"\n",
    "%t": r"\t",
    "%%": "%",
}

#: No part of it is what a reader takes for one that is missing.
_MOMENT = datetime(2013, 5, 17, 21, 45, 7, tzinfo=UTC)


class Meaning(NamedTuple):
    """What a directive holds: the part, and which wins if several hold it (the lowest). ``unit``: of a number
    of seconds, what one of it is; of a time, its form (strftime's, or a key of :data:`UNIX`).
    """

    part: str
    rank: int = 0
    unit: str = ""


_APACHE = {
    "a": Meaning("ip"),
    "h": Meaning("ip", 1),
    "{x-forwarded-for}i": Meaning("ip", 2),
    "u": Meaning("remote_user"),
    "r": Meaning("request"),
    ">s": Meaning("status"),
    "s": Meaning("status", 1),
    "<s": Meaning("status", 2),
    "b": Meaning("bytes"),
    "B": Meaning("bytes"),
    "O": Meaning("bytes", 1),
    "D": Meaning("seconds", 0, "1e-6"),
    "{us}T": Meaning("seconds", 0, "1e-6"),
    "{ms}T": Meaning("seconds", 1, "1e-3"),
    "T": Meaning("seconds", 2, "1"),
    "{s}T": Meaning("seconds", 2, "1"),
    "v": Meaning("vhost"),
    "{host}i": Meaning("vhost", 1),
    "V": Meaning("vhost", 2),
    "p": Meaning("port"),
    "m": Meaning("method"),
    "U": Meaning("path"),
    "q": Meaning("query"),
    "H": Meaning("protocol"),
    "{referer}i": Meaning("referrer"),
    "{user-agent}i": Meaning("user_agent"),
    "{x-forwarded-proto}i": Meaning("scheme"),
    "{unique_id}e": Meaning("request_id"),
    "{x-request-id}i": Meaning("request_id", 1),
    "L": Meaning("request_id", 2),
    "{cookie}n": Meaning("visitor"),
    "{visitor_id}c": Meaning("visitor", 1),
    "t": Meaning("time", 0, CLF_TIME),
}

_NGINX = {
    "remote_addr": Meaning("ip"),
    "http_x_forwarded_for": Meaning("ip", 1),
    "remote_user": Meaning("remote_user"),
    "request": Meaning("request"),
    "status": Meaning("status"),
    "body_bytes_sent": Meaning("bytes"),
    "bytes_sent": Meaning("bytes", 1),
    "request_time": Meaning("seconds", 0, "1"),
    "http_host": Meaning("vhost"),
    "host": Meaning("vhost", 1),
    "server_name": Meaning("vhost", 2),
    "server_port": Meaning("port"),
    "request_method": Meaning("method"),
    "request_uri": Meaning("path"),
    "uri": Meaning("path", 1),
    "args": Meaning("query"),
    "query_string": Meaning("query"),
    "server_protocol": Meaning("protocol"),
    "http_referer": Meaning("referrer"),
    "http_user_agent": Meaning("user_agent"),
    "scheme": Meaning("scheme"),
    "http_x_forwarded_proto": Meaning("scheme", 1),
    "request_id": Meaning("request_id"),
    "uid_got": Meaning("visitor"),
    "cookie_visitor_id": Meaning("visitor", 1),
    "msec": Meaning("time", 0, "seconds"),
    "time_iso8601": Meaning("time", 1, "iso8601"),
    "time_local": Meaning("time", 2, CLF_TIME),
}

_APACHE_TOKEN = re.compile(
    r"%(?P<which>[<>]?)(?:!?[0-9,]+)?(?P<argument>\{[^}]*\})?(?P<letter>\^t[io]|[a-zA-Z%])"
)
_NGINX_TOKEN = re.compile(r"\$(?:\{(?P<braced>[a-z0-9_]+)\}|(?P<plain>[a-z0-9_]+))")

#: What stands inside quotation marks, which servers escape there.
QUOTED = r'(?:[^"\\]|\\.)*'


@dataclass(frozen=True, slots=True)
class LogFormat:
    """``pattern``: with a group ``gN`` for each of ``meanings`` that has number N, in the string's order."""

    pattern: str
    meanings: dict[str, Meaning]

    def best(self, part: str) -> tuple[str, Meaning] | None:
        """The group to read a part from."""
        found = [
            (meaning.rank, group, meaning) for group, meaning in self.meanings.items() if meaning.part == part
        ]
        # Of several with the same rank the first in the line, not g11 before g7.
        return min(found, key=lambda each: each[0])[1:] if found else None


def compile_format(text: str, *, vhost: bool = False) -> LogFormat:
    """Read a format string. ``vhost``: lines may have ``host:port`` in front, as ``vhost_combined`` does.

    Raises :class:`Invalid` for one that leaves open where a value ends, or that has no time that can be read.
    """
    tokens = _joined(_tokens(text.replace('\\"', '"').strip()))
    pattern, meanings = "", {}
    for number, token in enumerate(tokens):
        if isinstance(token, str):
            pattern += re.escape(token)
            continue
        before = tokens[number - 1] if number else ""
        after = tokens[number + 1] if number + 1 < len(tokens) else ""
        if isinstance(after, Meaning) and (token.part, after.part) != ("path", "query"):
            fix = "Put a space or another separator between them in the server's format"
            raise Invalid(f"two values follow each other without anything between in {text!r}", fix)
        if token.part:
            meanings[f"g{number}"] = token
            pattern += f"(?P<g{number}>{_value(token, before, after)})"
        else:
            pattern += f"(?:{_value(token, before, after)})"
    found = LogFormat(rf"^{_VHOST if vhost else ''}{pattern}\s*$", meanings)
    if vhost:
        found.meanings["vhost"], found.meanings["port"] = Meaning("vhost", 9), Meaning("port", 9)
    time = found.best("time")
    if time is None:
        raise Invalid(f"{text!r} has no time", "Add %t, or $time_iso8601")
    if time[1].unit not in {*UNIX, "seconds", "iso8601"}:
        _check_time(time[1].unit)
    return found


_VHOST = r"(?:(?P<vhost>[^ :]+):(?P<port>[0-9]{1,5}) )?"


def _value(token: Meaning, before: str | Meaning, after: str | Meaning) -> str:
    if isinstance(before, str) and isinstance(after, str) and before.endswith('"') and after.startswith('"'):
        return QUOTED
    if token.part == "time" and token.unit == CLF_TIME:
        bracketed = isinstance(before, str) and before.endswith("[")
        return r"[^\]]+" if bracketed else r"[^ ]+ [+-][0-9]{4}"
    if token.part == "time" and "%" in token.unit:
        return _time_pattern(token.unit)
    if token.part == "remote_user":
        return ".+?"  # user names may hold spaces
    if isinstance(after, Meaning) or isinstance(before, Meaning):
        # Apache's %U%q: the query is empty, or brings its question mark.
        return r"[^ ?]*" if isinstance(after, Meaning) else r"(?:\?[^ ]*)?"
    return f"[^{re.escape(after[0])}]*?" if after else ".*?"


def _time_pattern(form: str) -> str:
    """What texts of strftime's form look like: they may hold spaces, as what stands behind them may."""
    pieces = re.split("(%[36]f|%.)", form)
    for number in range(1, len(pieces), 2):
        short = _SHORT.get(pieces[number])
        pieces[number] = _time_pattern(short) if short else _WRITTEN.get(pieces[number], "[0-9]+")
    pieces[::2] = map(re.escape, pieces[::2])
    return "".join(pieces)


def _check_time(form: str) -> None:
    """Raises :class:`Invalid` unless times written in this form can be read, to the minute at least."""
    if "%Z" in form:
        raise Invalid("names of time zones, %Z, cannot be read", "Write %z, which gives the offset")
    whole = form.replace("%3f", "000").replace("%6f", "000000")
    try:
        read = pl.Series([_MOMENT.strftime(whole)]).str.to_datetime(form, time_unit="us", strict=False)
        seconds = read.dt.epoch("s")[0]
    except PolarsError:
        seconds = None
    if seconds is None or not 0 <= _MOMENT.timestamp() - seconds < 60:
        fix = "Write its parts beside each other, such as %{%Y-%m-%d %H:%M:%S}t.%{msec_frac}t %{%z}t"
        raise Invalid(f"{form!r} is no whole time with its date that can be read", fix)


def _joined(tokens: Iterable[str | Meaning]) -> list[str | Meaning]:
    """The tokens with the parts of a time as one: ``%{%d/%b/%Y %T}t.%{msec_frac}t %{%z}t``."""
    joined: list[str | Meaning] = []
    for token in tokens:
        match [*joined[-2:], token]:
            case [*_, Meaning() as first, Meaning() as second] if form := _both(first, "", second):
                joined[-1] = first._replace(unit=form)
            case [Meaning() as first, str(between), Meaning() as second] if form := _both(
                first, between, second
            ):
                joined[-2:] = [first._replace(unit=form)]
            case _:
                joined.append(token)
    return [Meaning("") if isinstance(t, Meaning) and t.unit in _FRACTIONS.values() else t for t in joined]


def _both(first: Meaning, between: str, second: Meaning) -> str | None:
    """The form of two parts of the same time and what stands between them; ``None`` if they are no such parts."""
    if (first.part, second.part, first.rank) != ("time", "time", second.rank):
        return None
    if first.unit == "sec" and between == "." and second.unit in _FRACTIONS.values():
        return "seconds"
    if "%" in first.unit and "%" in second.unit:
        return first.unit + between.replace("%", "%%") + second.unit
    return None


def _tokens(text: str) -> Iterator[str | Meaning]:
    """Literals and directives in turn; a directive of no use has no part."""
    nginx = _NGINX_TOKEN.search(text) is not None
    end, literal = 0, ""
    for found in (_NGINX_TOKEN if nginx else _APACHE_TOKEN).finditer(text):
        literal += text[end : found.start()]
        end = found.end()
        if not nginx and found["letter"] == "%":
            literal += "%"
            continue
        meaning = _NGINX.get(found["braced"] or found["plain"]) if nginx else _apache(found)
        if meaning is _APACHE["t"]:
            literal += "["  # Apache's %t brings its brackets
        if literal:
            yield literal
        literal = ""
        yield meaning or Meaning("")
        if meaning is _APACHE["t"]:
            literal = "]"
    if literal + text[end:]:
        yield literal + text[end:]


def _apache(found: re.Match[str]) -> Meaning | None:
    argument, letter = (found["argument"] or ""), found["letter"]
    if letter == "t" and argument:
        form = argument[1:-1].removeprefix("begin:").removeprefix("end:")
        rank = 2 if argument.startswith("{end:") else 1
        return Meaning("time", rank, _FRACTIONS.get(form, form)) if form else _APACHE["t"]
    if letter in "ie" or letter == "C":
        argument = argument.lower()
    key = f"{found['which']}{argument}{letter}"
    return _APACHE.get(key) or _APACHE.get(key.lower() if argument else key)
