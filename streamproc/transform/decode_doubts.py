"""Finding, by columns, the records whose values ``read_ndjson`` may have got wrong without saying so.

Three things slip through it: a number, flag or object in place of a text is turned into text; half of a
surrogate pair becomes NUL; of a key that stands twice the first wins. Each check here is a proof that a row
is fine; the few rows without a proof are *doubtful* and are looked at one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from streamproc.topology import FieldType
from streamproc.transform.decode_layout import Layout, Node

#: What a text column holds when the record had something else there.
_NOT_A_TEXT = r"^(?:-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$|true$|false$|[\[{])"
#: So few records are looked at one by one sooner than the patterns for their keys are compiled.
_FEW = 200
_SURROGATE_ESCAPE = r"\\u[dD][89a-fA-F]"
_SHORT_ESCAPES = {'"': r"\\\"", "\\": r"\\\\", "/": r"\\/"}


class Doubts:
    """The checks compiled for one contract.

    They take ``records`` (Binary, all of them UTF-8), ``parsed`` (the frame of ``read_ndjson``, same rows) and
    ``texts`` (by JSON field: its source text), and answer with the places of the doubtful rows.
    """

    def __init__(self, layout: Layout) -> None:
        keys = sorted({node.path[-1] for node in layout.nodes})
        self._keys = _Spelling.of(keys)
        self._each_key = [
            (_Spelling.of([key]), [n for n in layout.nodes if n.path[-1] == key and _is_known(n)])
            for key in keys
        ]
        # The shortest second occurrence there can be: a comma, the key in quotes, a colon, one digit.
        self._room_for_another = min(len(key.encode()) for key in keys) + 5
        self._known = [node for node in layout.nodes if _is_known(node)]
        self._texts = [node for node in self._known if not node.typed and not node.children]
        self._values = [node for node in self._known if node not in self._texts]
        # A key that two objects have could stand for either of them: its nulls are left to the counting.
        self._null_nodes = [
            nodes[0] for _, nodes in self._each_key if len(nodes) == 1 and not nodes[0].children
        ]
        # Keys inside of a JSON text are its own affair, unless the contract reads some of them too.
        self._opaque = [_text_column(node.json[0].name) for node in self._texts]
        self._text_nodes = [n for n in layout.nodes if n.typed and n.typed[0].type is FieldType.STRING]

    def surrogates(self, records: pl.Series, escaped: pl.Series) -> pl.Series:
        """Records with an escaped surrogate, paired or not. ``escaped``: which records have ``\\u``."""
        places = escaped.arg_true()
        found = records.gather(places).cast(pl.String).str.contains(_SURROGATE_ESCAPE)
        return places.filter(found)

    def coerced(self, records: pl.Series, parsed: pl.DataFrame) -> list[int]:
        """Records in which a text may have been made of another JSON type.

        A text of digits is no rare thing (numeric ids), so a row is cleared when its record has no escapes
        and names the key once, followed by a quote.
        """
        doubtful: set[int] = set()
        looks = parsed.select(_not_a_text(node).alias(node.label) for node in self._text_nodes)
        for node, alike in zip(self._text_nodes, looks.iter_columns(), strict=True):
            places = alike.arg_true()
            if places.is_empty():
                continue
            key = f'"{node.path[-1]}"'
            here = records.gather(places).cast(pl.String)
            cleared = (
                ~here.str.contains("\\", literal=True)
                & (here.str.count_matches(key, literal=True) == 1)
                & here.str.contains(re.escape(key) + r'\s*:\s*"')
            )
            doubtful.update(places.filter(~cleared))
        return sorted(doubtful)

    def room(self, records: pl.Series, parsed: pl.DataFrame) -> pl.Series:
        """Bytes of each record that the values in ``parsed`` do not account for, JSON texts among them."""
        least = pl.sum_horizontal(pl.lit(1, dtype=pl.Int64), *map(_least_bytes, self._values))
        return records.bin.size().cast(pl.Int64) - parsed.select(least.alias(_SIZE))[_SIZE]

    def repeated_keys(
        self, records: pl.Series, parsed: pl.DataFrame, texts: Mapping[str, pl.Series], room: pl.Series
    ) -> pl.Series:
        """Records in which a contract key may stand twice.

        First by length: every value found accounts for a least number of bytes, and when what remains is too
        little for another member the proof is done; a ``"key":null`` of a value that was not found accounts
        for itself. Else by counting the keys.
        """
        known = parsed.with_columns(text.alias(_text_column(name)) for name, text in texts.items())
        if self._texts:
            least = pl.sum_horizontal(*map(_least_bytes, self._texts))
            room = room - known.select(least.alias(_SIZE))[_SIZE]
        places = (room >= self._room_for_another).arg_true()
        if places.is_empty():
            return places
        values, known = records.gather(places).cast(pl.String), known[places]
        doubt = room.gather(places) - self._null_bytes(values, known) >= self._room_for_another
        if doubt.sum() > _FEW:
            doubt = _scatter(doubt, self._uncounted(values.filter(doubt), known.filter(doubt)))
        return places.filter(doubt)

    def _null_bytes(self, values: pl.Series, known: pl.DataFrame) -> pl.Series:
        """Bytes of members ``"key":null,`` with a contract key.

        Such bytes can stand in a record in two places: as a member, and as a member of an object that is a
        JSON text. In a text its quotes would be escaped.
        """
        frame = known.with_columns(values.alias(_RECORD))
        spells_nulls = [pl.col(column).str.contains(":null", literal=True) for column in self._opaque]
        alone = ~pl.any_horizontal(pl.lit(False), *spells_nulls).fill_null(False)
        members = [pl.lit(0, dtype=pl.Int64)]
        for node in self._null_nodes:
            member = f'"{node.path[-1]}":null'
            there = ~_presence(node) & pl.col(_RECORD).str.contains(member, literal=True)
            members.append(pl.when(there).then(len(member.encode()) + 1).otherwise(0))
        total: pl.Series = frame.select(
            pl.when(alone).then(pl.sum_horizontal(members)).otherwise(0).alias("bytes")
        )["bytes"]
        return total

    def _uncounted(self, values: pl.Series, known: pl.DataFrame) -> pl.Series:
        """Rows in which the keys do not add up to one for each value found."""
        total = self._outside_texts(self._keys, values, known)
        doubt = total > self._present(self._known, known)
        if not doubt.any():
            return doubt
        explained = self._explained(values.filter(doubt), known.filter(doubt), total.filter(doubt))
        return _scatter(doubt, ~explained)

    def _explained(self, values: pl.Series, known: pl.DataFrame, total: pl.Series) -> pl.Series:
        """Of rows with more keys than values, those where ``"key": null`` explains all of the others."""
        fine = pl.repeat(True, len(values), dtype=pl.Boolean, eager=True)
        counted = pl.repeat(0, len(values), dtype=pl.Int64, eager=True)
        for spelling, nodes in self._each_key:
            count = self._outside_texts(spelling, values, known)
            present = self._present(nodes, known)
            lone_null = (present == 0) & (count == 1) & (len(nodes) == 1)
            fine = fine & ((count == present) | lone_null)
            counted = counted + count
        return fine & (counted == total)

    def _outside_texts(self, keys: _Spelling, values: pl.Series, known: pl.DataFrame) -> pl.Series:
        count = keys.count(values)
        for column in self._opaque:
            count = count - keys.count(known[column].fill_null(""))
        return count

    def _present(self, nodes: list[Node], known: pl.DataFrame) -> pl.Series:
        found = (_presence(node).cast(pl.Int64).alias(node.label) for node in nodes)
        total: pl.Series = known.select(pl.sum_horizontal(pl.lit(0, dtype=pl.Int64), *found).alias("n"))["n"]
        return total


@dataclass(frozen=True, slots=True)
class _Spelling:
    """Patterns for some keys in quotes: as they are, and with any of their characters escaped."""

    plain: str
    escaped: str

    @classmethod
    def of(cls, keys: Iterable[str]) -> _Spelling:
        keys = list(keys)
        return cls("|".join(re.escape(f'"{key}"') for key in keys), "|".join(map(_any_spelling, keys)))

    def count(self, values: pl.Series) -> pl.Series:
        plain = values.str.count_matches(self.plain).cast(pl.Int64)
        escapes = values.str.contains("\\", literal=True)
        if not escapes.any():
            return plain
        spelled = values.filter(escapes).str.count_matches(self.escaped).cast(pl.Int64)
        return plain.scatter(escapes.arg_true(), spelled)


_SIZE = "\x1fsize"
_RECORD = "\x1frecord"
_TEXT_PREFIX = "\x1ftext:"


def _text_column(name: str) -> str:
    return _TEXT_PREFIX + name


def _scatter(rows: pl.Series, answers: pl.Series) -> pl.Series:
    """``answers`` back at the rows they are about, false elsewhere."""
    return pl.repeat(False, len(rows), dtype=pl.Boolean, eager=True).scatter(rows.arg_true(), answers)


def _not_a_text(node: Node) -> pl.Expr:
    return node.value.str.contains(_NOT_A_TEXT)


def _is_known(node: Node) -> bool:
    """Whether the parsed frame or a JSON text tells that the node is there."""
    return bool(node.fields) or bool(node.polars_schema())


def _presence(node: Node) -> pl.Expr:
    if node.polars_schema() or node.typed:
        return node.value.is_not_null()
    return pl.col(_text_column(node.json[0].name)).is_not_null()


def _least_bytes(node: Node) -> pl.Expr:
    """The fewest bytes the node's member takes in its record, its comma counted; null when it is absent.

    Escapes and whitespace only add to it. An object is counted as one byte: two braces less the comma that
    its first member does not have; the record itself likewise.
    """
    around = len(node.path[-1].encode()) + 4
    if node.children:
        return pl.when(_presence(node)).then(pl.lit(1 + around, dtype=pl.Int64))
    if not node.typed:
        return pl.col(_text_column(node.json[0].name)).str.len_bytes().cast(pl.Int64) + around
    match node.typed[0].type:
        case FieldType.STRING:
            return node.value.str.len_bytes().cast(pl.Int64) + (around + 2)
        case FieldType.INTEGER:
            return node.value.cast(pl.String).str.len_bytes().cast(pl.Int64) + around
        case kind:
            least = 4 if kind is FieldType.BOOLEAN else 1
            return pl.when(_presence(node)).then(pl.lit(around + least, dtype=pl.Int64))


def _any_spelling(key: str) -> str:
    """A pattern for the key in quotes, each character plain or escaped."""
    return '"' + "".join(f"(?:{'|'.join(_spellings(character))})" for character in key) + '"'


def _spellings(character: str) -> list[str]:
    units = character.encode("utf-16-be").hex()
    escape = "".join(rf"\\u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    short = {"\b": r"\\b", "\f": r"\\f", "\n": r"\\n", "\r": r"\\r", "\t": r"\\t"} | _SHORT_ESCAPES
    spellings = [escape]
    if character in short:
        spellings.append(short[character])
    if character not in '"\\' and character >= " ":
        spellings.append(re.escape(character))
    return spellings
