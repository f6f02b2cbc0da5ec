"""Screenshots of a running dashboard, at desktop and phone size, light and dark.

``python -m tests.dashboard.screenshots http://localhost:8090/ --into screenshots``
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
PAGES = {"live": "", "explore": "explore?by=path&grain=minute&range=1+hour", "pipeline": "pipeline"}


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    """Headless Chromium that can reach this machine only: a page that needs anything else breaks here."""
    only_here = [
        "--no-sandbox",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=only_here)
        yield started
        started.close()


def settle(page: Page) -> None:
    """Until the page has its numbers."""
    page.wait_for_selector("#main .tile, #main tbody tr", timeout=60_000)
    page.wait_for_load_state("load")
    # Charts are drawn some frames after their canvas is there.
    page.wait_for_function("!document.querySelector('.chart') || document.querySelector('.chart canvas')")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("!document.querySelector('#main').innerText.includes('Reading …')")


def shoot(address: str, into: Path, chrome: Browser) -> list[Path]:
    """Every page at every size in every scheme; returns the files."""
    taken = []
    into.mkdir(parents=True, exist_ok=True)
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            context = chrome.new_context(viewport={"width": width, "height": height})
            page = context.new_page()
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of the two it knows
            for name, path in PAGES.items():
                page.goto(address.rstrip("/") + "/" + path)
                settle(page)
                file = into / f"{name}-{size}-{scheme}.png"
                page.screenshot(path=file, full_page=True)
                taken.append(file)
            context.close()
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address")
    parser.add_argument("--into", type=Path, default=Path("build/screenshots"))
    options = parser.parse_args()
    with browser() as started:
        for path in shoot(options.address, options.into, started):
            print(path)
