"""How a Redshift warehouse is named.

::

    redshift-data://workgroup/<workgroup>/<database>?region=…&iam_role=…
    redshift-data://cluster/<cluster>/<database>?region=…&iam_role=…&user=…
    redshift://<user>:<password>@<host>:5439/<database>?iam_role=…

The first two go through the Data API, the last through a connection. ``iam_role`` is the role by which
Redshift reads the lake, ``default`` when it is left out. Who one is in the database follows from the AWS
credentials in use, or is said by ``user`` (a cluster's database user) or ``secret`` (the ARN of a secret in
Secrets Manager).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from streamproc.quantities import Invalid
from streamproc.redaction import Secret

SCHEMES = ("redshift-data", "redshift")

FIX = (
    'Write "redshift-data://workgroup/name/database?region=eu-central-1&iam_role=arn:aws:iam::123456789012:role/copy", '
    '"redshift-data://cluster/name/database" or "redshift://user:password@host:5439/database"'
)

_ROLE = re.compile(r"default|(arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512})", re.ASCII)
_SECRET = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[\w/+=.@-]+", re.ASCII)
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}", re.ASCII)
_NAMES = {"workgroup": re.compile(r"[a-z0-9-]{3,64}"), "cluster": re.compile(r"[a-z][a-z0-9-]{0,62}")}
_DATABASE = re.compile(r"[\w$-]{1,127}", re.ASCII)
_USER = re.compile(r"[\w+.@:$-]{1,127}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}", re.ASCII)

#: What a connection may verify of the server's certificate. ``disable`` is for a tunnel or a test server.
_SSLMODES = ("verify-full", "verify-ca", "disable")


@dataclass(frozen=True, slots=True)
class DataApi:
    """A database behind the Data API: ``workgroup`` (Serverless) or ``cluster``, the other is ``None``."""

    database: str
    workgroup: str | None
    cluster: str | None
    iam_role: str = "default"
    region: str | None = None
    user: str | None = None
    secret: str | None = None


@dataclass(frozen=True, slots=True)
class Direct:
    """A database one connects to."""

    database: str
    host: str
    port: int
    user: str
    password: Secret = field(default_factory=lambda: Secret(""))
    iam_role: str = "default"
    sslmode: str = "verify-full"


def parse_redshift(url: str) -> DataApi | Direct:
    """Read the URL. Raises :class:`Invalid`, whose text quotes nothing of it but the names of parameters."""
    try:
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        port = parts.port
    except ValueError:
        raise Invalid("is not a URL", FIX) from None
    if parts.fragment:
        raise Invalid("has a #; write %23 for one in a password", FIX)
    options = _Options(given)
    if parts.scheme == "redshift-data":
        return _data_api(parts.netloc, parts.path, options)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    database = unquote(parts.path.removeprefix("/"))
    if not parts.hostname or not _HOST.fullmatch(parts.hostname) or not _DATABASE.fullmatch(database):
        raise Invalid("names no host or no database", FIX)
    if not _USER.fullmatch(user):
        raise Invalid("names no user", FIX)
    sslmode = options.take("sslmode", re.compile("|".join(_SSLMODES))) or "verify-full"
    role = options.take("iam_role", _ROLE) or "default"
    options.finish()
    return Direct(database, parts.hostname, port or 5439, user, Secret(password), role, sslmode)


def _data_api(kind: str, path: str, options: _Options) -> DataApi:
    names = path.strip("/").split("/")
    if kind not in _NAMES or len(names) != 2:
        raise Invalid("names no workgroup or cluster and its database", FIX)
    name, database = map(unquote, names)
    if not _NAMES[kind].fullmatch(name):
        raise Invalid(f"has no name of a {kind}", FIX)
    if not _DATABASE.fullmatch(database):
        raise Invalid("has no name of a database", FIX)
    found = DataApi(
        database,
        workgroup=name if kind == "workgroup" else None,
        cluster=name if kind == "cluster" else None,
        iam_role=options.take("iam_role", _ROLE) or "default",
        region=options.take("region", _REGION),
        user=options.take("user", _USER) if kind == "cluster" else None,
        secret=options.take("secret", _SECRET),
    )
    options.finish()
    if found.user and found.secret:
        raise Invalid("has both user and secret", "Name one: the secret holds its user")
    return found


class _Options:
    """The parameters after ``?``, each taken once."""

    def __init__(self, given: dict[str, str]) -> None:
        self._left = given

    def take(self, name: str, allowed: re.Pattern[str]) -> str | None:
        value = self._left.pop(name, None)
        if value is not None and not allowed.fullmatch(value):
            raise Invalid(f"has a {name} that cannot be one", FIX)
        return value

    def finish(self) -> None:
        if self._left:
            raise Invalid(f"has unknown parameters: {', '.join(sorted(self._left))}", FIX)
