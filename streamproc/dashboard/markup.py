"""Numbers, times and tables as HTML. Everything that comes from data is escaped here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from html import escape
from math import isfinite, isnan
from typing import Any


@dataclass(frozen=True, slots=True)
class Raw:
    """HTML that is right as it is."""

    html: str


Cell = Any  # a value, or Raw


def _sign(lines: str) -> str:
    """A drawing, not a letter: no font has to have it."""
    return (
        '<svg class="sign" viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" '
        f'stroke-width="2.2" stroke-linecap="round"><circle cx="12" cy="12" r="10"/><path d="{lines}"/></svg>'
    )


#: A letter i, a pause, an exclamation mark.
_SIGNS = {
    "info": _sign("M12 11v6M12 7v.01"),
    "stale": _sign("M9.5 8.5v7M14.5 8.5v7"),
    "broken": _sign("M12 6.5v7M12 17v.01"),
}


def number(value: float | Decimal | None) -> str:
    """With separators; fractions to two digits, small ones to three that say something."""
    if value is None:
        return "\N{EN DASH}"
    if not isfinite(value):
        return (
            "not a number" if isnan(value) else "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
        )
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    if -0.1 < value < 0.1:
        return f"{float(value):.3g}"
    return f"{value:,.2f}"


def duration(seconds: float | None) -> str:
    """Seconds as somebody would say them."""
    if seconds is None:
        return "\N{EN DASH}"
    for unit, size, until in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if abs(seconds) < until:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def approximate(value: float | None, error: str) -> Raw:
    """An estimate, marked as one, with its error to read."""
    if value is None:
        return Raw("&ndash;")
    if not error:
        return Raw(number(value))
    about = escape(f"An estimate, {error}")
    return Raw(
        f'<span class="approx" title="{about}"><span aria-label="about">≈</span>&#8239;{number(value)}</span>'
    )


def when(moment: datetime | None, form: str = "time") -> Raw:
    """A time, which the browser shows in the viewer's zone.

    ``form``: ``time`` (today's without the date), ``minute``, ``full``, ``ago``. Without scripts it is in UTC.
    """
    if moment is None:
        return Raw("&ndash;")
    utc = moment.astimezone(UTC)
    text = f"{utc:%Y-%m-%d %H:%M} UTC"
    return Raw(f'<time datetime="{utc.isoformat()}" data-form="{form}">{text}</time>')


def cell(value: Cell) -> str:  # noqa: PLR0911 - one for each kind of value
    """A value as HTML. Null is a dash, an empty text says so."""
    match value:
        case Raw():
            return value.html
        case None:
            return '<span class="none">&ndash;</span>'
        case bool():
            return "yes" if value else "no"
        case int() | float() | Decimal():
            return number(value)
        case datetime():
            return when(value).html
        case date():
            return value.isoformat()
        case "":
            return '<span class="none">(empty)</span>'
        case _:
            return escape(visible(str(value)))


def visible(text: str) -> str:
    r"""``text`` without characters that act instead of showing: ``\x1b``, ``\u202e``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_number(value: Cell) -> bool:
    """Whether a cell is set to the right."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = ()
) -> str:
    """A table; columns of numbers, and those named by ``right``, are set to the right."""
    numeric = {
        place for place in range(len(header)) if place in right or any(is_number(row[place]) for row in rows)
    }
    head = "".join(
        f'<th scope="col"{_right(place in numeric)}>{escape(name)}</th>' for place, name in enumerate(header)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f'<caption class="sr">{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body(rows, numeric)}</tbody></table></div>"
    )


def body(rows: Sequence[Sequence[Cell]], numeric: set[int]) -> str:
    """The rows of a table's body."""
    return "".join(
        "<tr>"
        + "".join(f"<td{_right(place in numeric)}>{cell(value)}</td>" for place, value in enumerate(row))
        + "</tr>"
        for row in rows
    )


def _right(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def bars(caption: str, rows: Sequence[tuple[Cell, float, str]], unit: str) -> str:
    """A ranking: a label, a bar of its value's length, the value as text."""
    long = " long" if any(len(text) > 10 for _, _, text in rows) else ""
    top = max((value for _, value, _ in rows), default=0) or 1
    lines = "".join(
        f'<tr><th scope="row"><span class="bar" style="--part:{100 * value / top:.1f}%"></span>'
        f'<span class="label">{cell(label)}</span></th><td class="num">{escape(text)}</td></tr>'
        for label, value, text in rows
    )
    return (
        f'<table class="bars{long}"><caption class="sr">{escape(caption)}</caption>'
        '<colgroup><col><col class="count"></colgroup><thead class="sr"><tr>'
        f'<th scope="col">{escape(caption)}</th><th scope="col">{escape(unit)}</th></tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def tile(label: str, value: Raw | str, note: Raw | str = "") -> str:
    """A figure with its name above and a remark below."""
    shown, remark = (part.html if isinstance(part, Raw) else escape(part) for part in (value, note))
    return (
        f'<div class="tile"><div class="tile-label">{escape(label)}</div><div class="tile-value">{shown}</div>'
        f'<div class="tile-note">{remark}</div></div>'
    )


def prose(text: Raw | str) -> str:
    """Text as HTML, `` `commands` `` set as such."""
    return text.html if isinstance(text, Raw) else re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def empty(headline: str, text: Raw | str = "") -> str:
    """What stands where there is nothing to show."""
    return f'<div class="empty"><strong>{escape(headline)}</strong><span>{prose(text)}</span></div>'


def banner(kind: str, headline: str, text: Raw | str) -> str:
    """A notice above a page. ``kind``: ``info``, ``stale`` or ``broken``; its sign tells, not its colour alone."""
    return (
        f'<div class="banner {kind}" role="status">{_SIGNS[kind]}'
        f"<div><strong>{escape(headline)}</strong> {prose(text)}</div></div>"
    )
