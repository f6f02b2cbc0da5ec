"""How visits begin: the page that is landed on, with campaign parameters, and the referrer."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from urllib.parse import quote_plus

from streamproc.generator.draws import Weighted, pick
from streamproc.generator.site import Site


@dataclass(frozen=True, slots=True)
class Campaign:
    """``click_id``: the parameter in which the network sends the click's identifier, if it does."""

    source: str
    medium: str
    name: str
    content: tuple[str, ...]
    click_id: str = ""
    referrer: str = ""


_CAMPAIGNS = Weighted(
    [
        Campaign("google", "cpc", "brand", ("text-a", "text-b"), "gclid", "https://www.google.com/"),
        Campaign("google", "cpc", "shopping-lamps", ("feed",), "gclid", "https://www.google.com/"),
        Campaign("bing", "cpc", "brand", ("text-a",), "msclkid", "https://www.bing.com/"),
        Campaign(
            "facebook",
            "paid_social",
            "spring-sale",
            ("video", "carousel"),
            "fbclid",
            "https://l.facebook.com/",
        ),
        Campaign("instagram", "paid_social", "spring-sale", ("story",), "fbclid", "https://l.instagram.com/"),
        Campaign(
            "tiktok", "paid_social", "room-tour", ("clip-1", "clip-2"), "ttclid", "https://www.tiktok.com/"
        ),
        Campaign("linkedin", "paid_social", "office", ("banner",), "li_fat_id", "https://www.linkedin.com/"),
        Campaign("newsletter", "email", "weekly", ("top", "middle", "footer")),
        Campaign("newsletter", "email", "abandoned-cart", ("button",), "", "https://mail.google.com/"),
        Campaign(
            "partner-blog", "affiliate", "reviews", ("link",), "", "https://decor-diary.example/best-lamps"
        ),
        Campaign("qr", "print", "store-window", ("poster",)),
    ],
    [22, 14, 6, 14, 8, 6, 3, 16, 5, 4, 2],
)

_SEARCH = Weighted(
    [
        "https://www.google.com/",
        "https://www.google.de/search?q={term}",
        "https://www.google.co.uk/search?q={term}",
        "https://www.bing.com/search?q={term}&form=QBLH",
        "https://duckduckgo.com/?q={term}",
        "https://search.yahoo.com/search?p={term}",
        "https://www.ecosia.org/search?q={term}",
        "https://yandex.ru/search/?text={term}",
        "https://www.baidu.com/s?wd={term}",
        "https://www.qwant.com/?q={term}&t=web",
    ],
    [40, 10, 8, 16, 8, 5, 4, 4, 3, 2],
)
_SOCIAL = Weighted(
    [
        "https://www.facebook.com/", "https://t.co/", "https://www.reddit.com/r/HomeDecorating/",
        "https://www.pinterest.com/pin/5517/", "https://www.linkedin.com/feed/", "https://www.youtube.com/",
        "https://www.instagram.com/", "https://mastodon.social/", "https://bsky.app/",
    ],
    [24, 12, 20, 16, 6, 10, 8, 2, 2],
)  # fmt: skip
_ASSISTANTS = Weighted(
    ["https://chatgpt.com/", "https://www.perplexity.ai/", "https://gemini.google.com/",
     "https://copilot.microsoft.com/", "https://claude.ai/"],
    [50, 18, 14, 10, 8],
)  # fmt: skip
_MAIL = ("https://mail.google.com/mail/u/0/", "https://outlook.live.com/", "https://mail.yahoo.com/")
_OTHERS = (
    "https://decor-diary.example/best-lamps",
    "https://news.example/design/",
    "https://wiki.example/Lamp",
)

_CHANNELS = Weighted(
    ["direct", "search", "campaign", "social", "assistant", "mail", "other"], [28, 34, 16, 10, 4, 4, 4]
)


def arrive(random: Random, site: Site) -> tuple[str, str]:
    """A landing page's URL, and the referrer (empty when there is none)."""
    page = site.landing(random)
    channel = _CHANNELS.draw(random)
    if channel == "search":
        return page, _SEARCH.draw(random).format(term=quote_plus(site.terms.draw(random)))
    if channel == "campaign":
        return _tagged(random, page)
    referrer = {
        "direct": "",
        "social": _SOCIAL.draw(random),
        "assistant": _ASSISTANTS.draw(random),
        "mail": pick(random, _MAIL),
        "other": pick(random, _OTHERS),
    }[channel]
    # ChatGPT and some others name themselves in the link they give.
    tag = "?utm_source=chatgpt.com" if referrer == "https://chatgpt.com/" and random.getrandbits(1) else ""
    return page + tag, referrer


def _tagged(random: Random, page: str) -> tuple[str, str]:
    campaign = _CAMPAIGNS.draw(random)
    url = (
        f"{page}?utm_source={campaign.source}&utm_medium={campaign.medium}&utm_campaign={campaign.name}"
        f"&utm_content={pick(random, campaign.content)}"
    )
    if campaign.click_id:
        url += f"&{campaign.click_id}=Cj0KCQ{random.getrandbits(160):040x}"
    return url, campaign.referrer
