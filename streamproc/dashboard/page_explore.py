"""The page *Explore*: any declared table, by any of its dimensions, over any time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

from nicegui import events, ui
from starlette.requests import Request

from streamproc.dashboard import charts, markup
from streamproc.dashboard import explore_answers as answers
from streamproc.dashboard.catalog import marked
from streamproc.dashboard.explore import (
    PAGE,
    RANGES,
    Choice,
    chart,
    cursor,
    read_choice,
    rows,
)
from streamproc.dashboard.reading import Answer, Question, explain
from streamproc.dashboard.shell import Site, Stream, frame, keep_fresh, pulse
from streamproc.errors import StreamprocError

#: Seconds between two looks at the first page of a range that ends now.
REFRESH = 10.0
_OWN = "from … to"


class Explorer:
    """One viewer's page: their choice, the rows they see, and where they stand in them."""

    def __init__(self, stream: Stream, choice: Choice) -> None:
        self.stream = stream
        self.choice = choice
        self._pages: list[str | None] = [None]
        self._next: str | None = None
        self._busy = asyncio.Lock()
        self._shown = False
        self._drawn: Question | None = None

    # Building -------------------------------------------------------------------------------------------------

    def build(self, banner: ui.html) -> None:
        """Put the page's elements down."""
        self._banner = banner
        with ui.element("section").classes("card").props('aria-label="What to show"'):
            self._controls()
        with ui.element("section").classes("card"):
            self._title = ui.html("", sanitize=False)
            self._chart = (
                ui.echart({}).classes("chart").props('role="img" aria-label="Chart of the chosen table"')
            )
        ui.on("theme", self._chart.update)
        with ui.element("section").classes("card"):
            region = ui.element("div").classes("scroll").props('tabindex="0" role="region" aria-label="Rows"')
            with region, ui.element("table"):
                with ui.element("thead"):
                    self._head = ui.html("", sanitize=False, tag="tr")
                self._body = ui.html("", sanitize=False, tag="tbody")
            self._none = ui.html("", sanitize=False)
            with ui.element("div").classes("actions").style("margin-top: .75rem"):
                self._back = self._button("← Previous", self._previous)
                self._on = self._button("Next →", self._following)
                self._where = ui.html("", sanitize=False).classes("key")
                self._files = ui.html("", sanitize=False).classes("actions").style("margin-left: auto")
        self._head.on(
            "click",
            self._sort,
            js_handler="e => { const b = e.target.closest('button'); if (b) emit(b.dataset.column) }",
        )

    def _button(self, text: str, act: Any) -> ui.element:
        button = ui.element("button").classes("act").on("click", act)
        with button:
            ui.html(escape(text), sanitize=False, tag="span")
        return button

    def _controls(self) -> None:
        choice = self.choice
        with ui.element("div").classes("controls"):
            self._table = ui.select(
                {n: n.replace("_", " ") for n in self.stream.tables}, label="Table", value=choice.table.name
            ).on_value_change(self._another_table)
            self._measures = ui.select(
                [c.name for c in choice.table.measures],
                label="Measures",
                value=list(choice.measures),
                multiple=True,
            ).on_value_change(lambda e: self._change(measures=self._in_order(e.value, measures=True)))
            self._by = ui.select(
                list(choice.table.dimensions),
                label="By",
                value=list(choice.by),
                multiple=True,
                clearable=True,
            ).on_value_change(lambda e: self._change(by=self._in_order(e.value or [], measures=False)))
            self._grain = ui.select(self._grains(), label="Time step", value=choice.grain).on_value_change(
                lambda e: self._change(grain=e.value)
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
        self._about = ui.html("", sanitize=False).classes("sub").style("margin: .6rem 0 0")

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
        return {**{name: f"per {name}" for name in self.choice.table.grains}, "": "whole range"}

    # Changes of the choice ------------------------------------------------------------------------------------

    def _in_order(self, names: Sequence[str], *, measures: bool) -> tuple[str, ...]:
        table = self.choice.table
        offered = [c.name for c in table.measures] if measures else table.dimensions
        return tuple(name for name in offered if name in names)

    async def _another_table(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value == self.choice.table.name:
            return
        now = await self._now()
        given = {"table": event.value, "range": self.choice.range or "24 hours"}
        choice = read_choice(given, self.stream.tables, now)
        if not self.choice.range:
            choice = replace(choice, range="", since=self.choice.since, until=self.choice.until)
        self.choice = choice
        self._measures.set_options([c.name for c in choice.table.measures], value=list(choice.measures))
        self._by.set_options(list(choice.table.dimensions), value=list(choice.by))
        self._grain.set_options(self._grains(), value=choice.grain)
        await self._begin()

    async def _another_range(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value == _OWN:
            await self._change(range="")
        else:
            until = await self._now() + timedelta(microseconds=1)
            await self._change(range=event.value, since=until - RANGES[event.value], until=until)
        self._show_moments()

    async def _moved(self, end: str, text: str) -> None:
        moment = datetime.fromisoformat(text).astimezone(UTC)
        await self._change(**{"since" if end == "From" else "until": moment})

    async def _change(self, **parts: Any) -> None:
        if parts.get("measures") == ():
            self._where.content = "Choose at least one measure."
            return
        changed = replace(self.choice, **parts)
        if changed.order not in changed.columns:
            changed = replace(changed, order=changed.keys[0] if changed.grain else changed.measures[0])
        if changed != self.choice:
            self.choice = changed
            await self._begin()

    async def _sort(self, event: events.GenericEventArguments) -> None:
        column = event.args
        if column in self.choice.columns:
            descending = not self.choice.descending if column == self.choice.order else True
            await self._change(order=column, descending=descending)

    async def _previous(self) -> None:
        if len(self._pages) > 1:
            self._pages.pop()
            await self.show(draw=False)

    async def _following(self) -> None:
        if self._next is not None:
            self._pages.append(self._next)
            await self.show(draw=False)

    async def _begin(self) -> None:
        self._pages = [None]
        ui.navigate.history.replace(f"/explore?stream={self.stream.topology.name}&{self.choice.address()}")
        await self.show()

    async def _now(self) -> datetime:
        seen = await self.stream.snapshot.get()
        return (seen.value.now if seen.value else None) or datetime.now(UTC)

    # Showing --------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look again, if the viewer is where news appear."""
        seen = await self.stream.snapshot.get()
        committed = seen.value.committed_at if seen.value else None
        ui.run_javascript(pulse(committed, well=seen.problem is None))
        if not self._shown or (self.choice.range and len(self._pages) == 1 and not self._busy.locked()):
            await self._look_again()

    async def _look_again(self) -> None:
        if self.choice.range:
            until = await self._now() + timedelta(microseconds=1)
            self.choice = replace(self.choice, since=until - RANGES[self.choice.range], until=until)
        await self.show()

    async def show(self, *, draw: bool = True) -> None:
        """Ask, and show the answer or why there is none."""
        async with self._busy:
            choice = self.choice
            wanted = chart(choice)
            draw = draw and wanted != self._drawn
            drawing = asyncio.create_task(self.stream.reader.ask(wanted)) if draw else None
            try:
                found = await self.stream.reader.ask(rows(choice, self._pages[-1]))
                newest = (await self.stream.snapshot.get()).value
                open_from = answers.open_from(choice, newest.watermark if newest else None)
                self._fill(choice, found, open_from)
                if drawing is not None:
                    self._draw(choice, await drawing, open_from)
                    self._drawn = wanted
            except StreamprocError as error:
                headline, text = explain(error)
                self._banner.content = markup.banner("broken", headline + ".", text)
            else:
                self._shown = True
                self._banner.content = ""
            finally:
                if drawing is not None:
                    drawing.cancel()

    def _fill(self, choice: Choice, found: Answer, open_from: datetime | None) -> None:
        shown = found.rows[:PAGE]
        self._next = cursor(choice, shown[-1]) if len(found.rows) > PAGE else None
        columns = {column.name: column for column in choice.table.measures}
        numeric = {len(choice.keys) + place for place in range(len(choice.measures))}
        self._head.content = "".join(
            answers.heading(choice, name, columns.get(name), place in numeric)
            for place, name in enumerate(choice.columns)
        )
        self._body.content = markup.body(
            [answers.row(choice, row, columns, open_from) for row in shown], numeric
        )
        self._none.content = (
            ""
            if shown
            else markup.empty(
                "No rows in this range",
                "Choose a longer range, or another table: windows count from their start.",
            )
        )
        page = len(self._pages)
        for button, usable in ((self._back, page > 1), (self._on, self._next is not None)):
            button.props(remove="disabled") if usable else button.props("disabled")
        first = (page - 1) * PAGE + 1
        self._where.content = f"rows {first:,}\N{EN DASH}{first + len(shown) - 1:,}" if shown else ""
        address = f"stream={escape(self.stream.topology.name)}&amp;{escape(choice.address())}"
        self._files.content = (
            f'<a class="act" href="/download.csv?{address}" download>CSV</a>'
            f'<a class="act" href="/download.parquet?{address}" download>Parquet</a>'
        )
        self._about.content = answers.about(choice)

    def _draw(self, choice: Choice, answer: Answer, open_from: datetime | None) -> None:
        column = choice.table.measure(choice.charted)
        error = f" · ≈ {column.error}" if marked(column) else ""
        peak = " · peak of a row" if not column.additive and choice.merges else ""
        by = " by " + ", ".join(choice.by) if choice.by else ""
        step = f" per {choice.grain}" if choice.grain else ""
        note = (
            "the biggest 6 groups"
            if choice.grain and choice.by
            else "the biggest 15"
            if not choice.grain
            else ""
        )
        self._title.content = (
            f"<h2>{escape(column.name)}{escape(by + step)}</h2>"
            f'<p class="sub">{escape(column.comment + error + peak)}{" · " + note if note else ""}</p>'
        )
        if choice.grain:
            series = answers.series(answer)
            options = charts.lines(series, open_from, choice.until)
        else:
            options = charts.bars([(answers.label(row[:-1]), answers.plain(row[-1])) for row in answer.rows])
        self._chart.set_visibility(bool(answer.rows))
        if options != self._chart.options:
            self._chart.options.clear()
            self._chart.options.update(options)
            self._chart.update()


async def explore_page(site: Site, request: Request) -> None:
    """Build the page."""
    stream = site.stream(request)
    seen = await stream.snapshot.get()
    now = (seen.value.now if seen.value else None) or datetime.now(UTC)
    explorer = Explorer(stream, read_choice(dict(request.query_params), stream.tables, now))
    with frame(site, stream, request) as banner:
        explorer.build(banner)
    await keep_fresh(explorer.tick, REFRESH)
