"""How to reach a Kafka cluster, as the keyword arguments of aiokafka's clients."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.model import Partition
from streamproc.redaction import Secret

if TYPE_CHECKING:
    from streamproc.redaction import Url
    from streamproc.settings import Kafka

#: Hexadecimal digits of an incarnation that go into partition ids.
_INCARNATION_DIGITS = 8

#: Seconds before its end at which an IAM token is replaced; it is valid for 15 minutes.
_TOKEN_MARGIN = 60.0


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """Where the brokers are and how to prove who we are.

    ``bootstrap``: ``host:port,host:port``. ``security_protocol``: ``PLAINTEXT``, ``SSL``,
    ``SASL_PLAINTEXT`` or ``SASL_SSL``; with TLS the broker's certificate and name are always checked,
    against ``ca_file`` (PEM) or the system's authorities. ``cert_file`` and ``key_file``: this client's own
    certificate. ``sasl_mechanism``: ``PLAIN``, ``SCRAM-SHA-256``, ``SCRAM-SHA-512``, or ``AWS_MSK_IAM``
    with the cluster's ``aws_region`` and credentials as AWS's tools find them. ``embedded``: it is the
    broker of :mod:`streamproc.embedded.broker`, which gives aiokafka's producers no ids and answers a group's
    join only after half the session timeout. ``incarnation``: names the life of a broker whose logs end with
    it (see :meth:`partition`); ``None`` for one that keeps them. Prints without the password.
    """

    bootstrap: str
    security_protocol: str = "PLAINTEXT"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    sasl_mechanism: str | None = None
    username: str | None = None
    password: Secret | None = None
    aws_region: str | None = None
    embedded: bool = False
    incarnation: str | None = None

    @classmethod
    def of(cls, broker: Url, kafka: Kafka) -> Self:
        """The connection that the settings ``broker`` (``kafka://host:port,…``) and ``kafka.*`` describe."""
        return cls(
            broker.rest.rstrip("/"),
            kafka.security_protocol,
            ca_file=kafka.ca_file,
            cert_file=kafka.cert_file,
            key_file=kafka.key_file,
            sasl_mechanism=kafka.sasl_mechanism,
            username=kafka.username,
            password=kafka.password,
            aws_region=kafka.aws_region,
        )

    def __str__(self) -> str:
        return f"Kafka at {self.bootstrap}"

    def partition(self, topic: str, number: int) -> Partition:
        """Partition ``number`` of the topic, as ledger and lake name it.

        The number is its id. With an ``incarnation`` the id begins with a part of that, ``3fa9c2d1.0``: the
        same positions mean other records in the next life, and must not be taken for those of this one.
        """
        return Partition(topic, f"{self._prefix}{number}")

    def number(self, partition_id: str) -> int | None:
        """The number of one of this broker's partitions; ``None`` for an id of another broker's life."""
        number = partition_id.removeprefix(self._prefix)
        mine = partition_id.startswith(self._prefix) and number.isascii() and number.isdecimal()
        return int(number) if mine else None

    def serves(self, partition_id: str) -> bool:
        """Whether the partition is one of this broker's, and not of another broker's life."""
        return self.number(partition_id) is not None

    @property
    def _prefix(self) -> str:
        return "" if self.incarnation is None else f"{self.incarnation[:_INCARNATION_DIGITS]}."

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client.

        Raises :class:`ConfigError` when a certificate or key cannot be used, or the IAM signer is missing.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._tls()
        if self.security_protocol.startswith("SASL"):
            options |= self._sasl()
        return options

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(f) for f in (self.ca_file, self.cert_file, self.key_file) if f is not None)
            fix = "Give PEM files; the key must belong to the certificate and not be encrypted"
            raise ConfigError([Mistake("kafka", f"{files} cannot be used: {error}", fix)]) from error
        return context

    def _sasl(self) -> dict[str, Any]:
        if self.sasl_mechanism == "AWS_MSK_IAM":
            assert self.aws_region is not None, "the settings demand it"
            return {
                "sasl_mechanism": "OAUTHBEARER",
                "sasl_oauth_token_provider": MskIamTokens(self.aws_region),
            }
        return {
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password.reveal() if self.password else None,
        }


def words(error: BaseException) -> str:
    """A failure of aiokafka for a person: what it says, else its class."""
    said = str(error)  # of brokers that do not answer it is Python's address families
    return "no broker answers" if "Unable to bootstrap" in said else said or type(error).__name__


class NoToken(DependencyError, KafkaConnectionError):  # type: ignore[misc]  # aiokafka ships no types
    """There are no AWS credentials any more for a client that is at work.

    To aiokafka it is a connection that failed, which it tries again. Of whatever else a provider of tokens raises its
    background tasks end: the one that learns of brokers and partitions does so without a word, and for good.
    """

    def __str__(self) -> str:
        return Exception.__str__(self)  # without the name of the class, which aiokafka puts before it


class MskIamTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """IAM tokens for Amazon MSK, signed locally from the AWS credentials of the environment or the role."""

    def __init__(self, region: str) -> None:
        try:
            from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # noqa: PLC0415 - an extra
        except ImportError as error:
            fix = "Install streamproc[msk]"
            problem = "AWS_MSK_IAM needs the package aws-msk-iam-sasl-signer-python"
            raise ConfigError([Mistake("kafka.sasl_mechanism", problem, fix)]) from error
        self._sign = MSKAuthTokenProvider.generate_auth_token
        self._region = region
        self._token = ""
        self._expires = 0.0
        self._signing = asyncio.Lock()

    async def token(self) -> str:
        """A token that is valid for a minute at least; asked for at each new connection.

        Raises :class:`DependencyError` when there are no credentials, :class:`NoToken` when there were some before: who
        connects is to hear why, and aiokafka would keep that from them.
        """
        async with self._signing:
            if time.time() > self._expires - _TOKEN_MARGIN:
                try:
                    # Finding credentials may ask an instance's metadata server: not on the event loop.
                    token, expires_ms = await asyncio.to_thread(self._sign, self._region)
                except Exception as error:  # the signer raises botocore's errors and its own bare ones
                    missing = NoToken if self._token else DependencyError
                    raise missing(
                        "AWS credentials", f"cannot sign in to MSK: {error}", "see the AWS credential chain"
                    ) from error
                self._token, self._expires = token, expires_ms / 1000
            return self._token
