"""Who may read data on the worker's port: tables and changed windows, which hold what visitors did.

Health, metrics and status hold none and answer anybody who reaches the port. Data is another matter: on a port
that only this machine reaches it is given without asking; on any other it needs the token of the setting
``api_token``, and where there is none it is not given at all.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable

from aiohttp import web

from streamproc.redaction import Secret

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Access:
    """Asks for the ``token`` where one is set, or where ``host``, the bound address, is not this machine alone."""

    def __init__(self, host: str, token: Secret | None) -> None:
        self._local = _is_loopback(host)
        self._token = token

    def guarded(self, handler: Handler) -> Handler:
        """The handler behind the check: 401 without the right token, 403 where nobody may read."""

        async def checked(request: web.Request) -> web.StreamResponse:
            if self._token is not None:
                if not self._knows(request.headers.get("Authorization", "")):
                    headers = {"WWW-Authenticate": "Bearer"}
                    return problem(401, "needs the header Authorization: Bearer TOKEN", headers)
            elif not self._local:
                return problem(
                    403, "the port is open to other machines: set STREAMPROC_API_TOKEN to give data on it"
                )
            elif not _is_loopback(request.url.host or ""):
                # A page from elsewhere whose name leads to this machine (DNS rebinding) says its own name.
                return problem(403, "ask for it as localhost, or set STREAMPROC_API_TOKEN")
            return await handler(request)

        return checked

    def _knows(self, header: str) -> bool:
        assert self._token is not None
        kind, _, given = header.partition(" ")
        # What is no UTF-8 in a header arrives as surrogates.
        token = given.strip().encode("utf-8", "surrogateescape")
        right = hmac.compare_digest(token, self._token.reveal().encode())
        return right and kind.lower() == "bearer"


def problem(status: int, why: str, headers: dict[str, str] | None = None) -> web.Response:
    """An answer that says in JSON why there is no other."""
    return web.json_response({"error": why}, status=status, headers=headers)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
