"""The page *Explore*: any declared table, by any of its dimensions, over any time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from typing import Any

from nicegui import events, ui
from psycopg.errors import QueryCanceled
from starlette.requests import Request

from streamproc.dashboard import explore_answers as answers
from streamproc.dashboard import markup
from streamproc.dashboard.choice import Choice, read_choice, unknown
from streamproc.dashboard.explore import PAGE, chart, cursor, rows
from streamproc.dashboard.explore_controls import Controls
from streamproc.dashboard.groups import KEPT, Row, Whole
from streamproc.dashboard.reading import Answer, Question, Seen
from streamproc.dashboard.shell import Site, Stream, frame, keep_fresh, notices, pulse
from streamproc.errors import StreamprocError

#: Seconds between two looks at the first page of a range that ends now.
REFRESH = 10.0

_LONGER = "Choose a longer range, or another table: windows count from their start."


class Explorer:
    """One viewer's page: their choice, the rows they see, and where they stand in them."""

    def __init__(self, stream: Stream, choice: Choice) -> None:
        self.stream = stream
        self._controls = Controls(stream, choice, self._begin)
        self._pages: list[str | None] = [None]
        self._next: str | None = None
        self._busy = asyncio.Lock()
        self._as_of: datetime | None = None
        self._shown = False
        self._looked = self._rest = 0.0
        self._drawn: Question | None = None
        #: Of what, and when (Unix seconds), chart and rows are that were shown last.
        self._shows: list[tuple[Choice, float] | None] = [None, None]

    @property
    def choice(self) -> Choice:
        """What the viewer has chosen."""
        return self._controls.choice

    def build(self, banner: ui.html, unknown: str) -> None:
        """Put the page's elements down. ``unknown``: what the address named that there is not."""
        self._banner = banner
        with ui.element("section").classes("card").props('aria-label="What to show"'):
            self._controls.build(f"{unknown} What is shown is what there is." if unknown else "")
            self._about = ui.html("", sanitize=False).classes("sub").style("margin: .6rem 0 0")
        with ui.element("section").classes("card") as drawing:
            self._title = ui.html("", sanitize=False)
            self._chart = (
                ui.echart({}).classes("chart").props('role="img" aria-label="Chart of the chosen table"')
            )
        ui.on("theme", self._chart.update)
        with ui.element("section").classes("card") as listing:
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
        self._answers = (drawing, listing)
        for card in self._answers:  # nothing is in them yet
            card.set_visibility(False)
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

    async def _sort(self, event: events.GenericEventArguments) -> None:
        column = event.args
        if column in self.choice.columns:
            descending = not self.choice.descending if column == self.choice.order else True
            await self._controls.change(order=column, descending=descending)

    async def _previous(self) -> None:
        if len(self._pages) > 1:
            self._pages.pop()
            await self.show()

    async def _following(self) -> None:
        after, self._next = (
            self._next,
            None,
        )  # a second click comes before there are the rows that it is about
        if after is not None:
            self._pages.append(after)
            await self.show()

    async def _begin(self) -> None:
        self._pages, self._next = [None], None
        ui.navigate.history.replace(f"/explore?stream={self.stream.topology.name}&{self.choice.address()}")
        await self.show()

    async def tick(self) -> None:
        """Look again, if there may be news and the viewer is where they appear."""
        seen = await self.stream.clock.get()
        committed = seen.value.committed_at if seen.value else None
        ui.run_javascript(pulse(seen, committed))
        if self._shown:
            self._banner.content = notices(seen, committed) if self.choice.range else ""
        news = committed != self._as_of or time.monotonic() - self._looked > KEPT
        self._as_of = committed
        follows = self.choice.range and len(self._pages) == 1 and not self._busy.locked()
        if (news and follows) if self._shown else time.monotonic() - self._looked >= self._rest:
            await self._controls.up_to_now()
            await self.show()

    async def show(self) -> None:
        """Ask, and show the answer or why there is none."""
        async with self._busy:
            choice, self._looked = self.choice, time.monotonic()
            drawing: asyncio.Task[Answer] | None = None
            try:
                whole = await self.stream.groups.of(choice, self._as_of) if choice.merges else None
                small = whole is not None and whole.complete
                wanted = None if small or choice.charted is None else chart(choice)
                if wanted is not None and wanted != self._drawn:
                    drawing = asyncio.create_task(self.stream.reader.ask(wanted))
                page = await self._page(choice, whole)
                seen = await self.stream.clock.get()
                newest = seen.value
                open_from = answers.open_from(choice, newest.watermark if newest else None)
                self._fill(choice, page, open_from)
                self._shows[1] = choice, time.time()
                if choice.charted is None:
                    self._answers[0].set_visibility(False)
                elif whole is not None and small:
                    self._draw(choice, whole.drawn(choice), open_from)
                elif drawing is not None:
                    self._draw(choice, await drawing, open_from)
                self._drawn = wanted
                self._shows[0] = choice, time.time()
            except StreamprocError as error:
                self._fail(choice, error)
                self._shown = False
            else:
                self._shown = True
                committed = newest.committed_at if newest else None
                self._banner.content = notices(seen, committed) if choice.range else ""
            finally:
                if drawing is not None:
                    drawing.cancel()

    def _fail(self, choice: Choice, error: StreamprocError) -> None:
        """Say why there is no answer, and take away what is one to another choice."""
        since: float | None = None
        for card, shows in zip(self._answers, self._shows, strict=True):
            if shows is not None and _alike(shows[0], choice):
                since = min(since or shows[1], shows[1])
            else:
                card.set_visibility(False)
        self._banner.content = notices(Seen(since, since, error), None)
        # Whatever else has failed is over when it is over. This would be the same again, from every page that is open.
        self._rest = KEPT if isinstance(error.__cause__, QueryCanceled) else 0.0

    async def _page(self, choice: Choice, whole: Whole | None) -> Sequence[Row]:
        """The rows of the page and one, to see whether there are more."""
        first = (len(self._pages) - 1) * PAGE
        if whole is not None and (whole.complete or (not first and whole.in_order_of(choice))):
            return whole.page(choice, first, PAGE + 1)
        return (await self.stream.reader.ask(rows(choice, self._pages[-1]))).rows

    def _fill(self, choice: Choice, found: Sequence[Row], open_from: datetime | None) -> None:
        for card in self._answers:
            card.set_visibility(True)
        shown = found[:PAGE]
        self._next = cursor(choice, shown[-1]) if len(found) > PAGE else None
        columns = {column.name: column for column in choice.table.measures}
        numeric = {len(choice.keys) + place for place in range(len(choice.measures))}
        self._head.content = "".join(
            answers.heading(choice, name, columns.get(name), place in numeric)
            for place, name in enumerate(choice.columns)
        )
        self._body.content = markup.body(
            [answers.row(choice, row, columns, open_from) for row in shown], numeric
        )
        self._none.content = "" if shown else markup.empty("No rows in this range", _LONGER)
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
        self._title.content = answers.chart_title(choice, len(answer.rows))
        options = answers.chart_options(choice, answer, open_from)
        self._answers[0].set_visibility(bool(answer.rows))
        if options != self._chart.options:
            self._chart.options.clear()
            self._chart.options.update(options)
            self._chart.update()


def _alike(one: Choice, other: Choice) -> bool:
    """Whether they ask for the same numbers, in whatever order and however far a range goes on that ends now."""
    one = replace(one, order=other.order, descending=other.descending)
    if one.range:
        one = replace(one, since=other.since, until=other.until)
    return one == other


async def explore_page(site: Site, request: Request) -> None:
    """Build the page."""
    stream = site.stream(request)
    seen = await stream.clock.get()
    now = (seen.value.now if seen.value else None) or datetime.now(UTC)
    if not stream.tables:
        with frame(site, stream, request) as banner:
            banner.content = markup.banner(
                "info", "No tables.", "The topic page of this stream declares none."
            )
        return
    given = dict(request.query_params)
    explorer = Explorer(stream, read_choice(given, stream.tables, now))
    with frame(site, stream, request) as banner:
        explorer.build(banner, unknown(given, stream.tables))
    await keep_fresh(explorer.tick, REFRESH)
