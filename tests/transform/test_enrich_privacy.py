"""Anonymised addresses against the ipaddress module, pseudonyms against hashlib."""

from __future__ import annotations

import hashlib
import ipaddress

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError
from tests.transform.enriching import build, enrich, frame, mistakes

KEY = "a secret of the tests"


def by_ipaddress(text: str, octets: int, segments: int) -> str | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    kept = 8 * octets if address.version == 4 else 16 * segments
    return str(ipaddress.ip_network(f"{address}/{kept}", strict=False).network_address)


def masked(values: list[object], octets: int = 3, segments: int = 3) -> list[str | None]:
    options = {"field": "ip", "keep_octets": octets, "keep_segments": segments}
    return enrich("ip", options, frame(ip=values))["ip"].to_list()


segment = st.one_of(
    st.sampled_from(["0", "00", "0db8", "FFFF", "1"]), st.integers(0, 65535).map("{:x}".format)
)
almost_v6 = st.one_of(
    st.lists(segment, min_size=8, max_size=8).map(":".join),
    st.builds(
        lambda a, b: f"{':'.join(a)}::{':'.join(b)}",
        st.lists(segment, max_size=7),
        st.lists(segment, max_size=7),
    ),
    st.text("0123456789abcdf:", min_size=2, max_size=20),
)
almost_v4 = st.lists(
    st.sampled_from(["0", "1", "01", "99", "255", "256", "", "x"]), min_size=3, max_size=5
).map(".".join)
address = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str), st.ip_addresses(v=6).map(lambda a: a.exploded),
    st.ip_addresses(v=4).map("::ffff:{}".format), almost_v6, almost_v4,
)  # fmt: skip


@given(st.lists(address, min_size=1, max_size=40), st.integers(0, 4), st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_addresses_keep_what_the_network_of_that_length_keeps(
    texts: list[str], octets: int, segments: int
) -> None:
    assert masked(list(texts), octets, segments) == [by_ipaddress(text, octets, segments) for text in texts]


def test_what_is_no_address_is_not_passed_on() -> None:
    texts = [None, "", "10.1.2.3 ", "10.1.2.3, 10.0.0.1", "bob@example.com", "fe80::1%eth0", "1.2.3.4\n"]
    assert masked(texts) == [None, None, None, None, None, "fe80::", None]


def test_pseudonyms_are_keyed_blake2b_and_null_stays_null() -> None:
    events = frame(visitor_id=["ann", None, "bob", "ann", ""], session_id=["ann", "s", None, "s", "s"])
    options = {"fields": ["visitor_id", "session_id"], "key_env": "KEY"}
    out = enrich("pseudonym", options, events, secrets={"KEY": KEY})
    for column in options["fields"]:
        expected = [
            value
            if value is None
            else hashlib.blake2b(value.encode(), key=KEY.encode(), digest_size=16).hexdigest()
            for value in events[column]
        ]
        assert out[column].to_list() == expected


def test_another_key_gives_other_pseudonyms() -> None:
    events = frame(v=["ann"])
    options = {"fields": ["v"], "key_env": "KEY"}
    keys = [KEY, KEY + "!", "x" * 100, "x" * 101]
    out = {enrich("pseudonym", options, events, secrets={"KEY": key})["v"][0] for key in keys}
    assert len(out) == len(keys)


@pytest.mark.parametrize("secrets", [{}, {"KEY": "short"}])
def test_a_missing_or_short_key_is_a_configuration_mistake(secrets: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"KEY is (not set|too short)"):
        build("pseudonym", {"fields": ["v"], "key_env": "KEY"}, {"v": pl.String()}, secrets=secrets)


def test_pseudonym_options_are_checked() -> None:
    assert {each.path for each in mistakes("pseudonym", {}, v=pl.String())} == {"fields", "key_env"}
    assert mistakes("ip", {"keep_octets": 5}, ip=pl.String())[0].path == "keep_octets"
    assert mistakes("ip", {"keep_octets": True}, ip=pl.String())[0].problem == "it is a boolean"
