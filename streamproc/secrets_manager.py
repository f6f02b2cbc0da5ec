"""Passwords that AWS Secrets Manager keeps, for a process that nobody hands a secret file."""

from __future__ import annotations

from urllib.parse import quote

import orjson
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from streamproc.errors import ConfigError, Mistake
from streamproc.redaction import Url
from streamproc.s3_client import speaking

_HINTS = {
    "AccessDeniedException": "the role needs secretsmanager:GetSecretValue for it, and kms:Decrypt for its key",
    "ResourceNotFoundException": "is function.ledger_secret right, and the region?",
}


async def secret_url(url: Url, secret: str, region: str | None) -> Url:
    """The database's URL by the secret of that name or ARN: a URL itself, or user and password for ``url``.

    The second is what RDS writes, https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html.
    Raises :class:`DependencyError` when it cannot be read and :class:`ConfigError` when it is neither.
    """
    place = f"secret {secret}"
    # An ARN names its region: arn:aws:secretsmanager:REGION:…
    region = secret.split(":")[3] if secret.startswith("arn:") else region
    config = AioConfig(connect_timeout=5, read_timeout=5, retries={"mode": "standard"})
    with speaking(place, "read", _HINTS):
        async with get_session().create_client("secretsmanager", region_name=region, config=config) as client:
            value: str = (await client.get_secret_value(SecretId=secret)).get("SecretString", "")
    found = filled_in(url, value)
    if found is None:
        fix = "Keep the ledger's URL in it, or username and password as JSON and the rest in ledger"
        raise ConfigError([Mistake("function.ledger_secret", "holds neither a URL nor a password", fix)])
    return found


def filled_in(url: Url, value: str) -> Url | None:
    """See :func:`secret_url`; ``None`` when the value is neither. No exception is chained: it would quote the value."""
    if value.startswith(("postgresql://", "postgres://")):
        return Url("postgresql://" + value.strip().partition("://")[2])
    try:
        found = orjson.loads(value)
        user, password = quote(found["username"], safe=""), quote(found["password"], safe="")
    except (ValueError, TypeError, KeyError):
        return None
    if url.scheme == "postgresql":
        return Url(f"postgresql://{user}:{password}@{url.rest.rpartition('@')[2]}")
    try:
        where = f"{found['host']}:{int(found.get('port', 5432))}/{quote(found['dbname'], safe='')}"
    except (ValueError, TypeError, KeyError):
        return None
    return Url(f"postgresql://{user}:{password}@{where}")
