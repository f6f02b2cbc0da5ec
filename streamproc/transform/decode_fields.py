"""What the columns themselves show: required fields, lengths, NUL, and the event time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

from streamproc.quantities import show_duration
from streamproc.topology import Contract, Field, FieldType
from streamproc.transform.decode_rejects import Problem, Reason, quoted
from streamproc.transform.decode_time import event_time

# A NUL in a source text: \u0000 after an even number of backslashes.
_ESCAPED_NUL = r"(?:^|[^\\])(?:\\\\)*\\u0000"
_TIME, _RECEIVED = "\x1ftime", "\x1freceived"


@dataclass(frozen=True, slots=True)
class _Check:
    """``broken``: true for a row that has the problem. ``detail``: says so, from value, time and clock."""

    reason: Reason
    field: Field
    broken: pl.Expr
    detail: Callable[[tuple[object, ...]], str]


class FieldChecks:
    """A contract's checks on columns, compiled; the event time is read on the way."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._source = next(f for f in contract.fields if f.name == contract.event_time.field)
        self._cut = [f for f in contract.fields if _is_cut(f)]
        self._checks = tuple(self._all_checks())
        self._nul_checks = tuple(
            _nul(f) for f in contract.fields if f.type in (FieldType.STRING, FieldType.JSON)
        )

    def apply(
        self, columns: pl.DataFrame, received: pl.Series, escaped_nul: pl.Series | None
    ) -> tuple[pl.DataFrame, dict[int, Problem]]:
        """The columns with ``event_time`` (over a field of that name, else behind them); the problems.

        ``received``: the broker's clock per row, Datetime us UTC. ``escaped_nul``: which rows may hold a NUL,
        ``None`` for none. Problems by row number, for each row the first in the contract's order.
        """
        source = self._contract.event_time
        fractional = self._source.type is FieldType.NUMBER
        timed = columns.with_columns(
            event_time(pl.col(source.field), source.format, fractional).alias(_TIME),
            received.alias(_RECEIVED),
        )
        problems: dict[int, Problem] = {}
        if escaped_nul is not None:
            places = escaped_nul.arg_true()
            for place, problem in self._find(timed[places], self._nul_checks).items():
                problems[places[place]] = problem
        for row, problem in self._find(timed, self._checks).items():
            problems.setdefault(row, problem)
        cut = [pl.col(f.name).str.head(f.max_length or 0) for f in self._too_long(columns)]
        return timed.with_columns(*cut, pl.col(_TIME).alias("event_time")).drop(_TIME, _RECEIVED), problems

    def _too_long(self, columns: pl.DataFrame) -> list[Field]:
        """The fields to cut, of which some value has to be. Most batches have none: cutting is a copy."""
        if not self._cut:
            return []
        longest = columns.select(pl.col(f.name).str.len_bytes().max() for f in self._cut).row(0)
        return [f for f, size in zip(self._cut, longest, strict=True) if (size or 0) > (f.max_length or 0)]

    def _find(self, timed: pl.DataFrame, checks: tuple[_Check, ...]) -> dict[int, Problem]:
        hits = timed.select(check.broken.any().alias(str(number)) for number, check in enumerate(checks))
        problems: dict[int, Problem] = {}
        for check, hit in zip(checks, hits.row(0), strict=True):
            if not hit:
                continue
            rows = timed.select(check.broken.arg_true()).to_series()
            broken = timed.select(pl.col(check.field.name, _TIME, _RECEIVED).gather(rows))
            for row, values in zip(rows, broken.iter_rows(), strict=True):
                problems.setdefault(row, Problem(check.reason, check.field.name, check.detail(values)))
        return problems

    def _all_checks(self) -> Iterator[_Check]:
        for contract_field in self._contract.fields:
            if contract_field.required or contract_field is self._source:
                yield _missing(contract_field)
            if contract_field.max_length is not None and not _is_cut(contract_field):
                yield _too_long(contract_field, contract_field.max_length)
        source, skew = self._source, self._contract.event_time.future_skew
        unit = self._contract.event_time.format
        yield _Check(
            Reason.BAD_EVENT_TIME,
            source,
            pl.col(_TIME).is_null() & pl.col(source.name).is_not_null(),
            lambda row: f"{quoted(row[0])} is no time in {unit} within the years 1970 to 9999",
        )
        yield _Check(
            Reason.FUTURE_EVENT,
            source,
            pl.col(_TIME).dt.epoch("us") > pl.col(_RECEIVED).dt.epoch("us") + skew,
            lambda row: f"{row[1]} is more than {skew / 1e6:g} s ahead of the broker's {row[2]}",
        )
        if (age := self._contract.event_time.max_age) is not None:
            limit = show_duration(age)
            yield _Check(
                Reason.OLD_EVENT,
                source,
                pl.col(_TIME).dt.epoch("us") < pl.col(_RECEIVED).dt.epoch("us") - age,
                lambda row: f"{row[1]} is more than {limit} behind the broker's {row[2]}",
            )


def _is_cut(contract_field: Field) -> bool:
    """Text of a JSON value is never cut: the rest would not be JSON."""
    return (
        contract_field.truncate
        and bool(contract_field.max_length)
        and contract_field.type is FieldType.STRING
    )


def _missing(contract_field: Field) -> _Check:
    return _Check(
        Reason.MISSING_FIELD,
        contract_field,
        pl.col(contract_field.name).is_null(),
        lambda _: f"{'.'.join(('$', *contract_field.path))} is required, and absent or null",
    )


def _too_long(contract_field: Field, limit: int) -> _Check:
    text = pl.col(contract_field.name)
    return _Check(
        Reason.TOO_LONG,
        contract_field,
        # Bytes are counted already; characters only need counting where there are more bytes than allowed.
        pl.when(text.str.len_bytes() > limit).then(text.str.len_chars() > limit).otherwise(False),
        lambda row: f"{len(str(row[0]))} characters, {limit} are allowed",
    )


def _nul(contract_field: Field) -> _Check:
    text = pl.col(contract_field.name)
    source_text = contract_field.type is FieldType.JSON
    return _Check(
        Reason.NUL_CHARACTER,
        contract_field,
        text.str.contains(_ESCAPED_NUL) if source_text else text.str.contains("\0", literal=True),
        lambda _: "the text holds U+0000",
    )
