"""One record at a time, strictly: is it good, and if not, what is the matter with it.

The columnar path asks here about the few records it has doubts about, and a batch that polars refuses is
sorted out here. The answer depends on the record's bytes and the contract only.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import orjson

from streamproc.transform.decode_layout import Layout, Node
from streamproc.transform.decode_rejects import Problem, Reason

#: Levels of nesting allowed. Parsers that recurse stop near 1,000, some of them depending on how deep their
#: caller already is; a fixed lower limit makes the answer the same everywhere.
MAX_DEPTH = 256

#: So many records show whether most have parts that the contract does not read.
_SAMPLE = 200

#: What JSON calls whitespace.
WHITESPACE = b" \t\r\n"

#: Integers polars keeps: beyond, its parser refuses the record whatever field the number is in.
_SMALLEST_INTEGER, _LARGEST_INTEGER = -(2**127), 2**128 - 1

# An unterminated text runs to the end; possessive, so that no input makes it quadratic.
_BRACKET_OR_TEXT = re.compile(rb'[\[\]{}]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
# Escapes in reading order, so that the second half of an escaped backslash never starts one.
_HEX2 = rb"[0-9a-fA-F]{2}"
_SURROGATES = re.compile(
    rb"\\u[dD][89abAB]%b\\u[dD][c-fC-F]%b|(\\u[dD][89a-fA-F]%b)|\\." % (_HEX2, _HEX2, _HEX2), re.DOTALL
)
_MESSAGE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)


class Inspector:
    """Judges single records by one contract."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._first_wins = layout.contract.duplicate_keys == "first"
        self._field_at = {node.label: node.fields[0].name for node in layout.nodes if node.fields}
        self._decode = msgspec.json.Decoder(layout.root.strict_struct()).decode
        self._decode_plain = msgspec.json.Decoder(layout.root.plain_struct()).decode

    def suspects(self, values: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """Numbers of the records without the contract's shape, and of those with parts that nobody looked into.

        Those parts are members the contract does not know, JSON texts, and fractional numbers, whose digits
        parsers disagree about. This is the quick look before :meth:`problem`.
        """
        others: Sequence[int] = range(len(values))
        # Where most records have such parts, asking each whether it does takes longer than it saves.
        sample = values[:_SAMPLE]
        if 2 * len(_refused(self._decode_plain, enumerate(sample))) <= len(sample):
            others = _refused(self._decode_plain, enumerate(values))
        shapeless = _refused(self._decode, ((row, values[row]) for row in others))
        return shapeless, sorted({*others}.difference(shapeless))

    def problem(self, value: bytes) -> Problem | None:
        """What is wrong with a record's bytes, syntax or types, ``None`` when nothing is.

        Not looked for here: keys that stand twice, and what the columns themselves show
        (:mod:`streamproc.transform.decode_fields`).
        """
        unreadable = _unreadable(value) or _lone_surrogate(value)
        if unreadable is not None:
            return unreadable
        try:
            self._decode(value)
        except msgspec.ValidationError as error:
            return self._wrong_shape(value, error)
        except msgspec.DecodeError as error:
            return _not_json(value, error)
        return None

    def number_problem(self, value: bytes) -> Problem | None:
        """A number in any field that JSON allows and parsers do not read alike. For what polars refuses."""
        try:
            orjson.loads(value)
            json.loads(value, parse_int=_bounded_integer)
        except ValueError as error:
            return Problem(Reason.NUMBER_OUT_OF_RANGE, None, _sentence(error))
        return None

    def duplicate_key(self, value: bytes) -> Problem | None:
        """The first contract key that stands twice in its object. ``value`` is known to be a JSON object."""
        if _no_room_for_another(self._layout.root, value):
            return None
        path = _first_duplicate(self._layout.root, _members(value))
        if path is None:
            return None
        label = ".".join(("$", *path))
        return Problem(Reason.DUPLICATE_KEY, self._field_at.get(label), f"{label} stands twice")

    def first_wins(self, value: bytes) -> bytes:
        """The record written anew with the first of each key alone. ``value`` is known to be JSON."""
        return json.dumps(_first_members(_members(value))).encode()

    def _wrong_shape(self, value: bytes, error: msgspec.ValidationError) -> Problem | None:
        syntax = _syntax_error(value)  # a record cut off later on is malformed first of all
        if syntax is not None:
            return _not_json(value, syntax)
        match = _MESSAGE.match(str(error))
        what, path = (match["what"], match["path"]) if match else (str(error), None)
        if path is None:
            return Problem(Reason.NOT_AN_OBJECT, None, what)
        if self._first_wins and self.duplicate_key(value) is not None:
            # msgspec looks at every occurrence of a key, but only the first one counts.
            return self.problem(self.first_wins(value))
        out_of_range = "out of range" in what or "Expected `int` " in what
        reason = Reason.NUMBER_OUT_OF_RANGE if out_of_range else Reason.WRONG_TYPE
        return Problem(reason, self._field_at.get(path), f"{what} at {path}")


def _refused(decode: Callable[[bytes], object], rows: Iterable[tuple[int, bytes]]) -> list[int]:
    found: list[int] = []
    for row, value in rows:
        try:
            decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found.append(row)
    return found


def is_too_deep(value: bytes) -> bool:
    """Whether brackets outside of texts nest deeper than :data:`MAX_DEPTH`. ``value`` need not be JSON."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    # One by one: a bomb of a hundred thousand brackets is known after the first few hundred.
    steps = (_STEP.get(token[0], 0) for token in _BRACKET_OR_TEXT.finditer(value))
    return any(depth > MAX_DEPTH for depth in itertools.accumulate(steps))


def _unreadable(value: bytes) -> Problem | None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return Problem(Reason.NOT_UTF8, None, f"byte {error.start} is not UTF-8: {error.reason}")
    if not value.strip(WHITESPACE):
        return Problem(Reason.EMPTY, None, f"{len(value)} bytes, none of them anything but whitespace")
    if is_too_deep(value):
        return Problem(Reason.TOO_DEEP, None, f"nested deeper than {MAX_DEPTH} levels")
    return None


def _lone_surrogate(value: bytes) -> Problem | None:
    if b"\\u" not in value or not any(match[1] for match in _SURROGATES.finditer(value)):
        return None
    repaired = _SURROGATES.sub(lambda match: rb"\ufffd" if match[1] else match[0], value)
    if _syntax_error(repaired) is not None:
        return None  # malformed in another way too: that is what will be said of it
    return Problem(Reason.LONE_SURROGATE, None, "a text holds half of a surrogate pair")


def _syntax_error(value: bytes) -> msgspec.DecodeError | None:
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return error
    return None


def _not_json(value: bytes, error: Exception) -> Problem:
    mark = "it starts with a byte order mark; " if value.startswith(b"\xef\xbb\xbf") else ""
    return Problem(Reason.NOT_JSON, None, mark + _sentence(error))


def _sentence(error: Exception) -> str:
    return str(error).removeprefix("JSON is malformed: ")


def _bounded_integer(digits: str) -> None:
    # 40 characters hold every integer in range with its sign; int() refuses thousands of digits by itself.
    if len(digits) > 40 or not _SMALLEST_INTEGER <= int(digits) <= _LARGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits.lstrip('-'))} digits")


class _Members(list[tuple[str, Any]]):
    """An object with its members in order, none lost; a list stays a plain ``list``."""


def _members(value: bytes) -> _Members:
    found: _Members = json.loads(value, object_pairs_hook=_Members, parse_int=_integer)
    return found


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= 40 else float(digits)  # int() refuses thousands of digits


_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _no_room_for_another(node: Node, value: bytes) -> bool:
    """Proof by length, for records without spare whitespace: its members leave no byte for a second one.

    Many times quicker than a parser that keeps every member.
    """
    members = _decode_members(value)
    # Braces, quotes and colons, commas, and the keys and values themselves.
    accounted = 1 + sum(len(key.encode()) + 4 + len(memoryview(raw)) for key, raw in members.items())
    if len(value) - accounted >= min(map(len, node.children)) + 5:
        return False
    return all(
        _no_room_for_another(child, bytes(members[key]))
        for key, child in node.children.items()
        if child.children and key in members and bytes(members[key]).startswith(b"{")
    )


def _first_duplicate(node: Node, members: _Members) -> tuple[str, ...] | None:
    inner: dict[str, Any] = {}
    for key, value in members:
        child = node.children.get(key)
        if child is None:
            continue
        if key in inner:
            return child.path
        inner[key] = value
    for key, value in inner.items():
        if isinstance(value, _Members) and (found := _first_duplicate(node.children[key], value)):
            return found
    return None


def _first_members(value: Any) -> Any:
    """Plain values again, the first of members of one name kept."""
    if isinstance(value, _Members):
        return {key: _first_members(inner) for key, inner in reversed(value)}
    return [_first_members(item) for item in value] if isinstance(value, list) else value
