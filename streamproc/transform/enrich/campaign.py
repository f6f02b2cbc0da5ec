"""``campaign``: the marketing parameters of a URL's query.

Adds ``utm_source``, ``utm_medium``, ``utm_campaign``, ``utm_term``, ``utm_content`` (decoded, case kept),
``click_id`` and ``click_network``: the first click identifier of an advertising network in the query. An
absent or empty parameter is null; of a repeated one the first counts. Names are case-sensitive and compared
as written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from streamproc.transform.enrich.distinct import ByValue, Remembered
from streamproc.transform.enrich.percent import decode_component
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
_NOTHING: tuple[None, ...] = (None,) * len(ADDS)

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
        self._names = {column: options[column] for column in UTM}
        self._wanted = {*self._networks, *(name for names in self._names.values() for name in names)}

    def __call__(self, urls: pl.Series) -> pl.DataFrame:
        """The wanted columns for distinct URLs."""
        rows = [self._describe(url) for url in urls.to_list()]
        return pl.DataFrame(rows, schema=ADDS, orient="row").select(self._only)

    def _describe(self, url: str) -> tuple[str | None, ...]:
        """One URL's values of :data:`ADDS`. Expressions take longer, at the least for compiling them."""
        # A URL's query ends at '#'. Only the first '?' opens it; a value may hold more.
        query = url.partition("#")[0].partition("?")[2]
        found: dict[str, str] = {}
        click_id = click_network = None
        for parameter in query.split("&") if query else ():
            name, equals, value = parameter.partition("=")
            if not equals or name not in self._wanted:
                continue
            found.setdefault(name, value)
            if click_id is None and value and name in self._networks:
                click_id, click_network = value, self._networks[name]
        if not found:
            return _NOTHING
        values = [next(filter(None, map(found.get, names)), None) for names in self._names.values()]
        return *map(_decoded, values), _decoded(click_id), click_network


def _decoded(value: str | None) -> str | None:
    return decode_component(value) if value and ("%" in value or "+" in value) else value


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
