"""Amazon's client for whoever speaks S3's protocol: one configuration, and its errors as this project's.

Importing it takes a second. Credentials come from the standard AWS environment: variables, profile, container
or instance role.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from aiobotocore.config import AioConfig
from aiohttp import ClientError as ConnectionBroken
from botocore.exceptions import BotoCoreError, ClientError

from streamproc.errors import DependencyError

#: What to look at, by error code, whatever is asked for.
_HINTS = {
    "ExpiredToken": "the credentials have expired",
    "InvalidAccessKeyId": "the access key is not known there; is the endpoint right?",
    "SignatureDoesNotMatch": "the secret key is wrong, or the clock is",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    "EndpointConnectionError": "is the endpoint reachable? Is s3.endpoint_url, or AWS_ENDPOINT_URL, right?",
    "NoRegionError": "set AWS_DEFAULT_REGION",
}


def s3_config(endpoint_url: str | None, *, attempts: int, connections: int) -> AioConfig:
    """How to ask. ``attempts``: requests until a store counts as away; ``connections``: at a time."""
    named = endpoint_url or any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    return AioConfig(
        # "standard" waits with exponential backoff and full jitter, at most 20 s, and retries
        # throttling, 5xx and lost connections.
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=connections,
        # Buckets as host names need a wildcard DNS entry, which S3 has and its stand-ins have not.
        s3={"addressing_style": "path" if named else "auto"},
    )


def error_code(error: ClientError) -> str:
    """What the service calls it."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def speaking(
    place: str,
    operation: str,
    hints: Mapping[str, str],
    refused: Callable[[str, str], Exception | None] = lambda code, message: None,
) -> Iterator[None]:
    """Turn the client's exceptions into :class:`DependencyError`.

    ``hints``: what to look at, by error code, before the usual. ``refused``: makes another exception of code
    and message, or ``None``.
    """
    known = {**_HINTS, **hints}
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        message = str(error.response.get("Error", {}).get("Message", ""))
        if (other := refused(code, message)) is not None:
            raise other from error
        raise DependencyError(
            place, f"{operation}: {code} {message}".rstrip(), known.get(code, "")
        ) from error
    # Of a connection that breaks in the middle of an answer the client tells by its HTTP library's own error.
    except (BotoCoreError, ConnectionBroken, OSError, TimeoutError) as error:
        name = type(error).__name__
        raise DependencyError(place, f"{operation}: {name}: {error}", known.get(name, "")) from error
