"""What a viewer chooses with on the page *Explore*: table, measures, dimensions, time step and range."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

from nicegui import events, ui

from streamproc.dashboard.choice import RANGES, Choice, read_choice
from streamproc.dashboard.shell import Stream

_OWN = "from … to"


class Controls:
    """The selects of one viewer's page. ``choice`` is what they say; ``changed`` is called when that is another."""

    def __init__(self, stream: Stream, choice: Choice, changed: Callable[[], Awaitable[None]]) -> None:
        self.choice = choice
        self._stream = stream
        self._changed = changed

    def build(self, unknown: str) -> None:
        """Put the elements down. ``unknown``: what the address named that there is not, until something is chosen."""
        choice = self.choice
        with ui.element("div").classes("controls"):
            self._table = ui.select(
                {n: n.replace("_", " ") for n in self._stream.tables}, label="Table", value=choice.table.name
            ).on_value_change(self._another_table)
            self._measures = ui.select(
                [c.name for c in choice.table.measures],
                label="Measures",
                value=list(choice.measures),
                multiple=True,
            ).on_value_change(self._other_measures)
            self._by = ui.select(
                list(choice.table.dimensions),
                label="By",
                value=list(choice.by),
                multiple=True,
                clearable=True,
            ).on_value_change(
                lambda e: self.change(by=_in_order(e.value or [], self.choice.table.dimensions))
            )
            self._grain = ui.select(self._grains(), label="Time step", value=choice.grain).on_value_change(
                lambda e: self.change(grain=e.value)
            )
            self._range = ui.select(
                [*RANGES, _OWN], label="Range", value=choice.range or _OWN
            ).on_value_change(self._another_range)
            self._moments = [
                self._moment(label, moment)
                for label, moment in (("From", choice.since), ("To", choice.until))
            ]
        for select in (self._table, self._measures, self._by, self._grain, self._range):
            select.props("outlined dense options-dense")
        self._show_moments()
        self._unknown = ui.html(escape(unknown), sanitize=False).classes("sub")
        self._hint = ui.html("", sanitize=False).classes("sub").props('aria-live="polite"')

    async def change(self, **parts: Any) -> None:
        """Take over parts of a choice; sorted by another column when the old one is not there any more."""
        changed = replace(self.choice, **parts)
        if changed.order not in changed.columns:
            changed = replace(changed, order=changed.keys[0] if changed.grain else changed.measures[0])
        if changed != self.choice:
            self.choice, self._unknown.content = changed, ""
            await self._changed()

    async def up_to_now(self) -> None:
        """Move a range that ends now on to the newest event. Tells nobody."""
        if self.choice.range:
            until = await self._now() + timedelta(microseconds=1)
            self.choice = replace(self.choice, since=until - RANGES[self.choice.range], until=until)

    def _moment(self, label: str, moment: datetime) -> tuple[ui.element, ui.element]:
        """A point in time, entered and shown in the viewer's zone."""
        with ui.element("label").classes("field") as field:
            ui.html(label, sanitize=False, tag="span")
            entry = ui.element("input").props('type="datetime-local"')
        entry.on(
            "change",
            lambda e, end=label: self._moved(end, e.args),
            js_handler="e => { const d = new Date(e.target.value); if (!isNaN(d)) emit(d.toISOString()) }",
        )
        return field, entry

    def _show_moments(self) -> None:
        for (field, entry), moment in zip(self._moments, (self.choice.since, self.choice.until), strict=True):
            field.set_visibility(not self.choice.range)
            ui.run_javascript(
                f"setTimeout(() => showMoment(document.getElementById('c{entry.id}'), '{moment.isoformat()}'), 0)"
            )

    def _grains(self) -> dict[str, str]:
        return {
            **{name: self.choice.table.pace(name) for name in self.choice.table.grains},
            "": "whole range",
        }

    async def _other_measures(self, event: events.ValueChangeEventArguments[Any]) -> None:
        measures = _in_order(event.value, [column.name for column in self.choice.table.measures])
        self._hint.content = "" if measures else "Choose at least one measure."
        if measures:
            await self.change(measures=measures)

    async def _another_table(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value == self.choice.table.name:
            return
        given = {"table": event.value, "range": self.choice.range or "24 hours"}
        choice = read_choice(given, self._stream.tables, await self._now())
        if not self.choice.range:
            choice = replace(choice, range="", since=self.choice.since, until=self.choice.until)
        self.choice, self._unknown.content = choice, ""
        self._measures.set_options([c.name for c in choice.table.measures], value=list(choice.measures))
        self._by.set_options(list(choice.table.dimensions), value=list(choice.by))
        self._grain.set_options(self._grains(), value=choice.grain)
        await self._changed()

    async def _another_range(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value == _OWN:
            await self.change(range="")
        else:
            until = await self._now() + timedelta(microseconds=1)
            await self.change(range=event.value, since=until - RANGES[event.value], until=until)
        self._show_moments()

    async def _moved(self, end: str, text: str) -> None:
        moment = datetime.fromisoformat(text).astimezone(UTC)
        await self.change(**{"since" if end == "From" else "until": moment})

    async def _now(self) -> datetime:
        seen = await self._stream.clock.get()
        return (seen.value.now if seen.value else None) or datetime.now(UTC)


def _in_order(names: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in offered if name in names)
