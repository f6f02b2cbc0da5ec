"""Parsers of single settings: raw text or TOML value in, typed value out, :class:`Invalid` if it is wrong.

Relative paths start at ``folder``; parsers that need none take it all the same: one signature for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from streamproc.quantities import Invalid, parse_duration, parse_size, shown
from streamproc.redaction import Secret, Url
from streamproc.settings import redshift

#: Reads a raw value (text from the environment, any TOML value from the file).
Parse = Callable[[object, Path], object]


class Bind(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def text(value: object, folder: Path) -> str:
    """Any text but the empty one."""
    if not isinstance(value, str):
        raise Invalid(f"{shown(value)} is not text", "Write it in quotes")
    if not value.strip() or not value.isprintable():
        raise Invalid("is empty or holds control characters", "Write plain text, or leave the setting out")
    return value.strip()


def secret(value: object, folder: Path) -> Secret:
    """A text that is never printed."""
    if not isinstance(value, str) or not value:
        raise Invalid("is not text, or empty", "Write the secret in quotes, or leave the setting out")
    return Secret(value)


def path(value: object, folder: Path) -> Path:
    """A path; relative to the settings file when it stands there, else to the working directory."""
    try:
        return folder / Path(text(value, folder)).expanduser()
    except RuntimeError:  # "~someone" who does not exist
        raise Invalid(f"{shown(value)} is in no known home folder", "Write the path out") from None


def existing_file(value: object, folder: Path) -> Path:
    """A path to a file that can be read."""
    found = path(value, folder)
    try:
        with found.open("rb"):
            return found
    except OSError as error:
        problem = f"{found} cannot be read: {error.strerror or type(error).__name__}"
        raise Invalid(problem, "Name a file that this process may read") from None


def duration(minimum: str, maximum: str) -> Parse:
    """A duration between two others, as seconds (``float``)."""

    def parse(value: object, folder: Path) -> float:
        microseconds = parse_duration(value)
        if not parse_duration(minimum) <= microseconds <= parse_duration(maximum):
            raise Invalid(f"{shown(value)} is out of range", f"Write a duration from {minimum} to {maximum}")
        return microseconds / 1_000_000

    return parse


def size(minimum: int, maximum: int) -> Parse:
    """A number of bytes within bounds."""

    def parse(value: object, folder: Path) -> int:
        return _within(parse_size(value), minimum, maximum, "bytes")

    return parse


def count(minimum: int, maximum: int) -> Parse:
    """A whole number within bounds."""

    def parse(value: object, folder: Path) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9_]{1,18}", value.strip(), re.ASCII):
            value = int(value.strip().replace("_", "") or "0")
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(f"{shown(value)} is not a whole number", f"Write one from {minimum} to {maximum}")
        return _within(value, minimum, maximum, "")

    return parse


def _within(value: int, minimum: int, maximum: int, unit: str) -> int:
    if not minimum <= value <= maximum:
        raise Invalid(f"{shown(value)} is out of range", f"Write {minimum:,} to {maximum:,} {unit}".rstrip())
    return value


def one_of(*options: str) -> Parse:
    """One of some words, in any case."""

    def parse(value: object, folder: Path) -> str:
        word = text(value, folder)
        for option in options:
            if option.lower() == word.lower():
                return option
        raise Invalid(f"{shown(word)} is not known", f"Write one of {', '.join(options)}")

    return parse


def identifier(value: object, folder: Path) -> str:
    """A name of letters, digits, ``.``, ``_`` and ``-``, as Kafka's groups and topics have."""
    word = text(value, folder)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", word, re.ASCII):
        raise Invalid(f"{shown(word)} is not a name", "Use letters, digits, . _ and -, at most 200")
    return word


def moment(value: object, folder: Path) -> int:
    """A point in time, ISO 8601 or a TOML date-time, as Unix milliseconds; UTC unless it says otherwise."""
    fix = 'Write it like "2026-07-01T13:00:00Z"'
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(text(value, folder))
    except ValueError:
        raise Invalid(f"{shown(value)} is not a time", fix) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    if time > datetime.now(UTC):
        raise Invalid(f"{shown(value)} is in the future", fix)
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def bind(value: object, folder: Path) -> Bind:
    """``host:port``, ``[::]:port`` or ``:port`` (all interfaces). Port 0 lets the system choose."""
    host, colon, port = text(value, folder).rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > _LAST_PORT:
        raise Invalid(f"{shown(value)} is not host:port", 'Write it like "0.0.0.0:8080"')
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise Invalid(f"{shown(value)} is not host:port", 'Put an IPv6 address in brackets: "[::1]:8080"')
    return Bind(host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port))  # noqa: S104 - asked for


_LAST_PORT = 65_535
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", re.ASCII)


