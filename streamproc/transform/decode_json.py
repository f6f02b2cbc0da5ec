"""JSON records to typed columns, a whole batch at once.

``read_ndjson`` gives every value that is accepted; what it cannot be trusted with is settled record by record
in :mod:`streamproc.transform.decode_inspect`, and what it refuses is isolated there. Each record is judged by
its own bytes alone: batch boundaries differ between a live run and a replay, the outcome may not.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import msgspec
import polars as pl

from streamproc.topology import Contract, FieldType
from streamproc.transform.decode_batch import Batch, as_text
from streamproc.transform.decode_doubts import Doubts
from streamproc.transform.decode_inspect import MAX_DEPTH, WHITESPACE, Inspector, is_too_deep
from streamproc.transform.decode_layout import Node, layout_of, source_text_struct
from streamproc.transform.decode_rejects import Problem, Reason

#: What polars raises on records it cannot read: bad syntax or types, a text in place of an object.
_REFUSALS = (pl.exceptions.ComputeError, pl.exceptions.SchemaError, pl.exceptions.InvalidOperationError)

#: So many records are looked at one by one before all are read together.
_PROBE = 256

#: Finds numbers that JSON allows and polars may not: too many digits, too large an exponent.
_LARGE_NUMBER = r"[:,\[\s]-?(?:[0-9]{39}|[0-9.]+[eE]\+?[0-9]{3})"


class JsonParser:
    """The parser of ``decoder = "json"``. Keeps nothing between calls.

    Raises ValueError when the contract reads two types from one key.
    """

    def __init__(self, contract: Contract) -> None:
        layout = layout_of(contract)
        self._fields = contract.fields
        self._schema = layout.root.polars_schema()
        self._inspector = Inspector(layout)
        self._doubts = Doubts(layout)
        self._first_wins = contract.duplicate_keys == "first"
        self._typed_nodes = [node for node in layout.nodes if node.typed]
        self._texts = [_SourceTexts(node) for node in layout.nodes if node.json]

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The contract's columns, in its order, for the records that stay in ``batch``."""
        self._straighten(batch)
        frame = None
        # Where bad records are common the first few hundred show one, and a reading that will be refused is
        # not prepared for: a tenth of the time of such a batch, a hundredth of that of others.
        if not self._inspector.suspects(batch.values[:_PROBE])[0]:
            frame = self._read(batch.lines, len(batch))
        if frame is None:
            frame = self._isolate(batch)
        frame = self._settle_types(batch, frame)
        texts: dict[str, pl.Series] = {}
        if self._texts or not self._first_wins:  # else read_ndjson takes the first of two by itself
            frame, texts = self._settle_members(batch, frame)
        typed = {f.name: node.value.alias(f.name) for node in self._typed_nodes for f in node.typed}
        return frame.select(
            texts[f.name] if f.type is FieldType.JSON else typed[f.name] for f in self._fields
        )

    def _straighten(self, batch: Batch) -> None:
        """One line per record, none of them nested without bound."""
        if (spread := batch.series.bin.contains(b"\n")).any():
            problems: dict[int, Problem] = {}
            lines: dict[int, bytes] = {}
            for place in spread.arg_true():
                value = batch[place].strip(WHITESPACE)
                # Inside of a text a line feed is an error; as whitespace a space does as well.
                if b"\n" in value and (problem := self._inspector.problem(value)):
                    problems[place] = problem
                else:
                    lines[place] = value.replace(b"\n", b" ")
            batch.replace(lines)
            batch.drop(problems)
        if (large := batch.series.bin.size() >= 2 * MAX_DEPTH).any():
            brackets = as_text(batch.series.filter(large)).str.count_matches(r"[\[{]")
            places = large.arg_true().filter((brackets > MAX_DEPTH).fill_null(False))
            deep = [place for place in places if is_too_deep(batch[place])]
            batch.drop(self._problems(batch, deep))

    def _read(self, lines: bytes, count: int) -> pl.DataFrame | None:
        """``None`` when polars refuses them, or when some of them are blank and give no row."""
        if not count:
            return pl.DataFrame(schema=self._schema)
        if not lines.startswith(b"{"):
            # polars unpacks what begins like a gzip, zlib or zstd file: one record could replace all others.
            lines = b" " + lines
        try:
            frame = pl.read_ndjson(lines, schema=self._schema)
        except _REFUSALS:
            return None
        # No record holds a line feed, and a line gives one row at most: as many rows means each has its own.
        # It comes in pieces of 1,024 rows; in one piece, a copy of references, what follows takes half the time.
        return frame.rechunk() if frame.height == count else None

    def _isolate(self, batch: Batch) -> pl.DataFrame:
        """Take out the records that polars refuses. It does not say which they are."""
        shapeless, unread = self._inspector.suspects(batch.values)
        problems = self._problems(batch, shapeless)
        text = as_text(batch.series.gather(unread))
        problems |= self._problems(batch, (unread[n] for n in text.is_null().arg_true()))
        for number in text.str.contains(_LARGE_NUMBER).arg_true():
            if problem := self._inspector.number_problem(batch[unread[number]]):
                problems[unread[number]] = problem
        batch.drop(problems)
        if (frame := self._read(batch.lines, len(batch))) is not None:
            return frame
        batch.drop(self._bisect(batch))
        frame = self._read(batch.lines, len(batch))
        if frame is None:
            raise AssertionError("polars refuses records together that it takes one by one")
        return frame

    def _bisect(self, batch: Batch) -> dict[int, Problem]:
        """What only polars objects to. Nothing known gets here: the checks before agree with it."""
        problem = Problem(Reason.NOT_JSON, None, "the parser refuses it")
        return dict.fromkeys(self._refused(batch.values, 0), problem)

    def _refused(self, values: Sequence[bytes], start: int) -> list[int]:
        if self._read(b"\n".join(values), len(values)) is not None:
            return []
        if len(values) == 1:
            return [start]
        middle = len(values) // 2
        return self._refused(values[:middle], start) + self._refused(values[middle:], start + middle)

    def _settle_types(self, batch: Batch, frame: pl.DataFrame) -> pl.DataFrame:
        doubtful = {*self._doubts.coerced(batch.series, frame)}
        if (escaped := batch.holding(b"\\u")) is not None:
            doubtful.update(self._doubts.surrogates(batch.series, escaped))
        return frame.filter(batch.drop(self._problems(batch, sorted(doubtful)))) if doubtful else frame

    def _settle_members(self, batch: Batch, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
        """The source texts, and no key twice."""
        room = self._doubts.room(batch.series, frame)
        try:
            texts = self._read_texts(batch, room)
        except msgspec.DecodeError:
            keep = batch.drop(self._problems(batch, range(len(batch))))
            frame, room = frame.filter(keep), room.filter(keep)
            texts = self._read_texts(batch, room)
        doubtful = self._doubts.repeated_keys(batch.series, frame, texts, room)
        found = ((place, self._inspector.duplicate_key(batch[place])) for place in doubtful)
        problems = {place: problem for place, problem in found if problem}
        if not problems:
            return frame, texts
        if self._first_wins:
            batch.replace({place: self._inspector.first_wins(batch[place]) for place in problems})
            return frame, self._read_texts(batch, room)
        # A second occurrence of another type is the complaint that isolation would find first.
        keep = batch.drop(
            {place: self._inspector.problem(batch[place]) or p for place, p in problems.items()}
        )
        return frame.filter(keep), {name: text.filter(keep) for name, text in texts.items()}

    def _read_texts(self, batch: Batch, room: pl.Series) -> dict[str, pl.Series]:
        return {
            name: text.alias(name)
            for source in self._texts
            for text in [source.read(batch, room)]
            for name in source.names
        }

    def _problems(self, batch: Batch, places: Iterable[int]) -> dict[int, Problem]:
        found = ((place, self._inspector.problem(batch[place])) for place in places)
        return {place: problem for place, problem in found if problem}


class _SourceTexts:
    """Reads the source texts of a JSON field; ``read_ndjson`` writes nested values anew, without escapes."""

    def __init__(self, node: Node) -> None:
        self.names = [f.name for f in node.json]
        self._key = f'"{node.path[-1]}"'.encode()
        # With quotes, a colon, and one byte of text. What is read inside of it accounts for an object's bytes.
        self._least_bytes = 0 if node.children else len(self._key) + 2
        self._attributes = operator.attrgetter(".".join(["f0"] * len(node.path)))
        self._depth = len(node.path)
        self._decode_lines = msgspec.json.Decoder(source_text_struct(node.path)).decode_lines

    def read(self, batch: Batch, room: pl.Series) -> pl.Series:
        """The texts, null where there is none or a JSON null. Raises msgspec.DecodeError.

        ``room``: see :meth:`Doubts.room`; records without any for the member are not searched for its key.
        """
        places = (room >= self._least_bytes).arg_true()
        roomy = batch.series.gather(places)
        named = roomy.bin.contains(self._key)
        if batch.has_escapes:
            named = named | roomy.bin.contains(b"\\")  # the key may be spelled with escapes
        places = places.filter(named)
        texts = pl.repeat(None, len(batch), dtype=pl.String, eager=True)
        if places.is_empty():
            return texts
        everywhere = len(places) == len(batch)
        records = self._decode_lines(batch.lines if everywhere else b"\n".join(batch.at(places)))
        # One join and one split instead of a Python object per text; records hold no line feed.
        joined = b"\n".join(
            [record.f0 for record in records]  # type: ignore[attr-defined]  # defined at run time
            if self._depth == 1
            else map(self._nested, records)
        )
        found = pl.Series([joined], dtype=pl.Binary).cast(pl.String).str.split("\n").explode()
        found = found.set(found.is_in(["", "null"]), None)
        return found if everywhere else texts.scatter(places, found)

    def _nested(self, record: object) -> msgspec.Raw:
        try:
            text: msgspec.Raw = self._attributes(record)
        except AttributeError:  # an object on the way is absent
            return msgspec.Raw(b"")
        return text
