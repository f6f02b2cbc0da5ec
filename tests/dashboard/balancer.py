"""What an Application Load Balancer signs, made with a key of the tests' own, and a server that has the public part.

Tokens are put together by hand, from Amazon's description of them and with another library than reads them:
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html#user-claims-encoding
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ARN = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/streamproc-dashboard/50dc6c495c0c9188"
ISSUER, CLIENT = "https://login.example.org", "pages"
#: As long as to need padding, like the header and the signature.
CLAIMS = {"sub": "1234567890", "name": "Anna", "email": "anna@example.com", "groups": ["sales", "web"]}


def segment(content: bytes) -> str:
    """Base64 as in URLs, with the padding that a JWT may not have and a load balancer's token has."""
    return base64.urlsafe_b64encode(content).decode()


class SigningKey:
    """A key of AWS', and what load balancers sign with it."""

    def __init__(self, curve: ec.EllipticCurve | None = None) -> None:
        self.id = str(uuid.uuid4())
        self.private = ec.generate_private_key(curve or ec.SECP256R1())

    @property
    def pem(self) -> bytes:
        """The public part, as AWS publishes it."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def header(self, **changes: Any) -> dict[str, Any]:
        """The token's header with some members changed; one that is ``None`` is left out."""
        said = {
            "typ": "JWT",
            "kid": self.id,
            "alg": "ES256",
            "iss": ISSUER,
            "client": CLIENT,
            "signer": ARN,
            "exp": int(time.time()) + 120,
        }
        return {name: value for name, value in {**said, **changes}.items() if value is not None}

    def sign(self, content: str) -> bytes:
        """The two numbers of the signature, 32 bytes each."""
        r, s = decode_dss_signature(self.private.sign(content.encode(), ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def token(self, encode: Callable[[bytes], str] = segment, **changes: Any) -> str:
        """What the load balancer sends as ``x-amzn-oidc-data``."""
        signed = ".".join(encode(json.dumps(part).encode()) for part in (self.header(**changes), CLAIMS))
        return f"{signed}.{encode(self.sign(signed))}"


class KeyServer:
    """Public keys over HTTP. ``asked``: the paths of the requests; ``most``: of how many at once."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.most = 0
        #: What is answered in place of keys.
        self.instead: Callable[[], web.Response] | None = None
        #: Cleared, answers wait.
        self.free = asyncio.Event()
        self.free.set()
        self._port = 0
        self._now = 0
        self._runner: web.AppRunner | None = None

    def publish(self, *keys: SigningKey) -> None:
        """Have these keys."""
        self.keys |= {f"/{key.id}": key.pem for key in keys}

    @property
    def address(self) -> str:
        """The setting ``dashboard.signing_keys``."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Answer; after :meth:`stop` at the same port."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Take no connection any more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await self.free.wait()
            if self.instead is not None:
                return self.instead()
            if request.path not in self.keys:
                return web.Response(status=404)
            return web.Response(body=self.keys[request.path])
        finally:
            self._now -= 1


@asynccontextmanager
async def key_server(*keys: SigningKey) -> AsyncIterator[KeyServer]:
    """A server that has these keys."""
    server = KeyServer()
    server.publish(*keys)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
