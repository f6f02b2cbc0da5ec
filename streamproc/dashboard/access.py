"""Who may look: nobody is asked on localhost only; otherwise a proxy says who it is, or there is a password.

The gate stands in front of everything the server answers, WebSockets included. What it refuses never reaches a page.
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamproc.dashboard.login_page import login_page
from streamproc.dashboard.sessions import LONGEST, Sessions, form_token
from streamproc.errors import ConfigError, Mistake
from streamproc.redaction import Secret

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SESSION, FORM = "streamproc_session", "streamproc_form"
_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
_LARGEST_FORM = 4_096

#: Nothing comes from elsewhere: not the assets, and no page may put this one into a frame. The pages are built in the
#: browser, which needs inline scripts and eval.
_HEADERS = {
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"connect-src 'self' ws: wss:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}


@dataclass(frozen=True, slots=True)
class Access:
    """How viewers are told apart.

    ``password``: of the login page. ``user_header``: where a proxy names the viewer; it is believed from addresses in
    ``proxies`` only, as is what they say of the viewer's address and of TLS. With neither, the server must be bound to
    localhost, and answers to its names only.
    """

    password: Secret | None = None
    user_header: str | None = None
    proxies: tuple[Network, ...] = ()

    @property
    def open(self) -> bool:
        """Whether nobody is asked."""
        return self.password is None and self.user_header is None


def access(password: Secret | None, user_header: str | None, proxies: str | None, host: str) -> Access:
    """The access that settings make. ``proxies``: addresses and networks, commas between.

    Raises :class:`ConfigError` when viewers elsewhere would not be asked, or a header believed from anyone.
    """
    mistakes = []
    networks: list[Network] = []
    for part in filter(None, (each.strip() for each in (proxies or "").split(","))):
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError:
            fix = 'Write addresses or networks, "10.0.3.7" or "10.0.0.0/8", with commas between'
            mistakes.append(Mistake("dashboard.proxies", f"{part!r} is no network", fix))
    if password is None and user_header is None and not is_local(host):
        fix = "Set dashboard.password, or dashboard.user_header and dashboard.proxies, or bind to 127.0.0.1"
        mistakes.append(
            Mistake("dashboard.bind", f"{host} can be reached from elsewhere, without a login", fix)
        )
    if user_header is not None and not networks and not mistakes:
        fix = "Set dashboard.proxies to the addresses of the proxies"
        mistakes.append(Mistake("dashboard.user_header", "would be believed from anyone", fix))
    if user_header is not None and password is not None:
        fix = "Leave one of them out"
        mistakes.append(Mistake("dashboard.password", "has no use beside dashboard.user_header", fix))
    if mistakes:
        raise ConfigError(mistakes)
    return Access(password, user_header, tuple(networks))


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """ASGI middleware around ``app``: lets in whom ``access`` allows."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._sessions = Sessions(access.password) if access.password is not None else None

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
        elif self._sessions is None:
            await self._app(scope, receive, send)
        else:
            await self._behind_password(self._sessions, scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Why the request is not looked at, whoever sends it; or by whom the proxy does not say."""
        host = headers.get("host", "")
        if self._access.open and (urlsplit(f"//{host}").hostname or "") not in _LOCAL_NAMES:
            # A name of somebody else's that resolves to this machine: their page would read ours.
            return PlainTextResponse("This dashboard answers to localhost only.\n", 421)
        if not _same_origin(scope, headers, trusted=self._from_proxy(scope)):
            return PlainTextResponse("This request comes from another site.\n", 403)
        name = self._access.user_header
        if name is not None and not (self._from_proxy(scope) and headers.get(name, "").strip()):
            return PlainTextResponse("Log in at the proxy first.\n", 401)
        return None

    def _from_proxy(self, scope: Scope) -> bool:
        client = scope.get("client")
        return client is not None and self._trusted(client[0])

    def _trusted(self, address: str) -> bool:
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(peer in network for network in self._access.proxies)

    def _viewer(self, request: Request) -> str:
        """Whose request it is. Each proxy adds at the end of the header from whom it has it, so what stands before the
        last that is no proxy of ours is what the viewer wrote.
        """
        seen = [each.strip() for each in request.headers.get("x-forwarded-for", "").split(",")]
        address = request.client.host if request.client else ""
        while self._trusted(address) and seen and seen[-1]:
            address = seen.pop()
        return address

    async def _behind_password(self, sessions: Sessions, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive) if scope["type"] == "http" else None
        token = _cookie(scope, SESSION)
        if request is not None and scope["path"] == "/login":
            await (await self._login(sessions, request))(scope, receive, send)
        elif not sessions.valid(token):
            to = "/login?next=" + quote(scope["path"])
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
            await self._app(scope, receive, _while_valid(sessions, token, send) if request is None else send)

    async def _login(self, sessions: Sessions, request: Request) -> Response:
        address = self._viewer(request)
        onward = _inside(request.query_params.get("next"))
        problem, status = "", 200
        if request.method == "POST":
            form = await _form(request)
            known = request.cookies.get(FORM, "")
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
        secret = secrets.token_urlsafe(16)
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
    return urlsplit(origin).netloc in hosts


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


def _while_valid(sessions: Sessions, token: str | None, send: Send) -> Send:
    """A page that is open when its session ends gets nothing more."""
    closed = False

    async def sending(message: Message) -> None:
        nonlocal closed
        if closed:
            return
        if message["type"] == "websocket.send" and not sessions.valid(token):
            closed = True
            message = {"type": "websocket.close", "code": 1008, "reason": "logged out"}
        await send(message)

    return sending
