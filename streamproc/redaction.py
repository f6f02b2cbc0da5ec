"""Values that must not reach a log, a traceback or a screen."""

from __future__ import annotations

import re
from dataclasses import dataclass

HIDDEN = "***"

#: ``scheme://user:password@host``: the password may itself hold ``:`` and, badly quoted, ``@`` or ``/``.
_LOGIN = re.compile(r"(?P<login>[a-z0-9+.-]://[^\s:/@?#]*:)(?P<rest>\S*)", re.IGNORECASE)
#: ``password=...`` in a URL's query, a libpq connection string, a printed dictionary or a log line.
_NAMED = re.compile(
    r"(?P<name>(?:password|passwd|secret|secret_access_key|token|api_key)['\"]?\s*[=:]\s*)"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s&'\",;}]+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """``text`` with the passwords of URLs and of ``password=...`` pairs replaced by ``***``.

    It takes time in proportion to the text, whatever that is: logs quote what strangers sent.
    """
    if "@" in text:
        text = _LOGIN.sub(_without_password, text)
    if "=" in text or ":" in text:
        text = _NAMED.sub(rf"\g<name>{HIDDEN}", text)
    return text


def _without_password(found: re.Match[str]) -> str:
    _, at, host = found["rest"].rpartition("@")
    return f"{found['login']}{HIDDEN}@{host}" if at else found[0]


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that prints as ``***``. Not a ``str``, so that no formatting can show it by accident."""

    _value: str

    def reveal(self) -> str:
        """The text itself, for the one place that hands it to a client library."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __str__(self) -> str:
        return HIDDEN

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """An endpoint: ``embedded:``, ``kafka://…``, ``postgresql://…``, ``file:///…``, ``s3://…``, ``none``.

    It prints without its password; :meth:`reveal` gives it whole.
    """

    _text: str

    @property
    def scheme(self) -> str:
        """What stands before the colon, in lower case (``none`` for ``none``)."""
        return self._text.partition(":")[0].lower()

    @property
    def rest(self) -> str:
        """What stands after ``scheme://`` (or ``scheme:``)."""
        return self._text.partition(":")[2].removeprefix("//")

    @property
    def embedded(self) -> bool:
        """Whether this process, or one it starts, serves the endpoint."""
        return self.scheme == "embedded"

    def reveal(self) -> str:
        """The URL with its password."""
        return self._text

    def __str__(self) -> str:
        return redact(self._text)

    def __repr__(self) -> str:
        return f"Url({redact(self._text)!r})"
