"""The login page, and that of a refusal: plain HTML, so that they work before anything else is loaded."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; display: grid; place-items: center; min-height: 100vh;
       background: light-dark(#f6f7f9, #14171c); color: light-dark(#16202c, #e6e9ee) }
main { width: min(22rem, 90vw) }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit }
input, button { padding: .7rem; border-radius: .5rem; border: 1px solid light-dark(#707a86, #8b95a3) }
input { margin: .3rem 0 1rem; background: light-dark(#fff, #1d2128); color: inherit }
button { background: #0060a0; color: #fff; border-color: #0060a0; cursor: pointer; font-weight: 600 }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 2px }
[role=alert] { color: light-dark(#a33300, #ffb38a) }
"""


#: Of all pages.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="none" stroke="#0072b2" stroke-width="3" '
    'stroke-linecap="round" d="M2 8c4-5 7 5 11 0s6-2 9 0M2 15c4-5 7 5 11 0s6-2 9 0"/></svg>'
)


def login_page(token: str, onward: str, problem: str) -> str:
    """The page with the form's ``token``; it leads ``onward``. ``problem``: what was wrong the last time."""
    return _page(
        "log in",
        problem,
        f'<form method="post" action="/login?next={escape(quote(onward))}">'
        f'<input type="hidden" name="token" value="{escape(token)}">'
        '<label for="password">Password</label>'
        '<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>'
        "<button>Log in</button></form>",
    )


def refusal_page(problem: str, advice: str, again: int | None = None) -> str:
    """The page of a viewer who is not let in; it is loaded again after that many seconds."""
    head = "" if again is None else f'<meta http-equiv="refresh" content="{again}">'
    return _page("not let in", problem, f"<p>{escape(advice)}</p>", head)


def _page(title: str, problem: str, body: str, head: str = "") -> str:
    alert = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}<title>streamproc: {title}</title>'
        f'<link rel="icon" href="data:image/svg+xml,{quote(ICON)}">'
        f"<style>{_STYLE}</style><main><h1>streamproc</h1>{alert}{body}</main></html>"
    )
