"""GeoIP, against the rows MaxMind's test databases were built from, and the bundled table."""

from __future__ import annotations

import ipaddress
import json
import os
import random
from pathlib import Path

import maxminddb
import polars as pl
import pytest

from streamproc.errors import ConfigError, EnrichmentFailed
from tests.transform.enriching import build, enrich, frame, mistakes


def networks(folder: Path, edition: str) -> dict[str, dict]:
    """Network → record. Where networks nest, the addresses of the outer one are left to the inner."""
    rows = json.loads((folder / f"GeoLite2-{edition}-Test.json").read_text(encoding="utf-8"))
    return {network: record for row in rows for network, record in row.items()}


def samples(rows: dict[str, dict]) -> list[tuple[str, dict]]:
    parsed = [(ipaddress.ip_network(network), record) for network, record in rows.items()]
    rng = random.Random(4)
    found = []
    for network, record in parsed:
        inner = [
            other
            for other, _ in parsed
            if other.version == network.version and other != network and other.subnet_of(network)
        ]
        for offset in {0, network.num_addresses - 1, rng.randrange(network.num_addresses)}:
            address = network[offset]
            if not any(address in other for other in inner):
                found.append((str(address), record))
    return found


@pytest.fixture
def geoip(shared_data: Path) -> Path:
    return shared_data / "geoip"


def test_city_database_answers_what_it_was_built_from(geoip: Path) -> None:
    expected = samples(networks(geoip, "City"))
    assert len(expected) > 300
    options = {"field": "ip", "database": "GeoLite2-City-Test.mmdb", "edition": "city"}
    out = enrich("geoip", options, frame(ip=[address for address, _ in expected]), base=geoip)
    for row, (_, record) in zip(out.to_dicts(), expected, strict=True):
        location = record.get("location", {})
        assert row["country"] == record.get("country", {}).get("iso_code")
        assert row["continent"] == record.get("continent", {}).get("code")
        assert row["region"] == next((part.get("iso_code") for part in record.get("subdivisions", [])), None)
        assert row["city"] == record.get("city", {}).get("names", {}).get("en")
        assert row["postal_code"] == record.get("postal", {}).get("code")
        assert (row["latitude"], row["longitude"]) == (location.get("latitude"), location.get("longitude"))
        assert row["time_zone"] == location.get("time_zone")


def test_country_and_asn_databases_together(geoip: Path) -> None:
    asn, country = networks(geoip, "ASN"), networks(geoip, "Country")
    addresses = samples(asn) + samples(country)
    options = {
        "field": "ip",
        "database": "GeoLite2-Country-Test.mmdb",
        "asn_database": "GeoLite2-ASN-Test.mmdb",
    }
    out = enrich("geoip", options, frame(ip=[address for address, _ in addresses]), base=geoip).to_dicts()
    for row, (_, record) in zip(out, addresses, strict=True):
        if "autonomous_system_number" in record:
            assert row["asn"] == record["autonomous_system_number"]
            assert row["as_org"] == record.get("autonomous_system_organization")
        else:
            assert row["country"] == record.get("country", {}).get("iso_code")


