"""What the documents say about topic pages and settings is true: their examples load, nothing is left out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streamproc.settings import declared, read_settings, variable
from streamproc.topic_pages import read_page
from streamproc.topic_pages.measures import KINDS
from streamproc.transform.enrich import PRIVACY, SPECS

DOCS = Path(__file__).parents[2] / "docs"
TOPIC_FILES = (DOCS / "topic-files.md").read_text()
SETTINGS = (DOCS / "settings.md").read_text()


def examples(text: str) -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


SMALLEST, *ADDITIONS = examples(TOPIC_FILES)


def merged(base: dict[str, Any], addition: dict[str, Any]) -> dict[str, Any]:
    """``addition`` on top of ``base``, table by table."""
    both = base | addition
    for key in base.keys() & addition.keys():
        if isinstance(base[key], dict) and isinstance(addition[key], dict):
            both[key] = merged(base[key], addition[key])
    return both


def test_the_smallest_page_of_the_document_is_a_page() -> None:
    page = read_page(tomllib.loads(SMALLEST), "topic-files.md")
    assert page.name == "shop"
    assert page.topic.name == "shop"


def test_the_document_has_an_example_for_every_table_of_a_page() -> None:
    tables = {key for example in [SMALLEST, *ADDITIONS] for key in tomllib.loads(example)}
    assert tables == {
        "stream",
        "topic",
        "contract",
        "enrich",
        "derive",
        "filters",
        "privacy",
        "tables",
        "sinks",
        "retention",
        "erasure",
    }


@pytest.mark.parametrize("example", ADDITIONS, ids=[example.splitlines()[0] for example in ADDITIONS])
def test_an_example_of_the_document_is_right_on_top_of_the_smallest_page(example: str) -> None:
    read_page(merged(tomllib.loads(SMALLEST), tomllib.loads(example)), "topic-files.md")


def test_every_enrichment_and_every_kind_of_measure_is_documented() -> None:
    for kind in SPECS:
        section = "privacy" if kind in PRIVACY else "enrich"
        assert re.search(rf"`\[{section}\.{kind}(\.NAME)?\]`", TOPIC_FILES), kind
    for kind in KINDS:
        assert re.search(rf"^\|[^|]*`{kind}`", TOPIC_FILES, re.MULTILINE), kind


def test_the_columns_an_enrichment_adds_are_documented() -> None:
    base = tomllib.loads(SMALLEST)
    base["contract"]["fields"]["user_agent"] = base["contract"]["fields"].pop("agent")
    fields = {"url": "page", "campaign": "page"}
    options = {
        kind: {"field": fields[kind]} if kind in fields else {} for kind in SPECS if kind not in PRIVACY
    }
    options["time"] = {"time_zone": "Europe/Berlin"}
    options["geoip"] = {"database": "x.mmdb", "edition": "city", "asn_database": "y.mmdb"}
    del options["lookup"], options["python"]
    page = read_page(merged(base, {"enrich": options}), "topic-files.md")
    assert len(page.enrichments) == len(options)
    for enrichment in page.enrichments:
        (row,) = re.findall(rf"^\| `\[enrich\.{enrichment.kind}\]`.*$", TOPIC_FILES, re.MULTILINE)
        missing = [column for column in enrichment.adds if f"`{column}`" not in row]
        assert not missing, f"{enrichment.kind}: {missing}"


def test_the_table_of_settings_is_complete_and_right() -> None:
    written = re.findall(
        r"^\| `([a-z0-9_.]+)` \| `(STREAMPROC_\w+)` \| (.*?) \| (.*) \|$", SETTINGS, re.MULTILINE
    )
    expected = []
    for key, item in declared():
        default = item.computed or (f"`{item.default}`" if item.default is not None else "not set")
        secret = f". Secret: also `{variable(key)}_FILE`" if item.secret else ""
        expected.append((key, variable(key), default, item.meaning + secret))
    assert written == expected


@pytest.mark.parametrize("example", examples(SETTINGS), ids=["file", "msk"])
def test_an_example_of_a_settings_file_is_right(example: str, tmp_path: Path) -> None:
    path = tmp_path / "streamproc.toml"
    path.write_text(example)
    assert read_settings(path, environ={}).broker.scheme == "kafka"
