"""Records of no use, as they turn up in a topic that many people write to. Each one has to be rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from streamproc.generator.draws import pick

#: A record that carries a good event to spoil, and draws.
Spoil = Callable[[bytes, Random], bytes | None]

_NOT_OBJECTS = (b"[]", b"null", b"true", b"42", b'"hello"', b'[{"event_id":"1"}]')
_NOT_JSON = (
    b"<html><body>502 Bad Gateway</body></html>",
    b"undefined",
    b"{'event_id': 'x'}",
    b"GET / HTTP/1.1",
    b"{,}",
    b"event_id=1&event_type=page_view",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\x4a",  # the beginning of something zipped
)


def _with(name: bytes, value: bytes) -> Spoil:
    """Another value for a member that every event has."""

    def spoil(event: bytes, _: Random) -> bytes:
        before, after = event.split(b'"%b":' % name, 1)
        text = after.startswith(b'"')
        rest = after[after.index(b'"', 1) + 1 :] if text else after.lstrip(b"0123456789-")
        return b'%b"%b":%b%b' % (before, name, value, rest)

    return spoil


def _also(members: bytes) -> Spoil:
    """More members at the end."""
    return lambda event, _: event[:-1] + b"," + members + b"}"


def _truncated(event: bytes, random: Random) -> bytes:
    return event[: 1 + random.getrandbits(24) % (len(event) - 2)]


def _broken_utf8(event: bytes, random: Random) -> bytes:
    return (
        event[:-1]
        + b',"note":"'
        + pick(random, (b"\xff\xfe", b"\xe9t\xe9", b"\xed\xa0\x80", b"\xc0\xaf"))
        + b'"}'
    )


def _deep(_: bytes, random: Random) -> bytes:
    levels = 500 + random.getrandbits(13)
    return b'{"properties":' + b"[" * levels + b"]" * levels + b"}"


def _duplicate(event: bytes, _: Random) -> bytes:
    return event[:-1] + b',"event_id":"00000000000000000000000000000000"}'


_SPOILERS: tuple[Spoil, ...] = (
    _truncated,
    _truncated,
    _truncated,
    _broken_utf8,
    _deep,
    _duplicate,
    lambda _, random: pick(random, _NOT_OBJECTS),
    lambda _, random: pick(random, _NOT_JSON),
    lambda event, _: b"\xef\xbb\xbf" + event,
    lambda event, _: event + event,
    lambda event, _: event[:-1] + b",}",
    lambda _, __: b"",
    lambda _, random: b" " * (1 + random.getrandbits(3)),
    _with(b"event_time", b'"1736154000000"'),
    _with(b"event_time", b"1736154000.5"),
    _with(b"event_time", b"NaN"),
    _with(b"event_time", b"-1"),
    _with(b"event_time", b"7226582400000"),  # the year 2199
    _with(b"event_time", b"9" * 400),
    _with(b"event_id", b"null"),
    _with(b"event_id", b"12345"),
    _with(b"visitor_id", b'{"id":"7"}'),
    _with(b"visitor_id", b'"' + b"v" * 300 + b'"'),
    _with(b"visitor_id", b'"a\\u0000b"'),
    _with(b"page_url", b"true"),
    _with(b"page_url", b'"https://www.northwind.example/\\ud83d"'),
    _with(b"page_url", b'"https://www.northwind.example/' + b"a" * 5000 + b'"'),
    _also(b'"note":Infinity'),
    _also(b'"score":1e999'),
    _also(b'"note":"a\ttab"'),
    lambda event, _: event.replace(b'"event_type":', b'"type":', 1),
)  # fmt: skip

_NOT_A_LINE: tuple[Spoil, ...] = (
    lambda _, __: None,
    lambda event, _: event + b"\n" + event,
    _also(b'"note":"two\nlines"'),
)

# A megabyte and a half is over the contract's limit; one in some thousand bad records is enough of it.
_HUGE = _also(b'"note":"' + b"x" * 1_500_000 + b'"')
_HUGE_ODDS = 4_096


class Mess:
    """Puts bad records among good ones. ``one_line``: see :class:`streamproc.generator.Generator`."""

    def __init__(self, random: Random, one_line: bool) -> None:
        self._random = random
        self._spoilers = _SPOILERS if one_line else _SPOILERS + _NOT_A_LINE

    def mixed(
        self, events: Iterator[tuple[bytes, bytes]], ratio: float
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """The events with bad records between them, ``ratio`` of all records."""
        bits = self._random.getrandbits
        threshold = int(ratio * 2**32)
        for key, event in events:
            while bits(32) < threshold:
                yield key, self._spoiled(event)
            yield key, event

    def _spoiled(self, event: bytes) -> bytes | None:
        if self._random.getrandbits(24) % _HUGE_ODDS == 0:
            return _HUGE(event, self._random)
        return pick(self._random, self._spoilers)(event, self._random)
