"""The settings ``quicksight.*``: where QuickSight finds the tables, and who may see what it makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from streamproc.quantities import Invalid, shown
from streamproc.redaction import Url
from streamproc.settings import parse
from streamproc.settings.setting import Setting

_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]{0,254}"
_DATABASE = r"[A-Za-z0-9_$-]{1,128}"
_SOURCES = {
    "aurora-postgresql": rf"{_HOST}:[0-9]{{1,5}}/{_DATABASE}",
    "postgresql": rf"{_HOST}:[0-9]{{1,5}}/{_DATABASE}",
    "rds": rf"[A-Za-z][A-Za-z0-9-]{{0,62}}/{_DATABASE}",
    "redshift": rf"{_HOST}:[0-9]{{1,5}}/{_DATABASE}",
    "redshift-cluster": rf"[a-z][a-z0-9-]{{0,62}}/{_DATABASE}",
}
_SUMMARIES = ("aurora-postgresql", "postgresql", "rds")
_WAREHOUSE = ("redshift", "redshift-cluster", "postgresql", "aurora-postgresql", "rds")

#: QuickSight's own patterns (``CredentialPair`` and others of its service model), one service each.
_ARN = r"arn:aws[a-z0-9-]*:{service}:[a-z0-9-]+:[0-9]{{12}}:{resource}"
_SECRET = _ARN.format(service="secretsmanager", resource=r"secret:\S{1,512}")
_VPC_CONNECTION = _ARN.format(service="quicksight", resource=r"vpcConnection/[\w-]{1,1000}")
_PRINCIPAL = _ARN.format(service="quicksight", resource=r"(user|group|namespace)/\S{1,200}")


def source(*schemes: str) -> Callable[[object, Path], Url]:
    """Where a database is, without user and password, which the secret holds."""

    def parsed(value: object, folder: Path) -> Url:
        url = Url(parse.text(value, folder))
        fix = f'Write it like "{schemes[0]}://host:5432/database", without user and password'
        if url.scheme not in schemes:
            raise Invalid(f"has none of the schemes {', '.join(schemes)}", fix)
        if not re.fullmatch(_SOURCES[url.scheme], url.rest, re.ASCII):
            raise Invalid("does not name server and database", fix)
        return url

    return parsed


def warehouse_source(value: object, folder: Path) -> Url:
    """``none``, or where Redshift is."""
    return Url("none") if value == "none" else source(*_WAREHOUSE)(value, folder)


def arn(pattern: str, example: str) -> parse.Parse:
    """One ARN."""

    def parsed(value: object, folder: Path) -> str:
        word = parse.text(value, folder)
        if not re.fullmatch(pattern, word, re.ASCII):
            # Not quoted: in the place of a secret's ARN somebody may write the secret.
            raise Invalid("is not such an ARN", f"Write it like {example}")
        return word

    return parsed


def account(value: object, folder: Path) -> str:
    """An account's twelve digits; in TOML in quotes, because of leading zeros."""
    word = parse.text(value, folder)
    if not re.fullmatch(r"[0-9]{12}", word, re.ASCII):
        raise Invalid(f"{shown(word)} is not an account", 'Write its twelve digits in quotes: "012345678901"')
    return word


def principals(value: object, folder: Path) -> tuple[str, ...]:
    """ARNs of users and groups, separated by commas, or a TOML list of them."""
    words = value if isinstance(value, list) else parse.text(value, folder).split(",")
    one = arn(_PRINCIPAL, "arn:aws:quicksight:eu-central-1:012345678901:group/default/analysts")
    return tuple(str(one(word, folder)) for word in words)


def tags(value: object, folder: Path) -> tuple[tuple[str, str], ...]:
    """``key=value,key=value``."""
    pairs = []
    for pair in parse.text(value, folder).split(","):
        key, equals, content = (part.strip() for part in pair.partition("="))
        if not equals or not re.fullmatch(r"[\w .:/+@-]{1,128}", key) or not 1 <= len(content) <= 256:
            raise Invalid(f"{shown(pair)} is not a tag", 'Write tags like "team=web,environment=production"')
        if key.startswith(("aws:", "streamproc:")):
            raise Invalid(f"{shown(key)} begins with a reserved prefix", "Choose another key")
        pairs.append((key, content))
    return tuple(sorted(pairs))


