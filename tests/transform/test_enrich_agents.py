"""Bots and user agents: the package's own examples, and agents seen in the wild."""

from __future__ import annotations

import re

import polars as pl
import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA, is_crawler

from streamproc.transform.enrich.distinct import ByValue, Remembered
from tests.transform.enriching import build, enrich, frame, mistakes

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like"
    " Gecko) Version/17.2 Mobile/15E148 Safari/604.1"
)
IPAD = (
    "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/16.6 Mobile/15E148 Safari/604.1"
)
PIXEL = (
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/120.0.6099.144 Mobile Safari/537.36"
)
TAB = (
    "Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/119.0.0.0 Safari/537.36"
)
WINDOWS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/120.0.0.0 Safari/537.36 Edg/120.0.2210.91"
)
MAC = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.1 Safari/605.1.15"
)
LINUX = "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:121.0) Gecko/20100101 Firefox/121.0"
TV = (
    "Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) AppleWebKit/537.36 (KHTML, like Gecko)"
    " 76.0.3809.146/6.0 TV Safari/537.36"
)
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
CURL = "curl/8.4.0"


def test_the_verdict_is_the_packages_own_for_all_its_examples() -> None:
    agents = [agent for crawler in CRAWLER_USER_AGENTS_DATA for agent in crawler["instances"]]
    agents += [IPHONE, IPAD, PIXEL, TAB, WINDOWS, MAC, LINUX, TV]
    sample = agents[::7] + agents[-8:]
    out = enrich("bots", {"field": "ua"}, frame(ua=sample))
    assert out["is_bot"].to_list() == [is_crawler(agent) for agent in sample]
    for agent, is_bot, name in out.select("ua", "is_bot", "bot_name").rows():
        assert (name is None) != is_bot
        assert name is None or name in agent


def test_a_name_is_the_longest_text_that_a_pattern_matched() -> None:
    agents = [GOOGLEBOT, CURL, "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)", MAC]
    out = enrich("bots", {"field": "ua"}, frame(ua=agents))
    assert out["bot_name"].to_list() == ["Googlebot", "curl", "AhrefsBot", None]


@pytest.mark.parametrize("empty", [True, False])
def test_an_empty_agent_is_a_bot_as_the_page_says_and_never_null(empty: bool) -> None:
    out = enrich("bots", {"field": "ua", "empty": empty}, frame(ua=[None, "", "  ", MAC, CURL]))
    assert out["is_bot"].to_list() == [empty, empty, empty, False, True]


def test_own_patterns_add_bots_and_never_takes_them_away() -> None:
    options = {"field": "ua", "patterns": ["AcmeProbe/[0-9]+"], "never": ["^curl/.*trusted$"]}
    out = enrich("bots", options, frame(ua=["AcmeProbe/2", "AcmeProbe/", "curl/8 trusted", "curl/8"]))
    assert out["is_bot"].to_list() == [True, False, False, True]
    assert out["bot_name"].to_list() == ["AcmeProbe/2", None, None, "curl"]


def test_a_pattern_that_is_no_regular_expression_is_a_mistake() -> None:
    found = mistakes("bots", {"field": "ua", "patterns": ["("]}, ua=pl.String())
    assert [each.path for each in found] == ["patterns"]


def test_browser_system_and_device_of_common_agents() -> None:
    agents = [IPHONE, IPAD, PIXEL, TAB, WINDOWS, MAC, LINUX, TV, GOOGLEBOT, CURL, "", None, "☃"]
    out = enrich("user_agent", {"field": "ua"}, frame(ua=agents))
    assert out["device_class"].to_list() == [
        "mobile", "tablet", "mobile", "tablet", "desktop", "desktop", "desktop", "other", "bot", "other",
        None, None, "other",
    ]  # fmt: skip
    rows = out.select("browser", "browser_version", "os", "os_version", "device_brand").rows()
    assert rows[0] == ("Mobile Safari", "17.2", "iOS", "17.2", "Apple")
    assert rows[2][:4] == ("Chrome Mobile", "120.0.6099", "Android", "14")
    assert rows[4][:4] == ("Edge", "120.0.2210", "Windows", "10")
    assert rows[6][0:3] == ("Firefox", "121.0", "Ubuntu")
    assert rows[11] == (None,) * 5


def test_every_versions_is_digits_and_dots_or_null() -> None:
    agents = [agent for crawler in CRAWLER_USER_AGENTS_DATA[:200] for agent in crawler["instances"]]
    out = enrich("user_agent", {"field": "ua", "only": ["browser_version"]}, frame(ua=agents))
    assert all(re.match(r"\d", version) for version in out["browser_version"].drop_nulls())


def test_what_is_remembered_never_changes_an_answer() -> None:
    asked: list[int] = []

    def describe(values: pl.Series) -> pl.DataFrame:
        asked.append(len(values))
        return values.str.len_chars().alias("length").to_frame()

    step = ByValue(Remembered("ua", describe, bound=4))
    batches = [
        ["a", "bb", None],
        ["bb", "ccc", "a"],
        ["dddd", "eeeee", "a"],
        list("abcdefgh"),
        ["ccc", "a", None],
    ]
    for values in batches:
        assert step(frame(ua=values))["length"].to_list() == [None if v is None else len(v) for v in values]
    # Nothing at first, then two, one, two more than fit: "a" stays and the rest is forgotten.
    assert asked[:4] == [0, 2, 1, 2]


def test_agents_are_parsed_once_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamproc.transform.enrich import user_agent

    parsed: list[str] = []

    def counting(agent: str) -> object:
        parsed.append(agent)
        return original(agent)

    original = user_agent.parse
    monkeypatch.setattr(user_agent, "parse", counting)
    step = build("user_agent", {"field": "ua"}, {"ua": pl.String()})
    for _ in range(3):
        step(frame(ua=[MAC, CURL, MAC, None]))
    assert sorted(parsed) == sorted([MAC, CURL])
