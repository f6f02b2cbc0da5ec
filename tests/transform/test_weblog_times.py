"""Times in log formats of one's own: Apache writes them in any form, in one directive or in several."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest

from streamproc.quantities import Invalid
from streamproc.transform.weblog_format import microseconds
from streamproc.transform.weblog_pattern import compile_format

CEST = timezone(timedelta(hours=2))
#: 8 May: a day of one digit.
MOMENT = datetime(2026, 5, 8, 9, 5, 7, 123_000, CEST)
#: The same time of day in a line that says no zone.
UTC_MOMENT = MOMENT.replace(tzinfo=UTC)
WHOLE_SECOND = MOMENT.replace(microsecond=0)


def time_of(log_format: str, line: str) -> tuple[datetime | None, dict[str, str | None]]:
    """The time that a line has in the format, and what the format's other parts are."""
    compiled = compile_format(log_format)
    found = pl.Series([line]).str.extract_groups(compiled.pattern).struct.unnest()
    best = compiled.best("time")
    assert best is not None
    microsecond = microseconds(found[best[0]], best[1].unit)[0]
    parts = {meaning.part: found[group][0] for group, meaning in compiled.meanings.items()}
    time = (
        None if microsecond is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microsecond)
    )
    return time, parts


@pytest.mark.parametrize(
    ("log_format", "time", "moment"),
    [
        ("[%{%d/%b/%Y %T}t.%{msec_frac}t %{%z}t]", "[08/May/2026 09:05:07.123 +0200]", MOMENT),
        ("[%{%d/%b/%Y:%H:%M:%S}t.%{usec_frac}t %{%z}t]", "[08/May/2026:09:05:07.123000 +0200]", MOMENT),
        ("%{begin:%Y-%m-%d}t %{%H:%M:%S}t,%{begin:msec_frac}t", "2026-05-08 09:05:07,123", UTC_MOMENT),
        ("%{%Y-%m-%d %H:%M:%S}t", "2026-05-08 09:05:07", UTC_MOMENT.replace(microsecond=0)),
        ("%{%FT%T%z}t", "2026-05-08T09:05:07+0200", WHOLE_SECOND),
        ("%{%a %b %e %T %Y}t", "Fri May  8 09:05:07 2026", UTC_MOMENT.replace(microsecond=0)),
        ("%{%c}t", "Fri May  8 09:05:07 2026", UTC_MOMENT.replace(microsecond=0)),
        ("%{%d.%m.%y %I:%M:%S %p}t", "08.05.26 09:05:07 AM", UTC_MOMENT.replace(microsecond=0)),
        ("[%{%d/%b/%Y:%H:%M:%S %z}t]", "[08/May/2026:09:05:07 +0200]", WHOLE_SECOND),
        ("%{sec}t.%{msec_frac}t", "1778223907.123", MOMENT),
        ("%{end:%F %T}t %{begin:%F %T %z}t", "2026-05-08 10:00:00 2026-05-08 09:05:07 +0200", WHOLE_SECOND),
        ("%t %{msec_frac}t", "[08/May/2026:09:05:07 +0200] 123", WHOLE_SECOND),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_time_is_read_as_the_server_writes_it_wherever_it_stands(
    log_format: str, time: str, moment: datetime, before: int
) -> None:
    """Also behind so many other values, and with spaces in it."""
    ahead = "".join(("%h ", "%l ", "%u ")[:before])
    line = "".join(("203.0.113.7 ", "- ", "a b ")[:before])
    found, parts = time_of(f'{ahead}{log_format} "%r" %>s', f'{line}{time} "GET /a b HTTP/1.1" 200')
    assert found == moment
    assert (parts["request"], parts["status"]) == ("GET /a b HTTP/1.1", "200")
    if before == 3:
        assert (parts["ip"], parts["remote_user"]) == ("203.0.113.7", "a b")


@pytest.mark.parametrize(("unit", "seconds"), [("sec", 1), ("msec", 1_000), ("usec", 1_000_000)])
def test_a_wild_number_does_not_come_around_to_a_time(unit: str, seconds: int) -> None:
    scale = 1_000_000 // seconds
    good = int(WHOLE_SECOND.timestamp()) * seconds
    assert time_of(f"%h %{{{unit}}}t", f"203.0.113.7 {good}")[0] == WHOLE_SECOND
    # So many microseconds behind 2**64, which 64 bits cannot tell from the time itself; and the same below nothing.
    for wild in ((2**64 + good * scale) // scale, (good * scale - 2**64) // scale):
        assert time_of(f"%h %{{{unit}}}t", f"203.0.113.7 {wild}")[0] is None


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("%{%d/%b/%Y:%H:%M:%S %Z}t", "names of time zones"),
        ("%{%d/%b/%Y}t %h %{%T}t", "no whole time"),
        ("%{%T}t", "no whole time"),
        ("%{%F %I:%M}t", "no whole time"),
        ("%{seconds of the day}t", "no whole time"),
    ],
)
def test_a_time_that_cannot_be_read_is_refused_with_the_format(form: str, problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        compile_format(f'%h {form} "%r" %>s')
