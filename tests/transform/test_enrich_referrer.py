"""Referrers: the shipped table, and Matomo's lists read over it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigError
from streamproc.transform.enrich import referrer_table
from streamproc.transform.enrich.referrer import ADDS
from streamproc.transform.enrich.referrer_table import MEDIA, ReferrerTable, Source, lossy, shipped_table
from tests.transform.enriching import build, enrich, frame, mistakes

PAGE = "https://www.shop.example/basket"


def referrers(*values: str | None, base: Path = Path(), **options: object) -> list[tuple[object, ...]]:
    events = frame(referrer=list(values), page_url=[PAGE] * len(values))
    out = enrich("referrer", {"page": "page_url", **options}, events, base=base)
    return out.select("referrer_medium", "referrer_source", "referrer_term").rows()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.google.com/", ("search", "Google", None)),
        ("https://www.google.co.uk/search?client=x&q=red+shoes%21", ("search", "Google", "red shoes!")),
        ("https://google.com.au/search?q=caf%C3%A9#q=no", ("search", "Google", "café")),
        ("https://docs.google.com/document/1", ("other", None, None)),
        ("https://mail.google.com/mail/u/0/", ("email", "Gmail", None)),
        ("https://gemini.google.com/app", ("ai", "Gemini", None)),
        ("android-app://com.google.android.gm/", ("email", "Gmail", None)),
        ("https://de.search.yahoo.com/search?p=a%20b", ("search", "Yahoo!", "a b")),
        ("https://yandex.ru/search/?text=%EF%F0%E8%E2%E5%F2", ("search", "Yandex", "привет")),
        ("https://duckduckgo.com/?q=", ("search", "DuckDuckGo", None)),
        ("https://www.bing.com/search?q=%00", ("search", "Bing", "\ufffd")),
        ("https://l.facebook.com/l.php?u=x", ("social", "Facebook", None)),
        ("https://x.com/someone", ("social", "X", None)),
        ("https://x.com/i/grok", ("ai", "Grok", None)),
        ("https://x.com/i/grok/share/1", ("ai", "Grok", None)),
        ("https://x.com/i/grokking", ("social", "X", None)),
        ("https://chatgpt.com/?utm=1", ("ai", "ChatGPT", None)),
        ("https://notfacebook.com/", ("other", None, None)),
        ("https://facebook.com.evil.example/", ("other", None, None)),
        ("https://shop.example/products?q=x", ("internal", None, None)),
        ("https://blog.shop.example/", ("other", None, None)),
        ("nonsense", ("other", None, None)),
        ("-", ("direct", None, None)),
        ("  ", ("direct", None, None)),
        (None, ("direct", None, None)),
    ],
)
def test_referrers_of_every_medium(url: str | None, expected: tuple[object, ...]) -> None:
    assert referrers(url) == [expected]


def test_one_referrer_is_internal_on_its_own_site_only() -> None:
    events = frame(
        referrer=["https://a.example/1"] * 3, page_url=["https://a.example/2", "https://b.example/", None]
    )
    out = enrich("referrer", {"page": "page_url"}, events)
    assert out["referrer_medium"].to_list() == ["internal", "other", "other"]
    assert out["referrer_host"].to_list() == ["a.example"] * 3


def test_named_hosts_are_internal_without_a_page() -> None:
    out = enrich(
        "referrer",
        {"internal_hosts": ["pay.example", "Blog.example"]},
        frame(referrer=["https://pay.example/x", "https://www.blog.example/", "https://google.com/"]),
    )
    assert out["referrer_medium"].to_list() == ["internal", "internal", "search"]


@pytest.mark.parametrize("page", [{}, {"page": "page_url"}], ids=["alone", "page"])
@pytest.mark.parametrize("only", [["referrer_host"], ["referrer_medium", "referrer_term"], list(ADDS)])
def test_some_of_the_columns_are_what_they_are_among_all(only: list[str], page: dict[str, str]) -> None:
    events = frame(referrer=["https://www.google.com/?q=a", None], page_url=[PAGE] * 2)
    expected = {
        "referrer_host": ["www.google.com", None], "referrer_medium": ["search", "direct"],
        "referrer_source": ["Google", None], "referrer_term": ["a", None],
    }  # fmt: skip
    out = enrich("referrer", {"only": only, **page}, events)
    assert {name: out[name].to_list() for name in only} == {name: expected[name] for name in only}


def test_every_host_of_matomos_search_list_is_found_with_its_term(shared_data: Path) -> None:
    lists = shared_data / "referers"
    engines = yaml.safe_load((lists / "SearchEngines.yml").read_text(encoding="utf-8"))
    known: dict[str, tuple[str, str]] = {}
    for name, groups in engines.items():
        for group in groups:
            plain = [param for param in group.get("params") or [] if not param.startswith("/")]
            for url in group["urls"]:
                if plain and url.count("{}") <= 1:
                    host = (
                        url.replace(".{}", ".de")
                        if url.endswith("{}") or "{}/" in url
                        else url.replace("{}.", "fr.")
                    )
                    known[host] = (str(name), plain[0])
    assert len(known) > 400
    urls = [
        f"http://{host}{'' if '/' in host else '/find'}?a=1&{param}={quote('red shoes')}"
        for host, (_, param) in known.items()
    ]
    got = referrers(*urls, base=lists, lists=["SearchEngines.yml"])
    wrong = [
        (url, row)
        for url, row, (name, _) in zip(urls, got, known.values(), strict=True)
        if row != ("search", name, "red shoes") and row[0] not in ("ai", "email")
    ]
    # Matomo's list has hosts that two of its own engines share: those may go to either.
    assert len(wrong) <= 0.02 * len(urls), wrong


def test_matomos_social_and_assistant_lists_are_found_with_their_subdomains(shared_data: Path) -> None:
    lists = shared_data / "referers"
    for file, medium in (("Socials.yml", "social"), ("AIAssistants.yml", "ai")):
        content = yaml.safe_load((lists / file).read_text(encoding="utf-8"))
        hosts = [(name, host) for name, group in content.items() for host in group]
        urls = [f"https://{host}/" for _, host in hosts] + [f"https://www.{host}/a" for _, host in hosts]
        got = referrers(*urls, base=lists, lists=["Socials.yml", "AIAssistants.yml"])
        assert [row[0] for row in got] == [medium] * len(urls)
        assert [row[1] for row in got] == [name for name, _ in hosts] * 2


def test_a_list_can_be_the_pages_own(tmp_path: Path) -> None:
    (tmp_path / "EmailProviders.yml").write_text("Acme Mail:\n  - mail.acme.example\n", encoding="utf-8")
    got = referrers("https://mail.acme.example/inbox", base=tmp_path, lists=["EmailProviders.yml"])
    assert got == [("email", "Acme Mail", None)]


def test_a_search_term_may_be_in_the_path(tmp_path: Path) -> None:
    (tmp_path / "SearchEngines.yml").write_text(
        "Acme:\n  -\n    urls: [find.example]\n    params: ['/s\\/([^\\/]+)/', q]\n", encoding="utf-8"
    )
    urls = ["https://find.example/s/red+shoes/2", "https://find.example/?q=blue", "https://find.example/s/"]
    got = referrers(*urls, base=tmp_path, lists=["SearchEngines.yml"])
    assert [row[2] for row in got] == ["red shoes", "blue", None]


@pytest.mark.parametrize("detail", ["params: ['/(/']", "charsets: [klingon]"])
def test_a_search_engine_that_could_fail_on_a_term_is_a_mistake(tmp_path: Path, detail: str) -> None:
    content = f"Acme:\n  -\n    urls: [find.example]\n    {detail}\n"
    (tmp_path / "SearchEngines.yml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="'Acme': "):
        build("referrer", {"lists": ["SearchEngines.yml"]}, {"referrer": pl.String()}, base=tmp_path)


@pytest.mark.parametrize("content", ["- just\n- a list\n", "A:\n  - 7\n", "A: [", "A: text\n"])
def test_a_list_of_another_form_is_a_mistake(tmp_path: Path, content: str) -> None:
    (tmp_path / "Socials.yml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Socials\.yml cannot be used"):
        build("referrer", {"lists": ["Socials.yml"]}, {"referrer": pl.String()}, base=tmp_path)


def test_a_list_must_say_by_its_name_what_it_holds() -> None:
    assert [each.path for each in mistakes("referrer", {"lists": ["hosts.yml"]}, referrer=pl.String())] == [
        "lists"
    ]


PATTERNS = {
    "google.{}": "search",
    "{}.search.yahoo.com": "search",
    "gemini.google.com": "ai",
    "x.com/i/grok": "ai",
    "mail.google.com": "email",
    "mail.{}": "email",
    "x.com": "social",
    "facebook.com": "social",
    "{}.a.b.c": "social",
}
LABELS = ["www", "ww2", "m", "search", "mail", "google", "gemini", "yahoo", "facebook", "x", "a", "b", "c"]
LABELS += ["com", "co", "de", "uk", "fr", ""]


def plainly(host: str, path: str) -> str | None:
    """The first pattern that one of the host's names has: of the whole host, then of each part of it behind a dot."""
    for medium in MEDIA:
        names = [host, re.sub(r"^(w+[0-9]*|m|search)\.", "", host), lossy(host)]
        rest = host
        while medium != "search" and rest.count(".") > 1:
            rest = rest.split(".", 1)[1]
            names += [rest, lossy(rest)]
        for pattern in (pattern for name in names for pattern in (name + path, name)):
            if PATTERNS.get(pattern) == medium:
                return pattern
    return None


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=12), st.sampled_from(["", "/i/grok"]))
def test_a_host_is_what_the_first_of_its_names_is_known_as(host: list[str], path: str) -> None:
    table = ReferrerTable()
    for pattern, medium in PATTERNS.items():
        table.add(pattern, Source(medium, pattern))
    for name in (".".join(host), ".".join([*host, "x", "com"]), ".".join([*host, "a", "b", "c"])):
        found = table.find(name, path)
        assert (None if found is None else found.name) == plainly(name, path)


def test_a_host_of_thousands_of_labels_is_not_looked_up_by_each_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[str] = []

    def noted(host: str) -> str:
        looked_up.append(host)
        return lossy(host)

    monkeypatch.setattr(referrer_table, "lossy", noted)
    table = shipped_table()
    found = table.find("a." * 2_000 + "facebook.com", "")
    assert found is not None and (found.medium, found.name) == ("social", "Facebook")
    assert table.find("a." * 2_000 + "example", "") is None
    assert sum(map(len, looked_up)) < 2_000
