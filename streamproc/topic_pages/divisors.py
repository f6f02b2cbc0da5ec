"""Divisions in a table's derived columns whose divisor may be zero.

PostgreSQL computes these columns, and where polars says null or infinity it raises: one row with such a divisor would
keep every later commit of its partition from succeeding. So it has to be plain from the expression alone that a divisor
is never zero. It is where it is a number, made null by ``nullif(x, 0)``, kept away from zero by ``greatest(x, 1)``, or
compared with a number by the ``case`` that the division stands in.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

#: A token, or a group: what opens it, ``(`` or ``case``, and all up to its end.
_Node: TypeAlias = "str | tuple[_Node, ...]"
_Nodes: TypeAlias = "tuple[_Node, ...]"

_TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?
    | [^\W\d]\w*
    | <> | != | <= | >= | ::
    | \S
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?")

#: Types to which a cast makes a zero of nothing else.
_FLOATS: set[_Nodes] = {("double", "precision"), ("double",), ("float",), ("float8",)}

_COMPARISONS: dict[_Node, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def unsafe_divisor(sql: str) -> str | None:
    """The first divisor that may be zero in an expression that polars takes; ``None`` when there is none."""
    divisor = next(_unsafe(_grouped(_tokens(sql)), frozenset()), None)
    return None if divisor is None else _text(_bare(divisor))


def _tokens(sql: str) -> Iterator[str]:
    for match in _TOKEN.finditer(sql):
        token = match[0]
        if match["comment"] is None:
            yield token if token.startswith(("'", '"')) else token.lower()


def _grouped(tokens: Iterator[str]) -> _Nodes:
    """The tokens up to the end of their group."""
    nodes: list[_Node] = []
    for token in tokens:
        if token in (")", "end"):
            break
        nodes.append((token, *_grouped(tokens)) if token in ("(", "case") else token)
    return tuple(nodes)


def _unsafe(nodes: _Nodes, known: frozenset[_Nodes]) -> Iterator[_Nodes]:
    """The divisors that may be zero. ``known``: what is never zero here, but may be null."""
    for place, node in enumerate(nodes):
        divisor = _divisor(node, nodes[place + 1 :])
        if divisor is not None and not _never_zero(divisor, known):
            yield divisor
        if isinstance(node, tuple):
            look = _unsafe_in_case if node[0] == "case" else _unsafe
            yield from look(node[1:], known)


def _divisor(node: _Node, behind: _Nodes) -> _Nodes | None:
    """What an operator or a function divides by; ``behind``: what follows it."""
    if node in ("/", "%"):
        return _operand(behind)
    if node in ("mod", "div") and _opens(behind, "("):
        return _split(_inside(behind[0]), ",")[-1]
    return None


def _unsafe_in_case(nodes: _Nodes, known: frozenset[_Nodes]) -> Iterator[_Nodes]:
    """A condition is looked at when none before it has held, and what follows it when it has."""
    compared, *branches = _parts(nodes, ("when", "then", "else"))
    yield from _unsafe(compared, known)
    held = known
    for branch in branches:
        word, part = branch[0], branch[1:]
        yield from _unsafe(part, held if word == "then" else known)
        if word == "when":
            condition = (*compared, "=", *part) if compared else part
            held = known | _not_zero(condition, holds=True)
            known = known | _not_zero(condition, holds=False)


def _not_zero(condition: _Nodes, *, holds: bool) -> frozenset[_Nodes]:
    """What is not zero, but may be null, when the condition holds; else, when it is false or null."""
    condition = _bare(condition)
    word, other = ("and", "or") if holds else ("or", "and")
    if other in condition or "between" in condition:
        return frozenset()
    parts = _split(condition, word)
    if len(parts) > 1:
        return frozenset(found for part in parts for found in _not_zero(part, holds=holds))
    places = [place for place, node in enumerate(condition) if node in _COMPARISONS]
    if len(places) != 1:
        return frozenset()
    left, right = condition[: places[0]], condition[places[0] + 1 :]
    compare = _COMPARISONS[condition[places[0]]]
    if (number := _number(right)) is not None:
        subject, zero_does = left, compare(0.0, number)
    elif (number := _number(left)) is not None:
        subject, zero_does = right, compare(number, 0.0)
    else:
        return frozenset()
    return frozenset() if zero_does == holds else frozenset([_unsigned(subject)])


def _never_zero(nodes: _Nodes, known: frozenset[_Nodes]) -> bool:
    """Whether this is plainly a number but zero, or null."""
    nodes = _unsigned(nodes)
    number = _number(nodes)
    if number is not None or nodes in known:
        return number != 0
    if _operand(nodes) != nodes:
        return False
    if "::" in nodes:
        operand, *types = _split(nodes, "::")
        return set(types) <= _FLOATS and _never_zero(operand, known)
    return _opens(nodes[1:], "(") and _gives_no_zero(nodes[0], _split(_inside(nodes[1]), ","), known)


def _gives_no_zero(function: _Node, arguments: list[_Nodes], known: frozenset[_Nodes]) -> bool:
    match function:
        case "nullif":
            return _number(arguments[-1]) == 0
        case "greatest":
            return any((_number(each) or 0) > 0 for each in arguments)
        case "coalesce" | "abs":
            return all(_never_zero(each, known) for each in arguments)
        case "cast":
            operand, *types = _split(arguments[0], "as")
            return set(types) <= _FLOATS and _never_zero(operand, known)
    return False


def _operand(nodes: _Nodes) -> _Nodes:
    """What an operator before ``nodes`` works on: with its signs, its arguments if it is a call, and its casts."""
    end = 0
    while nodes[end : end + 1] in (("-",), ("+",)):
        end += 1
    end += 1
    if _opens(nodes[end:], "(") and not _opens(nodes[end - 1 :], "("):
        end += 1
    while nodes[end : end + 1] == ("::",):
        end += 3 if nodes[end + 1 : end + 3] == ("double", "precision") else 2
    return nodes[:end]


def _bare(nodes: _Nodes) -> _Nodes:
    """Without parentheses around the whole."""
    return _bare(_inside(nodes[0])) if len(nodes) == 1 and _opens(nodes, "(") else nodes


def _unsigned(nodes: _Nodes) -> _Nodes:
    """Without parentheses and signs around the whole, which make a zero of nothing else."""
    nodes = _bare(nodes)
    if nodes[:1] in (("-",), ("+",)) and _operand(nodes) == nodes:
        return _unsigned(nodes[1:])
    return nodes


def _number(nodes: _Nodes) -> float | None:
    text = "".join(map(str, _bare(nodes)))
    return float(text) if _NUMBER.fullmatch(text) else None


def _split(nodes: _Nodes, word: str) -> list[_Nodes]:
    first, *others = _parts(nodes, (word,))
    return [first, *(part[1:] for part in others)]


def _parts(nodes: _Nodes, words: tuple[str, ...]) -> list[_Nodes]:
    """What stands before the first of the words, and from each of them to the next."""
    places = [place for place, node in enumerate(nodes) if node in words]
    return [nodes[begin:end] for begin, end in zip([0, *places], [*places, len(nodes)], strict=True)]


def _opens(nodes: _Nodes, by: str) -> bool:
    """Whether a group that this opens comes first."""
    return bool(nodes) and isinstance(nodes[0], tuple) and nodes[0][0] == by


def _inside(group: _Node) -> _Nodes:
    return group[1:] if isinstance(group, tuple) else ()


def _text(nodes: _Nodes) -> str:
    """As it may have been written."""
    text = ""
    for node in nodes:
        word = node if isinstance(node, str) else f"({_text(node[1:])})" if node[0] == "(" else "case … end"
        beside = not text or word == "," or (word.startswith("(") and text[-1].isalnum())
        text += word if beside else f" {word}"
    return text
