"""Tables for a person: drawn on a terminal, plain aligned text elsewhere. Never a control character."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

#: More columns than any terminal has, to see how many a table needs.
_ANY_WIDTH = 10_000


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table. Cells are text, numbers (set to the right), times or ``None`` (shown as ``-``)."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def show(sections: Sequence[Section]) -> None:
    """Print the sections on stdout."""
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - keeps --help fast

        Console().print(drawn(sections))
    else:
        click.echo("\n".join(plain(sections)))


def in_place(line: str, *, last: bool = False, end: str = "") -> None:
    """Say on stderr how far something is: over the line before on a terminal (``last``: nothing more comes over this
    one; ``end``: what the terminal gets behind it), in lines elsewhere.
    """
    terminal = sys.stderr.isatty()
    click.echo(f"\r{line}\x1b[K{end}" if terminal else line, err=True, nl=last or not terminal)


def drawn(sections: Sequence[Section]) -> RenderableType:
    """The sections as rich draws them."""
    from rich.console import Group  # noqa: PLC0415 - keeps --help fast

    return Group(*map(_Drawn, sections))


class _Drawn:
    """A section as a table, or, where the terminal is too narrow for one, row below row with a line for each column."""

    def __init__(self, section: Section) -> None:
        self._section = section

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._across()
        # Its minimum breaks between words only, as in the middle of a time; anything less would break words.
        narrowest = console.measure(table, options=options.update(max_width=_ANY_WIDTH)).minimum
        yield table if narrowest <= options.max_width else self._down()

    def _across(self) -> Table:
        from rich import box  # noqa: PLC0415 - keeps --help fast
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        section = self._section
        table = Table(title=Text(section.title), title_justify="left", box=box.SIMPLE_HEAD)
        for place, name in enumerate(section.header):
            numeric = any(_is_number(row[place]) for row in section.rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(cell_text(cell)) for cell in row))
        return table

    def _down(self) -> Table:
        from rich import box  # noqa: PLC0415 - keeps --help fast
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        section = self._section
        table = Table(title=Text(section.title), title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for row in section.rows:
            for name, cell in zip(section.header, row, strict=True):
                table.add_row(Text(name), Text(cell_text(cell)))
            table.add_section()
        return table


def plain(sections: Sequence[Section]) -> Iterator[str]:
    """The sections as lines, columns aligned by spaces, nothing cut."""
    for number, section in enumerate(sections):
        if number:
            yield ""
        if section.title:
            yield section.title
        texts = [list(section.header), *([cell_text(cell) for cell in row] for row in section.rows)]
        widths = [max(len(row[place]) for row in texts) for place in range(len(section.header))]
        right = [any(_is_number(row[place]) for row in section.rows) for place in range(len(widths))]
        for row in texts:
            cells = [
                text.rjust(width) if numeric else text.ljust(width)
                for text, width, numeric in zip(row, widths, right, strict=True)
            ]
            yield "  ".join(cells).rstrip()


def cell_text(cell: object) -> str:
    """A value as a cell shows it: times to the second, in UTC if they have a zone; what is not printable is escaped."""
    match cell:
        case None:
            return "-"
        case datetime():
            shown = cell if cell.tzinfo is None else cell.astimezone(UTC)  # the machine's zone is none of its
            return shown.strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{cell:,.2f}"
        case bytes():
            return printable_bytes(cell)
        case _:
            return printable(str(cell))


def printable(text: str) -> str:
    r"""``text`` with everything escaped that a terminal would act on: ``\x1b``, ``\n``, ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def printable_bytes(value: bytes) -> str:
    r"""Bytes as text on one line; what is not UTF-8 as ``\xNN``."""
    return printable(value.decode("utf-8", "backslashreplace"))


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)
