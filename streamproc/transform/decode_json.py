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
        frame = self._read(batch.lines, len(batch))
        if frame is None:
            frame = self._isolate(batch)
        frame = self._settle_types(batch, frame)
        frame, texts = self._source_texts(batch, frame)
        frame, texts = self._settle_duplicates(batch, frame, texts)
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
                value = batch.values[place].strip(WHITESPACE)
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
            deep = [place for place in places if is_too_deep(batch.values[place])]
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
        return frame if frame.height == count else None

    def _isolate(self, batch: Batch) -> pl.DataFrame:
        """Take out the records that polars refuses."""
        suspects = {*batch.text.is_null().arg_true(), *self._inspector.suspects(batch.values)}
        batch.drop(self._problems(batch, sorted(suspects)))
        places = batch.text.str.contains(_LARGE_NUMBER).arg_true()
        found = ((place, self._inspector.number_problem(batch.values[place])) for place in places)
        batch.drop({place: problem for place, problem in found if problem})
        if (frame := self._read(batch.lines, len(batch))) is not None:
            return frame
        batch.drop(self._bisect(batch.values, 0))
        frame = self._read(batch.lines, len(batch))
        if frame is None:
            raise AssertionError("polars refuses records together that it takes one by one")
        return frame

    def _bisect(self, values: Sequence[bytes], start: int) -> dict[int, Problem]:
        """What only polars objects to. Nothing known gets here: the checks before agree with it."""
        if self._read(b"\n".join(values), len(values)) is not None:
            return {}
        if len(values) == 1:
            return {start: Problem(Reason.NOT_JSON, None, "the parser refuses it")}
        middle = len(values) // 2
        return self._bisect(values[:middle], start) | self._bisect(values[middle:], start + middle)

    def _settle_types(self, batch: Batch, frame: pl.DataFrame) -> pl.DataFrame:
        text = batch.text
        doubt = self._doubts.coerced(text, frame)
        if batch.has(b"\\u"):
            doubt = doubt | self._doubts.surrogates(text)
        return frame.filter(batch.drop(self._problems(batch, doubt.arg_true()))) if doubt.any() else frame

    def _source_texts(self, batch: Batch, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
        try:
            return frame, self._read_texts(batch)
        except msgspec.DecodeError:
            frame = frame.filter(batch.drop(self._problems(batch, range(len(batch)))))
            return frame, self._read_texts(batch)

    def _read_texts(self, batch: Batch) -> dict[str, pl.Series]:
        return {
            name: text.alias(name)
            for source in self._texts
            for text in [source.read(batch)]
            for name in source.names
        }

    def _settle_duplicates(
        self, batch: Batch, frame: pl.DataFrame, texts: dict[str, pl.Series]
    ) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
        if self._first_wins and not texts:
            return frame, texts  # read_ndjson takes the first by itself
        doubt = self._doubts.repeated_keys(batch.text, frame, texts).arg_true()
        found = ((place, self._inspector.duplicate_key(batch.values[place])) for place in doubt)
        problems = {place: problem for place, problem in found if problem}
        if not problems:
            return frame, texts
        if self._first_wins:
            batch.replace({place: self._inspector.first_wins(batch.values[place]) for place in problems})
            return frame, self._read_texts(batch)
        # A second occurrence of another type is the complaint that isolation would find first.
        keep = batch.drop(
            {place: self._inspector.problem(batch.values[place]) or p for place, p in problems.items()}
        )
        return frame.filter(keep), {name: text.filter(keep) for name, text in texts.items()}

    def _problems(self, batch: Batch, places: Iterable[int]) -> dict[int, Problem]:
        found = ((place, self._inspector.problem(batch.values[place])) for place in places)
        return {place: problem for place, problem in found if problem}


class _SourceTexts:
    """Reads the source texts of a JSON field; ``read_ndjson`` writes nested values anew, without escapes."""

    def __init__(self, node: Node) -> None:
        self.names = [f.name for f in node.json]
        self._key = f'"{node.path[-1]}"'.encode()
        self._attributes = operator.attrgetter(".".join(["f0"] * len(node.path)))
        self._depth = len(node.path)
        self._decode_lines = msgspec.json.Decoder(source_text_struct(node.path)).decode_lines

    def read(self, batch: Batch) -> pl.Series:
        """The texts, null where there is none or a JSON null. Raises msgspec.DecodeError."""
        named = batch.series.bin.contains(self._key)
        if b"\\" in batch.lines:
            named = named | batch.series.bin.contains(b"\\")  # the key may be spelled with escapes
        places = named.arg_true()
        texts = pl.repeat(None, len(batch), dtype=pl.String, eager=True)
        if not len(places):
            return texts
        everywhere = len(places) == len(batch)
        records = self._decode_lines(
            batch.lines if everywhere else b"\n".join(map(batch.values.__getitem__, places))
        )
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