def prefix(value: object, folder: Path) -> str:
    """What ids begin with."""
    word = parse.text(value, folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", word, re.ASCII):
        raise Invalid(f"{shown(word)} cannot begin an id", "Use letters, digits, _ and -, at most 40")
    return word


def time_of_day(value: object, folder: Path) -> str:
    """``HH:MM``."""
    word = parse.text(value, folder)
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", word, re.ASCII):
        raise Invalid(f"{shown(word)} is not a time of day", 'Write it like "03:00"')
    return word


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickSight:
    """What ``streamproc quicksight`` publishes. Credentials come from the usual AWS places."""

    account: Annotated[
        str | None,
        Setting(account, None, "AWS account, twelve digits", computed="that of the credentials"),
    ]
    region: Annotated[
        str | None,
        Setting(
            parse.identifier,
            None,
            "Region of QuickSight's data sets and dashboards",
            computed="the AWS profile's",
        ),
    ]
    endpoint_url: Annotated[
        str | None,
        Setting(parse.web_address, None, "Another server that speaks QuickSight", computed="Amazon's"),
    ]
    prefix: Annotated[
        str,
        Setting(
            prefix,
            "streamproc",
            "What the ids of everything that is published begin with: one for each environment of an account",
        ),
    ]
    summaries: Annotated[
        Url | None,
        Setting(
            source(*_SUMMARIES),
            None,
            "Where QuickSight finds the tables: `aurora-postgresql://host:5432/database`, `postgresql://…` or "
            "`rds://instance/database`",
        ),
    ]
    summaries_secret: Annotated[
        str | None,
        Setting(
            arn(_SECRET, "arn:aws:secretsmanager:eu-central-1:012345678901:secret:tables-AbCdEf"),
            None,
            "ARN of the secret with the user and password that QuickSight reads the tables with",
        ),
    ]
    warehouse: Annotated[
        Url,
        Setting(
            warehouse_source,
            "none",
            "Where QuickSight finds the events: `redshift://host:5439/database`, `redshift-cluster://id/database`, "
            "a PostgreSQL like `quicksight.summaries`, or `none`",
        ),
    ]
    warehouse_secret: Annotated[
        str | None,
        Setting(
            arn(_SECRET, "arn:aws:secretsmanager:eu-central-1:012345678901:secret:events-AbCdEf"),
            None,
            "ARN of the secret with the user and password that QuickSight reads the events with",
        ),
    ]
    vpc_connection: Annotated[
        str | None,
        Setting(
            arn(_VPC_CONNECTION, "arn:aws:quicksight:eu-central-1:012345678901:vpcConnection/private"),
            None,
            "ARN of the VPC connection by which QuickSight reaches both; without it they have to be public",
        ),
    ]
    owners: Annotated[
        tuple[str, ...] | None,
        Setting(
            principals,
            None,
            "ARNs of users and groups that may change what is published, separated by commas",
        ),
    ]
    viewers: Annotated[
        tuple[str, ...] | None,
        Setting(
            principals, None, "ARNs of users and groups that may see the dashboards, separated by commas"
        ),
    ]
    refresh: Annotated[
        str,
        Setting(
            parse.one_of("15m", "30m", "1h", "1d"),
            "1h",
            "How often new rows are imported: `15m`, `30m`, `1h`, `1d`",
        ),
    ]
    full_refresh_at: Annotated[
        str,
        Setting(time_of_day, "03:00", "Time of day, in UTC, at which all rows are imported anew"),
    ]
    tags: Annotated[
        tuple[tuple[str, str], ...] | None,
        Setting(tags, None, "Tags of everything that is published, like `team=web,environment=production`"),
    ]
