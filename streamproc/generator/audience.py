"""Who visits: people with a browser and an address, some of whom come back, and crawlers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from streamproc.generator.draws import Weighted, pick, popular_first

_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
_DESKTOPS = (
    "Windows NT 10.0; Win64; x64",
    "Macintosh; Intel Mac OS X 10_15_7",
    "X11; Linux x86_64",
    "X11; CrOS x86_64 14541.0.0",
    "Windows NT 6.1; Win64; x64",
)
_PHONES = (
    "SM-S918B", "SM-S928B", "SM-A546B", "SM-A155F", "SM-G991B", "SM-X710", "Pixel 6a", "Pixel 7",
    "Pixel 8 Pro", "Pixel 9", "2201117TY", "23053RN02A", "M2102J20SG", "CPH2305", "CPH2581", "V2145",
    "moto g54 5G", "XQ-DQ54", "RMX3630", "Lenovo TB-J606F",
)  # fmt: skip
_IOS = ("15_8_3", "16_7_10", "17_4_1", "17_5_1", "17_6_1", "18_0_1", "18_1", "18_2_1", "18_3_2")

_CRAWLERS = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
    "Mozilla/5.0 (compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "python-requests/2.32.3",
)

#: First half of IPv4 addresses by country, roughly as visits are spread.
_IPV4 = Weighted(
    ["73.162", "98.207", "24.5", "68.81", "81.2", "86.140", "90.201", "84.112", "91.12", "87.162",
     "79.200", "90.3", "82.64", "79.30", "93.40", "88.3", "80.58", "84.80", "77.160", "178.197",
     "213.55", "83.5", "89.64", "122.161", "103.21", "106.51", "133.200", "126.72", "177.32", "189.6",
     "187.188", "99.224", "70.81", "1.128", "120.20", "31.13", "213.180", "95.24", "41.90", "105.112",
     "197.80", "2.50", "88.230", "36.72"],
    [30, 24, 20, 18, 12, 10, 8, 14, 14, 12,
     8, 10, 8, 8, 6, 8, 5, 8, 6, 4,
     3, 6, 5, 14, 8, 8, 8, 6, 10, 6,
     6, 8, 5, 6, 4, 2, 2, 4, 3, 4,
     3, 2, 5, 5],
)  # fmt: skip
_IPV6 = Weighted(
    ["2600:1700", "2601:646", "2a02:c7f", "2003:e1", "2a01:cb0c", "2001:b07", "2a02:8109", "2405:201",
     "2409:4042", "240b:10", "2804:14c", "2001:8003", "2a00:23c5", "2607:fea8"],
    [20, 18, 10, 14, 8, 4, 6, 12, 6, 6, 6, 4, 8, 5],
)  # fmt: skip

_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Visitor:
    """``fields``: visitor, agent and address as they stand in each of the visitor's events."""

    key: bytes
    fields: str
    crawler: bool


class Audience:
    """Draws the visitor of the next visit. Remembers so many that memory stays bounded."""

    def __init__(self, random: Random) -> None:
        self._random = random
        families = [
            sorted(agents, key=lambda _: random.getrandbits(64))
            for agents in (_desktop_agents(), _android_agents(), _apple_agents())
        ]
        self._families = Weighted([(popular_first(agents), agents) for agents in families], [44, 34, 22])
        self._known: list[Visitor] = []

    def visitor(self) -> Visitor:
        """Somebody new, somebody who was here before, or a crawler."""
        random = self._random
        draw = random.getrandbits(24) % 100
        if draw < 3:
            return self._crawler()
        if draw < 43 and self._known:
            return pick(random, self._known)
        visitor = self._person()
        if len(self._known) < _REMEMBERED:
            self._known.append(visitor)
        else:
            self._known[random.getrandbits(24) % _REMEMBERED] = visitor
        return visitor

    def _person(self) -> Visitor:
        random = self._random
        common, agents = self._families.draw(random)
        # Half of the browsers are one of the few current ones, the others one of thousands.
        agent = common.draw(random) if random.getrandbits(1) else pick(random, agents)
        if random.getrandbits(3):
            low = random.getrandbits(16)
            address = f"{_IPV4.draw(random)}.{low >> 8}.{low & 255}"
        else:
            host = f"{random.getrandbits(64):016x}"
            groups = ":".join(host[at : at + 4].lstrip("0") or "0" for at in range(0, 16, 4))
            address = f"{_IPV6.draw(random)}:{random.getrandbits(16):x}:1:{groups}"
        return _visitor(f"{random.getrandbits(64):016x}", agent, address, crawler=False)

    def _crawler(self) -> Visitor:
        random = self._random
        address = f"66.249.{64 + random.getrandbits(5)}.{random.getrandbits(8)}"
        return _visitor(f"{random.getrandbits(64):016x}", pick(random, _CRAWLERS), address, crawler=True)


def _visitor(identifier: str, agent: str, address: str, crawler: bool) -> Visitor:
    fields = f'"visitor_id":"{identifier}","user_agent":"{agent}","ip":"{address}"'
    return Visitor(identifier.encode(), fields, crawler)


def _desktop_agents() -> Iterator[str]:
    for desktop in _DESKTOPS:
        for major in range(96, 135):
            chrome = f"Mozilla/5.0 ({desktop}) {_WEBKIT} Chrome/{major}.0.0.0 Safari/537.36"
            yield chrome
            yield f"{chrome} Edg/{major}.0.{2000 + major * 7 % 900}.{major * 3 % 100}"
            yield f"{chrome} OPR/{major - 14}.0.0.0"
            yield f"Mozilla/5.0 ({desktop}; rv:{major}.0) Gecko/20100101 Firefox/{major}.0"


def _android_agents() -> Iterator[str]:
    for phone in _PHONES:
        for android in range(10, 16):
            device = f"Mozilla/5.0 (Linux; Android {android}; {phone}) {_WEBKIT}"
            yield f"{device} SamsungBrowser/{android + 13}.0 Chrome/115.0.0.0 Mobile Safari/537.36"
            for major in range(112, 134):
                build = f"{major}.0.{5000 + major * 13 % 1700}.{major * 5 % 200}"
                yield f"{device} Chrome/{build} Mobile Safari/537.36"


def _apple_agents() -> Iterator[str]:
    safari = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
    for version in _IOS:
        number = version.replace("_", ".")
        yield f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {safari} Version/{number} Safari/605.1.15"
        for machine in ("iPhone; CPU iPhone OS", "iPad; CPU OS"):
            system = f"Mozilla/5.0 ({machine} {version} like Mac OS X) {safari}"
            yield f"{system} Version/{number} Mobile/15E148 Safari/604.1"
            for chrome in range(120, 134):
                yield f"{system} CriOS/{chrome}.0.6723.90 Mobile/15E148 Safari/604.1"
