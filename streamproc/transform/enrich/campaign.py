"""``campaign``: the marketing parameters of a URL's query.

Adds ``utm_source``, ``utm_medium``, ``utm_campaign``, ``utm_term``, ``utm_content`` (decoded, case kept),
``click_id`` and ``click_network``: the first click identifier of an advertising network in the query. An
absent or empty parameter is null; of a repeated one the first counts. Names are case-sensitive and compared
as written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from streamproc.transform.enrich.distinct import ByValue, Remembered
from streamproc.transform.enrich.percent import decode_components
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
)

UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
ADDS: dict[str, pl.DataType] = {name: pl.String() for name in (*UTM, "click_id", "click_network")}

#: Click identifiers, from the networks' own documentation of auto-tagging.
CLICK_IDS: dict[str, str] = {
    "gclid": "Google Ads",
    "gbraid": "Google Ads",
    "wbraid": "Google Ads",
    "dclid": "Google Display",
    "msclkid": "Microsoft Ads",
    "fbclid": "Meta",
    "ttclid": "TikTok",
    "twclid": "X",
    "li_fat_id": "LinkedIn",
    "yclid": "Yandex",
    "rdt_cid": "Reddit",
    "ScCid": "Snapchat",
    "epik": "Pinterest",
    "igshid": "Instagram",
}


class _Campaign:
    def __init__(self, options: Mapping[str, Any]) -> None:
        self._only: tuple[str, ...] = options["only"]
        self._networks = {**CLICK_IDS, **options["click_ids"]}
        clicks = "|".join(map(re.escape, self._networks))
        names = [name for column in UTM if column in self._only for name in options[column]]
        self._any = rf"[?&](?:{'|'.join([*map(re.escape, names), clicks])})="
        # A URL's query ends at '#'. Only the first '?' opens it; a value may hold more.
        self._parameter = {
            column: [rf"^[^?#]*\?(?:[^#]*?&)??{re.escape(name)}=([^&#]*)" for name in options[column]]
            for column in UTM
            if column in self._only
        }
        self._click = rf"^[^?#]*\?(?:[^#]*?&)??(?P<name>{clicks})=(?P<id>[^&#]+)"

    def __call__(self, urls: pl.Series) -> pl.DataFrame:
        """The wanted columns for distinct URLs. Most URLs have no such parameter: those are null at once."""
        url = pl.col("url")
        frame = pl.DataFrame({"url": urls, "row": pl.int_range(len(urls), dtype=pl.UInt32, eager=True)})
        tagged = frame.filter(url.str.contains(self._any))
        found = tagged.select(
            "row",
            pl.struct(
                *(
                    pl.coalesce(_unless_empty(url.str.extract(each)) for each in patterns).alias(column)
                    for column, patterns in self._parameter.items()
                ),
                click=url.str.extract_groups(self._click),
            ).alias("found"),
        ).unnest("found")
        click = pl.col("click").struct
        found = found.with_columns(
            click_id=click.field("id"), click_network=click.field("name").replace(self._networks)
        )
        found = found.with_columns(
            decode_components(found[column]) for column in self._only if column != "click_network"
        )
        answers = frame.select("row").join(found, on="row", how="left", maintain_order="left")
        return answers.select(self._only)


def _unless_empty(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field")
    for name in UTM:
        reader.names(name, (name,))
    clicks = reader.value("click_ids", dict, {})
    for parameter, network in clicks.items():
        if not isinstance(network, str):
            reader.wrong(f"click_ids.{parameter}", "it is not a text", "Give the network's name")
    return reader.done(ADDS)


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    return ByValue(Remembered(options["field"], _Campaign(options)))


#: Options: ``field``, the column with the URL; ``utm_source = ["utm_source", "mtm_source"]`` and so on, the
#: parameters' names, the first that is there counts; ``click_ids = { param = "network" }``, more of them.
SPEC = EnrichmentSpec("campaign", _check, _build)
