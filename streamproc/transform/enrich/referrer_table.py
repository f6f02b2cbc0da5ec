"""Which hosts are search engines, social networks, AI assistants and mail programs.

The shipped table is ``referrers.toml`` beside this module. Matomo's lists (``SearchEngines.yml``,
``Socials.yml``, ``AIAssistants.yml`` of matomo-org/searchengine-and-social-list) can be read over it.

A host pattern is a host, and perhaps a path: ``x.com/i/grok``. ``{}`` in it stands for a country: at the end
``de``, ``co.uk``, ``com.au``; at the front or inside a two-letter label. Search engines match their whole
host, less a leading ``www.``, ``m.`` or ``search.`` (docs.google.com is no search); the others their
subdomains too. This is how Matomo reads its lists.
"""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

#: Looked at in this order: a mail program or an assistant may be a subdomain of a search engine.
MEDIA = ("ai", "email", "search", "social")


class Source(NamedTuple):
    """A known referrer. ``params``: the query parameters of its search term, or ``/regex/`` on the path."""

    medium: str
    name: str
    params: tuple[str, ...] = ()
    charsets: tuple[str, ...] = ()


_PREFIX = re.compile(r"^(?:w+[0-9]*|m|search)\.")
_COUNTRY_END = re.compile(r"(?:\.(?:com|org|net|co|it|edu))?\.[a-z]{2}$")
_COUNTRY_LABEL = re.compile(r"(^|\.)[a-z]{2}\.")


def lossy(host: str) -> str:
    """The host without its usual prefix, its country replaced by ``{}``: the form Matomo's lists are in."""
    host = _COUNTRY_END.sub(".{}", _PREFIX.sub("", host))
    return _COUNTRY_LABEL.sub(r"\1{}.", host, count=1)


@dataclass(slots=True)
class ReferrerTable:
    """Host patterns to sources, by medium."""

    _by_medium: dict[str, dict[str, Source]] = field(default_factory=lambda: {m: {} for m in MEDIA})
    #: Dots of the longest name that a pattern can be found for: :func:`lossy` takes away two at most.
    _dots: int = 2

    def add(self, pattern: str, source: Source) -> None:
        """Add or replace one pattern."""
        pattern = pattern.lower().rstrip("/")
        self._by_medium[source.medium][pattern] = source
        self._dots = max(self._dots, pattern.partition("/")[0].count(".") + 2)

    def paths(self) -> set[str]:
        """Every path that some pattern asks for."""
        patterns = (pattern for table in self._by_medium.values() for pattern in table)
        return {"/" + pattern.split("/", 1)[1] for pattern in patterns if "/" in pattern}

    def find(self, host: str, path: str) -> Source | None:
        """The source of a referrer with this (lower case) host, and path if it is one of :meth:`paths`."""
        for medium, table in self._by_medium.items():
            for candidate in _candidates(host, medium, self._dots):
                source = table.get(candidate + path) if path else None
                source = source or table.get(candidate)
                if source:
                    return source
        return None


def _candidates(host: str, medium: str, dots: int) -> Iterator[str]:
    """What patterns may say of a host, but for what has more than so many dots: a name of thousands of labels, which a
    visitor may send, would be read thousands of times.
    """
    labels = host.split(".")
    last = len(labels) - 1
    if last <= dots:
        yield host
        yield _PREFIX.sub("", host)
        yield lossy(host)
    if medium != "search":
        for begin in range(max(1, last - dots), last):
            parent = ".".join(labels[begin:])
            yield parent
            yield lossy(parent)


def shipped_table() -> ReferrerTable:
    """The table that comes with this package."""
    table = ReferrerTable()
    content = tomllib.loads(files(__package__).joinpath("referrers.toml").read_text(encoding="utf-8"))
    for medium, sources in content.items():
        for name, entry in sources.items():
            source = Source(medium, name, tuple(entry.get("params", ())), tuple(entry.get("charsets", ())))
            for pattern in entry["hosts"]:
                table.add(pattern, source)
    return table


def medium_of(path: Path) -> str | None:
    """What a Matomo list holds, by its file name; None when the name does not say."""
    name = path.stem.lower()
    for word, medium in (("search", "search"), ("social", "social"), ("ai", "ai"), ("mail", "email")):
        if name.startswith(word) or (word == "mail" and "mail" in name):
            return medium
    return None


def read_matomo(path: Path, medium: str, table: ReferrerTable) -> None:
    """Add the sources of a Matomo YAML list to ``table``.

    Raises OSError, yaml.YAMLError, or ValueError when it has another form.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping):
        raise ValueError("it is not a list of names and hosts")
    for name, entries in content.items():
        for entry in entries if isinstance(entries, list) else [None]:
            for pattern, source in _matomo_entry(str(name), medium, entry):
                table.add(pattern, source)


def _matomo_entry(name: str, medium: str, entry: Any) -> Iterator[tuple[str, Source]]:
    if isinstance(entry, str):
        yield entry, Source(medium, name)
    elif isinstance(entry, Mapping) and isinstance(entry.get("urls"), list):
        params = tuple(map(str, entry.get("params") or ()))
        charsets = tuple(map(str, entry.get("charsets") or ()))
        _check_terms(name, params, charsets)
        source = Source(medium, name, params, charsets)
        yield from ((str(url), source) for url in entry["urls"])
    else:
        raise ValueError(f"'{name}' is not a list of hosts")


def _check_terms(name: str, params: tuple[str, ...], charsets: tuple[str, ...]) -> None:
    """What would otherwise fail on the first referrer with a search term."""
    try:
        for param in params:
            if is_path_pattern(param):
                re.compile(param[1:-1])
        for charset in charsets:
            codecs.lookup(charset)
    except (re.error, LookupError) as error:
        raise ValueError(f"'{name}': {error}") from error


def is_path_pattern(param: str) -> bool:
    """Whether a search engine's parameter is a regular expression on the path: ``/s\\/([^\\/]+)/``."""
    return len(param) > 2 and param.startswith("/") and param.endswith("/")
