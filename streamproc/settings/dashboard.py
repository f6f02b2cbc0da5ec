"""The settings ``dashboard.*``: where the pages are served, and who may look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from streamproc.redaction import Secret, Url
from streamproc.settings import parse
from streamproc.settings.balancer import Balancer, parse_balancer
from streamproc.settings.parse import Bind
from streamproc.settings.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """The pages of `streamproc dashboard`, and who may look at them."""

    bind: Annotated[
        Bind,
        Setting(parse.bind, "127.0.0.1:8090", "Address of the pages: `host:port`, port 0 for any free one"),
    ]
    database: Annotated[
        Url | None,
        Setting(
            parse.postgres,
            None,
            "The ledger's database, as a role that may only read: `postgresql://reader@host:port/database`",
            computed="`ledger`",
            secret=True,
        ),
    ]
    password: Annotated[
        Secret | None, Setting(parse.secret, None, "Password that viewers are asked for", secret=True)
    ]
    user_header: Annotated[
        str | None,
        Setting(parse.text, None, "Header in which a proxy in `dashboard.proxies` names the viewer"),
    ]
    proxies: Annotated[
        str | None,
        Setting(parse.text, None, "Addresses of proxies that are believed: `10.0.3.7`, `10.0.0.0/8, …`"),
    ]
    signed_by: Annotated[
        Balancer | None,
        Setting(
            parse_balancer,
            None,
            "ARN of the Application Load Balancer that logs viewers in: its signature (`x-amzn-oidc-data`) is asked "
            "for (extra `alb`)",
        ),
    ]
    signing_keys: Annotated[
        str | None,
        Setting(
            parse.web_address,
            None,
            "Where the public keys of load balancers are, each under its id",
            computed="AWS's of the region in `dashboard.signed_by`",
        ),
    ]
    oidc_issuer: Annotated[
        str | None,
        Setting(
            parse.text, None, "Issuer that the load balancer has to have the viewer from, as in its listener"
        ),
    ]
    oidc_client_id: Annotated[
        str | None,
        Setting(parse.text, None, "Client id that the load balancer has to be known by there"),
    ]
    statement_timeout: Annotated[
        float,
        Setting(parse.duration("100ms", "5m"), "5s", "A query that takes longer is stopped"),
    ]
