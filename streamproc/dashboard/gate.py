"""The gate: it stands in front of everything the server answers, WebSockets included.

What it refuses never reaches a page.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproc.dashboard.access import LOCAL_NAMES, SIGNED_HEADER, Access
from streamproc.dashboard.login_page import login_page, refusal_page
from streamproc.dashboard.sessions import LONGEST, Sessions, form_token

if TYPE_CHECKING:
    from streamproc.dashboard.signature import Refusal, Verifier

SESSION, FORM = "streamproc_session", "streamproc_form"
_FORM_SECRET = re.compile(r"[\w-]{22}", re.ASCII)  # as ``token_urlsafe(16)`` makes them
_LARGEST_FORM = 4_096
_LOG_IN = "Log in at the proxy first.\n"
#: Seconds after which a page is loaded again that could not be judged.
_AGAIN = 10

#: Nothing comes from elsewhere: not the assets, and no page may put this one into a frame. The pages are built in the
#: browser, which needs inline scripts and eval.
_HEADERS = {
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"connect-src 'self' ws: wss:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}


class Gate:
    """ASGI middleware around ``app``: lets in whom ``access`` allows."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._sessions = Sessions(access.password) if access.password is not None else None
        self._verifier: Verifier | None = None
        if access.signature is not None:
            from streamproc.dashboard.signature import Verifier  # noqa: PLC0415 - needs an extra

            self._verifier = Verifier(access.signature)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "http":
            send = _with_headers(send)
        if (refusal := self._refusal(scope, headers)) is not None:
            await _refuse(refusal, scope, receive, send)
        elif self._verifier is not None:
            await self._behind_balancer(self._verifier, scope, receive, send)
        elif self._sessions is None:
            await self._app(scope, receive, send)
        else:
            await self._behind_password(self._sessions, scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Why the request is not looked at, whoever sends it; or by whom the proxy does not say."""
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        except ValueError:
            return PlainTextResponse("No host has such a name.\n", 421)
        if self._access.open and name not in LOCAL_NAMES:
            # A name of somebody else's that resolves to this machine: their page would read ours.
            return PlainTextResponse("This dashboard answers to localhost only.\n", 421)
        if not _same_origin(scope, headers, trusted=self._from_proxy(scope)):
            return PlainTextResponse("This request comes from another site.\n", 403)
        user = self._access.user_header
        if user is not None and not (self._from_proxy(scope) and headers.get(user, "").strip()):
            return PlainTextResponse(_LOG_IN, 401)
        if self._access.signature is not None and self._access.proxies and not self._from_proxy(scope):
            return PlainTextResponse(_LOG_IN, 401)
        return None

    def _from_proxy(self, scope: Scope) -> bool:
        client = scope.get("client")
        return client is not None and self._trusted(client[0])

    def _trusted(self, address: str) -> bool:
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        peer = getattr(peer, "ipv4_mapped", None) or peer  # as IPv6 sockets tell of IPv4
        return any(peer in network for network in self._access.proxies)

    def _viewer(self, request: Request) -> str:
        """Whose request it is. Each proxy adds at the end of the header, or in a line of its own behind it, from whom
        it has it, so what stands before the last that is no proxy of ours is what the viewer wrote.
        """
        given = ",".join(request.headers.getlist("x-forwarded-for"))
        seen = [each.strip() for each in given.split(",")]
        address = request.client.host if request.client else ""
        while self._trusted(address) and seen and seen[-1]:
            address = seen.pop()
        return address

    async def _behind_balancer(self, verifier: Verifier, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).getlist(SIGNED_HEADER)
        if not given:  # a health check of the load balancer's own, for one
            await _refuse(PlainTextResponse(_LOG_IN, 401), scope, receive, send)
        elif (refusal := await verifier.refusal(given)) is not None:
            await _refuse(_not_let_in(refusal), scope, receive, send)
        elif scope["type"] == "http":
            await self._app(scope, receive, send)
        else:
            # It was looked at when the page was opened: one that stays open has to come by the load balancer again.
            ends = time.monotonic() + LONGEST
            await self._app(scope, receive, _while(lambda: time.monotonic() < ends, send))

    async def _behind_password(self, sessions: Sessions, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive) if scope["type"] == "http" else None
        token = _cookie(scope, SESSION)
        if request is not None and scope["path"] == "/login":
            await (await self._login(sessions, request))(scope, receive, send)
        elif not sessions.valid(token):
            query = scope["query_string"].decode("latin-1")
            asked = quote(scope["path"]) + (f"?{query}" if query else "")
            # Whoever logs out on a page that was open for longer than its session does not want to go on there.
            to = "/login" if scope["path"] == "/logout" else "/login?next=" + quote(asked)
            refusal = RedirectResponse(to, 303) if request is not None else PlainTextResponse("", 401)
            await _refuse(refusal, scope, receive, send)
        elif request is not None and scope["path"] == "/logout" and request.method == "POST":
            given = (await _form(request)).get("token", "")
            if given != form_token(token or ""):
                await _refuse(
                    PlainTextResponse("The page is too old: load it again.\n", 403), scope, receive, send
                )
                return
            sessions.end(token)
            response = RedirectResponse("/login", 303)
            response.delete_cookie(SESSION)
            await response(scope, receive, send)
        else:
            open_page = request is None
            await self._app(
                scope, receive, _while(lambda: sessions.valid(token), send) if open_page else send
            )

    async def _login(self, sessions: Sessions, request: Request) -> Response:
        address = self._viewer(request)
        onward = _inside(request.query_params.get("next"))
        problem, status = "", 200
        known = request.cookies.get(FORM, "")
        if request.method == "POST":
            form = await _form(request)
            if not known or form.get("token") != form_token(known):
                problem, status = "The page was too old. Please try again.", 403
            elif sessions.locked_out(address):
                problem, status = "Too many attempts. Wait some minutes, then try again.", 429
            elif (token := sessions.log_in(form.get("password", ""), address)) is not None:
                response = RedirectResponse(onward, 303)
                self._set(response, SESSION, token, request)
                response.delete_cookie(FORM)
                return response
            else:
                problem, status = "That is not the password.", 401
        # Kept where there is one: a browser that shows this page asks for an icon too, and may have it open twice.
        secret = known if _FORM_SECRET.fullmatch(known) else secrets.token_urlsafe(16)
        page = HTMLResponse(login_page(form_token(secret), onward, problem), status)
        page.headers["cache-control"] = "no-store"
        self._set(page, FORM, secret, request)
        return page

    def _set(self, response: Response, name: str, value: str, request: Request) -> None:
        secure = request.url.scheme == "https" or (
            self._from_proxy(request.scope) and request.headers.get("x-forwarded-proto") == "https"
        )
        response.set_cookie(name, value, max_age=int(LONGEST), httponly=True, samesite="lax", secure=secure)


def _same_origin(scope: Scope, headers: Headers, *, trusted: bool) -> bool:
    """Whether the request comes from our own pages, as far as it matters: browsers name the origin of WebSockets and
    of whatever changes something; what is no browser cannot be tricked into sending anything.
    """
    if scope["type"] == "http" and scope["method"] in {"GET", "HEAD", "OPTIONS"}:
        return True
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "same-origin") in {"same-origin", "none"}
    hosts = {headers.get("host"), headers.get("x-forwarded-host") if trusted else None}
    try:
        return urlsplit(origin).netloc in hosts
    except ValueError:
        return False


def _inside(path: str | None) -> str:
    """A path of this server, and not ``//elsewhere``."""
    return path if path and path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def _cookie(scope: Scope, name: str) -> str | None:
    return Request({**scope, "type": "http"}).cookies.get(name)


async def _form(request: Request) -> dict[str, str]:
    """The form's first values; an empty one when it is larger than ours."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _not_let_in(refusal: Refusal) -> Response:
    problem = f"What the load balancer says of your login {refusal.why}."
    if refusal.later:
        page = refusal_page(problem, f"This page tries again by itself, every {_AGAIN} seconds.", _AGAIN)
        headers = {"cache-control": "no-store", "retry-after": str(_AGAIN)}
        return HTMLResponse(page, 503, headers)
    page = refusal_page(problem, "Load the page again. If that does not help, the dashboard's log says more.")
    return HTMLResponse(page, 401, {"cache-control": "no-store"})


async def _refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
    else:
        await response(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS.items()]
        await send(message)

    return sending


def _while(lasts: Callable[[], bool], send: Send) -> Send:
    """A page that is open when its session ends gets nothing more."""
    closed = False

    async def sending(message: Message) -> None:
        nonlocal closed
        if closed:
            return
        if message["type"] == "websocket.send" and not lasts():
            closed = True
            message = {"type": "websocket.close", "code": 1008, "reason": "logged out"}
        await send(message)

    return sending
