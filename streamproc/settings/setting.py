"""How a setting is declared: beside its field, as an annotation."""

from __future__ import annotations

from dataclasses import dataclass

from streamproc.settings import parse


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, declared beside its field.

    ``default`` is written as a user would write it; ``None``: not set unless the user sets it.
    ``computed`` says in words where the default comes from when it depends on other settings.
    ``secret``: may hold a password, so it can also be read from the file that ``<VARIABLE>_FILE`` names.
    """

    parse: parse.Parse
    default: str | None
    meaning: str
    computed: str = ""
    secret: bool = False