def broker(value: object, folder: Path) -> Url:
    """``embedded:``, ``kafka://host:port,host:port``, ``kinesis://region``, or where logs lie (:func:`lake`)."""
    fix = (
        'Write "embedded:", "kafka://host:9092,other:9092", "kinesis://eu-central-1", "s3://bucket/prefix" '
        'or "file:///folder"'
    )
    url = _url(value, folder, ("embedded", "kafka", "kinesis", "s3", "file"), fix)
    if url.scheme in {"s3", "file"}:
        place = lake(value, folder)
        # To S3 a prefix is a text: "alb" has "alb-old/" too, "alb/" has not.
        below = url.scheme == "s3" and url.rest.endswith("/") and "/" in place.rest
        return Url(f"{place.reveal()}/") if below else place
    if url.scheme == "kinesis":
        region = url.rest.rstrip("/")
        if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}", region, re.ASCII):
            raise Invalid(f"{shown(str(url))} names no AWS region", fix)
        return Url(f"kinesis://{region}")
    if url.scheme == "kafka":
        if "@" in url.rest:
            raise Invalid("holds a user or password", "Put them in kafka.username and kafka.password")
        servers = url.rest.rstrip("/").split(",")
        if not all(_SERVER.fullmatch(server) for server in servers):
            raise Invalid(f"{shown(str(url))} does not name each server as host:port", fix)
        if over := [port for server in servers if int(port := server.rpartition(":")[2]) > _LAST_PORT]:
            raise Invalid(f"{shown(str(url))}: there is no port {over[0]}", f"Ports go to {_LAST_PORT:,}")
        return Url("kafka://" + ",".join(servers))
    return url


def postgres(value: object, folder: Path) -> Url:
    """``embedded:`` or ``postgresql://user:password@host:port/database``."""
    return _postgres(_url(value, folder, ("embedded", "postgresql", "postgres"), _POSTGRES_FIX))


def warehouse(value: object, folder: Path) -> Url:
    """``none``, ``embedded:`` (beside the ledger), ``postgresql://…`` or a Redshift (:mod:`.redshift`)."""
    fix = f'{_POSTGRES_FIX}, "none", or a Redshift as docs/redshift.md says'
    schemes = ("none", "embedded", "postgresql", "postgres", *redshift.SCHEMES)
    url = _url(value, folder, schemes, fix)
    if url.scheme in redshift.SCHEMES:
        redshift.parse_redshift(url.reveal())
        return url
    return _postgres(url)


_POSTGRES_FIX = 'Write "embedded:" or "postgresql://user@host:5432/database"'


def _postgres(url: Url) -> Url:
    if url.scheme == "postgres":
        url = Url("postgresql" + url.reveal()[len("postgres") :])
    if url.scheme == "postgresql":
        authority, _, rest = url.rest.partition("/")
        if not authority.rpartition("@")[2] and "host=" not in rest and "service=" not in url.rest:
            raise Invalid(f"{shown(str(url))} names no server", _POSTGRES_FIX)
    return url


def lake(value: object, folder: Path) -> Url:
    """``file:///folder`` or ``s3://bucket/prefix``."""
    fix = 'Write "file:///folder" or "s3://bucket/prefix"'
    url = _url(value, folder, ("file", "s3"), fix)
    if url.scheme == "file" and not re.fullmatch(r"file:///[^/].*", url.reveal()):
        raise Invalid(f"{shown(str(url))} is not an absolute folder", "Write three slashes: file:///var/lake")
    if url.scheme == "s3" and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", url.rest, re.ASCII):
        raise Invalid(f"{shown(str(url))} names no bucket", fix)
    return Url(url.reveal().rstrip("/"))


def web_address(value: object, folder: Path) -> str:
    """``http://…`` or ``https://…``."""
    word = text(value, folder)
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", word):
        raise Invalid(f"{shown(word)} is not a web address", 'Write it like "https://s3.example.org"')
    return word.rstrip("/")


def _url(value: object, folder: Path, schemes: tuple[str, ...], fix: str) -> Url:
    url = Url(text(value, folder))
    # What is wrong is not quoted from here on: a password with a slip in front of it is still a password.
    if url.scheme not in schemes:
        raise Invalid("has none of the schemes it may have", fix)
    if url.scheme in {"embedded", "none"}:
        if url.rest:
            raise Invalid(f'"{url.scheme}" takes nothing behind it', f'Write "{_BARE[url.scheme]}"')
        return Url(_BARE[url.scheme])
    if "://" not in url.reveal():
        raise Invalid(f'has no "//" behind "{url.scheme}:"', fix)
    compact = re.sub(r",\s+", ",", url.reveal())  # "a:9092, b:9092" is how people write lists
    if any(character.isspace() for character in compact):
        raise Invalid("holds a space", "Write %20 where a space is meant")
    return Url(compact)


_BARE = {"embedded": "embedded:", "none": "none"}
