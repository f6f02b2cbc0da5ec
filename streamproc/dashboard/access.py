"""Who may look: nobody is asked on localhost only; otherwise a proxy says who it is, or there is a password.

A proxy that is an Application Load Balancer signs what it says; that is what is believed, where its ARN is known.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from streamproc.errors import ConfigError, Mistake
from streamproc.redaction import Secret
from streamproc.settings.dashboard import Dashboard

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: In which an Application Load Balancer says who has logged in, signed.
SIGNED_HEADER = "x-amzn-oidc-data"
#: Characters that it may have. A load balancer takes claims of 11 kB at most, which are 15 kB there.
LARGEST_TOKEN = 32_768
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Signature:
    """What a load balancer's signature is checked by.

    ``balancer``: its ARN. ``keys``: the address below which the public keys are. ``issuer`` and ``client``: what its
    listener has to be set up with; ``None``: anything.
    """

    balancer: str
    keys: str
    issuer: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """How viewers are told apart.

    ``password``: of the login page. ``user_header``: where a proxy names the viewer; it is believed from addresses in
    ``proxies`` only, as is what they say of the viewer's address and of TLS. ``signature``: a load balancer says and
    signs who has logged in; where there are ``proxies``, it has to be one of them too. With none of the three the
    server must be bound to localhost, and answers to its names only.
    """

    password: Secret | None = None
    user_header: str | None = None
    proxies: tuple[Network, ...] = ()
    signature: Signature | None = None

    @property
    def open(self) -> bool:
        """Whether nobody is asked."""
        return self.password is None and self.user_header is None and self.signature is None


def access(own: Dashboard, host: str) -> Access:
    """The access that settings make of a server that listens on ``host``.

    Raises :class:`ConfigError` when viewers elsewhere would not be asked, a header would be believed from anyone, or
    a signature could not be checked.
    """
    mistakes: list[Mistake] = []
    networks = _networks(own.proxies or "", mistakes)
    ways = {
        "dashboard.signed_by": own.signed_by,
        "dashboard.user_header": own.user_header,
        "dashboard.password": own.password,
    }
    chosen = [key for key, value in ways.items() if value is not None]
    if not chosen and not is_local(host):
        fix = "Set dashboard.password, or dashboard.user_header and dashboard.proxies, or bind to 127.0.0.1"
        mistakes.append(
            Mistake("dashboard.bind", f"{host} can be reached from elsewhere, without a login", fix)
        )
    if own.user_header is not None and not networks and not mistakes:
        fix = "Set dashboard.proxies to the addresses of the proxies"
        mistakes.append(Mistake("dashboard.user_header", "would be believed from anyone", fix))
    mistakes += [
        Mistake(key, f"has no use beside {chosen[0]}", "Leave one of them out") for key in chosen[1:]
    ]
    signature = _signature(own, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return Access(own.password, own.user_header, tuple(networks), signature)


def _networks(text: str, mistakes: list[Mistake]) -> list[Network]:
    """Addresses and networks, commas between."""
    networks: list[Network] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError:
            fix = 'Write addresses or networks, "10.0.3.7" or "10.0.0.0/8", with commas between'
            mistakes.append(Mistake("dashboard.proxies", f"{part!r} is no network", fix))
    return networks


def _signature(own: Dashboard, mistakes: list[Mistake]) -> Signature | None:
    if own.signed_by is None:
        for key in ("signing_keys", "oidc_issuer", "oidc_client_id"):
            if getattr(own, key) is not None:
                problem, fix = "has no use without dashboard.signed_by", "Set that, or leave this out"
                mistakes.append(Mistake(f"dashboard.{key}", problem, fix))
        return None
    keys = own.signing_keys or own.signed_by.public_keys
    if keys is None:
        problem = f"is in {own.signed_by.partition}, and where its public keys are is not known"
        mistakes.append(Mistake("dashboard.signed_by", problem, "Set dashboard.signing_keys"))
    elif not keys.startswith("https:") and not is_local(urlsplit(keys).hostname or ""):
        problem = "has no TLS, so whoever is on the way could sign"
        mistakes.append(Mistake("dashboard.signing_keys", problem, "Write an address with https://"))
    if find_spec("joserfc") is None:
        problem = "is set, and checking signatures needs the package joserfc"
        mistakes.append(Mistake("dashboard.signed_by", problem, "Install streamproc[alb]"))
    return Signature(own.signed_by.arn, keys or "", own.oidc_issuer, own.oidc_client_id)


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
