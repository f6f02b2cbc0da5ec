"""What all pages share: the frame around them, the streams behind them, and how they keep up to date."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from nicegui import background_tasks, ui
from starlette.requests import Request

from streamproc.dashboard import markup
from streamproc.dashboard.catalog import Explorable
from streamproc.dashboard.gate import SESSION
from streamproc.dashboard.groups import Groups
from streamproc.dashboard.live import Live, Snapshot
from streamproc.dashboard.pipeline_view import PipelineSnapshot
from streamproc.dashboard.reading import Reader, Seen, Shared, explain
from streamproc.dashboard.reject_samples import RejectSamples
from streamproc.dashboard.sessions import form_token
from streamproc.topology import Topology

HERE = Path(__file__).parent
PAGES = {"/": "Live", "/explore": "Explore", "/pipeline": "Pipeline"}

#: Seconds without a commit after which a page says so.
STALE = 60.0

#: Seconds for which a page that is asked for waits for its numbers: within, they come with it, and need no second way.
PATIENCE = 0.15

_MARK = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path fill="none" stroke="var(--accent)" stroke-width="2.4" '
    'stroke-linecap="round" d="M2 8c4-5 7 5 11 0s6-2 9 0M2 15c4-5 7 5 11 0s6-2 9 0"/></svg>'
)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that can be looked at. ``clock``: the snapshot's times only."""

    topology: Topology
    reader: Reader
    tables: Mapping[str, Explorable]
    groups: Groups
    live: Live
    clock: Shared[Snapshot]
    snapshot: Shared[Snapshot]
    pipeline: Shared[PipelineSnapshot]
    rejects: Shared[RejectSamples] | None


@dataclass(frozen=True, slots=True)
class Site:
    """All streams, by name. ``password``: whether viewers log in here, and so may log out."""

    streams: Mapping[str, Stream]
    password: bool

    def stream(self, request: Request) -> Stream:
        """The one that the address names, else the first."""
        return self.streams.get(request.query_params.get("stream", "")) or next(iter(self.streams.values()))


@contextmanager
def frame(site: Site, stream: Stream, request: Request) -> Iterator[ui.html]:
    """The page's head and navigation; its content goes into the block. Yields the place of banners."""
    ui.add_css((HERE / "look.css").read_text())
    ui.add_head_html(f"<script>{(HERE / 'look.js').read_text()}</script>")
    ui.add_body_html("<script>addEventListener('load', () => theme.apply())</script>")
    path = request.url.path
    ui.page_title(f"{PAGES[path]} · {stream.topology.name} · streamproc")
    # Outside of what NiceGUI builds, so that it is there with the first bytes, before any script.
    ui.add_body_html(f'<header class="top">{_head(site, stream, path, request)}</header>')
    with ui.element("div").props('id="main" tabindex="-1"'):
        notices = ui.html(markup.banner("info", "Reading …", ""), sanitize=False).props('aria-live="polite"')
        yield notices


def _head(site: Site, stream: Stream, path: str, request: Request) -> str:
    name = stream.topology.name
    links = "".join(
        f'<a href="{page}?stream={escape(name)}"{" aria-current=page" if page == path else ""}>{title}</a>'
        for page, title in PAGES.items()
    )
    chosen = f'<span class="stream">{escape(name)}</span>'
    if len(site.streams) > 1:
        options = "".join(
            f"<option{' selected' if each == name else ''}>{escape(each)}</option>" for each in site.streams
        )
        chosen = (
            '<label class="sr" for="stream">Stream</label><select id="stream" '
            f"onchange=\"location.search='stream=' + encodeURIComponent(this.value)\">{options}</select>"
        )
    leave = ""
    if site.password:
        token = form_token(request.cookies.get(SESSION, ""))
        leave = (
            f'<form method="post" action="/logout"><input type="hidden" name="token" value="{token}">'
            '<button class="plain">Log out</button></form>'
        )
    return (
        f'<a class="skip" href="#main">Skip to content</a><span class="brand">{_MARK}streamproc {chosen}</span>'
        f'<nav aria-label="Pages">{links}</nav><span class="right"><span id="pulse" class="pulse"></span>'
        f'<button class="plain" id="theme" onclick="theme.next()">Theme: auto</button>{leave}</span>'
    )


def pulse(seen: Seen[Any], moment: datetime | None) -> str:
    """Script: the sign in the head that says how fresh the page is, of which a commit at ``moment`` is the newest."""
    what = json.dumps("committed " + markup.when(moment, "ago").html if moment else "no commits yet")
    beats = seen.problem is None and moment is not None and not stale(seen, moment)
    look = json.dumps("pulse" if beats else "pulse off")
    return (
        f"(p => {{ p.className = {look}; if (p.dataset.is !== {what}) {{ p.dataset.is = {what}; "
        f"p.innerHTML = {what} }} }})(document.getElementById('pulse'))"
    )


def stale(seen: Seen[Any], committed_at: datetime) -> bool:
    """Whether the newest commit was so long before what was ``seen`` that a page says so.

    Both are by the database's clock: on a machine that is ahead every page would say so.
    """
    assert seen.value is not None
    return bool((seen.value.asked_at - committed_at).total_seconds() > STALE)


def notices(
    seen: Seen[Any], committed_at: datetime | None, more: str = "the page <em>Pipeline</em> tells which"
) -> str:
    """The banner above a page: broken, stale, or nothing. ``more``: HTML, where a reader learns more."""
    if seen.problem is not None:
        headline, text = explain(seen.problem)
        if seen.value is None:
            return markup.banner("broken", headline + ".", text)
        since = markup.when(datetime.fromtimestamp(seen.at or 0, UTC)).html
        return markup.banner(
            "broken",
            headline + ".",
            markup.Raw(f"{markup.prose(text)} The numbers below are those of {since}."),
        )
    if committed_at is not None and stale(seen, committed_at):
        text = (
            f"The last commit was {markup.when(committed_at, 'ago').html}. Either no records arrive, or no worker "
            f"runs: {more}."
        )
        return markup.banner("stale", "Nothing new.", markup.Raw(text))
    return ""


async def keep_fresh(refresh: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Fill the page now, and again every so often while it is open.

    A page whose numbers take long is sent without them, and gets them later.
    """
    client = ui.context.client

    async def first() -> None:
        with client:
            await refresh()

    await asyncio.wait({background_tasks.create(first())}, timeout=PATIENCE)
    ui.timer(seconds, refresh, immediate=False)
