"""``python``: a function of the user's own, from a frame to a frame.

The function gets the events with all columns so far and returns a frame of as many rows in the same order,
with at least the columns that ``adds`` declares. Only those are taken over: it cannot lose, add or reorder
events, nor change what other columns say. A column without any value may be of no type, as polars makes it of a list
of ``None``. It should be a pure function, or a replay will not agree. Where there are no events it is not asked.

What no table can hold would stop the stream, and may well come of what a visitor sends (``%00``, a number taken for a
time): NUL in a text becomes U+FFFD, a date or a moment outside the years 1 to 9999 null.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import polars as pl
from polars.exceptions import PanicException

from streamproc.errors import EnrichmentFailed
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
    mistake,
)
from streamproc.transform.expressions import within_calendar


class _Function:
    def __init__(self, name: str, function: Any, adds: Mapping[str, pl.DataType]) -> None:
        self._name = name
        self._function = function
        self._adds = adds

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        if frame.is_empty():  # of no event there is nothing to say, and many a model refuses to
            return frame.hstack(pl.DataFrame(schema=self._adds))
        try:
            # A frame of its own: some methods of polars change theirs in place.
            out = self._function(frame.clone())
        except (Exception, PanicException) as error:  # not our code: whatever it raises has to carry its name
            raise EnrichmentFailed(self._name, f"it raised {type(error).__name__}: {error}") from error
        self._check(frame, out)
        return frame.hstack(out.select(_storable(name, dtype) for name, dtype in self._adds.items()))

    def _check(self, frame: pl.DataFrame, out: object) -> None:
        if not isinstance(out, pl.DataFrame):
            raise EnrichmentFailed(self._name, f"it returned {type(out).__name__}, not a polars DataFrame")
        if out.height != frame.height:
            raise EnrichmentFailed(self._name, f"it returned {out.height} rows for {frame.height} events")
        for column, dtype in self._adds.items():
            got = out.schema.get(column)
            if got not in (dtype, pl.Null()):
                raise EnrichmentFailed(self._name, f"column '{column}' is {got or 'missing'}, not {dtype}")
        for column in ("source_partition", "position"):
            if column not in out.columns or not out[column].equals(frame[column], null_equal=True):
                raise EnrichmentFailed(self._name, f"it reordered the events, or changed '{column}'")


def _storable(name: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(name).cast(dtype)
    if dtype == pl.String():
        return value.str.replace_all("\0", "\ufffd", literal=True)
    return within_calendar(value, dtype)


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    name = reader.value("function", str, "")
    if name.count(":") != 1 or not all(name.split(":")):
        reader.wrong("function", f"'{name}' names no function", "Write package.module:name")
    return reader.done(reader.typed("adds"))


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    module, name = options["function"].split(":")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # not our code: a module may fail in any way when it is loaded
        problem = f"{module} cannot be imported: {type(error).__name__}: {error}"
        raise mistake("python", "function", problem, "Install it where workers run, or mend it") from error
    if not callable(function):
        raise mistake("python", "function", f"{module} has no function {name}", "Write package.module:name")
    adds = {column: dtype for column, dtype in options["adds"].items() if column in options["only"]}
    return _Function(options["function"], function, adds)


#: Options: ``function = "package.module:name"``; ``adds = { column = "type" }``.
SPEC = EnrichmentSpec("python", _check, _build)
