"""``user_agent``: browser, operating system and device.

Adds ``browser``, ``browser_version``, ``os``, ``os_version``, ``device_class`` (``desktop``, ``mobile``,
``tablet``, ``bot`` or ``other``: televisions, consoles, libraries) and ``device_brand``. Families and
versions are ua-parser's (the uap-core expressions); null when it knows none, and for an empty agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from ua_parser import parse
from ua_parser.core import OS, Result, UserAgent

from streamproc.transform.enrich.distinct import ByValue, Remembered
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
)

ADDS: dict[str, pl.DataType] = {
    name: pl.String()
    for name in ("browser", "browser_version", "os", "os_version", "device_class", "device_brand")
}
_DESKTOPS = frozenset(
    [
        "Windows",
        "Mac OS X",
        "Mac OS",
        "Linux",
        "Ubuntu",
        "Kubuntu",
        "Debian",
        "Fedora",
        "Red Hat",
        "CentOS",
        "SUSE",
        "Mandriva",
        "Gentoo",
        "Slackware",
        "Arch Linux",
        "Linux Mint",
        "Chrome OS",
        "FreeBSD",
        "OpenBSD",
        "NetBSD",
        "Solaris",
    ]
)
_PHONES = frozenset(
    [
        "iOS",
        "Android",
        "Windows Phone",
        "Windows Mobile",
        "BlackBerry OS",
        "Symbian OS",
        "Firefox OS",
        "KaiOS",
        "HarmonyOS",
        "MeeGo",
        "Tizen",
        "Bada",
    ]
)
_TABLETS = ("iPad", "Tablet", "Kindle", "PlayBook", "SM-T", "Nexus 7", "Nexus 9", "Nexus 10")
_TELEVISIONS = ("TV", "BRAVIA", "AFT", "CrKey", "Roku")


def device_class(agent: str, parsed: Result) -> str:
    """``desktop``, ``mobile``, ``tablet``, ``bot`` or ``other``.

    Android's own rule tells phones from tablets: a phone's agent says ``Mobile``. uap-core calls every
    crawler a ``Spider``.
    """
    os = parsed.os.family if parsed.os else ""
    if parsed.device and parsed.device.family == "Spider":
        return "bot"
    if any(word in agent for word in _TELEVISIONS):
        return "other"
    if os in _DESKTOPS or (os.startswith("Windows ") and os not in _PHONES):
        return "desktop"
    if any(word in agent for word in _TABLETS) or (os == "Android" and "Mobile" not in agent):
        return "tablet"
    return "mobile" if os in _PHONES or "Mobile" in agent else "other"


def _version(of: UserAgent | OS | None) -> str | None:
    if of is None or of.major is None:
        return None
    return ".".join(part for part in (of.major, of.minor, of.patch) if part is not None)


def _describe(agents: pl.Series) -> pl.DataFrame:
    rows = []
    for agent in agents.to_list():
        parsed = parse(agent)
        browser, os, device = parsed.user_agent, parsed.os, parsed.device
        rows.append(
            (
                browser.family if browser else None,
                _version(browser),
                os.family if os else None,
                _version(os),
                device_class(agent, parsed) if agent.strip() else None,
                device.brand if device else None,
            )
        )
    return pl.DataFrame(rows, schema=ADDS, orient="row")


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field", "user_agent")
    return reader.done(ADDS)


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    only = options["only"]
    return ByValue(Remembered(options["field"], lambda agents: _describe(agents).select(only)))


#: Option: ``field``, the column with the user agent.
SPEC = EnrichmentSpec("user_agent", _check, _build)
