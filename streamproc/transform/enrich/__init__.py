"""The enrichments, one module each. To add one: write its module and name it in :data:`ORDER`."""

from __future__ import annotations

from streamproc.transform.enrich import (
    bots,
    campaign,
    geoip,
    ip,
    lookup,
    pseudonym,
    python,
    referrer,
    time,
    url,
    user_agent,
)
from streamproc.transform.enrich.spec import EnrichmentSpec

#: Kinds in the order they run, which is Snowplow's: what a later one may build on comes first; the privacy
#: kinds come last, after filters and derived columns have seen the true values.
ORDER: tuple[str, ...] = (
    "url",
    "campaign",
    "time",
    "bots",
    "user_agent",
    "referrer",
    "geoip",
    "lookup",
    "python",
    "ip",
    "pseudonym",
)
#: Kinds that run after everything else and replace values in place; ``[privacy.*]`` in a topic page.
PRIVACY: tuple[str, ...] = ("ip", "pseudonym")

SPECS: dict[str, EnrichmentSpec] = {
    module.SPEC.kind: module.SPEC
    for module in (
        url,
        campaign,
        time,
        bots,
        user_agent,
        referrer,
        geoip,
        lookup,
        python,
        ip,
        pseudonym,
    )
}
