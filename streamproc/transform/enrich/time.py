"""``time``: calendar columns of the event time.

Adds ``event_date`` (Date), ``event_hour`` (Int8, 0 to 23) and ``event_weekday`` (Int8, 1 is Monday, 7
Sunday) in UTC, and with ``time_zone`` the same in that zone: ``local_date``, ``local_hour``,
``local_weekday``.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from typing import Any

import polars as pl

from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
)


def _calendar(prefix: str, moment: pl.Expr) -> dict[str, pl.Expr]:
    return {
        f"{prefix}_date": moment.dt.date(),
        f"{prefix}_hour": moment.dt.hour(),
        f"{prefix}_weekday": moment.dt.weekday(),
    }


def _adds(prefix: str) -> dict[str, pl.DataType]:
    return {f"{prefix}_date": pl.Date(), f"{prefix}_hour": pl.Int8(), f"{prefix}_weekday": pl.Int8()}


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    zone = reader.value("time_zone", str, None)
    if zone is not None and zone not in zoneinfo.available_timezones():
        reader.wrong("time_zone", f"'{zone}' is no time zone", "Give an IANA name such as Europe/Berlin")
    return reader.done(_adds("event") | (_adds("local") if zone else {}))


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    moment = pl.col("event_time")
    exprs = _calendar("event", moment)
    if options["time_zone"]:
        exprs |= _calendar("local", moment.dt.convert_time_zone(options["time_zone"]))
    wanted = [exprs[name].alias(name) for name in options["only"]]
    return lambda frame: frame.with_columns(wanted)


#: Option: ``time_zone``, an IANA name; without it there are no local columns.
SPEC = EnrichmentSpec("time", _check, _build)
