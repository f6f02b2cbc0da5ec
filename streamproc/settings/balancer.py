"""An Application Load Balancer by its ARN, and where AWS publishes the keys of what it signs.

Both as in https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from streamproc.quantities import Invalid, shown

_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]{0,20}):elasticloadbalancing:(?P<region>[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2})"
    r":[0-9]{12}:loadbalancer/app/[A-Za-z0-9-]{1,32}/[0-9a-f]{16}",
    re.ASCII,
)

#: Partition → where each key is, under its id. Of the others AWS says nothing.
_KEYS = {
    "aws": "https://public-keys.auth.elb.{region}.amazonaws.com",
    "aws-us-gov": "https://s3-{region}.amazonaws.com/aws-elb-public-keys-prod-{region}",
}


@dataclass(frozen=True, slots=True)
class Balancer:
    """An Application Load Balancer. ``partition``: ``aws``, ``aws-us-gov`` and the like."""

    arn: str
    partition: str
    region: str

    @property
    def public_keys(self) -> str | None:
        """The address below which AWS has the public keys of its region; ``None`` where that is not known."""
        address = _KEYS.get(self.partition)
        return None if address is None else address.format(region=self.region)

    def __str__(self) -> str:
        return self.arn


def parse_balancer(value: object, folder: Path) -> Balancer:
    """The ARN of an Application Load Balancer; raises :class:`Invalid` for anything else, other balancers too."""
    found = _ARN.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        fix = 'Write "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/name/0123456789abcdef"'
        raise Invalid(f"{shown(value)} is no ARN of an Application Load Balancer", fix)
    return Balancer(found[0], found["partition"], found["region"])
