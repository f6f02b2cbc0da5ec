"""Behind a load balancer only what it signed lets anybody in: every way there is to pretend is tried."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from streamproc.dashboard import gate as gates
from streamproc.dashboard import signing_keys
from streamproc.dashboard.access import Access, Signature, access
from streamproc.dashboard.gate import Gate
from streamproc.dashboard.signature import LEEWAY, Verifier
from streamproc.errors import ConfigError
from streamproc.quantities import Invalid
from streamproc.redaction import Secret
from streamproc.settings.balancer import parse_balancer
from tests.dashboard.balancer import (
    ARN,
    CLAIMS,
    CLIENT,
    ISSUER,
    KeyServer,
    SigningKey,
    key_server,
    segment,
)
from tests.dashboard.test_access import opened, own, page

AWS, ANOTHER = SigningKey(), SigningKey()
HEADER = "x-amzn-oidc-data"
OTHER_BALANCER = ARN.replace("streamproc-dashboard/50dc", "somebody-else/60dc")


def bare(content: bytes) -> str:
    """Base64 as JWTs have it."""
    return segment(content).rstrip("=")


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with key_server(AWS, ANOTHER) as made:
        yield made


def signed(server: KeyServer, proxies: str | None = None) -> Access:
    settings = own(
        signed_by=parse_balancer(ARN, Path()),
        signing_keys=server.address,
        oidc_issuer=ISSUER,
        oidc_client_id=CLIENT,
        proxies=proxies,
    )
    return access(settings, "0.0.0.0")


@asynccontextmanager
async def client(gate: Gate, peer: str = "10.0.1.9") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(gate, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="https://pages.example.org") as made:
        yield made


@pytest.mark.parametrize("encode", [segment, bare], ids=["with padding, as it is", "without"])
async def test_whoever_the_load_balancer_has_logged_in_is_let_in(
    server: KeyServer, encode: Callable[[bytes], str]
) -> None:
    token = AWS.token(encode)
    assert all(part.endswith("=") is (encode is segment) for part in token.split("."))
    async with client(Gate(page, signed(server))) as http:
        for _ in range(3):
            assert (await http.get("/", headers={HEADER: token})).text == "numbers"
    assert server.asked == [f"/{AWS.id}"]


def raw(header: object, signature: Callable[[str], bytes], claims: object = CLAIMS) -> str:
    content = f"{segment(json.dumps(header).encode())}.{segment(json.dumps(claims).encode())}"
    return f"{content}.{segment(signature(content))}"


def by_hmac(content: str) -> bytes:
    """What a library that takes the algorithm from the token would take for a signature by the public key."""
    return hmac.digest(AWS.pem, content.encode(), hashlib.sha256)


def exchanged(part: int) -> str:
    """A token with one part of another that is as good."""
    parts, others = (AWS.token().split("."), AWS.token(exp=int(time.time()) + 90, jti="x").split("."))
    parts[part] = others[part]
    return ".".join(parts)


FORGED = {
    "empty": "",
    "no token": "Anna",
    "two parts": AWS.token().rpartition(".")[0],
    "four parts": AWS.token() + ".x",
    "no signature": AWS.token().rpartition(".")[0] + ".",
    "not ASCII": AWS.token().replace(".", ".ü", 1),
    "no base64": "!" + AWS.token(),
    "no JSON": f"{segment(b'{')}.{segment(b'{}')}.{segment(b'0' * 64)}",
    "no object": raw([], AWS.sign),
    "broken UTF-8": f"{segment(bytes([255, 254]))}.{segment(b'{}')}.{segment(b'0' * 64)}",
    "deep": f"{segment(b'[' * 5_000)}.x.x",
    "large": AWS.token(more="x" * 40_000),
    "algorithm none": raw(AWS.header(alg="none"), lambda _: b""),
    "algorithm None": raw(AWS.header(alg="None"), lambda _: b""),
    "no algorithm": raw(AWS.header(alg=None), AWS.sign),
    "algorithm a list": raw(AWS.header(alg=["ES256"]), AWS.sign),
    "HS256 with the public key": raw(AWS.header(alg="HS256"), by_hmac),
    "ES256, and yet the public key": raw(AWS.header(), by_hmac),
    "ES384": raw(AWS.header(alg="ES384"), AWS.sign),
    "DER": raw(AWS.header(), lambda content: AWS.private.sign(content.encode(), ec.ECDSA(hashes.SHA256()))),
    "zeros": raw(AWS.header(), lambda _: bytes(64)),
    "another key under its id": raw(AWS.header(), ANOTHER.sign),
    "its key under another id": raw(AWS.header(kid=ANOTHER.id), AWS.sign),
    "an unknown id": AWS.token(kid=SigningKey().id),
    "no id": AWS.token(kid=None),
    "a number for an id": AWS.token(kid=1),
    "a path for an id": AWS.token(kid=f"../{AWS.id}"),
    "a URL for an id": AWS.token(kid="https://evil.example/key"),
    "a key of its own": ANOTHER.token(kid=AWS.id, jku="http://evil.example", jwk={"kty": "EC"}),
    "another load balancer": AWS.token(signer=OTHER_BALANCER),
    "no load balancer": AWS.token(signer=None),
    "load balancers": AWS.token(signer=[ARN]),
    "another issuer": AWS.token(iss="https://evil.example"),
    "no issuer": AWS.token(iss=None),
    "another client": AWS.token(client="another"),
    "no client": AWS.token(client=None),
    "expired": AWS.token(exp=int(time.time() - LEEWAY) - 1),
    "no end": AWS.token(exp=None),
    "an end in words": AWS.token(exp="never"),
    "an end that is true": AWS.token(exp=True),
    "what must be understood": AWS.token(crit=["exp"], b64=False),
    "crit that is none": AWS.token(crit=7),
    "type that is none": AWS.token(typ=7),
    "header of another": exchanged(0),
    "claims of nobody": ".".join([AWS.token().split(".")[0], segment(b"{}"), AWS.token().split(".")[2]]),
    "signature of another": exchanged(2),
    # What is signed has the padding.
    "padding taken off": AWS.token().replace("=", ""),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED)
async def test_what_is_forged_is_refused(server: KeyServer, token: str) -> None:
    gate = Gate(page, signed(server))
    async with client(gate) as http:
        answer = await http.get("/", headers=[(b"x-amzn-oidc-data", token.encode("latin-1"))])
    assert answer.status_code == 401
    assert "numbers" not in answer.text
    assert not await opened(gate, "http://localhost", "", token)
    assert set(server.asked) <= {f"/{AWS.id}", f"/{ANOTHER.id}"} or token == FORGED["an unknown id"]


async def test_no_character_of_a_token_can_be_another(server: KeyServer) -> None:
    verifier = Verifier(Signature(ARN, server.address, ISSUER, CLIENT))
    token = AWS.token()
    assert await verifier.refusal([token]) is None
    for position, character in enumerate(token):
        changed = token[:position] + ("A" if character != "A" else "B") + token[position + 1 :]
        assert await verifier.refusal([changed]) is not None, position


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.dictionaries(
                st.sampled_from(list(AWS.header())), st.none() | st.booleans() | st.floats() | st.text()
            ).map(lambda header: raw(header, AWS.sign)),
        ),
        max_size=2,
    )
)
def test_nothing_that_is_sent_makes_it_fail(given_: list[str]) -> None:
    verifier = Verifier(Signature(ARN, "http://127.0.0.1:1"))
    assert asyncio.run(verifier.refusal(given_)) is not None


@pytest.mark.parametrize(
    "name",
    [
        "another load balancer",
        "another issuer",
        "another client",
        "expired",
        "HS256 with the public key",
        "a path for an id",
        "large",
    ],
)
async def test_what_is_wrong_anyway_asks_for_no_key(server: KeyServer, name: str) -> None:
    async with client(Gate(page, signed(server))) as http:
        await http.get("/", headers={HEADER: FORGED[name]})
    assert server.asked == []


async def test_two_tokens_are_none(server: KeyServer) -> None:
    good = (HEADER.encode(), AWS.token().encode())
    async with client(Gate(page, signed(server))) as http:
        assert (await http.get("/", headers=[good])).status_code == 200
        assert (await http.get("/", headers=[good, good])).status_code == 401


async def test_whoever_the_load_balancer_names_without_signing_is_told_to_log_in(server: KeyServer) -> None:
    async with client(Gate(page, signed(server))) as http:
        answer = await http.get("/", headers={"x-amzn-oidc-identity": "1234567890"})
    assert (answer.status_code, answer.text) == (401, "Log in at the proxy first.\n")


async def test_its_health_check_has_an_answer_and_asks_for_no_key(server: KeyServer) -> None:
    with capture_logs() as logs:
        async with client(Gate(page, signed(server))) as http:
            assert (await http.get("/login")).status_code == 401
    assert (logs, server.asked) == ([], [])


async def test_it_holds_as_long_as_it_says_and_a_little_longer(server: KeyServer) -> None:
    now = 1_000_000.0
    verifier = Verifier(Signature(ARN, server.address), lambda: now)
    token = AWS.token(exp=1_000_120)
    for seconds, let_in in ((0, True), (119, True), (149.9, True), (150, False)):
        now = 1_000_000.0 + seconds
        assert ((await verifier.refusal([token])) is None) is let_in


async def test_issuer_and_client_are_looked_at_where_they_are_set_only(server: KeyServer) -> None:
    token = AWS.token(iss="https://another.example", client="another")
    assert await Verifier(Signature(ARN, server.address)).refusal([token]) is None
    refusal = await Verifier(Signature(ARN, server.address, ISSUER)).refusal([token])
    assert refusal is not None and refusal.why == "is about a login at another provider"
    refusal = await Verifier(Signature(ARN, server.address, None, CLIENT)).refusal([token])
    assert refusal is not None and refusal.why == "is about a login for another client"


async def test_a_signature_from_elsewhere_is_not_enough_where_the_networks_are_known(
    server: KeyServer,
) -> None:
    token = {HEADER: AWS.token()}
    gate = Gate(page, signed(server, "10.0.0.0/20"))
    async with client(gate) as http:
        assert (await http.get("/", headers=token)).status_code == 200
    async with client(gate, "192.0.2.1") as http:
        assert (await http.get("/", headers=token)).status_code == 401
    assert len(server.asked) == 1


async def test_without_the_keys_nobody_is_let_in_until_they_are_there_again(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "REST", 0.0)
    token = {HEADER: AWS.token()}
    await server.stop()
    gate = Gate(page, signed(server))
    async with client(gate) as http:
        answer = await http.get("/", headers=token)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "10"
        assert '<meta http-equiv="refresh" content="10">' in answer.text
        assert "cannot be checked at the moment" in answer.text
        assert not await opened(gate, "http://localhost", "", AWS.token())
        await server.start()
        assert (await http.get("/", headers=token)).text == "numbers"
        await server.stop()
        assert (await http.get("/", headers=token)).text == "numbers", "this key is known"
        assert (await http.get("/", headers={HEADER: ANOTHER.token()})).status_code == 503


async def test_the_page_says_what_is_wrong_and_the_log_what_was_seen(server: KeyServer) -> None:
    token = {HEADER: AWS.token(signer=OTHER_BALANCER)}
    with capture_logs() as logs:
        async with client(Gate(page, signed(server))) as http:
            for _ in range(20):
                answer = await http.get("/", headers=token)
            await http.get("/", headers={HEADER: "Anna"})
    assert "What the load balancer says of your login is signed by another load balancer." in answer.text
    assert ARN not in answer.text and OTHER_BALANCER not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert [line["why"] for line in logs] == [
        "x-amzn-oidc-data is signed by another load balancer",
        "x-amzn-oidc-data cannot be read",
    ]
    assert (logs[0]["seen"], logs[0]["expected"]) == (f"signer: {OTHER_BALANCER!r}", ARN)


async def talking(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "numbers"})


async def test_a_web_socket_needs_the_signature_too(server: KeyServer) -> None:
    gate = Gate(talking, signed(server))
    assert await opened(gate, "http://localhost", "", AWS.token())
    assert not await opened(gate, "https://evil.example", "", AWS.token())
    assert not await opened(gate, "http://localhost", "")


async def test_an_open_page_has_to_come_by_the_load_balancer_again_some_time(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "LONGEST", 0.0)
    assert await opened(Gate(talking, signed(server)), "http://localhost", "", AWS.token()) == [
        "websocket.accept",
        "websocket.close",
    ]


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arn", "keys"),
    [
        (ARN, "https://public-keys.auth.elb.eu-central-1.amazonaws.com"),
        (
            "arn:aws-us-gov:elasticloadbalancing:us-gov-west-1:123456789012:loadbalancer/app/a/50dc6c495c0c9188",
            "https://s3-us-gov-west-1.amazonaws.com/aws-elb-public-keys-prod-us-gov-west-1",
        ),
        (
            "arn:aws-us-gov:elasticloadbalancing:us-gov-east-1:123456789012:loadbalancer/app/a/50dc6c495c0c9188",
            "https://s3-us-gov-east-1.amazonaws.com/aws-elb-public-keys-prod-us-gov-east-1",
        ),
    ],
)
def test_where_the_keys_are_follows_from_the_arn(arn: str, keys: str) -> None:
    allowed = access(own(signed_by=parse_balancer(arn, Path())), "0.0.0.0")
    assert allowed.signature == Signature(arn, keys)


@pytest.mark.parametrize(
    "arn",
    [
        "",
        7,
        "streamproc-dashboard",
        ARN.replace("loadbalancer/app", "loadbalancer/net"),
        ARN.replace("eu-central-1", "evil.example/eu-central-1"),
        ARN.replace("eu-central-1", "eu-central-1@evil"),
        ARN.replace(":aws:", ":gcp:"),
        ARN + "/listener",
        ARN + "\nx",
    ],
)
def test_what_is_no_arn_of_such_a_load_balancer_is_a_mistake(arn: object) -> None:
    with pytest.raises(Invalid, match="no ARN of an Application Load Balancer"):
        parse_balancer(arn, Path())


def test_where_the_keys_are_has_to_be_said_where_aws_does_not() -> None:
    china = parse_balancer(ARN.replace(":aws:", ":aws-cn:").replace("eu-central-1", "cn-north-1"), Path())
    with pytest.raises(ConfigError, match=r"is in aws-cn.*Set dashboard\.signing_keys"):
        access(own(signed_by=china), "0.0.0.0")
    allowed = access(own(signed_by=china, signing_keys="https://keys.example.cn"), "0.0.0.0")
    assert allowed.signature == Signature(china.arn, "https://keys.example.cn")


def test_keys_come_by_tls_or_from_this_machine() -> None:
    balancer = parse_balancer(ARN, Path())
    with pytest.raises(ConfigError, match="has no TLS"):
        access(own(signed_by=balancer, signing_keys="http://keys.example.org"), "0.0.0.0")
    access(own(signed_by=balancer, signing_keys="http://[::1]:8000"), "0.0.0.0")


def test_there_is_one_way_to_log_in() -> None:
    with pytest.raises(ConfigError) as caught:
        access(
            own(
                signed_by=parse_balancer(ARN, Path()),
                user_header="x-amzn-oidc-identity",
                proxies="10.0.0.0/8",
                password=Secret("word"),
            ),
            "0.0.0.0",
        )
    assert [(each.where, each.problem) for each in caught.value.mistakes] == [
        ("dashboard.user_header", "has no use beside dashboard.signed_by"),
        ("dashboard.password", "has no use beside dashboard.signed_by"),
    ]


@pytest.mark.parametrize("name", ["signing_keys", "oidc_issuer", "oidc_client_id"])
def test_what_a_signature_is_checked_by_has_no_use_without_one(name: str) -> None:
    with pytest.raises(ConfigError, match="has no use without"):
        access(own(**{name: "https://example.org"}), "127.0.0.1")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamproc.dashboard.access.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"Install streamproc\[alb\]"):
        access(own(signed_by=parse_balancer(ARN, Path())), "0.0.0.0")


# -- the process ---------------------------------------------------------------------------------------


@asynccontextmanager
async def dashboard(folder: Path, **variables: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A dashboard's address, and what it logs. Its database is away, which it does not need for letting in."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamproc", "dashboard", "--stream", "clickstream", "--bind", "0.0.0.0:0"),
        cwd=folder,
        env={
            **os.environ,
            "STREAMPROC_DASHBOARD_DATABASE": "postgresql://reader@127.0.0.1:1/none",
            "STREAMPROC_LAKE": folder.as_uri(),
            "STREAMPROC_BROKER": "kafka://127.0.0.1:1",
            "STREAMPROC_LOG_FORMAT": "json",
            **variables,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    said: list[str] = []
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("Dashboard: "), line + (await process.stderr.read()).decode()
        yield line.split()[1].replace("0.0.0.0", "127.0.0.1"), said
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
        said += errors.decode().splitlines()
    assert process.returncode == 0, said


async def test_a_dashboard_that_is_started_so_believes_the_load_balancer_only(
    server: KeyServer, tmp_path: Path
) -> None:
    variables = {
        "STREAMPROC_DASHBOARD_SIGNED_BY": ARN,
        "STREAMPROC_DASHBOARD_SIGNING_KEYS": server.address,
        "STREAMPROC_DASHBOARD_OIDC_ISSUER": ISSUER,
        "STREAMPROC_DASHBOARD_OIDC_CLIENT_ID": CLIENT,
        "STREAMPROC_DASHBOARD_PROXIES": "127.0.0.0/8",
    }
    # As large as a load balancer makes it: 11 kB of claims.
    large = AWS.token(more="x" * 11_000)
    async with (
        dashboard(tmp_path, **variables) as (address, said),
        aiohttp.ClientSession(base_url=address) as http,
    ):
        for token, status in (
            (AWS.token(), 200),
            (large, 200),
            (ANOTHER.token(kid=AWS.id), 401),
            (None, 401),
        ):
            headers = {HEADER: token} if token else {"x-amzn-oidc-identity": "1234567890"}
            async with http.get("/healthz", headers=headers) as answer:
                assert answer.status == status
        socket = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
        for token in (AWS.token(), large):
            async with http.ws_connect(socket, headers={HEADER: token}) as opened_:
                assert (await opened_.receive_str()).startswith('0{"sid"')
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(socket, headers={HEADER: ANOTHER.token(kid=AWS.id)})
        assert refused.value.status == 403
    assert server.asked == [f"/{AWS.id}"]
    (line,) = [json.loads(line) for line in said if "viewer_refused" in line]
    assert line["why"] == "x-amzn-oidc-data is not what the load balancer signed"
