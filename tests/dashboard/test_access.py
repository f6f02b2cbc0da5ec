"""Who is let in, by every way there is."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from streamproc.dashboard.access import Access, access
from streamproc.dashboard.gate import Gate
from streamproc.dashboard.sessions import ATTEMPTS, IDLE, LONGEST, PATIENCE, Sessions, form_token
from streamproc.errors import ConfigError
from streamproc.redaction import Secret
from streamproc.settings import read_settings
from streamproc.settings.dashboard import Dashboard

PASSWORD = Secret("correct horse")


def own(**values: Any) -> Dashboard:
    """The dashboard's settings, all but these as they are when nothing is set."""
    return replace(read_settings(environ={}).dashboard, **values)


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"numbers"})


@asynccontextmanager
async def client(
    allowed: Access, peer: str = "127.0.0.1", base: str = "http://localhost"
) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Gate(page, allowed), client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url=base) as made:
        yield made


async def test_on_localhost_nobody_is_asked() -> None:
    async with client(Access()) as http:
        assert (await http.get("/")).text == "numbers"


async def test_another_sites_name_for_this_machine_is_refused() -> None:
    async with client(Access(), base="http://evil.example") as http:
        assert (await http.get("/")).status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "dashboard.internal", "::"])
def test_elsewhere_somebody_has_to_be_asked(host: str) -> None:
    with pytest.raises(ConfigError, match="without a login"):
        access(own(), host)


def test_a_header_is_not_believed_from_anyone() -> None:
    with pytest.raises(ConfigError, match="believed from anyone"):
        access(own(user_header="X-Forwarded-Email"), "0.0.0.0")


def test_a_network_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="is no network"):
        access(own(user_header="X-Forwarded-Email", proxies="10.0.0.0/8, nonsense"), "0.0.0.0")


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        ("10.1.2.3", {"X-Forwarded-Email": "a@example.com"}, 200),
        ("::ffff:10.1.2.3", {"X-Forwarded-Email": "a@example.com"}, 200),  # bound to [::]
        ("::ffff:192.0.2.1", {"X-Forwarded-Email": "a@example.com"}, 401),
        ("10.1.2.3", {}, 401),
        ("10.1.2.3", {"X-Forwarded-Email": " "}, 401),
        ("192.0.2.1", {"X-Forwarded-Email": "a@example.com"}, 401),
    ],
)
async def test_the_proxy_and_only_the_proxy_names_viewers(
    peer: str, headers: dict[str, str], status: int
) -> None:
    allowed = access(own(user_header="X-Forwarded-Email", proxies="10.0.0.0/8"), "0.0.0.0")
    async with client(allowed, peer) as http:
        assert (await http.get("/", headers=headers)).status_code == status


async def log_in(http: httpx.AsyncClient, password: str, next_: str = "/explore") -> httpx.Response:
    form = await http.get("/login", params={"next": next_})
    token = re.search(r'name="token" value="(\w+)"', form.text)
    assert token is not None
    return await http.post("/login", params={"next": next_}, data={"token": token[1], "password": password})


async def test_the_password_opens_a_session_and_logging_out_ends_it() -> None:
    async with client(Access(PASSWORD)) as http:
        refused = await http.get("/explore")
        assert (refused.status_code, refused.headers["location"]) == (303, "/login?next=/explore")
        answer = await log_in(http, "correct horse")
        assert (answer.status_code, answer.headers["location"]) == (303, "/explore")
        cookie = answer.headers.get_list("set-cookie")[0].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        assert (await http.get("/explore")).text == "numbers"
        session = http.cookies["streamproc_session"]
        assert (await http.post("/logout", data={"token": "made up"})).status_code == 403
        assert (await http.get("/explore")).text == "numbers"
        await http.post("/logout", data={"token": form_token(session)})
        again = await http.get("/explore", headers={"cookie": f"streamproc_session={session}"})
        assert again.status_code == 303, "the old cookie is worth nothing"


