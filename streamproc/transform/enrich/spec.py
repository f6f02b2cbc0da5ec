"""What an enrichment is, to the configuration (``check``) and to the transform (``build``).

``check`` looks at the options as they stand in the topic page and opens no file: which columns a stream
has, and of what type, follows from the page alone, so a new GeoIP file cannot change the lake's schema.
``build`` opens what the options name and raises :class:`~streamproc.errors.ConfigError` when it cannot.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from streamproc.errors import ConfigError, Mistake

#: Frame in, frame out: the same rows in the same order, plus the columns the enrichment ``adds``. A step
#: may cache (within a bound) but is a function of the frame and its files. Several threads may call it at once.
Step = Callable[[pl.DataFrame], pl.DataFrame]

#: What a topic page calls the types of columns that an enrichment declares.
COLUMN_TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us", "UTC"),
}


@dataclass(frozen=True, slots=True)
class OptionMistake:
    """One option that is wrong. ``path``: dotted, below the enrichment's own table; empty for the whole."""

    path: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class Checked:
    """Options with their defaults filled in, and the columns the enrichment adds, in order.

    ``options["only"]`` is always there: the names of ``adds``.
    """

    options: Mapping[str, object]
    adds: Mapping[str, pl.DataType]


@dataclass(frozen=True, slots=True)
class Resources:
    """What options may refer to: ``secrets`` (the environment) and ``base``, where relative paths start."""

    secrets: Mapping[str, str]
    base: Path

    def file(self, kind: str, option: str, name: str) -> Path:
        """The file an option names. Raises ConfigError when it is not there."""
        path = self.base / Path(name).expanduser()
        if not path.is_file():
            raise mistake(kind, option, f"there is no file {path}", "Give a path relative to the topic page")
        return path


@dataclass(frozen=True, slots=True)
class EnrichmentSpec:
    """One kind of enrichment.

    ``check(options, columns)``: ``columns`` are those that exist before it runs. ``build(options,
    resources)`` takes the checked options; it raises ConfigError when a file or secret is missing or
    unreadable.
    """

    kind: str
    check: Callable[[Mapping[str, object], Mapping[str, pl.DataType]], Checked | list[OptionMistake]]
    build: Callable[[Mapping[str, Any], Resources], Step]


def mistake(kind: str, option: str, problem: str, fix: str) -> ConfigError:
    """A ConfigError with one mistake, for ``build``."""
    return ConfigError([Mistake(f"{kind}.{option}" if option else kind, problem, fix)])


@dataclass(slots=True)
class OptionReader:
    """Reads one enrichment's options, collecting every mistake instead of stopping at the first."""

    options: Mapping[str, object]
    columns: Mapping[str, pl.DataType]
    mistakes: list[OptionMistake] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)

    def wrong(self, path: str, problem: str, fix: str) -> None:
        """Note one mistake."""
        self.mistakes.append(OptionMistake(path, problem, fix))

    def value(self, name: str, kind: type, default: Any) -> Any:
        """An option of one TOML type (``bool`` is not an ``int`` here)."""
        got = self.options.get(name, default)
        if got is not default and type(got) is not kind:
            self.wrong(name, f"it is {_toml_name(type(got))}", f"Give {_toml_name(kind)}")
            got = default
        self.values[name] = got
        return got

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within ``low`` and ``high``, both included."""
        got = self.value(name, int, default)
        if not low <= got <= high:
            self.wrong(name, f"{got} is out of range", f"Give a number from {low} to {high}")
            got = default
        self.values[name] = got
        return int(got)

    def names(self, name: str, default: Sequence[str]) -> tuple[str, ...]:
        """A list of strings."""
        got = self.options.get(name, default)
        if not isinstance(got, list | tuple) or not all(isinstance(item, str) and item for item in got):
            self.wrong(name, "it is not a list of names", 'Give a list such as ["a", "b"]')
            got = default
        self.values[name] = tuple(got)
        return tuple(got)

    def column(self, name: str, default: str | None = None, dtype: pl.DataType | None = None) -> str:
        """The name of an existing column of type ``dtype`` (String unless said)."""
        wanted = dtype or pl.String()
        got: str | None = self.value(name, str, default)
        if got is None:
            if name not in self.options:
                self.wrong(name, "it is missing", "Name the column to read")
            return ""
        self.check_column(name, got, wanted)
        return got

    def typed(self, name: str) -> dict[str, pl.DataType]:
        """A table of column names and :data:`COLUMN_TYPES`, not empty."""
        got = self.options.get(name)
        types: dict[str, pl.DataType] = {}
        self.values[name] = got
        if not isinstance(got, Mapping) or not got:
            self.wrong(name, "it is missing or not a table", 'Give columns and types: { plan = "string" }')
            return types
        for column, kind in got.items():
            if isinstance(kind, str) and kind in COLUMN_TYPES:
                types[column] = COLUMN_TYPES[kind]
            else:
                types_known = ", ".join(COLUMN_TYPES)
                self.wrong(f"{name}.{column}", f"'{kind}' is no type", f"Use one of {types_known}")
        self.values[name] = types
        return types

    def check_column(self, path: str, column: str, dtype: pl.DataType | None) -> None:
        """Note a mistake unless ``column`` exists and is a ``dtype``."""
        if column not in self.columns:
            near = difflib.get_close_matches(column, list(self.columns), n=3)
            fix = f"Did you mean {' or '.join(near)}?" if near else f"Use one of {', '.join(self.columns)}"
            self.wrong(path, f"there is no column '{column}'", fix)
        elif dtype is not None and self.columns[column] != dtype:
            self.wrong(path, f"column '{column}' is {self.columns[column]}", f"Use a {dtype} column")

    def done(self, adds: Mapping[str, pl.DataType]) -> Checked | list[OptionMistake]:
        """The answer of ``check``: unknown options, ``only`` and name clashes are looked at here."""
        only = self.names("only", tuple(adds))
        for option in self.options:
            if option not in self.values:
                near = difflib.get_close_matches(option, list(self.values), n=1)
                fix = f"Did you mean '{near[0]}'?" if near else f"Options are {', '.join(self.values)}"
                self.wrong(option, "there is no such option", fix)
        for column in only:
            if column not in adds:
                self.wrong("only", f"it does not add '{column}'", f"It adds {', '.join(adds)}")
            elif column in self.columns:
                self.wrong(
                    "only" if "only" in self.options else "",
                    f"it would add column '{column}', which exists already",
                    "Leave the column out with only = [...], or rename the contract's field",
                )
        if self.mistakes:
            return self.mistakes
        self.values["only"] = tuple(name for name in adds if name in only)
        return Checked(self.values, {name: dtype for name, dtype in adds.items() if name in only})


def _toml_name(kind: type) -> str:
    return {bool: "a boolean", int: "a whole number", float: "a number", str: "a text"}.get(kind, "a table")
