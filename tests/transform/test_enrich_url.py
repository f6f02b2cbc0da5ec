"""URL parts and campaign parameters, against urllib.parse."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transform.enriching import enrich, frame, mistakes

PARTS = ["scheme", "host", "port", "path", "query", "fragment"]
UTM = ["utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"]


def parts(*urls: str | None) -> list[tuple[object, ...]]:
    return enrich("url", {"field": "u"}, frame(u=list(urls))).select(PARTS).rows()


def campaign(*urls: str | None, **options: object) -> list[dict[str, object]]:
    return enrich("campaign", {"field": "u", **options}, frame(u=list(urls))).to_dicts()


def by_urllib(url: str) -> tuple[object, ...]:
    split = urlsplit(url)
    host = split.netloc.rpartition("@")[2].lower()
    if split.port is not None:
        host = host.rpartition(":")[0]
    return (split.scheme, host, split.port, split.path or "/", split.query or None, split.fragment or None)


label = st.text("abcXYZ019-é日", min_size=1, max_size=8)
free = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)


@st.composite
def urls(draw: st.DrawFn) -> str:
    user = draw(st.sampled_from(["", "ann@", "ann:p%40ss@", "a@b@"]))
    host = draw(st.one_of(st.lists(label, min_size=1, max_size=3).map(".".join), st.just("[2001:DB8::1]")))
    port = draw(st.one_of(st.just(""), st.integers(0, 65535).map(":{}".format)))
    path = "".join("/" + quote(piece) for piece in draw(st.lists(free, max_size=3)))
    pairs = draw(
        st.lists(st.tuples(st.sampled_from([*UTM, "q", "utm_sourcex", "xutm_source"]), free), max_size=5)
    )
    query = draw(st.sampled_from(["", "?"])) and "?" + urlencode(pairs)
    fragment = draw(st.sampled_from(["", "#", "#top", "#a?utm_source=no&b#c"]))
    return f"{draw(st.sampled_from(['http', 'HTTPS', 'android-app']))}://{user}{host}{port}{path}{query}{fragment}"


@given(urls())
@settings(max_examples=150, deadline=None)
def test_parts_of_any_well_formed_url_are_those_urllib_finds(url: str) -> None:
    assert parts(url) == [by_urllib(url)]


@given(urls())
@settings(max_examples=150, deadline=None)
def test_campaign_parameters_are_the_first_ones_that_urllib_decodes(url: str) -> None:
    first: dict[str, str] = {}
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        first.setdefault(name, value)
    got = campaign(url)[0]
    assert {name: got[name] for name in UTM} == {name: first.get(name) or None for name in UTM}


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "/a/b",
        "//host/path",
        "page.html",
        "mailto:a@b.c",
        "about:blank",
        "http://",
        "http:///x",
        "https://@/",
        "http://a b/",
        "http://host:99999/",
        "http://host:8a/",
        "http://[::1/",
        "://x",
        "1http://x/",
        "http://ho%st/",
    ],
)
def test_a_relative_or_broken_url_has_no_parts(url: str) -> None:
    assert parts(url) == [(None,) * 6]


def test_space_around_and_line_breaks_inside_a_url_are_ignored() -> None:
    assert parts(" \thttp://Example.com/a\n/b?c#d \r\n") == [("http", "example.com", None, "/a/b", "c", "d")]


def test_a_backslash_ends_the_host() -> None:
    assert parts("http://good.example\\@evil.example/")[0][1] == "good.example"


def test_null_urls_stay_null_and_rows_keep_their_order() -> None:
    rows = parts("http://b/", None, "http://a/", None, "http://b/")
    assert [row[1] for row in rows] == ["b", None, "a", None, "b"]


def test_naughty_strings_never_raise_in_any_place_of_a_url(shared_data: Path) -> None:
    naughty: list[str] = json.loads((shared_data / "bad_input" / "blns.json").read_text(encoding="utf-8"))
    everywhere = [
        *naughty,
        *(f"http://{text}/" for text in naughty),
        *(f"http://h/{text}" for text in naughty),
    ]
    everywhere += [f"http://h/?utm_source={text}&gclid={text}" for text in naughty]
    rows = parts(*everywhere)
    assert len(rows) == len(everywhere)
    assert all((row[1] is None) == (row[3] is None) for row in rows)
    assert len(campaign(*everywhere)) == len(everywhere)


def test_only_the_wanted_columns_are_added() -> None:
    out = enrich("url", {"field": "u", "only": ["path", "host"]}, frame(u=["https://x/y?z"]))
    assert out.columns[-2:] == ["host", "path"]


def test_the_first_click_id_names_its_network() -> None:
    got = campaign("https://x/?fbclid=IwAR%20x&gclid=abc", "https://x/?a=1#gclid=no", "https://x/?xgclid=no")
    assert [(row["click_id"], row["click_network"]) for row in got] == [
        ("IwAR x", "Meta"),
        (None, None),
        (None, None),
    ]


def test_other_parameter_names_and_networks_can_be_given() -> None:
    options = {"utm_source": ["utm_source", "mtm_source"], "click_ids": {"partner_id": "Partner"}}
    got = campaign(
        "https://x/?mtm_source=mail&partner_id=7", "https://x/?mtm_source=b&utm_source=a", **options
    )
    assert [row["utm_source"] for row in got] == ["mail", "a"]
    assert (got[0]["click_id"], got[0]["click_network"]) == ("7", "Partner")


def test_a_decoded_nul_is_replaced_for_no_sink_can_hold_it() -> None:
    assert campaign("https://x/?utm_term=a%00b")[0]["utm_term"] == "a\ufffdb"


def test_wrong_options_are_all_reported() -> None:
    import polars as pl

    found = mistakes("url", {"feild": "u", "only": ["hots"]}, page_url=pl.String())
    assert {(each.path, each.problem) for each in found} == {
        ("field", "it is missing"),
        ("feild", "there is no such option"),
        ("only", "it does not add 'hots'"),
    }
    assert mistakes("url", {"field": "page_ul"}, page_url=pl.String())[0].fix == "Did you mean page_url?"
    assert mistakes("url", {"field": "n"}, n=pl.Int64())[0].problem == "column 'n' is Int64"
    assert "exists already" in mistakes("url", {"field": "host"}, host=pl.String())[0].problem