async def test_logging_in_leads_to_the_whole_address_that_was_asked_for() -> None:
    asked = "/explore?stream=a&by=path&by=r%26d%20%C3%A4+b&range=6+hours"
    async with client(Access(PASSWORD)) as http:
        refused = await http.get(asked)
        form = await http.get(refused.headers["location"])
        action = re.search(r'action="([^"]+)".*name="token" value="(\w+)"', form.text)
        assert action is not None
        answer = await http.post(
            html.unescape(action[1]), data={"token": action[2], "password": "correct horse"}
        )
        assert (answer.status_code, answer.headers["location"]) == (303, asked)


async def test_who_logs_out_of_a_session_that_has_ended_comes_to_a_page_when_logging_in() -> None:
    async with client(Access(PASSWORD)) as http:
        refused = await http.post("/logout", data={"token": form_token("ended")})
        assert (refused.status_code, refused.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("beside", ["/favicon.ico", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/"])
async def test_what_a_browser_asks_for_beside_the_form_does_not_make_it_too_old(beside: str) -> None:
    """The icon of the tab, an open page that looks for its server again, another tab: each is led to the form."""
    async with client(Access(PASSWORD)) as http:
        http.follow_redirects = True
        form = await http.get("/explore")
        assert "Log in" in (await http.get(beside)).text
        token = re.search(r'name="token" value="(\w+)"', form.text)
        assert token is not None
        sent = {"token": token[1], "password": "correct horse"}
        assert (await http.post(form.url, data=sent)).text == "numbers"


async def test_forms_of_two_browsers_are_not_one_another_s() -> None:
    async with client(Access(PASSWORD)) as one, client(Access(PASSWORD)) as two:
        token = re.search(r'name="token" value="(\w+)"', (await one.get("/login")).text)
        assert token is not None
        await two.get("/login")
        sent = {"token": token[1], "password": "correct horse"}
        assert (await two.post("/login", data=sent)).status_code == 403


@pytest.mark.parametrize("allowed", [Access(), Access(PASSWORD)])
async def test_a_host_or_an_origin_that_is_none_is_refused_as_another_s_is(allowed: Access) -> None:
    async with client(allowed) as http:
        for path in ("/", "/login"):
            assert (await http.get(path, headers={"host": "[::1"})).status_code == 421
        assert (await http.post("/login", headers={"origin": "http://[::1"})).status_code == 403
        assert (await http.get("/login", headers={"host": "[::1]:8090"})).status_code == 200


async def test_a_wrong_password_opens_nothing_and_too_many_are_not_looked_at() -> None:
    async with client(Access(PASSWORD)) as http:
        for _ in range(ATTEMPTS):
            assert (await log_in(http, "wrong")).status_code == 401
        assert (await log_in(http, "correct horse")).status_code == 429
        assert (await http.get("/")).status_code == 303


async def test_behind_a_proxy_wrong_passwords_close_the_viewer_s_address_and_not_the_proxy_s() -> None:
    allowed = access(own(password=PASSWORD, proxies="10.0.0.0/8"), "0.0.0.0")
    async with client(allowed, "10.1.2.3") as http:
        for number in range(ATTEMPTS):  # whatever the viewer pretends
            http.headers["x-forwarded-for"] = f"192.0.2.{number}, 198.51.100.7, 10.1.2.4"
            assert (await log_in(http, "wrong")).status_code == 401
        assert (await log_in(http, "correct horse")).status_code == 429
        http.headers["x-forwarded-for"] = "198.51.100.8"
        assert (await log_in(http, "correct horse")).status_code == 303


async def test_a_line_that_the_viewer_wrote_does_not_stand_for_the_proxy_s() -> None:
    """A proxy may add a line of its own behind the viewer's, which it leaves as it is."""
    allowed = access(own(password=PASSWORD, proxies="10.0.0.0/8"), "0.0.0.0")
    async with client(allowed, "10.1.2.3") as http:
        for number in range(ATTEMPTS):
            http.headers = httpx.Headers(
                [("x-forwarded-for", f"192.0.2.{number}"), ("x-forwarded-for", "198.51.100.7")]
            )
            assert (await log_in(http, "wrong")).status_code == 401
        assert (await log_in(http, "correct horse")).status_code == 429


async def test_who_is_no_proxy_cannot_say_that_somebody_else_was_wrong() -> None:
    allowed = access(own(password=PASSWORD, proxies="10.0.0.0/8"), "0.0.0.0")
    async with client(allowed, "198.51.100.7") as http:
        for number in range(ATTEMPTS):
            http.headers["x-forwarded-for"] = f"192.0.2.{number}"
            assert (await log_in(http, "wrong")).status_code == 401
        assert (await log_in(http, "correct horse")).status_code == 429


async def test_what_somebody_has_put_into_the_cookie_does_not_stay() -> None:
    async with client(Access(PASSWORD)) as http:
        answer = await http.get("/login", headers={"cookie": "streamproc_form=guessed"})
        assert http.cookies["streamproc_form"] != "guessed"
        assert form_token("guessed") not in answer.text


async def test_a_login_needs_the_form() -> None:
    async with client(Access(PASSWORD)) as http:
        assert (await http.post("/login", data={"password": "correct horse"})).status_code == 403


@pytest.mark.parametrize("elsewhere", ["//evil.example", "https://evil.example", "/\\evil.example", ""])
async def test_logging_in_leads_nowhere_else(elsewhere: str) -> None:
    async with client(Access(PASSWORD)) as http:
        assert (await log_in(http, "correct horse", elsewhere)).headers["location"] == "/"


@pytest.mark.parametrize("allowed", [Access(), Access(PASSWORD)])
async def test_another_site_can_change_nothing(allowed: Access) -> None:
    async with client(allowed) as http:
        answer = await http.post(
            "/login", headers={"origin": "https://evil.example"}, data={"password": "correct horse"}
        )
        assert answer.status_code == 403


@pytest.mark.parametrize(
    ("origin", "closed"), [("http://localhost", False), ("https://evil.example", True), (None, False)]
)
async def test_a_web_socket_of_another_site_is_closed(origin: str | None, closed: bool) -> None:
    assert bool(await opened(Gate(socket, Access()), origin, "")) is not closed


async def test_a_web_socket_needs_the_session() -> None:
    assert not await opened(Gate(socket, Access(PASSWORD)), "http://localhost", "streamproc_session=guess")


async def socket(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


async def opened(gate: Gate, origin: str | None, cookie: str, signed: str | None = None) -> list[str]:
    """What a web socket's end gets to see; nothing when it is not accepted."""
    headers = [(b"host", b"localhost"), (b"cookie", cookie.encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    headers += [(b"x-amzn-oidc-data", signed.encode("latin-1"))] if signed is not None else []
    sent: list[str] = []

    async def send(message: object) -> None:
        sent.append(message["type"])  # type: ignore[index]  # a dictionary

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    scope = {
        "type": "websocket",
        "path": "/",
        "headers": headers,
        "query_string": b"",
        "client": ("127.0.0.1", 1),
    }
    await gate(scope, receive, send)
    return sent if sent[0] == "websocket.accept" else []


async def test_nothing_is_loaded_from_elsewhere_and_no_other_page_frames_it() -> None:
    async with client(Access()) as http:
        policy = (await http.get("/")).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "http" not in policy


def sessions() -> tuple[Sessions, Callable[[float], None]]:
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    return Sessions(PASSWORD, lambda: now), pass_time


def test_a_session_ends_when_it_is_not_used() -> None:
    made, wait = sessions()
    token = made.log_in("correct horse", "a")
    wait(IDLE - 1)
    assert made.valid(token)
    wait(IDLE - 1)
    assert made.valid(token), "using it keeps it"
    wait(IDLE + 1)
    assert not made.valid(token)


def test_a_session_ends_some_time_however_much_it_is_used() -> None:
    made, wait = sessions()
    token = made.log_in("correct horse", "a")
    for _ in range(int(LONGEST / (IDLE / 2)) - 1):
        wait(IDLE / 2)
        assert made.valid(token)
    wait(IDLE / 2)
    assert not made.valid(token)


def test_who_failed_too_often_may_try_again_later() -> None:
    made, wait = sessions()
    for _ in range(ATTEMPTS):
        assert made.log_in("wrong", "a") is None
    assert made.log_in("correct horse", "a") is None
    assert made.log_in("correct horse", "b") is not None, "others are not kept out"
    wait(PATIENCE + 1)
    assert made.log_in("correct horse", "a") is not None


def test_the_password_is_in_no_repr() -> None:
    assert "horse" not in repr(Access(PASSWORD))
