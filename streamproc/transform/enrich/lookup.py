"""``lookup``: columns joined from a CSV or Parquet file.

The file's row with the same values in the ``keys`` columns gives the columns of ``add``; null when there is
none, or a key is null. Keys are compared in the type the stream's column has. The file may be replaced
(:mod:`~streamproc.transform.enrich.replaceable`), so the answer for a batch is that of the file at the time: the
one place where a replay may differ from the stream, by the user's own doing. A key that stands twice is an
error: no row is better than the wrong one.

A file that cannot be used (broken, a column gone, a key twice) is a configuration mistake at the start; later the old
rows stay in use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from streamproc.transform.decode_time import event_time
from streamproc.transform.enrich.replaceable import Replaceable
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
    mistake,
)

#: What reading a file raises that cannot be used.
_UNUSABLE = (ValueError, pl.exceptions.PolarsError)

#: How a file of texts writes flags, in any case; polars casts no text to a boolean.
_FLAGS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Lookup:
    """The step; ``problem`` says what is wrong with the file as it is now, or is None."""

    def __init__(
        self,
        path: Path,
        keys: Mapping[str, str],
        types: Mapping[str, pl.DataType],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = dict(keys)
        self._types = dict(types)
        self._rows = Replaceable(path, self._read, _UNUSABLE, clock)

    @property
    def problem(self) -> str | None:
        """See :attr:`Replaceable.problem`."""
        return self._rows.problem

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the added columns."""
        return frame.join(
            self._rows(),
            left_on=list(self._keys),
            right_on=list(self._keys.values()),
            how="left",
            maintain_order="left",
        )

    def _read(self, path: Path) -> pl.DataFrame:
        if path.suffix == ".parquet":
            rows = pl.read_parquet(path, columns=list(self._types))
        else:
            rows = pl.read_csv(path, columns=list(self._types), infer_schema=False)
        rows = rows.select(_typed(rows[name], dtype) for name, dtype in self._types.items())
        keys = list(self._keys.values())
        rows = rows.drop_nulls(keys)
        twice = rows.filter(pl.struct(keys).is_duplicated())
        if twice.height:
            raise ValueError(f"key {dict(zip(keys, twice.select(keys).row(0), strict=True))} stands twice")
        return rows


def _typed(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """The values in another type. Raises PolarsError or ValueError for one that is none of it."""
    if values.dtype != pl.String():
        return values.cast(dtype)
    if dtype == pl.Boolean():
        return values.str.to_lowercase().replace_strict(_FLAGS, return_dtype=dtype)
    if dtype == pl.Date():
        return values.str.to_date("%Y-%m-%d")
    if isinstance(dtype, pl.Datetime):
        # The forms of event times: polars would guess what 03/01/2026 means.
        moments = values.to_frame().select(event_time(pl.col(values.name), "iso8601", False)).to_series()
        unread = values.filter(moments.is_null()).drop_nulls()
        if unread.len():
            raise ValueError(f"{unread[0]!r} in {values.name} is no timestamp such as 2026-03-01T09:30:00Z")
        return moments.cast(dtype)
    return values.cast(dtype)


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    file = reader.value("file", str, "")
    if Path(file).suffix not in (".csv", ".parquet"):
        reader.wrong("file", f"'{file}' is neither .csv nor .parquet", "Give the path of such a file")
    keys = reader.value("keys", dict, {})
    if not keys:
        reader.wrong("keys", "it is missing", "Give the stream's and the file's columns: { plan_id = 'id' }")
    added = reader.typed("add")
    types: dict[str, pl.DataType] = {}
    for column, name in keys.items():
        reader.check_column(f"keys.{column}", column, None)
        if not isinstance(name, str):
            reader.wrong(f"keys.{column}", "it is not a text", "Give the file's column")
        elif name in added:
            fix = f"Remove it: the event has its value, in '{column}'"
            reader.wrong(f"add.{name}", "it is a key of the file, and keys are not added", fix)
        types[column] = columns.get(column, pl.String())
    reader.values["key_types"] = types
    return reader.done(added)


def _build(options: Mapping[str, Any], resources: Resources) -> Step:
    path = resources.file("lookup", "file", options["file"])
    keys, only = options["keys"], options["only"]
    types = {keys[column]: dtype for column, dtype in options["key_types"].items()}
    types |= {column: dtype for column, dtype in options["add"].items() if column in only}
    try:
        return Lookup(path, keys, types)
    except (OSError, *_UNUSABLE) as error:
        raise mistake("lookup", "file", f"{path} cannot be used: {error}", "Mend the file") from error


#: Options: ``file``, a .csv or .parquet; ``keys = { stream_column = "file_column" }``; ``add = { column =
#: "type" }``, the file's columns to take, under their own names.
SPEC = EnrichmentSpec("lookup", _check, _build)
