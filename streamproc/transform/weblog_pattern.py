"""Log-format strings of Apache and nginx as one regular expression and what its groups mean.

Apache: https://httpd.apache.org/docs/2.4/mod/mod_log_config.html#formats; nginx:
https://nginx.org/en/docs/http/ngx_http_log_module.html. A directive that says nothing of use is read past.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from streamproc.quantities import Invalid

COMMON = '%h %l %u %t "%r" %>s %b'

#: strftime's form of Apache's ``%t`` and nginx's ``$time_local``.
CLF_TIME = "%d/%b/%Y:%H:%M:%S %z"

#: Not strftime forms: Unix time in these units.
UNIX = {"sec": 1_000_000, "msec": 1_000, "usec": 1}


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
        return min(found)[1:] if found else None


def compile_format(text: str, *, vhost: bool = False) -> LogFormat:
    """Read a format string. ``vhost``: lines may have ``host:port`` in front, as ``vhost_combined`` does.

    Raises :class:`Invalid` for one that leaves open where a value ends, or that has no time.
    """
    tokens = list(_tokens(text.replace('\\"', '"').strip()))
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
    if found.best("time") is None:
        raise Invalid(f"{text!r} has no time", "Add %t, or $time_iso8601")
    return found


_VHOST = r"(?:(?P<vhost>[^ :]+):(?P<port>[0-9]{1,5}) )?"


def _value(token: Meaning, before: str | Meaning, after: str | Meaning) -> str:
    if isinstance(before, str) and isinstance(after, str) and before.endswith('"') and after.startswith('"'):
        return QUOTED
    if token.part == "time" and token.unit == CLF_TIME:
        bracketed = isinstance(before, str) and before.endswith("[")
        return r"[^\]]+" if bracketed else r"[^ ]+ [+-][0-9]{4}"
    if token.part == "remote_user":
        return ".+?"  # user names may hold spaces
    if isinstance(after, Meaning) or isinstance(before, Meaning):
        # Apache's %U%q: the query is empty, or brings its question mark.
        return r"[^ ?]*" if isinstance(after, Meaning) else r"(?:\?[^ ]*)?"
    return f"[^{re.escape(after[0])}]*?" if after else ".*?"


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
        if meaning is not None and meaning.part == "time" and not nginx and meaning.unit == CLF_TIME:
            literal += "["  # Apache's %t brings its brackets
        if literal:
            yield literal
        literal = ""
        yield meaning or Meaning("")
        if meaning is not None and meaning.part == "time" and not nginx and meaning.unit == CLF_TIME:
            literal = "]"
    if literal + text[end:]:
        yield literal + text[end:]


def _apache(found: re.Match[str]) -> Meaning | None:
    argument, letter = (found["argument"] or ""), found["letter"]
    if letter == "t" and argument:
        form = argument[1:-1].removeprefix("begin:").removeprefix("end:")
        if form in {"msec_frac", "usec_frac"}:
            return None
        return Meaning("time", 1, form or CLF_TIME)
    if letter in "ie" or letter == "C":
        argument = argument.lower()
    key = f"{found['which']}{argument}{letter}"
    return _APACHE.get(key) or _APACHE.get(key.lower() if argument else key)