def test_a_batch_of_more_addresses_than_are_remembered_is_answered_in_full(
    geoip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamproc.transform.enrich import geoip as module

    monkeypatch.setattr(module, "MOST_ADDRESSES", 50)
    expected = samples(networks(geoip, "Country"))
    options = {"field": "ip", "database": "GeoLite2-Country-Test.mmdb", "only": ["country"]}
    step = build("geoip", options, {"ip": pl.String()}, base=geoip)
    for start in (0, 100, 0):
        part = expected[start : start + 200]
        out = step(frame(ip=[address for address, _ in part]))
        assert out["country"].to_list() == [record.get("country", {}).get("iso_code") for _, record in part]


def test_the_bundled_table_knows_countries_without_any_file() -> None:
    out = enrich("geoip", {}, frame(ip=["8.8.8.8", "::ffff:8.8.8.8", "193.0.6.139", "2001:67c:2e8::1", None]))
    assert out["country"].to_list() == ["US", "US", "NL", "NL", None]


@pytest.mark.parametrize("database", [None, "GeoLite2-City-Test.mmdb"])
def test_private_and_broken_addresses_are_nowhere(shared_data: Path, database: str | None) -> None:
    addresses = [
        "10.0.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "::1",
        "fe80::1%eth0",
        "",
        "abc",
        "1.2.3",
        "8.8.8.8:80",
        None,
    ]
    options = {"database": database} if database else {}
    out = enrich("geoip", options, frame(ip=addresses), base=shared_data / "geoip")
    assert out["country"].to_list() == [None] * len(addresses)


def test_a_database_of_another_edition_is_a_mistake(geoip: Path) -> None:
    columns = {"ip": pl.String()}
    for options in (
        {"database": "GeoLite2-ASN-Test.mmdb"},
        {"database": "GeoLite2-Country-Test.mmdb", "edition": "city"},
        {"asn_database": "GeoLite2-City-Test.mmdb"},
    ):
        with pytest.raises(ConfigError, match=r"is a GeoLite2-\w+ database"):
            build("geoip", options, columns, base=geoip)


def test_a_missing_or_broken_database_is_a_mistake_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.mmdb").write_bytes(b"not a database")
    for name in ("broken.mmdb", "absent.mmdb"):
        with pytest.raises(ConfigError, match=name):
            build("geoip", {"database": name}, {"ip": pl.String()}, base=tmp_path)


def test_a_database_that_is_replaced_is_looked_into_and_a_broken_one_is_not(
    geoip: Path, tmp_path: Path
) -> None:
    """Also when it is replaced in place, which cuts off what the old one has mapped."""
    path = tmp_path / "countries.mmdb"
    whole = (geoip / "GeoLite2-Country-Test.mmdb").read_bytes()
    before = whole.replace(b"\x42GB", b"\x42XX")  # a text of two characters
    expected = samples(networks(geoip, "Country"))
    events = frame(ip=[address for address, _ in expected])
    new = [record.get("country", {}).get("iso_code") for _, record in expected]
    old = ["XX" if code == "GB" else code for code in new]
    assert "GB" in new

    def write(content: bytes, at: int) -> None:
        path.write_bytes(content)
        os.utime(path, (at, at))

    write(before, 1)
    step = build("geoip", {"database": path.name, "only": ["country"]}, {"ip": pl.String()}, base=tmp_path)
    for at, content, answers in (
        (1, before, old),
        (2, b"", old),
        (3, whole[: len(whole) // 2], old),
        (4, (geoip / "GeoLite2-ASN-Test.mmdb").read_bytes(), old),
        (5, whole, new),
        (6, b"", new),
    ):
        write(content, at)
        assert step(events)["country"].to_list() == answers
        # Also of addresses that nobody has asked for.
        assert step(frame(ip=[f"203.0.113.{at}"]))["country"].to_list() == [None]
    path.unlink()
    assert step(events)["country"].to_list() == new
    other = tmp_path / "other"
    other.write_bytes(before)
    os.utime(other, (6, 6))
    other.rename(path)
    assert step(events)["country"].to_list() == old


def test_a_database_that_turns_out_to_be_broken_stops_with_its_name(geoip: Path, tmp_path: Path) -> None:
    path = geoip / "GeoLite2-Country-Test.mmdb"
    whole, metadata = path.read_bytes(), maxminddb.open_database(path).metadata()
    tree = metadata.node_count * metadata.record_size // 4 + 16
    end = whole.rindex(b"\xab\xcd\xefMaxMind.com")
    (tmp_path / "broken.mmdb").write_bytes(whole[:tree] + b"\xff" * (end - tree) + whole[end:])
    step = build("geoip", {"database": "broken.mmdb"}, {"ip": pl.String()}, base=tmp_path)
    with pytest.raises(EnrichmentFailed, match=r"geoip: .*broken\.mmdb is broken"):
        step(frame(ip=[address for address, _ in samples(networks(geoip, "Country"))]))


def test_an_edition_needs_a_database() -> None:
    assert [each.path for each in mistakes("geoip", {"edition": "city"}, ip=pl.String())] == ["edition"]
