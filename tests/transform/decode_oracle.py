"""What decoding must do, said again in plain Python: one record at a time, ``json`` and nothing columnar."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from streamproc.topology import Contract, Field, FieldType

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rejected(Exception):
    """The reason is the only argument."""


class Pairs(list):
    """A JSON object as its members."""


def expected(value: bytes | None, received_ms: int, contract: Contract) -> dict[str, Any] | str:
    """The event's columns (JSON fields as parsed values), or the reason it is rejected for."""
    try:
        return _event(value, received_ms, contract)
    except Rejected as rejected:
        return str(rejected)


def _event(value: bytes | None, received_ms: int, contract: Contract) -> dict[str, Any]:
    if value is None:
        raise Rejected("tombstone")
    if len(value) > contract.max_record_bytes:
        raise Rejected("too_large")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("not_utf8") from None
    if not text.strip(" \t\r\n"):
        raise Rejected("empty")
    if _depth(text) > 256:
        raise Rejected("too_deep")
    wild: list[str] = []
    record = _parse(text, wild)
    if _has_lone_surrogate(record):
        raise Rejected("lone_surrogate")
    if not isinstance(record, Pairs):
        raise Rejected("not_an_object")
    first_wins = contract.duplicate_keys == "first"
    tree = _tree(contract.fields)
    _check_types(record, tree, first_wins)
    if wild:
        raise Rejected("number_out_of_range")
    if not first_wins and _duplicates(record, tree):
        raise Rejected("duplicate_key")
    return _columns(record, received_ms, contract)


def _depth(text: str) -> int:
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside:
            escaped = character == "\\"
            inside = character != '"'
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


class Number(float):
    """A number with a fraction or an exponent."""


def _parse(text: str, wild: list[str]) -> Any:
    def integer(digits: str) -> int:
        if len(digits) > 60 or not -(2**127) <= int(digits) < 2**128:
            wild.append(digits)
            return Wild(0)
        return int(digits)

    def number(digits: str) -> float:
        if float(digits) in (float("inf"), float("-inf")):
            wild.append(digits)
            return WildNumber(0.0)
        return Number(digits)

    def constant(name: str) -> None:
        raise Rejected("not_json")

    try:
        return json.loads(
            text, object_pairs_hook=Pairs, parse_int=integer, parse_float=number, parse_constant=constant
        )
    except (json.JSONDecodeError, RecursionError):
        raise Rejected("not_json") from None


class Wild(int):
    """An integer that was too large."""


class WildNumber(Number):
    """A number that was too large."""


def _has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any(0xD800 <= ord(character) <= 0xDFFF for character in value)
    if isinstance(value, Pairs):
        return any(_has_lone_surrogate(key) or _has_lone_surrogate(inner) for key, inner in value)
    return isinstance(value, list) and any(map(_has_lone_surrogate, value))


class Expected:
    """What the contract expects at a key: a scalar's type, or keys below."""

    def __init__(self) -> None:
        self.kind: FieldType | None = None
        self.below: dict[str, Expected] = {}


def _tree(fields: tuple[Field, ...]) -> Expected:
    root = Expected()
    for field in fields:
        node = root
        for key in field.path:
            node = node.below.setdefault(key, Expected())
        if field.type is not FieldType.JSON:
            node.kind = field.type
    return root


def _check_types(record: Pairs, tree: Expected, first_wins: bool) -> None:
    seen = set()
    for key, value in record:
        node = tree.below.get(key)
        if node is None or value is None or (first_wins and key in seen):
            seen.add(key)
            continue
        seen.add(key)
        if node.below:
            if not isinstance(value, Pairs):
                raise Rejected("wrong_type")
            _check_types(value, node, first_wins)
        elif node.kind is not None:
            _check_type(value, node.kind)


def _check_type(value: Any, kind: FieldType) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if kind is FieldType.INTEGER and is_integer:
        if isinstance(value, Wild) or not -(2**63) <= value < 2**63:
            raise Rejected("number_out_of_range")
        return
    if kind in (FieldType.INTEGER, FieldType.NUMBER) and isinstance(value, WildNumber):
        raise Rejected("number_out_of_range")
    right = {
        FieldType.STRING: isinstance(value, str),
        FieldType.INTEGER: False,
        FieldType.NUMBER: is_integer or isinstance(value, float),
        FieldType.BOOLEAN: isinstance(value, bool),
    }[kind]
    if not right:
        raise Rejected("wrong_type")


def _duplicates(record: Pairs, tree: Expected) -> bool:
    keys = [key for key, _ in record if key in tree.below]
    return len(keys) != len(set(keys)) or any(
        isinstance(value, Pairs) and _duplicates(value, tree.below[key])
        for key, value in record
        if key in tree.below
    )


def _columns(record: Pairs, received_ms: int, contract: Contract) -> dict[str, Any]:
    found = {field.name: _at(record, field.path) for field in contract.fields}
    texts = [f for f in contract.fields if f.type in (FieldType.STRING, FieldType.JSON)]
    if any(_has_nul(found[field.name]) for field in texts):
        raise Rejected("nul_character")
    for field in contract.fields:
        value = found[field.name]
        if value is None and (field.required or field.name == contract.event_time.field):
            raise Rejected("missing_field")
        if field.type is FieldType.STRING and value is not None and field.max_length is not None:
            if not field.truncate and len(value) > field.max_length:
                raise Rejected("too_long")
            found[field.name] = value[: field.max_length]
        if field.type is FieldType.NUMBER and value is not None:
            found[field.name] = float(value)
    time = _time(found[contract.event_time.field], contract.event_time.format)
    skew = timedelta(microseconds=contract.event_time.future_skew)
    if time > _EPOCH + timedelta(milliseconds=received_ms) + skew:
        raise Rejected("future_event")
    age = contract.event_time.max_age
    if age is not None and time < _EPOCH + timedelta(milliseconds=received_ms) - timedelta(microseconds=age):
        raise Rejected("old_event")
    return {**found, "event_time": time}


def _at(record: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(record, Pairs):
            return None
        record = next((value for name, value in record if name == key), None)
    return record


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Pairs):
        return any(_has_nul(key) or _has_nul(inner) for key, inner in value)
    return isinstance(value, list) and any(map(_has_nul, value))


def _time(value: Any, unit: str) -> datetime:
    try:
        if unit == "iso8601":
            time = datetime.fromisoformat(value)
            time = time if time.tzinfo else time.replace(tzinfo=UTC)
        else:
            per_second = {"s": 1, "ms": 1_000, "us": 1_000_000}[unit]
            time = _EPOCH + timedelta(microseconds=round(value * (1_000_000 // per_second)))
        if time < _EPOCH:
            raise Rejected("bad_event_time")
    except (ValueError, OverflowError):
        raise Rejected("bad_event_time") from None
    return time.astimezone(UTC)
