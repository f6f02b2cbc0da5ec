"""Event time from what producers send."""

from __future__ import annotations

import polars as pl

#: Event times are in [1970-01-01, 10000-01-01): outside is a wrong unit or a broken clock.
_END_US = 253_402_300_800_000_000
_MICROSECONDS_IN = {"s": 1_000_000, "ms": 1_000, "us": 1}

# RFC 3339, with a space or T, comma or point, and the offset left out (then UTC) or without its colon.
_ISO_8601 = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(?:[.,][0-9]{1,9})?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])?$"
)


def event_time(source: pl.Expr, unit: str, fractional: bool) -> pl.Expr:
    """``source`` as Datetime(us, UTC); null where it is null, unreadable or outside the years 1970 to 9999.

    ``unit``: ``s``, ``ms`` or ``us`` since the Unix epoch, or ``iso8601``. ``fractional``: the column holds
    Float64, rounded to the microsecond. A text's digits beyond the sixth of a second are cut.
    """
    microseconds = _from_text(source) if unit == "iso8601" else _from_number(source, unit, fractional)
    valid = microseconds.is_between(0, _END_US, closed="left")
    return pl.when(valid).then(microseconds).cast(pl.Datetime("us", "UTC"))


def _from_number(source: pl.Expr, unit: str, fractional: bool) -> pl.Expr:
    scale = _MICROSECONDS_IN[unit]
    # Bounded before it is multiplied: the product of a wild number would wrap around into a believable one.
    bounded = pl.when(source.is_between(0, _END_US // scale)).then(source)
    return (bounded * scale).round().cast(pl.Int64) if fractional else bounded * scale


def _from_text(source: pl.Expr) -> pl.Expr:
    text = pl.when(source.str.contains(_ISO_8601)).then(source)
    seconds = (text.str.slice(0, 10) + "T" + text.str.slice(11, 8)).str.to_datetime(
        "%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False
    )
    rest = text.str.slice(19)
    fraction = rest.str.extract(r"^[.,]([0-9]+)").str.pad_end(6, "0").str.head(6).cast(pl.Int64).fill_null(0)
    offset = rest.str.extract(r"([+-].*)$").str.replace(":", "", literal=True)
    hours, minutes = offset.str.slice(1, 2).cast(pl.Int64), offset.str.slice(3, 2).cast(pl.Int64)
    sign = pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)
    ahead = (sign * (hours * 60 + minutes)).fill_null(0) * 60_000_000
    return seconds.cast(pl.Int64) + fraction - ahead
