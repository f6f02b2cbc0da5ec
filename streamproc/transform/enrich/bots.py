"""``bots``: is the user agent a crawler's?

Adds ``is_bot`` (Boolean, never null) and ``bot_name``. Patterns are those of the ``crawler-user-agents``
package (case-sensitive, as its authors mean them) and the page's own. An event without a user agent counts
as a bot's unless ``empty = false``: browsers always send one. ``bot_name`` is the longest text of the agent
that a pattern matched (``AhrefsBot``); null for an empty agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from streamproc.transform.enrich.distinct import ByValue, Remembered
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
)

ADDS: dict[str, pl.DataType] = {"is_bot": pl.Boolean(), "bot_name": pl.String()}

#: A pattern that stands for one text: no regular-expression syntax but escaped punctuation.
_LITERAL = re.compile(r"(?:[^\\\[\](){}|^$*+?.]|\\[^A-Za-z0-9])+")


class _Bots:
    """Nearly all of the 1,500 patterns are plain texts, which one Aho-Corasick pass finds together.

    polars keeps the compiled expressions of ``contains`` (0.3 ms for a few agents), but not the automata of
    ``contains_any`` and ``extract_many`` (2.5 ms each): only names of bots are looked for with those.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        patterns = [crawler["pattern"] for crawler in CRAWLER_USER_AGENTS_DATA]
        patterns += options["patterns"]
        literal = [p for p in patterns if _LITERAL.fullmatch(p)]
        self._texts = [re.sub(r"\\(.)", r"\1", p) for p in literal]
        self._literals = _any_of(literal)
        self._regex = _any_of(p for p in patterns if p not in set(literal))
        self._never = _any_of(options["never"]) if options["never"] else None
        self._empty: bool = options["empty"]
        self._only = options["only"]

    def __call__(self, agents: pl.Series) -> pl.DataFrame:
        agent = pl.col("agent")
        is_bot = agent.str.contains(self._literals) | agent.str.contains(self._regex)
        if self._never:
            is_bot &= ~agent.str.contains(self._never)
        blank = agent.str.strip_chars() == ""
        is_bot = pl.when(~blank).then(is_bot).otherwise(self._empty)
        frame = pl.DataFrame({"agent": agents}).with_columns(is_bot=is_bot)
        if not frame["is_bot"].any():
            return frame.with_columns(bot_name=pl.lit(None, pl.String)).select(self._only)
        matched = pl.concat_list(
            agent.str.extract_many(self._texts, overlapping=True), agent.str.extract_all(self._regex)
        )
        names = (
            frame.filter("is_bot")
            .select("agent", text=matched)
            .explode("text")
            .with_columns(pl.col("text").str.strip_chars(" /;:(^)-"))
            .sort(pl.col("text").str.len_chars(), "text", descending=[True, False])
            .unique("agent", keep="first", maintain_order=True)
            .select("agent", bot_name="text")
        )
        return frame.join(names, on="agent", how="left", maintain_order="left").select(self._only)


def _any_of(patterns: Iterable[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field", "user_agent")
    reader.value("empty", bool, True)
    for name in ("patterns", "never"):
        for pattern in reader.names(name, ()):
            try:
                pl.Series([""]).str.contains(pattern)
            except pl.exceptions.ComputeError as error:
                reader.wrong(name, f"'{pattern}' is no regular expression: {error}", "Escape it, or mend it")
    return reader.done(ADDS)


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    of_null = {"is_bot": options["empty"]} if "is_bot" in options["only"] else {}
    return ByValue(Remembered(options["field"], _Bots(options), of_null=of_null))


#: Options: ``field``, the column with the user agent; ``empty``, the verdict on an empty one; ``patterns``,
#: more regular expressions of bots; ``never``, those that make an agent no bot whatever else matches.
SPEC = EnrichmentSpec("bots", _check, _build)
