"""What an Application Load Balancer signs of whoever has logged in, and whether it is what it should be.

It is a token in the header ``x-amzn-oidc-data``, a JWT but for two things: its segments have padding, which the
signature covers and JWTs may not have, and what it is judged by stands in its own header, not among the claims:
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html#user-claims-encoding

Who the viewer is is not asked: all of them may see the same.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from joserfc.errors import JoseError
from joserfc.jws import CompactSignature, JWSRegistry, validate_compact

from streamproc.dashboard.access import LARGEST_TOKEN, SIGNED_HEADER, Signature
from streamproc.dashboard.signing_keys import SigningKeys
from streamproc.errors import DependencyError

log = structlog.get_logger(__name__)

#: The one algorithm that load balancers sign by.
ALGORITHM = "ES256"
#: Seconds by which clocks may differ.
LEEWAY = 30.0
#: Seconds for which a refusal is logged once, however many there are for that reason.
_QUIET = 60.0

_REGISTRY = JWSRegistry(algorithms=[ALGORITHM], strict_check_header=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a viewer is not let in, as the end of a sentence about the signed header.

    ``seen``: for the log only. ``later``: it cannot be judged now, and perhaps soon.
    """

    why: str
    seen: str = ""
    later: bool = False


class Verifier:
    """Judges requests by ``expected``. ``clock``: Unix seconds."""

    def __init__(self, expected: Signature, clock: Callable[[], float] = time.time) -> None:
        self._expected = expected
        self._clock = clock
        self._keys = SigningKeys(expected.keys)
        self._logged: dict[str, float] = {}

    async def refusal(self, given: Sequence[str]) -> Refusal | None:
        """Why the values that a request has of :data:`.SIGNED_HEADER` do not let it in; ``None``: they do."""
        token = _read(given)
        if token is None:
            refusal: Refusal | None = Refusal("cannot be read")
        else:
            refusal = self._mismatch(token.headers()) or await self._unsigned(token)
        if refusal is not None:
            self._tell(refusal)
        return refusal

    def _mismatch(self, header: Mapping[str, Any]) -> Refusal | None:
        """What the token says of itself. Nobody vouches for it yet, but what is wrong anyway needs no key."""
        expected = self._expected
        demands = (
            ("alg", ALGORITHM, "is not signed in the way of a load balancer"),
            ("signer", expected.balancer, "is signed by another load balancer"),
            ("iss", expected.issuer, "is about a login at another provider"),
            ("client", expected.client, "is about a login for another client"),
        )
        for name, value, why in demands:
            if value is not None and header.get(name) != value:
                return Refusal(why, _seen(name, header.get(name)))
        expires = header.get("exp")
        if not isinstance(expires, int | float):
            return Refusal("does not say how long it holds", _seen("exp", expires))
        if expires + LEEWAY <= self._clock():
            return Refusal("has expired", f"exp: {expires}, {self._clock() - expires:.0f} s ago")
        return None

    async def _unsigned(self, token: CompactSignature) -> Refusal | None:
        name = token.headers().get("kid")
        try:
            key = await self._keys.get(name) if isinstance(name, str) else None
        except DependencyError as error:
            return Refusal("cannot be checked at the moment", str(error), later=True)
        if key is None:
            return Refusal("is signed with a key that is not known", _seen("kid", name))
        try:
            signed = validate_compact(token, key, registry=_REGISTRY)
        except (JoseError, ValueError, TypeError) as error:
            # Its header asks for something, as by "crit", that nobody here understands.
            return Refusal("cannot be read", str(error))
        return None if signed else Refusal("is not what the load balancer signed", _seen("kid", name))

    def _tell(self, refusal: Refusal) -> None:
        now = self._clock()
        if now - self._logged.get(refusal.why, -_QUIET) >= _QUIET:
            self._logged[refusal.why] = now
            log.warning(
                "viewer_refused",
                why=f"{SIGNED_HEADER} {refusal.why}",
                seen=refusal.seen,
                expected=self._expected.balancer,
            )


def _seen(name: str, value: object) -> str:
    """A member of the header for the log: long enough for an ARN, and no longer."""
    return f"{name}: {value!r}"[:200]


def _read(given: Sequence[str]) -> CompactSignature | None:
    """The token as it was sent, padding and all, for that is what is signed; ``None`` when it is none.

    More than one header is none either: it could be read as one and believed as the other.
    """
    if len(given) != 1 or len(given[0]) > LARGEST_TOKEN:
        return None
    try:
        header, payload, signature = given[0].encode("ascii").split(b".")
        said = orjson.loads(base64.b64decode(header + b"=" * (-len(header) % 4), b"-_", validate=True))
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    token = CompactSignature(said, payload)
    token.segments = {"header": header, "payload": payload, "signature": signature.rstrip(b"=")}
    return token
